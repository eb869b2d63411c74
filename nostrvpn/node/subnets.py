"""Networks behind members: which of them this node takes, through which router, and which it shares.

The choice of a router is deterministic, so nodes that see the same choose the same: of the members
that share a network and are approved and accepted for it, the one with the lowest public key. A router
without a path is left for another one that has a path; the better one gets the network back once its
path has been there for a while. One router at a time holds a network.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.host.subnet_gateway import Gateway
from nostrvpn.machine import Moment, earliest
from nostrvpn.mesh.addressing import ipv4_prefix, ipv6_prefix
from nostrvpn.mesh.roster import Roster
from nostrvpn.mesh.subnets import IPNetwork, SubnetSettings, covering_route, objection
from nostrvpn.node.events import NodeEffect, Reconcile, ReconcileFinished
from nostrvpn.paths.candidates import PathKind

if TYPE_CHECKING:
    from nostrvpn.node.node import Node
    from nostrvpn.node.outbox import Outbox

__all__ = [
    "LOST_S",
    "STABLE_S",
    "Offer",
    "RouterChoice",
    "Subnets",
    "endpoint_within",
    "offers_of",
    "overlay_of",
]

# A path that is lost is often back at once, when this node changed its network: then all are lost.
LOST_S = 1.0
# Connections through a router (its SNAT) do not survive the change to another one. So a router that
# comes and goes is not followed each time.
STABLE_S = 30.0


class RouterChoice:
    """Which router holds each network. Times are Moment.now's seconds."""

    def __init__(self) -> None:
        self.used: dict[IPNetwork, str] = {}
        self.deadline: float | None = None
        self._lost: dict[IPNetwork, float] = {}
        self._well: dict[str, float] = {}

    def review(
        self, wanted: Mapping[IPNetwork, Sequence[str]], healthy: Container[str], now: float
    ) -> bool:
        """Choose anew at ``now``; return whether something changed.

        ``wanted``: the routers of each network, the best first; ``healthy``: those with a path.
        """
        before = dict(self.used)
        routers = {router for those in wanted.values() for router in those}
        self._well = {r: self._well.get(r, now) for r in routers if r in healthy}
        for gone in self.used.keys() - wanted.keys():
            del self.used[gone]
            self._lost.pop(gone, None)
        due = [self._choose(network, those, now) for network, those in wanted.items() if those]
        self.deadline = earliest(*due)
        return before != self.used

    def _choose(self, network: IPNetwork, routers: Sequence[str], now: float) -> float | None:
        """Choose for one network; return when to look again."""
        alive = [router for router in routers if router in self._well]
        current = self.used.get(network)
        if current not in routers:
            current = (alive or routers)[0]
            self._take(network, current)
            if not alive:
                self._lost[network] = (
                    now - LOST_S
                )  # it was never there: the first that is, is better
        if current not in alive:
            lost = self._lost.setdefault(network, now)
            if not alive:
                return None
            if now < lost + LOST_S:
                return lost + LOST_S
            self._take(network, alive[0])
            current = alive[0]
        self._lost.pop(network, None)
        better = routers[: routers.index(current)]
        due = [(self._well[router] + STABLE_S, router) for router in better if router in alive]
        ready = [router for at, router in due if at <= now]
        if ready:
            self._take(network, ready[0])
            due = [(at, router) for at, router in due if router in better[: better.index(ready[0])]]
        return min((at for at, _ in due if at > now), default=None)

    def _take(self, network: IPNetwork, router: str) -> None:
        self.used[network] = router
        self._lost.pop(network, None)


@dataclass(frozen=True, slots=True)
class Offer:
    """One network behind one member. ``obstacle``: why it is not taken, a code and words; or None."""

    network: IPNetwork
    router: str
    advertised: bool
    approved: bool
    accepted: bool
    obstacle: tuple[str, str] | None


