"""Messages through the tunnels: to a peer whose tunnel is up, no relay needs to carry anything.

What does not get through goes by relays after all. The sender of what arrives is told by the address
it came from: WireGuard lets nobody use another's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from nostrvpn.machine import Moment
from nostrvpn.node.events import NodeEffect, SendThrough, ThroughFailed
from nostrvpn.node.tunnel import SESSION_S
from nostrvpn.paths.states import LinkState
from nostrvpn.signaling.messages import MessageType

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["TunnelPost", "is_up", "say_keys", "send_through", "through_failed"]

# Messages that may still fail, within seconds.
MAX_UNDER_WAY = 128


@dataclass(frozen=True, slots=True)
class _UnderWay:
    peer: str
    kind: MessageType
    body: dict[str, object] = field(repr=False)
    expires_s: int | None


class TunnelPost:
    """What is under way through tunnels, by token; ``counters``: "sent", "failed", "heard"."""

    def __init__(self) -> None:
        self._under_way: OrderedDict[str, _UnderWay] = OrderedDict()
        self._number = 0
        self._members: tuple[str, dict[IPv6Address, str]] = ("", {})
        self.counters: Counter[str] = Counter()

    def begin(self, item: _UnderWay) -> str:
        """Return the token of a message that leaves now."""
        if len(self._under_way) >= MAX_UNDER_WAY:
            # Of what got through nothing is heard: the oldest did.
            self._under_way.popitem(last=False)
        self._number += 1
        token = f"{item.kind.value}-{self._number}"
        self._under_way[token] = item
        self.counters["sent"] += 1
        return token

    def end(self, token: str) -> _UnderWay | None:
        """Return, once, what was under way under this token."""
        return self._under_way.pop(token, None)

    def member_at(self, node: Node, address: IPv6Address, moment: Moment) -> str | None:
        """Return whose overlay address this is, among the active members (public key)."""
        roster = node.membership.roster
        if roster is None:
            return None
        if self._members[0] != roster.digest:
            found = {roster.address(key).ipv6: key for key in roster.members}
            self._members = roster.digest, found
        member = self._members[1].get(address)
        if member is None or not roster.members[member].is_active(moment.wall):
            return None
        return member


def is_up(node: Node, peer: str, moment: Moment) -> bool:
    """Whether data flows through the tunnel of ``peer`` now."""
    known, link = node.peers.get(peer), node.paths.link(peer)
    if known is None or known.endpoint is None or known.held_until is not None or link is None:
        return False
    age = node.tunnel.handshake_age(known, moment)
    return age is not None and age < SESSION_S and link.state is LinkState.CONNECTED


def send_through(
    node: Node,
    peer: str,
    what: tuple[MessageType, dict[str, object]],
    moment: Moment,
    expires_s: int | None = None,
) -> list[NodeEffect] | None:
    """Return what sends a message through the tunnel of ``peer``; None if that is not up."""
    roster = node.membership.roster
    if roster is None or peer not in roster.members or not is_up(node, peer, moment):
        return None
    kind, body = what
    token = node.tunnel_post.begin(_UnderWay(peer, kind, body, expires_s))
    text, effects = node.post.tunnel_text(kind, roster.network_id, body, moment)
    return [*effects, SendThrough(roster.address(peer).ipv6, text, token)]


def through_failed(node: Node, event: ThroughFailed, moment: Moment) -> list[NodeEffect]:
    """It did not get through: by relays, then. Keys are for the tunnel alone, and said again."""
    item, roster = node.tunnel_post.end(event.token), node.membership.roster
    if item is None:
        return []
    node.tunnel_post.counters["failed"] += 1
    if item.kind is MessageType.KEYS or roster is None:
        return []
    return node.post.send(
        item.peer, item.kind, roster.network_id, item.body, moment, expires_s=item.expires_s
    )


def say_keys(node: Node, moment: Moment) -> list[NodeEffect]:
    """Send what the exchange of pair secrets has to say; without a tunnel it is said again later."""
    effects: list[NodeEffect] = []
    for says in node.post.take_says():
        effects += send_through(node, says.peer, (MessageType.KEYS, says.body), moment) or []
    return effects
