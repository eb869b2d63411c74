"""What the engine shows of itself: frozen values for status, netcheck and ``why``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from nostrvpn.endpoint import Endpoint

__all__ = ["LinkSnapshot", "Mapping", "NatReport", "PairResult", "RelayResult", "ServerReport"]


@dataclass(frozen=True, slots=True)
class PairResult:
    """One address that was tried: ``reason`` says in words why it did not work."""

    endpoint: Endpoint
    kind: str
    state: str
    tries: int
    rtt_ms: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class RelayResult:
    """One relay that was asked for this peer: ``relay`` is its public key, or its address."""

    relay: str
    state: str
    rtt_ms: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class LinkSnapshot:
    """One peer's path. ``path`` is "direct" or "relayed" only after WireGuard's own packets crossed.

    ``stages`` are milliseconds since the peer was added; ``connected_in_ms`` is the last of them.
    ``via``: who relays, a public key or "turn SERVER". ``carrier``: "udp", "websocket" or "turn".
    ``direct_rounds``: searches for a direct path in a row that found none; the next one is due in
    ``next_try_in_s``. ``peer_nat``: how the peer's NAT maps, in its own words (see Mapping).
    ``mtu``: bytes of the largest outer IP packet known to pass. ``peer_udp``: whether anything answers
    the peer by UDP, by its own word; None: it did not say. ``search``: what the search for a path
    through hard NATs does, or why the last one found nothing, in words; empty: there was none.
    ``crossed``: WireGuard's packets came in since the endpoint in use was set.
    """

    state: str
    path: str
    endpoint: Endpoint | None
    rtt_ms: float | None
    connected_in_ms: float | None
    stages: dict[str, float] = field(default_factory=dict)
    tried: tuple[PairResult, ...] = ()
    counters: dict[str, int] = field(default_factory=dict)
    via: str | None = None
    carrier: str = "udp"
    relays: tuple[RelayResult, ...] = ()
    direct_rounds: int = 0
    next_try_in_s: float | None = None
    peer_nat: str | None = None
    mtu: int | None = None
    asleep: bool = False
    peer_udp: bool | None = None
    search: str = ""
    crossed: bool = False


class Mapping(Enum):
    """RFC 4787 section 4.1: does the NAT give one address for all destinations?

    If not: PREDICTABLE counts its ports, RANDOM draws them, DEPENDENT is not told apart yet.
    """

    INDEPENDENT = "independent"
    DEPENDENT = "dependent"
    PREDICTABLE = "predictable"
    RANDOM = "random"
    UNKNOWN = "unknown"

    @property
    def is_dependent(self) -> bool:
        """Whether each destination sees another port of ours (a "hard" NAT)."""
        return self in (Mapping.DEPENDENT, Mapping.PREDICTABLE, Mapping.RANDOM)


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What one STUN server said; ``rtt_ms`` None: no answer (yet)."""

    server: Endpoint
    mapped: Endpoint | None
    rtt_ms: float | None


@dataclass(frozen=True, slots=True)
class NatReport:
    """Our address as seen from outside, per family, and what the IPv4 NAT does.

    ``mapping``: see Mapping. ``step`` and ``last_port`` are those of a NAT that counts, ``sure`` (0
    to 1) is how evenly it did. ``filtering`` (RFC 4787 section 5) is "independent" or
    "address-dependent" when something came in that only such a NAT lets in, else "unknown": STUN
    servers that would tell are gone. ``hairpin``: whether a packet to our own outside address came
    back. ``udp_v4``, ``udp_v6``: whether STUN servers answer. None: not known, or not (yet) asked.
    """

    mapping: str
    reflexive_v4: Endpoint | None
    reflexive_v6: Endpoint | None
    servers: tuple[ServerReport, ...]
    step: int | None = None
    last_port: int | None = None
    sure: float | None = None
    filtering: str = "unknown"
    hairpin: bool | None = None
    udp_v4: bool | None = None
    udp_v6: bool | None = None
