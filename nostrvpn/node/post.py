"""The node's post: what it sends and gets through relays, under which mailboxes and keys.

Joins the courier (sealing, acceptance rules), the boards, the keeper of keys and the relay pool. Knows
message types, not what they mean.

What is read follows from the keys held, not from the number of peers: ``signaling/directory`` says which
mailboxes, and beside those the network's board for each key and day that counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Moment, Tick, earliest
from nostrvpn.node.events import Log, NodeEffect, Persist
from nostrvpn.nostr.event import Event
from nostrvpn.signaling.board import Board, Posting
from nostrvpn.signaling.courier import Courier, Delivery
from nostrvpn.signaling.directory import Directory, Listening
from nostrvpn.signaling.keeper import Keeper
from nostrvpn.signaling.lanes import Lanes
from nostrvpn.signaling.mailboxes import invite_mailbox, token_mailbox
from nostrvpn.signaling.messages import Message, MessageType, parse_message, render_message
from nostrvpn.signaling.network_key import Keyring, NetworkKey
from nostrvpn.signaling.noticeboard import Notice, Noticeboard, post_notice
from nostrvpn.signaling.pair_secret import SayKeys
from nostrvpn.signaling.ratchet import DAY_S, OVERLAP_S
from nostrvpn.signaling.rekey import open_rekey, rekey_bodies
from nostrvpn.signaling.relays import (
    Listen,
    Publish,
    Published,
    Received,
    RelayEffect,
    RelayEvent,
    RelayStateChanged,
    UseRelays,
)

__all__ = ["Post"]

# Sequence numbers are reserved in blocks, so that not each message costs a write: after a crash the
# node goes on above the block, never below a number it may have used.
SEQ_BLOCK = 60_000
# Relays beyond the configured ones: a link names at most six.
MAX_EXTRA_RELAYS = 6
# A command waits for what it published itself, so the latest are enough.
MAX_TAKEN = 256
# Keys of days that were missed are let go when a relay was connected for so long: what waited there
# has come by then.
CATCH_UP_S = 600.0


class Post:
    """Sending and receiving for one node. Methods return effects; received messages queue up."""

    def __init__(
        self,
        secret: RootSecret,
        relays: tuple[str, ...],
        active: int,
        reserved_seq: int,
        stored: Mapping[str, object] | None = None,
        *,
        is_isolated: bool = False,
    ) -> None:
        """``stored`` are the records of space "keys"; ``is_isolated``: there is a proxy."""
        self._me = secret.public_key
        self._reserved = reserved_seq
        self._keeper = Keeper(self._me, stored or {})
        pairs = self._keeper.pairs
        self._courier = Courier(secret.reveal(), self._me, reserved_seq, pairs)
        self._courier.ephemeral = self._keeper.ephemeral
        self._board = Board(secret.reveal(), self._me)
        self._directory = Directory(self._me, self._courier, self._keeper)
        self._rotate_at: float | None = None
        self._connected_since: float | None = None
        self._tokens = 0
        # Publications that somebody may wait for: not answered yet, and lately taken by a relay.
        self._under_way: set[str] = set()
        self._taken: deque[str] = deque(maxlen=MAX_TAKEN)
        self._configured = relays
        # Relays that others named come first, since they listen there; but however many they name,
        # one of the configured ones stays in use: nobody else shall hold all our post.
        self._foremost = max(1, active - 1)
        self._extra: tuple[str, ...] = ()
        self.pool = Lanes(relays, active=active, is_isolated=is_isolated)
        self.deliveries: list[Delivery] = []
        self.postings: list[Posting] = []
        self._noticeboard = Noticeboard()
        self._reads_notices = False
        self.notices: list[Notice] = []

    @property
    def keyring(self) -> Keyring:
        """The network keys held."""
        return self._keeper.keyring

    @property
    def damaged(self) -> list[str]:
        """What of the stored keys could not be used, in sentences."""
        return self._keeper.damaged

    @property
    def dropped(self) -> dict[str, int]:
        """Received messages that were dropped, by reason."""
        return dict(self._courier.dropped + self._board.dropped + self._noticeboard.dropped)

    @property
    def clock_offsets(self) -> dict[str, float]:
        """Senders whose messages were refused for their date, with the seconds they were off."""
        return self._courier.clock_offsets

    @property
    def deadline(self) -> float | None:
        """When a Tick is due (Moment.now)."""
        return earliest(self.pool.deadline, self._rotate_at, self._keeper.pairs.deadline)

    # -- keys -------------------------------------------------------------------------------

    def new_key(self, key_id: str, moment: Moment) -> NetworkKey:
        """Return a new network key, not in use yet, by the id that an operation names."""
        return self._keeper.make(key_id, moment)

    def keep_key(self, key: NetworkKey, moment: Moment) -> list[NodeEffect]:
        """Have ``key`` stored as the newest; it is read from the next ``listen`` on."""
        self._keeper.adopt(key, moment.wall)
        return self._saved()

    def use_key(self, key: NetworkKey, moment: Moment) -> list[NodeEffect]:
        """Write under this network key from now on; the one before is read on for a while."""
        return [*self.keep_key(key, moment), *self._renew(moment)]

    def settle_key(self, key_id: str, moment: Moment) -> list[NodeEffect]:
        """Of several keys that are held use this one, which the roster names; store what changes."""
        key, current = self.keyring.get(key_id), self.keyring.current
        if key is None or current is None or key.id == current.id:
            return []
        return self.keep_key(key, moment)

    def leave_network(self, moment: Moment) -> list[NodeEffect]:
        """Delete every key: this node is in no network any more."""
        self._keeper.leave()
        return self.listen(Listening(invites=self._directory.listening.invites), moment)

    def rekey_parts(
        self, key: NetworkKey, recipients: frozenset[str], under: NetworkKey
    ) -> Iterator[dict[str, object]]:
        """Yield what NEWS (``rekey``) say ``under`` the key before to hand ``key`` to ``recipients``."""
        board = under.at(max(under.day, key.day)).board()
        secrets = self._courier.entry_keys(recipients - {self._me}, board)
        return rekey_bodies(key, secrets)

    def open_rekey(self, author: str, key_id: str, body: object) -> NetworkKey | None:
        """Return the new key that ``author`` hands to this node, None if there is no entry for it.

        ``key_id``: under which key it was said. PeerMisbehaved if there are no entries. Whether the
        author may do so, the roster says; then ``use_key``.
        """
        under, day = self.keyring.get(key_id), body.get("day") if isinstance(body, dict) else None
        if under is None or type(day) is not int or not under.day <= day <= under.day + 60:
            raise PeerMisbehaved("bad_rekey", "a new key under a key or of a day that is not held")
        board = under.at(day).board()
        return open_rekey(body, self._me, self._courier.entry_keys_of(author, board))

    def tunnel_up(self, peer: str, moment: Moment) -> list[NodeEffect]:
        """Begin to agree on the pair's secret, if it is time; ``take_says`` has what to send."""
        self._keeper.apply(self._keeper.pairs.begin(peer, moment))
        return self._saved()

    def hear_keys(self, peer: str, body: dict[str, object], moment: Moment) -> list[NodeEffect]:
        """Take a KEYS message that came through the tunnel; PeerMisbehaved if it is none."""
        self._keeper.apply(self._keeper.pairs.on_message(peer, body, moment))
        return self._saved()

    def take_says(self) -> list[SayKeys]:
        """Return, once, the KEYS messages that are to go through tunnels."""
        says, self._keeper.says = self._keeper.says, []
        return says

    def _saved(self) -> list[NodeEffect]:
        self._keeper.apply(self._courier.learned)
        self._courier.learned.clear()
        self._courier.ephemeral = self._keeper.ephemeral
        saves, self._keeper.saves = self._keeper.saves, []
        return [Persist("keys", save.key, save.value) for save in saves]

    # -- reading ----------------------------------------------------------------------------

    def listen(self, wanted: Listening, moment: Moment) -> list[NodeEffect]:
        """Listen to this, and to nothing else; adopt the key of a welcome that was accepted."""
        self._directory.listen(wanted, moment.wall)
        return self._renew(moment)

    def _renew(self, moment: Moment, *, is_urgent: bool = True) -> list[NodeEffect]:
        """Move the keys to today, and subscribe to the mailboxes that follow."""
        self._keeper.advance(moment.wall, caught_up=self._is_caught_up(moment.now))
        reading = self.keyring.reading(moment.wall)
        mailboxes = self._directory.reading(moment.wall)
        self._courier.listen({mailbox.public_key: mailbox for mailbox in mailboxes})
        boards = [key.board() for key in reading]
        self._board.open(boards, self._directory.listening.members)
        secrets = {mailbox.public_key: mailbox.secret for mailbox in mailboxes + boards}
        if self._reads_notices:
            # Without a secret: nobody shall authenticate as the owner of what everybody owns.
            secrets |= dict.fromkeys(self._noticeboard.open(moment.wall), b"")
        self._plan(moment)
        effects = self._saved()
        return effects + self.relay_event(Listen(secrets, is_urgent), moment)

    def _is_caught_up(self, now: float) -> bool:
        since = self._connected_since
        return since is not None and now - since >= CATCH_UP_S

    def _plan(self, moment: Moment) -> None:
        # The set changes twice around midnight UTC (see ratchet.days_around).
        to_change = min((edge - moment.wall) % DAY_S or DAY_S for edge in (OVERLAP_S, -OVERLAP_S))
        self._rotate_at = moment.now + to_change + 1
        if self.keyring.lag(moment.wall) and self._connected_since is not None:
            caught_up_at = max(moment.now + 1, self._connected_since + CATCH_UP_S)
            self._rotate_at = min(self._rotate_at, caught_up_at)

    def read_board(self, wanted: bool, moment: Moment) -> list[NodeEffect]:
        """Read the public noticeboard from now on, or stop: ``notices`` queue up."""
        if wanted == self._reads_notices:
            return []
        self._reads_notices = wanted
        self._noticeboard.close()
        return self._renew(moment)

    # -- writing ----------------------------------------------------------------------------

    def put_up(
        self, secret: bytes, body: dict[str, object], moment: Moment, *, expires_s: int
    ) -> list[NodeEffect]:
        """Put a notice up, by the author with this secret."""
        wraps = post_notice(secret, body, moment, expires_s=expires_s)
        self._tokens += 1
        return self.relay_event(Publish(f"notice-{self._tokens}", wraps), moment)

    def tell_all(
        self,
        kind: MessageType,
        network_id: str,
        body: dict[str, object],
        moment: Moment,
        under: NetworkKey | None = None,
    ) -> list[NodeEffect]:
        """Put PRESENCE or NEWS on the board ``under`` a key (the one in use); nothing without any."""
        key = under or self.keyring.writing
        if key is None:
            return []
        message, effects = self._message(kind, network_id, body, moment)
        try:
            wraps = self._board.post(self.keyring.today(key, moment.wall).board(), message, moment)
        except ValueError as exc:
            return [*effects, Log("error", f"a {kind.value} message could not be sealed: {exc}")]
        return effects + self._publish(kind, wraps, moment)

    def send(
        self,
        recipient: str,
        kind: MessageType,
        network_id: str,
        body: dict[str, object],
        moment: Moment,
        *,
        expires_s: int | None = None,
        invite: bytes | None = None,
        token: bytes | None = None,
    ) -> list[NodeEffect]:
        """Seal and publish one message.

        A JOIN goes to the mailbox of the ``invite`` or ``token`` whose secret is given, and says to
        which key the welcome is to be sealed; a WELCOME goes back sealed so, and brings the network
        key. What is between members goes to the recipient's inbox.
        """
        if kind is MessageType.JOIN:
            body = body | {"eph": self._keeper.begin_application(moment).hex()}
        elif kind is MessageType.WELCOME:
            brought = self.keyring.welcome_fields(moment.wall)
            if not brought:  # somebody else is to answer
                return [Log("warning", "a welcome was not sent: this node has no network key")]
            body = body | brought
        message, effects = self._message(kind, network_id, body, moment)
        sealed_to = None
        try:
            if kind in (MessageType.WELCOME, MessageType.REFUSED):
                mailbox, sealed_to = self._directory.answer_to(recipient, kind, moment.wall)
            elif invite is not None or token is not None:
                mailbox = invite_mailbox(invite) if invite else token_mailbox(token or b"")
            else:
                mailbox = self._directory.inbox_of(recipient, moment.wall)
            wraps = self._courier.seal(
                recipient, mailbox, message, moment, expires_s=expires_s, ephemeral=sealed_to
            )
        except (PeerMisbehaved, ValueError) as exc:
            return [*effects, Log("error", f"a {kind.value} message could not be sealed: {exc}")]
        return effects + self._publish(kind, wraps, moment)

    @property
    def taken(self) -> frozenset[str]:
        """The latest publications that a relay has taken."""
        return frozenset(self._taken)

    def on_their_way(self) -> frozenset[str]:
        """Return the publications of operations that no relay has answered yet."""
        return frozenset(self._under_way)

    def _publish(
        self, kind: MessageType, wraps: Mapping[int, Event], moment: Moment
    ) -> list[NodeEffect]:
        self._tokens += 1
        token = f"{kind.value}-{self._tokens}"
        if kind in (MessageType.ROSTER, MessageType.NEWS):
            self._under_way.add(token)
        return self.relay_event(Publish(token, wraps), moment)

    def _message(
        self, kind: MessageType, network_id: str, body: dict[str, object], moment: Moment
    ) -> tuple[Message, list[NodeEffect]]:
        effects = self._saved()
        seq = self._courier.next_seq(moment)
        if seq > self._reserved:
            self._reserved = seq + SEQ_BLOCK
            effects.append(Persist("meta", "seq", self._reserved))
        return Message(kind, network_id, seq, body), effects

    def tunnel_text(
        self, kind: MessageType, network_id: str, body: dict[str, object], moment: Moment
    ) -> tuple[str, list[NodeEffect]]:
        """Return the text of a message that goes through a tunnel, and effects that come before it."""
        message, effects = self._message(kind, network_id, body, moment)
        return render_message(message), effects

    def hear_text(self, sender: str, text: str, moment: Moment) -> Message:
        """Return the message that ``sender`` sent through its tunnel; PeerMisbehaved if it is none."""
        self._courier.spend(sender, moment.now)
        return parse_message(text)

    def use_relays(self, urls: tuple[str, ...], moment: Moment) -> list[NodeEffect]:
        """Prefer relays that a link or a peer named: there the other side listens."""
        extra = tuple(url for url in urls if url not in self._configured)
        if not extra:
            return []
        self._extra = tuple(dict.fromkeys((*extra, *self._extra)))[:MAX_EXTRA_RELAYS]
        first, rest = self._extra[: self._foremost], self._extra[self._foremost :]
        return self.relay_event(UseRelays((*first, *self._configured, *rest)), moment)

    # -- the pool ---------------------------------------------------------------------------

    def tick(self, moment: Moment) -> list[NodeEffect]:
        """Do what is due."""
        effects = self.relay_event(Tick(), moment)
        self._keeper.apply(self._keeper.pairs.tick(moment))
        if self._rotate_at is not None and moment.now >= self._rotate_at:
            effects += self._renew(moment, is_urgent=False)
        return effects + self._saved()

    def relay_event(self, event: RelayEvent, moment: Moment) -> list[NodeEffect]:
        """Step the pool; accepted messages are appended to ``deliveries`` and ``postings``."""
        effects: list[NodeEffect] = []
        for effect in self.pool.step(event, moment):
            self._take(effect, effects, moment)
        if not self.pool.connected:
            self._connected_since = None
        elif self._connected_since is None:
            self._connected_since = moment.now
            self._plan(moment)
        return effects + self._saved()

    def _take(self, effect: RelayEffect, effects: list[NodeEffect], moment: Moment) -> None:
        match effect:
            case Received(event=wrap) if self._noticeboard.owns(wrap):
                notice = self._noticeboard.read(wrap, moment)
                if notice is not None:
                    self.notices.append(notice)
            case Received(event=wrap) if self._board.owns(wrap):
                posting = self._board.read(wrap, moment)
                if posting is not None:
                    self._directory.note_key(posting.author, posting.key_id)
                    self.postings.append(posting)
            case Received(event=wrap):
                delivery = self._courier.open(wrap, moment)
                if delivery is not None and self._directory.note(delivery, moment.wall):
                    self.deliveries.append(delivery)
            case Published(token=token, accepted=accepted, refused=refused):
                self._under_way.discard(token)
                if accepted:
                    self._taken.append(token)
                    return
                reasons = "; ".join(f"{url}: {reason}" for url, reason in refused) or "no relay"
                effects.append(Log("warning", f"no relay took {token}: {reasons}"))
            case RelayStateChanged():
                pass  # the status reads the pool's snapshot
            case _:
                effects.append(effect)
