"""What a command speaks of: this node's network, and its members by the names a user has for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.errors import UserError
from nostrvpn.identity.reference import find_peer
from nostrvpn.mesh.roster import Roster

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["asked_member", "asked_roster", "shown_name"]


def asked_roster(node: Node, *, as_member: bool = False) -> Roster:
    """Return the roster; UserError outside a network, or (``as_member``) if this node was removed."""
    roster = node.membership.roster
    if roster is None or (as_member and node.me not in roster.members):
        raise UserError("this node is in no network yet", "see `nostrvpn status`")
    return roster


def asked_member(node: Node, reference: object) -> str:
    """Return the public key of the member that is meant (``me``: this node); UserError if none is."""
    members = asked_roster(node).members
    if reference == "me" and node.me in members:
        return node.me
    return find_peer(str(reference), {key: shown_name(node, key) for key in members})


def shown_name(node: Node, key: str) -> str:
    """Return what the user knows a member by, this node included."""
    roster = node.membership.roster
    if key == node.me and (roster is None or key not in roster.members):
        return node.membership.name
    return node.peer_name(key)
