"""The node's post: what it sends and gets through relays, under which mailboxes.

Joins the courier (sealing, acceptance rules), the mailboxes and the relay pool. Knows message types,
not what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Moment, Tick, earliest
from nostrvpn.node.events import Log, NodeEffect, Persist
from nostrvpn.signaling.courier import Courier, Delivery
from nostrvpn.signaling.mailboxes import (
    OVERLAP_S,
    Mailbox,
    invite_mailbox,
    pair_mailbox,
    pair_mailboxes_around,
)
from nostrvpn.signaling.messages import Message, MessageType
from nostrvpn.signaling.noticeboard import Notice, Noticeboard, post_notice
from nostrvpn.signaling.relays import (
    Listen,
    Publish,
    Published,
    Received,
    RelayEffect,
    RelayEvent,
    RelayPool,
    RelayStateChanged,
    UseRelays,
)

__all__ = ["Post"]

# Sequence numbers are reserved in blocks, so that not each message costs a write: after a crash the
# node goes on above the block, never below a number it may have used.
SEQ_BLOCK = 60_000
# Relays beyond the configured ones: a link names at most six.
MAX_EXTRA_RELAYS = 6


class Post:
    """Sending and receiving for one node. Methods return effects; received messages queue up."""

    def __init__(
        self, secret: RootSecret, relays: tuple[str, ...], active: int, reserved_seq: int
    ) -> None:
        self._me = secret.public_key
        self._reserved = reserved_seq
        self._courier = Courier(secret.reveal(), secret.public_key, reserved_seq)
        self._pairs: tuple[str, ...] = ()
        self._invites: tuple[bytes, ...] = ()
        self._rotate_at: float | None = None
        self._tokens = 0
        self._configured = relays
        # Relays that others named come first, since they listen there; but however many they name,
        # one of the configured ones stays in use: nobody else shall hold all our post.
        self._foremost = max(1, active - 1)
        self._extra: tuple[str, ...] = ()
        self.pool = RelayPool(relays, active=active)
        self.deliveries: list[Delivery] = []
        self._board = Noticeboard()
        self._reads_board = False
        self.notices: list[Notice] = []

    @property
    def dropped(self) -> dict[str, int]:
        """Received messages that were dropped, by reason."""
        return {**self._board.dropped, **self._courier.dropped}

    @property
    def clock_offsets(self) -> dict[str, float]:
        """Senders whose messages were refused for their date, with the seconds they were off."""
        return self._courier.clock_offsets

    @property
    def deadline(self) -> float | None:
        """When a Tick is due (Moment.now)."""
        return earliest(self.pool.deadline, self._rotate_at)

    def listen(
        self, pairs: Iterable[str], invites: Iterable[bytes], moment: Moment
    ) -> list[NodeEffect]:
        """Listen to the mailboxes of these peers (public keys) and invites (secrets), and no others."""
        self._pairs, self._invites = tuple(pairs), tuple(invites)
        mailboxes: dict[str, Mailbox] = {}
        for peer in self._pairs:
            try:
                shared = self._courier.shared_key(peer)
            except PeerMisbehaved:
                continue  # not a point of the curve: nobody can write from it either
            for mailbox in pair_mailboxes_around(shared, self._me, moment.wall):
                mailboxes[mailbox.public_key] = mailbox
        for secret in self._invites:
            mailbox = invite_mailbox(secret)
            mailboxes[mailbox.public_key] = mailbox
        self._courier.listen(mailboxes)
        # The set changes twice around midnight UTC (see pair_mailboxes_around).
        to_change = min((edge - moment.wall) % 86_400 or 86_400 for edge in (OVERLAP_S, -OVERLAP_S))
        self._rotate_at = moment.now + to_change + 1
        secrets = {address: mailbox.secret for address, mailbox in mailboxes.items()}
        if self._reads_board:
            # Without a secret: nobody shall authenticate as the owner of what everybody owns.
            secrets |= dict.fromkeys(self._board.open(moment.wall), b"")
        return self.relay_event(Listen(secrets), moment)

    def read_board(self, wanted: bool, moment: Moment) -> list[NodeEffect]:
        """Read the public noticeboard from now on, or stop: ``notices`` queue up."""
        if wanted == self._reads_board:
            return []
        self._reads_board = wanted
        self._board.close()
        return self.listen(self._pairs, self._invites, moment)

    def put_up(
        self, secret: bytes, body: dict[str, object], moment: Moment, *, expires_s: int
    ) -> list[NodeEffect]:
        """Put a notice up, by the author with this secret."""
        wraps = post_notice(secret, body, moment, expires_s=expires_s)
        self._tokens += 1
        return self.relay_event(Publish(f"notice-{self._tokens}", wraps), moment)

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
    ) -> list[NodeEffect]:
        """Seal and publish one message; by the pair's mailbox, or an invite's if its secret is given."""
        effects: list[NodeEffect] = []
        seq = self._courier.next_seq(moment)
        if seq > self._reserved:
            self._reserved = seq + SEQ_BLOCK
            effects.append(Persist("meta", "seq", self._reserved))
        try:
            if invite is not None:
                mailbox = invite_mailbox(invite)
            else:
                shared = self._courier.shared_key(recipient)
                mailbox = pair_mailbox(shared, recipient, moment.wall)
            wraps = self._courier.seal(
                recipient,
                mailbox.public_key,
                Message(kind, network_id, seq, body),
                moment,
                expires_s=expires_s,
            )
        except (PeerMisbehaved, ValueError) as exc:
            return [*effects, Log("error", f"a {kind.value} message could not be sealed: {exc}")]
        self._tokens += 1
        return effects + self.relay_event(Publish(f"{kind.value}-{self._tokens}", wraps), moment)

    def use_relays(self, urls: tuple[str, ...], moment: Moment) -> list[NodeEffect]:
        """Prefer relays that a link or a peer named: there the other side listens."""
        extra = tuple(url for url in urls if url not in self._configured)
        if not extra:
            return []
        self._extra = tuple(dict.fromkeys((*extra, *self._extra)))[:MAX_EXTRA_RELAYS]
        first, rest = self._extra[: self._foremost], self._extra[self._foremost :]
        return self.relay_event(UseRelays((*first, *self._configured, *rest)), moment)

    def tick(self, moment: Moment) -> list[NodeEffect]:
        """Do what is due."""
        effects = self.relay_event(Tick(), moment)
        if self._rotate_at is not None and moment.now >= self._rotate_at:
            effects += self.listen(self._pairs, self._invites, moment)
        return effects

    def relay_event(self, event: RelayEvent, moment: Moment) -> list[NodeEffect]:
        """Step the pool; accepted messages are appended to ``deliveries``."""
        effects: list[NodeEffect] = []
        for effect in self.pool.step(event, moment):
            self._take(effect, effects, moment)
        return effects

    def _take(self, effect: RelayEffect, effects: list[NodeEffect], moment: Moment) -> None:
        match effect:
            case Received(event=wrap) if self._board.owns(wrap):
                notice = self._board.read(wrap, moment)
                if notice is not None:
                    self.notices.append(notice)
            case Received(event=wrap):
                delivery = self._courier.open(wrap, moment)
                if delivery is not None:
                    self.deliveries.append(delivery)
            case Published(token=token, accepted=0, refused=refused):
                reasons = "; ".join(f"{url}: {reason}" for url, reason in refused) or "no relay"
                effects.append(Log("warning", f"no relay took {token}: {reasons}"))
            case Published():
                pass
            case RelayStateChanged():
                pass  # the status reads the pool's snapshot
            case _:
                effects.append(effect)