class Subnets:
    """This node's part: what its user decided, and what follows for routes and for forwarding."""

    def __init__(self) -> None:
        self.settings = SubnetSettings()
        self.choice = RouterChoice()
        self.gateway_error: str | None = None
        self.forward_obstacle: tuple[str, str] | None = None
        self._known: tuple[object, ...] = ()
        self._wanted: dict[IPNetwork, list[str]] = {}
        self._valid_until = float("inf")

    @property
    def used(self) -> Mapping[IPNetwork, str]:
        """The router (public key) of each network that is routed into the tunnel."""
        return self.choice.used

    def carries(self, ip: IPAddress) -> bool:
        """Whether this host sends packets to ``ip`` into the tunnel, to some router."""
        return any(ip in network for network in self.used)

    @property
    def deadline(self) -> float | None:
        """When :meth:`review` is due."""
        return self.choice.deadline

    def restore(self, records: Mapping[str, object], outbox: Outbox) -> str | None:
        """Take up what was stored; if it is damaged, begin anew and return what is wrong."""
        if "subnets" not in records:
            return None
        try:
            self.settings = SubnetSettings.from_json(records["subnets"])
        except PeerMisbehaved as exc:
            return f"what this node shares and accepts of subnets is lost: {exc}"
        outbox.advertised = tuple(map(str, self.settings.advertised))
        return None

    def applied(self, event: ReconcileFinished) -> None:
        """The kernel forwards, or this is why not."""
        self.gateway_error, self.forward_obstacle = event.gateway_error, event.forward_obstacle

    def forget(self) -> None:
        """A peer shares something else now: the next review looks at everything."""
        self._known = ()

    def review(self, node: Node, moment: Moment) -> list[NodeEffect]:
        """Choose the routers anew; cheap while nothing happened."""
        roster = node.membership.roster
        if not node.routes and not self.used:
            return []  # what the host's own networks are is not known yet
        # The values themselves, not their ids: an id may come again.
        known = (roster, node.routes, node.addresses, self.settings)
        if not _are(known, self._known) or moment.wall >= self._valid_until:
            self._known = known
            self._gather(node, roster, moment.wall)
        if not self._wanted and not self.used:
            return []
        wanted = {
            network: routers
            for network, routers in self._wanted.items()
            if network in self.used or endpoint_within(node, network) is None
        }
        healthy = {
            router for those in wanted.values() for router in those if _has_path(node, router)
        }
        return [Reconcile()] if self.choice.review(wanted, healthy, moment.now) else []

    def _gather(self, node: Node, roster: Roster | None, wall: float) -> None:
        self._wanted, self._valid_until = {}, float("inf")
        for offer in sorted(offers_of(node, wall), key=lambda offer: offer.router):
            if offer.obstacle is None:
                self._wanted.setdefault(offer.network, []).append(offer.router)
                member = roster.members[offer.router] if roster is not None else None
                if member is not None and member.expires is not None:
                    self._valid_until = min(self._valid_until, member.expires)

    def gateway(self, roster: Roster | None, me: str) -> Gateway:
        """Return what the node ``me`` forwards into: what its user shares, and admins approved."""
        if roster is None or me not in roster.members or not self.settings.advertised:
            return Gateway()
        overlay = overlay_of(roster)
        approved = roster.members[me].routes
        networks = {n for n in self.settings.advertised if objection(n, overlay) is None}
        shared = frozenset(networks & approved)
        return Gateway(shared, frozenset(overlay), self.settings.snat) if shared else Gateway()


def overlay_of(roster: Roster) -> tuple[IPNetwork, ...]:
    """Return the prefixes of the members' own addresses."""
    return ipv6_prefix(roster.network_id), ipv4_prefix(roster.network_id)


def offers_of(node: Node, wall: float) -> list[Offer]:
    """Return every network that another member shares, or is approved for, and why it is not taken."""
    roster = node.membership.roster
    if roster is None or node.me not in roster.members:
        return []
    found = []
    for key, member in roster.members.items():
        peer = node.peers.get(key)
        if key == node.me or peer is None or not member.is_active(wall):
            continue
        for network in sorted(member.routes.union(peer.advertised), key=str):
            choice = node.subnets.settings.choice_about(key, network)
            accepted = choice is not None and choice.accept
            advertised, approved = network in peer.advertised, network in member.routes
            obstacle = None
            if (reason := objection(network, overlay_of(roster))) is not None:
                obstacle = ("forbidden", f"it cannot be shared: {reason}")
            elif not approved:
                obstacle = ("not_approved", "no admin approved it")
            elif not advertised:
                obstacle = ("not_advertised", f"{node.peer_name(key)} does not share it")
            elif not accepted:
                words = "this node does not accept it" if choice is None else "refused here"
                obstacle = ("not_accepted", words)
            else:
                obstacle = _local_obstacle(
                    node, network, forced=choice is not None and choice.force
                )
            found.append(Offer(network, key, advertised, approved, accepted, obstacle))
    return found


def _local_obstacle(node: Node, network: IPNetwork, *, forced: bool) -> tuple[str, str] | None:
    """Return why a network that is agreed upon cannot be used at this place, or None."""
    if network.version == 4 and node.overlap is not None:
        words = f"no IPv4 here: the host's {node.overlap} overlaps the members' addresses"
        return "no_ipv4", words
    hidden = covering_route(network, node.routes)
    if hidden is not None and hidden == network:
        return "here", "this host has its own route to it"
    if hidden is not None and not forced:
        return "hides", f"it would hide a part of {hidden}, to which this host has a route"
    if hidden is not None and any(address.ip in network for address in node.addresses):
        return "here", "this host itself has an address in it"
    return None


def endpoint_within(node: Node, network: IPNetwork) -> str | None:
    """Return the name of a peer that is reached at an address in ``network``, or None.

    The tunnel's own packets would be led into the tunnel.
    """
    for key, peer in node.peers.items():
        if peer.endpoint is not None and peer.endpoint.ip in network:
            return node.peer_name(key)
    return None


def _has_path(node: Node, router: str) -> bool:
    """Whether packets reach a router, or would wake it."""
    link = node.paths.link(router)
    return link is not None and (link.path is not PathKind.NONE or link.asleep)


def _are(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
