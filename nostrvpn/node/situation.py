"""What ``why`` looks at: one peer's path, and all that may stand in its way, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nostrvpn.machine import Moment
from nostrvpn.node.services import Services, relay_name, services
from nostrvpn.paths.snapshot import LinkSnapshot, NatReport

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["Situation", "is_hard", "is_stun_silent", "situation_of", "udp_works"]

_HARD = ("predictable", "random", "dependent")


def is_hard(mapping: str | None) -> bool:
    """Say whether a NAT with this kind of mapping gives another port for each destination."""
    return mapping in _HARD


def is_stun_silent(nat: NatReport) -> bool:
    """Say whether all STUN servers that were asked stayed silent, in every family."""
    answers = (nat.udp_v4, nat.udp_v6)
    return False in answers and True not in answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One peer now. Times are in seconds; ``link`` None: the peer is not followed.

    ``heard_s``: since the peer last described itself, by its own clock; None: it never did.
    ``skew_s``: how far the date of its last refused message was off. ``udp_works``: some peer is
    reached by UDP. ``refused_sends``: datagrams that this host itself did not let out. ``names``:
    what relays are called.
    """

    name: str
    link: LinkSnapshot | None
    nat: NatReport
    member: bool = True
    heard_s: float | None = None
    skew_s: float | None = None
    nostr: bool = True
    udp_works: bool = False
    listen_port: int = 0
    refused_sends: int = 0
    tunnel_error: str | None = None
    tap_error: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    services: Services = field(default_factory=Services)

    @property
    def state(self) -> str:
        """The link's state; ``joining`` before the peer is a member for us."""
        if not self.member:
            return "joining"
        return self.link.state if self.link is not None else "idle"

    @property
    def path(self) -> str:
        """What carries data: ``direct``, ``relayed`` or ``none``."""
        return self.link.path if self.link is not None and self.member else "none"

    @property
    def answered(self) -> bool:
        """Whether the peer described itself in the current attempt."""
        return self.link is not None and "remote_described" in self.link.stages

    @property
    def tried(self) -> bool:
        """Whether a round of direct checks is over, or was not enough."""
        if self.link is None or self.path == "direct":
            return False
        over = self.state in ("failed", "degraded") or self.link.direct_rounds > 0
        return over or self.path == "relayed"

    @property
    def stun_silent(self) -> bool:
        """See :func:`is_stun_silent`."""
        return is_stun_silent(self.nat)

    @property
    def via(self) -> str | None:
        """The relay in words: a member's name or ``turn SERVER``."""
        key = self.link.via if self.link is not None else None
        return None if key is None else self.names.get(key, key)


def udp_works(node: Node) -> bool:
    """Say whether some peer is reached by UDP now, directly or through a relay."""
    links = (node.paths.snapshot(peer) for peer in node.peers)
    return any(link is not None and link.path != "none" and link.carrier == "udp" for link in links)


def situation_of(node: Node, peer: str, moment: Moment) -> Situation:
    """Gather what is known of ``peer`` (public key) now."""
    record, roster = node.peers[peer], node.membership.roster
    link = node.paths.snapshot(peer)
    # A sequence number is the sender's clock in milliseconds, unless it sends faster than that.
    heard = max(0.0, moment.wall - record.heard_seq / 1000) if record.heard_seq else None
    return Situation(
        name=node.peer_name(peer),
        link=link,
        nat=node.paths.nat(),
        member=roster is not None and peer in roster.members,
        heard_s=heard,
        skew_s=node.post.clock_offsets.get(peer),
        nostr=any(relay.state == "connected" for relay in node.post.pool.snapshot()),
        udp_works=udp_works(node),
        listen_port=node.settings.tunnel.listen_port,
        refused_sends=node.tap_counters.get("send EPERM", 0),
        tunnel_error=node.reconcile_error,
        tap_error=node.tap_error,
        names={relay: relay_name(node, relay) for relay in _relays_of(link)},
        services=services(node),
    )


def _relays_of(link: LinkSnapshot | None) -> set[str]:
    if link is None:
        return set()
    return {relay.relay for relay in link.relays} | ({link.via} if link.via is not None else set())
