"""The directory: which mailboxes a node reads, and which one a message goes to.

What is read follows from the keys held, not from the number of peers: the node's inbox (for each key and
day that counts), the mailboxes of open invites and tokens, and that of the answer while the node applies
to join.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.signaling.courier import Courier, Delivery
from nostrvpn.signaling.keeper import Keeper
from nostrvpn.signaling.mailboxes import (
    Mailbox,
    invite_mailbox,
    pair_mailbox,
    pair_mailboxes_around,
    reply_mailbox,
    token_mailbox,
)
from nostrvpn.signaling.messages import MessageType
from nostrvpn.signaling.network_key import NetworkKey, received_key
from nostrvpn.signaling.ratchet import DAY_S

__all__ = ["Directory", "Listening"]

# Applicants whose key is remembered until they are answered; asked again, they tell it again.
MAX_APPLICANTS = 256


@dataclass(frozen=True, slots=True)
class Listening:
    """What a node wants to hear.

    ``members``: public keys of all other active members, ``admins`` of those among them; ``makers``:
    who made which network key, by its id, and ``key_id`` that of the present one. ``invites``: secrets
    of the invites it gave; ``tokens``: mailbox secrets of the network's tokens. While it applies to
    join: the ``inviter``'s public key, or the mailbox secret of the token it ``asks_by``, and
    ``welcomed_by``, whose welcome was accepted.
    """

    members: frozenset[str] = frozenset()
    admins: frozenset[str] = frozenset()
    makers: Mapping[str, str] = field(default_factory=dict)
    key_id: str = ""
    invites: tuple[bytes, ...] = field(default=(), repr=False)
    tokens: tuple[bytes, ...] = field(default=(), repr=False)
    inviter: str | None = None
    asks_by: bytes | None = field(default=None, repr=False)
    welcomed_by: str | None = None

    def vouches(self, member: str, key_id: str) -> bool:
        """Whether a network key with this id is the right one if ``member`` has it: plain ones lie."""
        return member in self.members and (
            member in self.admins or self.makers.get(key_id) == member
        )


@dataclass(frozen=True, slots=True)
class _Applicant:
    ephemeral: bytes = field(repr=False)
    reply: Mailbox | None  # where the answer goes, if not to the pair's mailbox


class Directory:
    """The mailboxes of the node ``me`` (public key), and those of its peers."""

    def __init__(self, me: str, courier: Courier, keeper: Keeper) -> None:
        self._me = me
        self._courier = courier
        self._keeper = keeper
        self.listening = Listening()
        self._heard_under: dict[str, str] = {}  # peer -> id of the network key it last wrote under
        self._applicants: OrderedDict[str, _Applicant] = OrderedDict()
        self._welcomes: OrderedDict[str, NetworkKey] = OrderedDict()  # what each brought

    def listen(self, wanted: Listening, wall: float) -> None:
        """Read what is ``wanted``; adopt the key of the welcome that was accepted meanwhile."""
        self.listening = wanted
        self._keeper.keep_only(wanted.members)
        for peer in self._heard_under.keys() - wanted.members:
            del self._heard_under[peer]
        if wanted.welcomed_by is not None:
            self._take_welcome(wanted.welcomed_by, wall)
        if wanted.inviter is None and wanted.asks_by is None:
            self._welcomes.clear()
            self._keeper.end_application()

    def _take_welcome(self, sender: str, wall: float) -> None:
        """Adopt the key that this member brought: a plain one on its word, and only the present one."""
        key, wanted = self._welcomes.pop(sender, None), self.listening
        if key is None or sender not in wanted.members:
            return
        is_sure = wanted.vouches(sender, key.id)
        if is_sure or key.id == wanted.key_id:
            self._keeper.adopt(key.told("" if is_sure else sender), wall)

    def reading(self, wall: float) -> list[Mailbox]:
        """Return the mailboxes to read at ``wall``, boards aside."""
        wanted = self.listening
        found = [key.inbox(self._me) for key in self._keeper.keyring.reading(wall)]
        found += [invite_mailbox(secret) for secret in wanted.invites]
        found += [token_mailbox(secret) for secret in wanted.tokens]
        if wanted.asks_by is not None:
            found.append(reply_mailbox(wanted.asks_by, self._me))
        if wanted.inviter is not None:
            try:
                shared = self._courier.shared_key(wanted.inviter)
            except PeerMisbehaved:
                return found  # not a point of the curve: nobody can write from it either
            found += pair_mailboxes_around(shared, self._me, wall)
        return found

    def inbox_of(self, recipient: str, wall: float) -> Mailbox:
        """Return where a member reads now; ValueError if this node has no network key."""
        ring = self._keeper.keyring
        # Who has not heard of the newest key yet reads under the one it writes under.
        key = ring.get(self._heard_under.get(recipient, "")) or ring.writing
        if key is None:
            raise ValueError("this node has no network key yet")
        return ring.today(key, wall).inbox(recipient)

    def answer_to(
        self, applicant: str, kind: MessageType, wall: float
    ) -> tuple[Mailbox, bytes | None]:
        """Return where an applicant hears, and the X25519 key that its welcome is sealed to.

        ValueError: a welcome to whom has not told its key; PeerMisbehaved: not a point of the curve.
        """
        known = self._applicants.get(applicant)
        if known is None and kind is MessageType.WELCOME:
            raise ValueError("the applicant has not told its key")
        sealed_to = known.ephemeral if known and kind is MessageType.WELCOME else None
        if known is not None and known.reply is not None:
            return known.reply, sealed_to
        shared = self._courier.shared_key(applicant)
        return pair_mailbox(shared, applicant, int(wall) // DAY_S), sealed_to

    def note(self, delivery: Delivery, wall: float) -> bool:
        """Take up what a message says of keys; return whether the message is of any use."""
        sender, message = delivery.sender, delivery.message
        if message.type is MessageType.JOIN:
            return self._note_applicant(delivery)
        if message.type is MessageType.WELCOME:
            return self._note_welcome(sender, message.body.get("key"), wall)
        self.note_key(sender, delivery.mailbox.key_id)
        return True

    def note_key(self, peer: str, key_id: str) -> None:
        """``peer`` writes under this key: it reads under it too. Never back to an older one.

        Who is no member, whoever found the mailbox, shows nothing by writing there.
        """
        if peer not in self.listening.members:
            return
        if self.listening.vouches(peer, key_id):
            self._keeper.confirm(key_id)
        order = [key.id for key in self._keeper.keyring.keys]
        known = self._heard_under.get(peer)
        if key_id in order and (known not in order or order.index(key_id) <= order.index(known)):
            self._heard_under[peer] = key_id

    def _note_welcome(self, sender: str, value: object, wall: float) -> bool:
        try:
            self._welcomes[sender] = received_key(value, wall)
        except PeerMisbehaved as exc:
            # Without the key its reader would be a member that hears nobody: it is to ask again.
            self._courier.dropped[exc.code] += 1
            return False
        self._welcomes.move_to_end(sender)
        while len(self._welcomes) > MAX_APPLICANTS:
            self._welcomes.popitem(last=False)
        return True

    def _note_applicant(self, delivery: Delivery) -> bool:
        text, sender = delivery.message.body.get("eph"), delivery.sender
        try:
            ephemeral = bytes.fromhex(text) if isinstance(text, str) else b""
        except ValueError:
            ephemeral = b""
        if len(ephemeral) != 32:
            self._courier.dropped["join_without_key"] += 1
            return False
        tokens = {token_mailbox(secret).public_key: secret for secret in self.listening.tokens}
        secret = tokens.get(delivery.mailbox.public_key)
        reply = None if secret is None else reply_mailbox(secret, sender)
        self._applicants[sender] = _Applicant(ephemeral, reply)
        self._applicants.move_to_end(sender)
        while len(self._applicants) > MAX_APPLICANTS:
            self._applicants.popitem(last=False)
        return True
