"""What a user decides for the network: each method signs an operation, or tells why it may not."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from nostrvpn.errors import UserError
from nostrvpn.identity.keys import npub
from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import MembershipEffect
from nostrvpn.mesh.ledger import Ledger
from nostrvpn.mesh.members import Member, Role
from nostrvpn.mesh.names import dns_label
from nostrvpn.mesh.permissions import Rule, rule_to_json
from nostrvpn.mesh.roster import Roster
from nostrvpn.mesh.tokens import (
    TOKEN_SECRET_SIZE,
    TokenLink,
    render_token_link,
    token_id,
    token_mailbox,
    token_signer,
)

__all__ = ["Administration"]

_ASK = "ask the owner or an admin to do it"


class Administration:
    """The commands of owner and admins, and those by which a member acts on itself."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def remove(self, peer: str, moment: Moment) -> list[MembershipEffect]:
        """Remove a member; UserError if this node may not."""
        roster = self._above(peer, "remove")
        if peer == roster.owner:
            raise UserError("the owner cannot be removed", "stop this node with `nostrvpn down`")
        key_id = moment.entropy.take(8).hex()
        return self._ledger.sign("remove", {"who": peer, "key": key_id}, moment)

    def leave(self, moment: Moment) -> list[MembershipEffect]:
        """Leave the network for good; the owner cannot."""
        me = self._member(self._ledger.me)
        if me.role is Role.OWNER:
            raise UserError("the owner cannot leave", "stop this node with `nostrvpn down`")
        return self._ledger.sign("remove", {"who": me.public_key, "key": None}, moment)

    def set_role(
        self, peer: str, role: Role, expires: int | None, moment: Moment
    ) -> list[MembershipEffect]:
        """Make a member an admin, a plain member or a guest; until ``expires`` (Unix s), or for good."""
        roster = self._above(peer, "change the role of")
        if role is Role.ADMIN and roster.owner != self._ledger.me:
            raise UserError(f"only the owner makes admins: {npub(roster.owner)}", "ask the owner")
        if role is Role.ADMIN and expires is not None:
            raise UserError("an admin cannot expire", "leave the expiry out")
        fields = {"who": peer, "role": role.value, "expires": expires}
        return self._ledger.sign("role", fields, moment)

    def rename(self, peer: str, name: str, moment: Moment) -> list[MembershipEffect]:
        """Name a member, or itself, for everybody; UserError if the name is taken."""
        roster = self._roster() if peer == self._ledger.me else self._admin("name members")
        self._member(peer)
        label = dns_label(name, "")
        taken = {m.name for key, m in roster.members.items() if key != peer}
        if not label or label in taken:
            reason = f"{label} is taken" if label else "a name has letters, digits and hyphens"
            raise UserError(reason, "choose another name")
        return self._ledger.sign("name", {"who": peer, "name": label}, moment)

    def tag(self, peer: str, tags: Iterable[str], moment: Moment) -> list[MembershipEffect]:
        """Give a member these tags and no others."""
        self._admin("tag members")
        self._member(peer)
        return self._ledger.sign("tag", {"who": peer, "tags": sorted(set(tags))}, moment)

    def permit(self, rule: Rule, withdraw: bool, moment: Moment) -> list[MembershipEffect]:
        """Set a rule for the whole network, or withdraw it."""
        self._admin("set the network's rules")
        fields = {"rule": rule_to_json(rule), "withdraw": withdraw}
        return self._ledger.sign("permit", fields, moment)

    def approve_routes(
        self, peer: str, networks: Iterable[IPv4Network | IPv6Network], moment: Moment
    ) -> list[MembershipEffect]:
        """Approve these networks behind a member, and no others."""
        self._admin("approve routes")
        self._member(peer)
        texts = sorted({str(network) for network in networks})
        return self._ledger.sign("routes", {"who": peer, "networks": texts}, moment)

    def rotate(
        self, peer: str, to: str, moment: Moment, proof: str | None = None
    ) -> list[MembershipEffect]:
        """Put the public key ``to`` in the place of a member; of this node itself by its ``proof``."""
        roster = self._roster()
        if peer != self._ledger.me:
            roster = self._above(peer, "replace")
        if to in roster.former:
            raise UserError("this npub is or was a member", "make a new key for the device")
        return self._ledger.sign("rotate", {"who": peer, "to": to, "proof": proof}, moment)

    def set_network(self, settings: dict[str, object], moment: Moment) -> list[MembershipEffect]:
        """Change the network's ``name``, ``inbound`` or ``same_owner``: those that are given."""
        self._admin("change the network's settings")
        if "name" in settings:
            settings = settings | {"name": dns_label(settings["name"], "net")}
        return self._ledger.sign("settings", settings, moment)

    def make_token(
        self,
        uses: int,
        expires_s: float,
        member: dict[str, object],
        relays: tuple[str, ...],
        moment: Moment,
    ) -> tuple[str, list[MembershipEffect]]:
        """Return the text of a link by which ``uses`` nodes may join, and effects.

        ``member``: what they become; ``role`` (``member`` or ``guest``), ``tags`` and ``ephemeral``.
        """
        roster = self._admin("make tokens")
        secret = moment.entropy.take(TOKEN_SECRET_SIZE)
        expires = int(moment.wall + expires_s)
        fields = {
            "id": token_id(secret),
            "signer": token_signer(secret),
            "mailbox": token_mailbox(secret).hex(),
            "uses": uses,
            "expires": expires,
            "role": "member",
            "tags": [],
            "ephemeral": False,
        }
        effects = self._ledger.sign("token", fields | member, moment)
        link = TokenLink(secret, roster.network_id, expires, relays)
        return render_token_link(link), effects

    def revoke_token(self, token: str, moment: Moment) -> list[MembershipEffect]:
        """End a token; who was admitted by it stays."""
        if token not in self._admin("revoke tokens").tokens:
            raise UserError("no such token", "see `nostrvpn status`")
        return self._ledger.sign("token_revoke", {"id": token}, moment)

    def _roster(self) -> Roster:
        roster = self._ledger.roster
        if roster is None or self._ledger.me not in roster.members:
            raise UserError("this node is in no network", "see `nostrvpn status`")
        return roster

    def _member(self, peer: str) -> Member:
        member = self._roster().members.get(peer)
        if member is None:
            raise UserError("no such member", "see `nostrvpn peers`")
        return member

    def _admin(self, what: str) -> Roster:
        roster = self._roster()
        if not roster.is_admin(self._ledger.me):
            raise UserError(
                f"only the network's owner and admins can {what}: {npub(roster.owner)}", _ASK
            )
        return roster

    def _above(self, peer: str, what: str) -> Roster:
        """Return the roster if this node stands above ``peer``."""
        roster = self._roster()
        target = self._member(peer)
        self._admin(f"{what} members")
        mine = roster.role(self._ledger.me)
        if mine is None or (target.role.rank >= mine.rank and mine is not Role.OWNER):
            raise UserError(f"only the owner can {what} an admin: {npub(roster.owner)}", _ASK)
        return roster
