"""This node's own policy, and the roster's rules made into what the packet filter lets in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.host.exit_filter import ExitFilter
from nostrvpn.host.inbound import Access, Inbound, Ports
from nostrvpn.host.state import IPNetwork
from nostrvpn.machine import Moment
from nostrvpn.mesh.addressing import OverlayAddress
from nostrvpn.mesh.members import Member
from nostrvpn.mesh.permissions import MAX_PORT, PortSpan, Rule, What
from nostrvpn.mesh.policy import (
    CHANNEL_PORT,
    PING,
    Law,
    LocalPolicy,
    Question,
    decide,
    may_inbound,
    may_otherwise,
    means,
    rules_about,
)

__all__ = ["Addressed", "ExitTerms", "Permissions", "compile_inbound", "exit_sources"]

_Networks = frozenset[IPNetwork]
_CHANNEL_ONLY = Access(tcp=((CHANNEL_PORT, CHANNEL_PORT),))


class Addressed(Law, Protocol):
    """What the filter needs of a roster: the rules, and where each member is."""

    def address(self, public_key: str) -> OverlayAddress: ...


@dataclass(frozen=True, slots=True)
class ExitTerms:
    """``filter``: what guests may reach, without the guests; ``versions``: of IP, that are carried.
    ``ahead``: members (public keys) that this node leaves by itself, and so are no guests."""

    filter: ExitFilter
    versions: frozenset[int]
    ahead: frozenset[str] = frozenset()


class Permissions:
    """What this node's user allows, and the filter that follows from it, made anew on change only."""

    def __init__(self, local: LocalPolicy) -> None:
        self.local = local
        self._made: tuple[tuple[Any, ...], Inbound] | None = None
        self._valid = (0.0, 0.0)
        self._wall_ahead: float | None = None

    def tell_time(self, moment: Moment) -> None:
        """Take note of how wall time and ``Moment.now`` differ: memberships end by the calendar."""
        self._wall_ahead = moment.wall - moment.now

    def restore(self, records: Mapping[str, object]) -> str | None:
        """Take up what was stored; if that is damaged, let nothing in and return what is wrong."""
        if "local" not in records:
            return None
        try:
            self.local = self.local.restored(records["local"])
        except PeerMisbehaved as exc:
            # What was forbidden is not known any more.
            self.local = replace(self.local, shields_up=True)
            return f"this node's own rules are damaged: {exc}"
        return None

    def inbound(
        self,
        roster: Addressed | None,
        me: str,
        now: float,
        *,
        ipv4: bool,
        advertised: _Networks = frozenset(),
        terms: ExitTerms | None = None,
    ) -> Inbound:
        """Return what may enter at ``now``; nothing before the time was told.

        ``terms``: of those whom ``exit`` is allowed; None if this node is no exit now.
        """
        if roster is None or self._wall_ahead is None or me not in roster.members:
            return Inbound()
        wall = now + self._wall_ahead
        if self._made is not None and self._valid[0] <= wall < self._valid[1]:
            (known, local, *rest), inbound = self._made
            if known is roster and local is self.local and rest == [ipv4, advertised, terms]:
                return inbound
        made = compile_inbound(roster, me, self.local, wall, ipv4=ipv4, advertised=advertised)
        if terms is not None:
            guests = exit_sources(roster, me, self.local, wall, terms.versions)
            guests -= {
                ip
                for key in terms.ahead & roster.members.keys()
                for ip in _addresses(roster, roster.members[key], ipv4=True)
            }
            made = replace(made, exit=replace(terms.filter, sources=guests))
        expiries = (member.expires for member in roster.members.values())
        coming = [at for at in expiries if at is not None and at > wall]
        self._made = (roster, self.local, ipv4, advertised, terms), made
        # Until somebody's membership ends; a clock that was set back asks again too.
        self._valid = (wall, min(coming, default=float("inf")))
        return made


def compile_inbound(
    roster: Addressed,
    me: str,
    local: LocalPolicy,
    wall: float,
    *,
    ipv4: bool = True,
    advertised: frozenset[IPNetwork] = frozenset(),
) -> Inbound:
    """Return what may enter ``me``: for each active member exactly what ``decide`` allows.

    ``advertised``: the networks behind this node that its user shares; those that the roster approves
    too are open to whom ``lan`` is allowed.
    """
    own = roster.members[me]
    if not own.is_active(wall):
        return Inbound()
    others = [m for key, m in roster.members.items() if key != me and m.is_active(wall)]
    here = tuple(rule for rule in roster.rules if means(rule.target, own))
    sources: dict[IPAddress, Access] = {}
    lan: set[IPAddress] = set()
    networks = advertised & own.routes
    # In a large network most members are alike: each kind is worked out once.
    known: dict[object, Access] = {}
    for member in others:
        addresses = _addresses(roster, member, ipv4=ipv4)
        kind = (
            rules_about(local.rules, member, None, What.INBOUND),
            rules_about(here, member, None, What.INBOUND),
            may_otherwise(roster, local, member.owner == own.owner),
        )
        if kind not in known:
            known[kind] = _CHANNEL_ONLY if local.shields_up else _access(*kind)
        sources |= dict.fromkeys(addresses, known[kind])
        if networks:
            question = Question(member.public_key, me, What.LAN)
            if decide(roster, local, question, wall).allowed:
                lan |= set(addresses)
    home = frozenset(_addresses(roster, own, ipv4=ipv4))
    return Inbound(home, sources, frozenset(lan), networks)


def exit_sources(
    roster: Addressed, me: str, local: LocalPolicy, wall: float, versions: frozenset[int]
) -> frozenset[IPAddress]:
    """Return the addresses of these IP versions of all whom ``exit`` is allowed at ``me``."""
    return frozenset(
        ip
        for key, member in roster.members.items()
        if key != me and decide(roster, local, Question(key, me, What.EXIT), wall).allowed
        for ip in _addresses(roster, member, ipv4=True)
        if ip.version in versions
    )


def _addresses(roster: Addressed, member: Member, *, ipv4: bool) -> tuple[IPAddress, ...]:
    address = roster.address(member.public_key)
    return (address.ipv6, address.ipv4) if ipv4 else (address.ipv6,)


def _access(local: tuple[Rule, ...], network: tuple[Rule, ...], otherwise: str) -> Access:
    """Return what one kind of member may send."""

    def allowed(port: PortSpan | None) -> bool:
        return may_inbound(local, network, otherwise, port)

    spans = [span for rule in (*local, *network) for span in rule.ports]
    tcp, udp = (_open_ports(protocol, spans, allowed) for protocol in ("tcp", "udp"))
    return Access(allowed(PING), tcp, udp, allowed(None))


def _open_ports(protocol: str, spans: list[PortSpan], allowed: Callable[[PortSpan], bool]) -> Ports:
    """Ask about one port of each stretch within which no rule begins or ends."""
    spans = [*spans, PortSpan("tcp", CHANNEL_PORT, CHANNEL_PORT)]
    edges = {0, MAX_PORT + 1}
    edges |= {edge for s in spans if s.protocol == protocol for edge in (s.first, s.last + 1)}
    ordered = sorted(edges)
    found: list[tuple[int, int]] = []
    for first, following in pairwise(ordered):
        if not allowed(PortSpan(protocol, first, first)):
            continue
        if found and found[-1][1] == first - 1:
            first = found.pop()[0]
        found.append((first, following - 1))
    return tuple(found)
