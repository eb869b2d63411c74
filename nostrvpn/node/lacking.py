"""What a node does that lacks something nobody will tell it unasked.

- The network key that the roster names (a crash, a lost message, a month away): it asks one member after
  the other. An admin that gets it from nobody makes a new one: then nobody has it. Who holds no key at
  all has no mailbox: it asks through its tunnels alone, and a new key of its own would reach nobody.
- What was said while no relay can be reached: it asks through its tunnels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.machine import Moment, earliest
from nostrvpn.mesh.admission import rank_of
from nostrvpn.node.events import NodeEffect
from nostrvpn.node.roster_sync import ask_on, ask_roster, has_network_key
from nostrvpn.node.tunnel_post import is_up

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["Lacking", "fill_gaps"]

# The first question leaves when what waits on the relays has come; then ever more rarely.
FIRST_S, MOST_S = 10.0, 3600.0
# An admin that has asked for so long makes a new key, one after the other.
LOST_S, RANK_S = 900.0, 120.0
# Without a relay: how often whom to ask through tunnels.
OFFLINE_S = (300.0, 900.0)
TELLERS = 3


class Lacking:
    """Since when the network key is missing, and when to ask next (Moment.now)."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.ask_at: float | None = None
        self.wait_s = FIRST_S
        self.offline_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When :func:`fill_gaps` has something to do."""
        return earliest(self.ask_at, self.offline_at)


def fill_gaps(node: Node, moment: Moment) -> list[NodeEffect]:
    """Ask for what is missing, when it is time."""
    effects = ask_on(node, moment)
    lacking, roster = node.lacking, node.membership.roster
    if roster is None or not node.membership.is_member:
        lacking.ask_at = lacking.offline_at = lacking.since = None
        return effects
    effects += _ask_offline(node, moment)
    if has_network_key(node):
        effects += node.take_membership(node.membership.settled(), moment)
    if has_network_key(node) or not _may_hear(node, moment):
        lacking.ask_at = lacking.since = None
        return effects
    if lacking.since is None or lacking.ask_at is None:
        lacking.since, lacking.wait_s = moment.now, FIRST_S
        lacking.ask_at = moment.now + FIRST_S * (0.5 + moment.entropy.fraction())
    if moment.now >= lacking.ask_at:
        lacking.wait_s = min(2 * lacking.wait_s, MOST_S)
        lacking.ask_at = moment.now + lacking.wait_s * (0.5 + moment.entropy.fraction())
        if not node.post.keyring.keys:
            lacking.since = moment.now
        if moment.now - lacking.since >= _patience(node):
            lacking.since = None
            effects += node.take_membership(node.membership.renew_key(moment), moment)
        else:
            effects += ask_roster(node, _whom(node, moment), moment)
    return effects


def _may_hear(node: Node, moment: Moment) -> bool:
    if node.post.pool.connected and node.post.keyring.keys:
        return True
    return any(is_up(node, peer, moment) for peer in node.peers)


def _patience(node: Node) -> float:
    """Return how long this node waits for the key before it makes another; plain members: for ever."""
    roster = node.membership.roster
    if roster is None or not node.membership.is_admin:
        return float("inf")
    admins = {key: None for key in roster.members if roster.is_admin(key)}
    return LOST_S + RANK_S * rank_of(node.me, admins, "rekey", roster.key_id)


def _whom(node: Node, moment: Moment) -> str:
    """Return whom to ask for the key: first who made it, then anybody."""
    roster, peers = node.membership.roster, list(node.peers)
    if not node.post.keyring.keys:
        peers = [peer for peer in peers if is_up(node, peer, moment)]
    maker = roster.keys.get(roster.key_id, "") if roster is not None else ""
    is_first = node.lacking.wait_s <= 2 * FIRST_S
    if not peers or (is_first and maker in peers):
        return maker
    return peers[int(moment.entropy.fraction() * len(peers))]


def _ask_offline(node: Node, moment: Moment) -> list[NodeEffect]:
    lacking, effects = node.lacking, list[NodeEffect]()
    if node.post.pool.connected:
        lacking.offline_at = None
        return effects
    low, high = OFFLINE_S
    if lacking.offline_at is not None and moment.now >= lacking.offline_at:
        up = [peer for peer in node.peers if is_up(node, peer, moment)]
        first = int(moment.entropy.fraction() * len(up))
        for peer in (up[first:] + up[:first])[:TELLERS]:
            effects += ask_roster(node, peer, moment)
        lacking.offline_at = None
    if lacking.offline_at is None:
        lacking.offline_at = moment.now + low + (high - low) * moment.entropy.fraction()
    return effects
