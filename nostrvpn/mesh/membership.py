"""The membership machine: one node's part in one network.

Creating, inviting, joining, removing and catching up. Each public method is an event; what it returns
are effects for the node to carry out in order. ``Store`` comes before the ``Send`` that depends on it.

Joining, seen from the two sides::

    applicant                                    inviter (the owner)
    join(link)        -- join request -->        invite checked, operation signed and stored
    roster adopted    <-- welcome / refused --   (a repeated request gets the same answer)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.machine import Moment
from nostrvpn.mesh.answers import REFUSE_WITHIN_S, AnswerPace
from nostrvpn.mesh.effects import (
    Joining,
    JoinState,
    MembersChanged,
    MembershipEffect,
    RequestJoin,
    SendRefusal,
    SendRoster,
    Store,
    Welcome,
)
from nostrvpn.mesh.invites import SECRET_SIZE, Invite, Link, parse_link, render_link
from nostrvpn.mesh.roster import (
    MAX_NAME,
    MAX_OPERATIONS,
    Roster,
    create_network,
    open_roster,
    parse_operations,
)
from nostrvpn.nostr.event import Event, event_json

__all__ = ["Membership", "clean_name"]

MAX_INVITES = 100  # outstanding at a time: a listening node subscribes one mailbox for each
KEEP_USED_S = 30 * 86400  # a used or expired invite is kept so long, to answer with the true reason
# Operations a message: 24 of 700 bytes stay below NIP-44's 64 KiB, sealed and wrapped.
ROSTER_CHUNK = 24
# Retry until answered: at first every few seconds, then rarely, for an inviter who is offline. Each
# retry is live; a stored copy waits on the relays meanwhile.
_RETRY_S = (1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
STORED_EVERY_S = 6 * 3600.0


def clean_name(text: object) -> str:
    """Return a name from outside with only printable characters and a bounded length."""
    if not isinstance(text, str):
        return ""
    name = "".join(char for char in text if char.isprintable()).strip()[:MAX_NAME]
    # Users name a peer by name or npub: nobody may be named like somebody else's npub.
    return "" if name.lower().startswith("npub1") else name


class Membership:
    """One node's membership: the roster it holds, the invites it gave, the joining under way."""

    def __init__(self, secret: RootSecret, name: str) -> None:
        self._secret = secret
        self.name = clean_name(name)
        self.roster: Roster | None = None
        self.invites: dict[str, Invite] = {}
        self.joining: Joining | None = None
        self._parts: dict[int, tuple[Event, ...]] = {}  # of a welcome in several messages
        self._pace = AnswerPace()
        self._unheard: set[str] = set()  # admitted in this run, and maybe without their welcome
        self.refusals: list[tuple[float, str, str]] = []  # (wall, applicant, reason), newest last

    # -- restoring --------------------------------------------------------------------------

    def restore(self, records: Mapping[str, Mapping[str, object]]) -> list[str]:
        """Take up stored state; return a sentence for each record that was damaged and left out."""
        damaged = []
        stored = records.get("network", {}).get("log")
        if stored is not None:
            try:
                self.roster = open_roster(parse_operations(_as_list(stored)))
            except PeerMisbehaved as exc:
                damaged.append(f"the stored roster is invalid: {exc}")
        for key, value in records.get("invite", {}).items():
            try:
                invite = Invite.from_json(_as_dict(value))
            except (ValueError, KeyError, PeerMisbehaved) as exc:
                damaged.append(f"the stored invite {key} is invalid: {exc}")
            else:
                self.invites[invite.id] = invite
        pending = records.get("join", {}).get("link")
        if isinstance(pending, str):
            try:
                self.joining = Joining(parse_link(pending))
            except UserError as exc:
                damaged.append(f"the stored invite link is invalid: {exc}")
        return damaged

    # -- questions --------------------------------------------------------------------------

    @property
    def peers(self) -> tuple[str, ...]:
        """The public keys of all other members, in order of admission."""
        if self.roster is None:
            return ()
        return tuple(key for key in self.roster.members if key != self._secret.public_key)

    @property
    def is_member(self) -> bool:
        """Whether this node is in its own roster."""
        return self.roster is not None and self._secret.public_key in self.roster.members

    @property
    def is_owner(self) -> bool:
        """Whether this node signs the roster."""
        return self.roster is not None and self.roster.owner == self._secret.public_key

    def open_invites(self, wall: float) -> tuple[Invite, ...]:
        """Return the invites whose mailbox must be listened to (also lately used or expired ones)."""
        return tuple(i for i in self.invites.values() if wall < i.expires + KEEP_USED_S)

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        joining = self.joining
        return joining.due if joining and joining.state is JoinState.ASKING else None

    # -- the inviter's side -----------------------------------------------------------------

    def invite(
        self, bound_to: str | None, expires_s: float, relays: tuple[str, ...], moment: Moment
    ) -> tuple[str, list[MembershipEffect]]:
        """Create an invite, and the network with it if there is none; return its link's text.

        Raises UserError if this node may not invite.
        """
        effects: list[MembershipEffect] = []
        if bound_to == self._secret.public_key:
            raise UserError(
                "this is your own npub", "invite the other node's: it prints `nostrvpn id`"
            )
        if self.joining is not None and self.joining.state is JoinState.ASKING:
            raise UserError("this node is itself waiting to be admitted", "see `nostrvpn status`")
        effects += self._ensure_network(moment)
        assert self.roster is not None
        if not self.is_owner:
            raise UserError(
                f"only the network's owner can invite: {npub(self.roster.owner)}",
                "ask the owner to run `nostrvpn invite` with the new node's npub",
            )
        if bound_to is not None and bound_to in self.roster.members:
            raise UserError("this npub is a member already", "see `nostrvpn peers`")
        effects += self._forget_old_invites(moment.wall)
        if len(self.invites) >= MAX_INVITES:
            raise UserError(f"{MAX_INVITES} invites are open already", "wait until some expire")
        secret = moment.entropy.take(SECRET_SIZE)
        expires = int(moment.wall + expires_s)
        invite = Invite(secret, bound_to, expires, int(moment.wall))
        self.invites[invite.id] = invite
        effects.append(Store("invite", invite.id, invite.to_json()))
        link = Link(
            self._secret.public_key, secret, self.roster.network_id, expires, bound_to, relays
        )
        return render_link(link), [*effects, MembersChanged()]

    def on_join_request(
        self, sender: str, body: Mapping[str, object], moment: Moment, created: float | None = None
    ) -> list[MembershipEffect]:
        """Admit or refuse an applicant; PeerMisbehaved if the request is not even one of ours.

        ``created`` is the request's date (Unix seconds): relays keep requests for days and repeat
        them after a restart, so what was refused long ago is not refused again.
        """
        if self.roster is None or not self.is_owner:
            raise PeerMisbehaved("join_not_owner", "a join request to a node that owns no network")
        invite = self.invites.get(str(body.get("invite")))
        if invite is None or body.get("secret") != invite.secret.hex():
            # Not answered: whoever does not know the secret learns nothing, not even that we exist.
            raise PeerMisbehaved("join_unknown_invite", "a request for an invite we never gave")
        reason = invite.refusal(sender, moment.wall)
        if reason is None and invite.used_by == sender and sender not in self.roster.members:
            reason = "removed"
        if reason is not None:
            if created is not None and moment.wall - created > REFUSE_WITHIN_S:
                raise PeerMisbehaved("old_request", "a request that was refused long ago")
            if not self._pace.may_refuse(moment.now):
                raise PeerMisbehaved("refusals_limited", "too many requests that were refused")
            self.refusals = [*self.refusals[-19:], (moment.wall, sender, reason)]
            return [SendRefusal(sender, invite.id, reason)]
        if sender in self.roster.members:
            return [*self._welcome(sender, moment.now)]
        name = clean_name(body.get("name"))
        self.roster = self.roster.sign(
            self._secret.reveal(),
            "add",
            sender,
            name,
            wall=moment.wall,
            aux=moment.entropy.take(32),
        )
        used = replace(invite, used_by=sender)
        self.invites[invite.id] = used
        self._unheard.add(sender)
        operation = self.roster.log[-1:]
        others = [peer for peer in self.peers if peer != sender]
        return [
            Store("invite", used.id, used.to_json()),
            self._store_log(),
            MembersChanged(),
            *self._welcome(sender, moment.now),
            *(SendRoster(peer, operation) for peer in others),
        ]

    def welcome_again(self, peer: str, now: float) -> list[Welcome]:
        """Return the welcome of a member who has not shown yet that it got one; else nothing."""
        if peer not in self._unheard or self.roster is None or peer not in self.roster.members:
            return []
        return self._welcome(peer, now)

    def remove(self, peer: str, moment: Moment) -> list[MembershipEffect]:
        """Remove a member; UserError if this node may not."""
        if self.roster is None or peer not in self.roster.members:
            raise UserError("no such member", "see `nostrvpn peers`")
        if not self.is_owner:
            raise UserError(
                f"only the network's owner can remove members: {npub(self.roster.owner)}",
                "ask the owner, or leave with `nostrvpn down`",
            )
        if peer == self._secret.public_key:
            raise UserError("the owner cannot be removed", "stop this node with `nostrvpn down`")
        told = self.peers
        self.roster = self.roster.sign(
            self._secret.reveal(), "remove", peer, "", wall=moment.wall, aux=moment.entropy.take(32)
        )
        operation = self.roster.log[-1:]
        sends = [SendRoster(other, operation) for other in told]
        # The removed one is told before its mailbox is forgotten with it.
        return [self._store_log(), *sends, MembersChanged()]

    # -- the applicant's side ---------------------------------------------------------------

    def join(self, link_text: str, moment: Moment) -> list[MembershipEffect]:
        """Start to join by a link; UserError if the link is not for this node, or too old."""
        link = parse_link(link_text)
        if link.inviter == self._secret.public_key:
            raise UserError("this is your own invite", "run `nostrvpn join` on the other node")
        if link.bound_to is not None and link.bound_to != self._secret.public_key:
            raise UserError(
                f"this invite is for {npub(link.bound_to)}, and this node is {self._secret.npub}",
                "ask for an invite for this node's npub",
            )
        if moment.wall >= link.expires:
            raise UserError("this invite has expired", "ask for a new one")
        if self.roster is not None and self.is_member:
            if self.roster.network_id == link.network_id:
                return [MembersChanged()]
            if self.peers:
                raise UserError(
                    "this node is in another network already",
                    "run a second node with its own --state-dir, --runtime-dir and --interface",
                )
        self.joining = Joining(link, due=moment.now)
        self._parts.clear()
        text = render_link(link)
        return [Store("join", "link", text), MembersChanged(), *self.tick(moment)]

    def tick(self, moment: Moment) -> list[MembershipEffect]:
        """Ask again when it is time."""
        joining = self.joining
        if joining is None or joining.state is not JoinState.ASKING or moment.now < joining.due:
            return []
        if moment.wall >= joining.link.expires + KEEP_USED_S:
            self.joining = replace(joining, state=JoinState.EXPIRED, reason="expired")
            return [Store("join", "link", None), MembersChanged()]
        wait = _RETRY_S[min(joining.attempts, len(_RETRY_S) - 1)]
        due = moment.now + wait * (0.9 + 0.2 * moment.entropy.fraction())
        stored = joining.stored_at is None or moment.now - joining.stored_at >= STORED_EVERY_S
        stored_at = moment.now if stored else joining.stored_at
        self.joining = replace(joining, attempts=joining.attempts + 1, due=due, stored_at=stored_at)
        return [RequestJoin(self.joining, stored)]

    def hurry(self, moment: Moment) -> None:
        """Something changed (a relay connected, the network moved): ask again now."""
        if self.joining is not None and self.joining.state is JoinState.ASKING:
            self.joining = replace(self.joining, attempts=0, due=moment.now)

    def on_welcome(self, sender: str, body: Mapping[str, object]) -> list[MembershipEffect]:
        """Adopt the roster if it is the network we asked for and we are in it."""
        operations = parse_operations(_as_list(body.get("ops")))
        joining = self.joining
        over = joining is None or joining.state in (JoinState.REFUSED, JoinState.EXPIRED)
        if joining is None or over or sender != joining.link.inviter:
            # Also from an inviter whose link came to nothing: this node may be elsewhere by now.
            if self.roster is not None:
                return self._adopt(operations)
            raise PeerMisbehaved("welcome_unasked", "a welcome nobody asked for")
        start = body.get("start")
        if type(start) is not int or not 0 <= start < MAX_OPERATIONS or start % ROSTER_CHUNK:
            raise PeerMisbehaved("bad_message", "a welcome without its place in the log")
        self._parts[start] = operations
        log: list[Event] = []
        while part := self._parts.get(len(log)):
            log += part
        if not log or not any(_names(event, self._secret.public_key) for event in log):
            return []  # more parts are on their way
        roster = open_roster(log)
        if roster.network_id != joining.link.network_id or roster.owner != sender:
            raise PeerMisbehaved("welcome_foreign", "a welcome to another network")
        if self.roster is not None and self.roster.network_id == roster.network_id:
            roster = self.roster.extend(log)
        if self._secret.public_key not in roster.members:
            raise PeerMisbehaved("welcome_without_us", "a roster that does not list this node")
        self.roster = roster
        self._parts.clear()
        self.joining = replace(joining, state=JoinState.JOINED)
        return [self._store_log(), Store("join", "link", None), MembersChanged()]

    def on_refused(self, sender: str, body: Mapping[str, object]) -> list[MembershipEffect]:
        """Take note of a refusal, if it answers our request."""
        joining = self.joining
        if joining is None or sender != joining.link.inviter or joining.state is JoinState.JOINED:
            raise PeerMisbehaved("refusal_unasked", "a refusal nobody asked for")
        if body.get("invite") != joining.link.invite_id:
            # Relays keep refusals for days: a late one must not end the application by a new link.
            raise PeerMisbehaved("refusal_outdated", "a refusal of another invite")
        reason = clean_name(body.get("reason")) or "refused"
        self.joining = replace(joining, state=JoinState.REFUSED, reason=reason)
        return [Store("join", "link", None), MembersChanged()]

    # -- catching up ------------------------------------------------------------------------

    def on_roster(self, body: Mapping[str, object]) -> list[MembershipEffect]:
        """Extend the roster by operations that any member may have carried here."""
        return self._adopt(parse_operations(_as_list(body.get("ops"))))

    def on_version_heard(self, sender: str, version: int) -> list[MembershipEffect]:
        """A member told which version it holds: send it what it lacks."""
        self._unheard.discard(sender)
        if self.roster is None or version >= self.roster.version or version < 0:
            return []
        return [SendRoster(sender, self.roster.since(version)[:ROSTER_CHUNK])]

    def _adopt(self, operations: tuple[Event, ...]) -> list[MembershipEffect]:
        if self.roster is None:
            raise PeerMisbehaved("roster_unasked", "a roster, and this node is in no network")
        extended = self.roster.extend(operations)
        if extended.version == self.roster.version:
            return []
        self.roster = extended
        return [self._store_log(), MembersChanged()]

    def _ensure_network(self, moment: Moment) -> list[MembershipEffect]:
        if self.roster is not None and self.is_member:
            return []
        take = moment.entropy.take
        self.roster = create_network(
            self._secret.reveal(), "", self.name, wall=moment.wall, nonce=take(16), aux=take(32)
        )
        return [self._store_log()]

    def _welcome(self, applicant: str, now: float) -> list[Welcome]:
        assert self.roster is not None
        log = self.roster.log
        starts = range(0, len(log), ROSTER_CHUNK)
        if not self._pace.may_welcome(applicant, len(starts), now):
            return []
        return [Welcome(applicant, log[start : start + ROSTER_CHUNK], start) for start in starts]

    def _store_log(self) -> Store:
        assert self.roster is not None
        return Store("network", "log", [event_json(event) for event in self.roster.log])

    def _forget_old_invites(self, wall: float) -> list[MembershipEffect]:
        old = [i.id for i in self.invites.values() if wall >= i.expires + KEEP_USED_S]
        for key in old:
            del self.invites[key]
        return [Store("invite", key, None) for key in old]


def _names(event: Event, public_key: str) -> bool:
    return f'"{public_key}"' in event.content


def _as_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise PeerMisbehaved("bad_message", "a list was expected")
    return value


def _as_dict(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise PeerMisbehaved("bad_message", "an object was expected")
    return value
