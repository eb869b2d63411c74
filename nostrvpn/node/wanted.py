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
        exit_peer=node.exits.used or node.booths.exit,
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
    upstream = node.exit_offer.upstream(node, gateway)
    gateway, meter = node.exit_offer.kernel(node, gateway, inbound)
    booths = node.booths.way
    if not booths.is_empty:
        gateway = replace(gateway, booths=booths.versions)
        inbound = inbound if inbound is None else replace(inbound, booths=booths.links)
    shield, routing = node.exits.kernel(node, gateway.networks)
    if shield.versions and not shield.link:
        # Containers and virtual machines leave through the exit too. What is around a link of its own
        # judges them there.
        inbound = replace(inbound, outward=shield.versions, overlay=shield.overlay)
    forwards = not gateway.is_empty or bool(inbound.outward)
    firewall = replace(desired.firewall, clamp_forwarded=forwards)
    return replace(
        desired,
        inbound=inbound,
        gateway=gateway,
        firewall=firewall,
        shield=shield,
        shield_at_boot=node.exits.shield_after_down,
        exit_routing=routing,
        exit_meter=meter,
        booths=booths,
        upstream=upstream,
        upstream_device=node.exit_offer.upstream_device,
        sold=node.sold,
        bought=tuple(replace(one, used=one.link == shield.link) for one in node.bought),
    )
