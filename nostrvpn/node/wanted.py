"""Node -> the desired state, joined from what each of its parts says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nostrvpn.node.desired import Desired, desired_state

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["wanted_state"]


def wanted_state(node: Node, now: float, *, complete: bool) -> Desired:
    """Return what the kernel should look like at ``now``; see ``Node.desired``."""
    roster, ipv4 = node.membership.roster, node.overlap is None
    desired = desired_state(
        node.settings.tunnel,
        node.me,
        roster,
        node.peers.values(),
        ipv4=ipv4,
        now=now,
        complete=complete,
        subnets=node.subnets.used,
        exit_peer=node.exits.used,
    )
    gateway = node.subnets.gateway(roster, node.me)
    inbound = node.permissions.inbound(
        roster,
        node.me,
        now,
        ipv4=ipv4,
        advertised=gateway.networks,
        terms=node.exit_offer.terms(node),
    )
    gateway, meter = node.exit_offer.kernel(node, gateway, inbound)
    firewall = replace(desired.firewall, clamp_forwarded=not gateway.is_empty)
    shield, routing = node.exits.kernel(node, gateway.networks)
    return replace(
        desired,
        inbound=inbound,
        gateway=gateway,
        firewall=firewall,
        shield=shield,
        exit_routing=routing,
        exit_meter=meter,
    )
