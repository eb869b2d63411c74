"""The membership machine: one node's part in one network.

Creating, inviting, joining, deciding and catching up. Each public method is an event; what it returns
are effects for the node to carry out in order. ``Store`` comes before the ``Send`` that depends on it.

Joining, seen from the two sides::

    applicant                                    an admin, or by a token any member
    join(link)        -- join request -->        invite checked, operation signed and stored
    roster adopted    <-- welcome / refused --   (a repeated request gets the same answer)
    settled: it has the network's key, too
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.machine import Moment, earliest
from nostrvpn.mesh.administration import Administration
from nostrvpn.mesh.admission import Admission
from nostrvpn.mesh.effects import (
    Joining,
    MembersChanged,
    MembershipEffect,
    SendRoster,
    Welcome,
)
from nostrvpn.mesh.history import SAMPLE
from nostrvpn.mesh.invites import Invite, Link, Terms, render_link
from nostrvpn.mesh.joining import Applicant
from nostrvpn.mesh.ledger import Ledger
from nostrvpn.mesh.log_text import split_operations, unpack_operations
from nostrvpn.mesh.members import Role
from nostrvpn.mesh.names import dns_label
from nostrvpn.mesh.roster import Roster
from nostrvpn.mesh.upkeep import Upkeep
from nostrvpn.nostr.event import Event, is_public_key

__all__ = ["Membership"]

_NETWORK = "home"
# More operations do not fit a message.
_AT_ONCE = 400


class Membership(Administration):
    """One node's membership: the roster it holds, the invites it gave, the joining under way."""

    def __init__(self, secret: RootSecret, name: str) -> None:
        super().__init__(Ledger(secret))
        self._me = secret.public_key
        self.name = dns_label(name)
        self._applicant = Applicant(secret)
        self._admission = Admission(self._ledger)
        self._upkeep = Upkeep(self._ledger)

    def restore(self, records: Mapping[str, Mapping[str, object]]) -> list[str]:
        """Take up stored state; return a sentence for each record that was damaged and left out."""
        damaged = []
        try:
            self._ledger.restore(records.get("network", {}))
        except PeerMisbehaved as exc:
            damaged.append(f"the stored roster is invalid: {exc}")
        for key, value in records.get("invite", {}).items():
            try:
                self._admission.restore(value)
            except (ValueError, KeyError) as exc:
                damaged.append(f"the stored invite {key} is invalid: {exc}")
        pending = records.get("join", {}).get("link")
        if isinstance(pending, str):
            try:
                self._applicant.restore(pending)
            except UserError as exc:
                damaged.append(f"the stored invite link is invalid: {exc}")
        self._upkeep.changed()
        return damaged

    # -- questions --------------------------------------------------------------------------

    @property
    def roster(self) -> Roster | None:
        """What this node knows of its network; None if it is in none."""
        return self._ledger.roster

    @property
    def joining(self) -> Joining | None:
        """The application under way, or the last one."""
        return self._applicant.joining

    @property
    def invites(self) -> Mapping[str, Invite]:
        """The invites that this node gave, by id."""
        return self._admission.invites

    @property
    def refusals(self) -> list[tuple[float, str, str]]:
        """The last requests that were refused: (Unix seconds, applicant, reason), newest last."""
        return self._admission.refusals

    @property
    def peers(self) -> tuple[str, ...]:
        """The public keys of all other members, in order of admission."""
        if self.roster is None:
            return ()
        return tuple(key for key in self.roster.members if key != self._me)

    @property
    def is_member(self) -> bool:
        """Whether this node is in its own roster."""
        return self.roster is not None and self._me in self.roster.members

    @property
    def is_admin(self) -> bool:
        """Whether this node is the owner or an admin."""
        return self.roster is not None and self.roster.is_admin(self._me)

    def open_invites(self, wall: float) -> tuple[Invite, ...]:
        """Return the invites whose mailbox must be listened to (also lately used or expired ones)."""
        return self._admission.open_invites(wall)

    def token_mailboxes(self, wall: float) -> tuple[bytes, ...]:
        """Return the mailbox secrets (32 bytes each) of the tokens by which this node may admit."""
        return self._admission.token_mailboxes(wall)

    def join_request(self, aux: bytes) -> dict[str, object]:
        """Return what the request under way says of its link; ``aux``: 32 random bytes."""
        return self._applicant.request(self.name, aux)

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        return earliest(self._applicant.deadline, self._admission.deadline, self._upkeep.deadline)

    def tick(self, moment: Moment) -> list[MembershipEffect]:
        """Do what the clock asks for."""
        effects = self._applicant.tick(moment) if self._may_ask else self._applicant.settled()
        effects += self._noted(self._admission.tick(moment))
        return effects + self._upkeep.tick(moment)

    def hurry(self, moment: Moment) -> None:
        """Something changed (a relay connected, the network moved): ask again now."""
        self._applicant.hurry(moment)
        self._admission.connected(moment.now)

    def create(self, name: str, moment: Moment) -> list[MembershipEffect]:
        """Create a network of this node's own; UserError if it is in one, or waits to be admitted."""
        if self._applicant.is_asking:
            raise UserError("this node is itself waiting to be admitted", "see `nostrvpn status`")
        if self.roster is not None and self.is_member:
            raise UserError(
                f"this node is in the network {self.roster.name} already",
                "see `nostrvpn network list`",
            )
        return self._noted(self._ledger.create(dns_label(name, _NETWORK), self.name, moment))

    # -- admitting --------------------------------------------------------------------------

    def invite(
        self,
        bound_to: str | None,
        expires_s: float,
        relays: tuple[str, ...],
        moment: Moment,
        terms: Terms | None = None,
    ) -> tuple[str, list[MembershipEffect]]:
        """Create an invite, and the network with it if there is none; return its link's text.

        Raises UserError if this node may not invite.
        """
        terms = terms or Terms()
        if bound_to == self._me:
            raise UserError(
                "this is your own npub", "invite the other node's: it prints `nostrvpn id`"
            )
        if self._applicant.is_asking:
            raise UserError("this node is itself waiting to be admitted", "see `nostrvpn status`")
        self._check_terms(terms, bound_to)
        # All that may be refused comes first: what is signed can only be stored and told.
        self._admission.check_room(moment.wall)
        effects: list[MembershipEffect] = []
        if not self.is_member:
            effects += self._ledger.create(_NETWORK, self.name, moment)
        link, stored = self._link_for(bound_to, terms, expires_s, relays, moment)
        return link, [*effects, *stored]

    def replace(
        self, old: str, new: str, expires_s: float, relays: tuple[str, ...], moment: Moment
    ) -> tuple[str, list[MembershipEffect]]:
        """Put the public key ``new`` in a member's place; return a link for it, and effects.

        The new device knows nothing of the network yet. UserError if this node may not.
        """
        self._admission.check_room(moment.wall)
        rotated = self.rotate(old, new, moment)
        link, stored = self._link_for(new, Terms(), expires_s, relays, moment)
        return link, [*rotated, *stored]

    def _link_for(
        self,
        bound_to: str | None,
        terms: Terms,
        expires_s: float,
        relays: tuple[str, ...],
        moment: Moment,
    ) -> tuple[str, list[MembershipEffect]]:
        assert self.roster is not None
        expires = int(moment.wall + expires_s)
        invite, stored = self._admission.invite(bound_to, expires, terms, moment)
        link = Link(self._me, invite.secret, self.roster.network_id, expires, bound_to, relays)
        return render_link(link), [*stored, MembersChanged()]

    def on_join_request(
        self, sender: str, body: Mapping[str, object], moment: Moment, created: float | None = None
    ) -> list[MembershipEffect]:
        """Admit or refuse an applicant; PeerMisbehaved if the request is not even one of ours.

        ``created`` is the request's date (Unix seconds).
        """
        if self._applicant.is_asking:
            # Whoever were admitted now to a network that this node is about to leave would be dropped.
            raise PeerMisbehaved("join_while_asking", "a join request, and this node asks itself")
        return self._noted(self._admission.on_request(sender, body, moment, created))

    def welcome_again(self, peer: str, now: float) -> list[Welcome]:
        """Return the welcome of a member who has not shown yet that it got one; else nothing."""
        return self._admission.welcome_again(peer, now)

    def heard(self, peer: str) -> None:
        """``peer`` showed that it has its welcome."""
        self._admission.heard(peer)

    def unheard(self, peer: str, since: float) -> None:
        """Nothing was heard of ``peer`` since ``since`` (Moment.now's seconds)."""
        self._upkeep.unheard(peer, since)

    @property
    def awaited(self) -> tuple[str, ...]:
        """The ephemeral members that are removed if they are not heard for long."""
        return self._upkeep.awaited

    def excuse(self, peers: Iterable[str], now: float) -> None:
        """That these are not heard does not mean that they are gone: count from ``now`` on."""
        self._upkeep.excuse(peers, now)

    def renew_key(self, moment: Moment) -> list[MembershipEffect]:
        """Make a new network key, since nobody has the present one; an admin's."""
        return self._upkeep.rekey(moment) if self.is_admin else []

    # -- joining ----------------------------------------------------------------------------

    def join(
        self, link_text: str, moment: Moment, *, has_key: bool = True
    ) -> list[MembershipEffect]:
        """Start to join by a link; UserError if the link is not for this node, or too old.

        A member that lost the network's key (not ``has_key``) asks by it too, to be told again.
        """
        link = self._applicant.check(link_text, moment.wall)
        if self.roster is not None and self.is_member:
            is_same = self.roster.network_id == link.network_id
            if is_same and has_key:
                return [MembersChanged()]
            if self.peers and not is_same:
                raise UserError(
                    "this node is in another network already",
                    "run a second node with its own --state-dir, --runtime-dir and --interface",
                )
        return self._applicant.start(link, moment)

    def on_welcome(self, sender: str, body: Mapping[str, object]) -> list[MembershipEffect]:
        """Adopt the roster if it is the network we asked for and we are in it."""
        if not self._applicant.expects(sender):
            # Also from an inviter whose link came to nothing: this node may be elsewhere by now.
            if self.roster is None:
                raise PeerMisbehaved("welcome_unasked", "a welcome nobody asked for")
            return self.on_operations(unpack_operations(body.get("ops")))
        roster = self._applicant.on_welcome(sender, body)
        if roster is None:
            return []
        if self.roster is not None and self.roster.network_id == roster.network_id:
            roster = self.roster.merge(roster.log)
            if self._me not in roster.members:
                raise PeerMisbehaved("welcome_without_us", "a roster that does not list this node")
        adopted = self._noted(self._ledger.adopt(roster))
        self._applicant.joined(sender)
        changed = [] if any(isinstance(e, MembersChanged) for e in adopted) else [MembersChanged()]
        return [*adopted, *changed]

    def settled(self) -> list[MembershipEffect]:
        """This node has its network's key for certain: an application to this network is over."""
        joining, roster = self._applicant.joining, self.roster
        if joining is None or roster is None or not self.is_member:
            return []
        return self._applicant.settled() if joining.link.network_id == roster.network_id else []

    def on_refused(self, sender: str, body: Mapping[str, object]) -> list[MembershipEffect]:
        """Take note of a refusal, if it answers our request."""
        return self._applicant.on_refused(sender, body)

    # -- catching up ------------------------------------------------------------------------

    def on_roster(self, body: Mapping[str, object]) -> list[MembershipEffect]:
        """Take operations that any member may have carried here."""
        return self.on_operations(unpack_operations(body.get("ops")))

    def on_operations(self, operations: tuple[Event, ...]) -> list[MembershipEffect]:
        """Merge operations into the roster; PeerMisbehaved if none of them could be used."""
        if self.roster is None:
            raise PeerMisbehaved("roster_unasked", "a roster, and this node is in no network")
        return self._noted(self._ledger.adopt(self.roster.merge(operations)))

    def on_sample(self, sender: str, sample: object) -> list[MembershipEffect]:
        """A member told by a sample what it holds: send it (a message's part of) what it lacks."""
        if not isinstance(sample, list) or len(sample) > SAMPLE:
            raise PeerMisbehaved("bad_message", "a sample that is none")
        if not all(is_public_key(identifier) for identifier in sample):
            raise PeerMisbehaved("bad_message", "a sample that is none")
        if not sample:
            return []  # it waits for its welcome
        self._admission.heard(sender)
        lacking = self.roster.lacking(sample) if self.roster is not None else ()
        if not lacking:
            return []
        part = split_operations(lacking[:_AT_ONCE])[0]
        return [SendRoster(sender, part, len(part) < len(lacking))]

    def _check_terms(self, terms: Terms, bound_to: str | None) -> None:
        roster = self.roster if self.is_member else None  # None: this node is about to own one
        if roster is not None and not self.is_admin:
            raise UserError(
                f"only the network's owner and admins can invite: {npub(roster.owner)}",
                "ask one of them to run `nostrvpn invite` with the new node's npub",
            )
        if terms.role is Role.OWNER:
            raise UserError("a network has one owner", "invite an admin or a member")
        if terms.role is Role.ADMIN and roster is not None and roster.owner != self._me:
            raise UserError("only the owner invites admins", "ask the owner")
        if terms.role is Role.ADMIN and terms.lasts_s is not None:
            raise UserError("an admin cannot expire", "leave the expiry out")
        # A member gets a link to come back by, if it lost what it knew, but comes back as what it is.
        if roster is not None and bound_to in roster.members and terms != Terms():
            raise UserError(
                "this npub is a member already",
                "invite it without any terms to let it come back; see `nostrvpn peer` for changes",
            )

    @property
    def _may_ask(self) -> bool:
        """Whether an application is still of use: who was welcomed and removed since asks no more."""
        return self._applicant.is_asking or self.is_member

    def _noted(self, effects: list[MembershipEffect]) -> list[MembershipEffect]:
        if any(isinstance(effect, MembersChanged) for effect in effects):
            self._upkeep.changed()
        return effects
