"""Which peers a node connects to without being asked: the lazy start of large meshes.

Connecting to everybody would cost a mesh of N nodes N * N descriptions at each start, and most pairs
never talk. A peer that sleeps is woken by the first packet for it, or by its own description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import JoinState
from nostrvpn.node.events import NodeEffect
from nostrvpn.node.tunnel import DAY_S
from nostrvpn.paths.events import Wake

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["starts_asleep", "wake_relays"]

# Up to so many peers are connected to at once: users see their mesh come up.
AWAKE_PEERS = 8
# A peer that was in use on this or the day before is likely to be again.
USED_DAYS = 1


def starts_asleep(node: Node, peer: str, moment: Moment) -> bool:
    """Say whether the link to ``peer`` (public key) begins asleep.

    A relay wakes all: its offer is for each member alone, so nobody else can bring it to them.
    """
    settings, joining = node.settings, node.membership.joining
    if node.tunnel.doorbell is None or settings.paths.sleep_after is None:
        return False
    if settings.relay is not None or len(node.membership.peers) <= AWAKE_PEERS:
        return False
    if joining is not None and joining.state is JoinState.ASKING and joining.inviter == peer:
        return False
    return node.peers[peer].used_day < int(moment.wall // DAY_S) - USED_DAYS


def wake_relays(node: Node, moment: Moment) -> list[NodeEffect]:
    """A search found nothing: what sleeping relays offered may be outdated, so let them say it again."""
    effects: list[NodeEffect] = []
    for relay in [peer.public_key for peer in node.peers.values() if peer.relay_offer is not None]:
        link = node.paths.link(relay)
        if link is not None and link.asleep:
            effects += node.step_paths(Wake(relay), moment)
    return effects
