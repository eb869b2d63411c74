"""What a node takes up of its memory when it starts; what is damaged is left out, and told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.node.peers import Peer

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["restore"]


def restore(node: Node, records: Mapping[str, Mapping[str, object]]) -> None:
    """Give every part of ``node`` what was stored of it; notes say what was damaged."""
    policy = records.get("policy", {})
    node.notes += [("record_damaged", text) for text in node.post.damaged]
    for text in node.membership.restore(records):
        node.notes.append(("record_damaged", text))
    if damage := node.permissions.restore(policy):
        node.notes.append(("policy_damaged", damage))
    if damage := node.subnets.restore(policy, node.outbox):
        node.notes.append(("record_damaged", damage))
    node.exits.restore(policy)
    if damage := node.exit_offer.restore(policy):
        node.notes.append(("record_damaged", damage))
    for public_key, stored in records.get("peer", {}).items():
        try:
            peer = Peer.from_json(public_key, stored)
            if peer.wireguard_key in {p.wireguard_key for p in node.peers.values()} - {None}:
                raise PeerMisbehaved("bad_record", "its WireGuard key is another's too")
            node.peers[public_key] = peer
        except PeerMisbehaved as exc:
            node.notes.append(("record_damaged", f"peer {public_key[:8]}: {exc}"))
