"""What the engine shows of itself: frozen values for status, netcheck and ``why``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from nostrvpn.endpoint import Endpoint

__all__ = ["LinkSnapshot", "Mapping", "NatReport", "PairResult", "ServerReport"]


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
class LinkSnapshot:
    """One peer's path. ``path`` is "direct" only after WireGuard's own packets crossed.

    ``stages`` are milliseconds since the peer was added; ``connected_in_ms`` is the last of them.
    """

    state: str
    path: str
    endpoint: Endpoint | None
    rtt_ms: float | None
    connected_in_ms: float | None
    stages: dict[str, float] = field(default_factory=dict)
    tried: tuple[PairResult, ...] = ()
    counters: dict[str, int] = field(default_factory=dict)


class Mapping(Enum):
    """RFC 4787 section 4.1: does the NAT give one address for all destinations?"""

    INDEPENDENT = "independent"
    DEPENDENT = "dependent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What one STUN server said; ``rtt_ms`` None: no answer (yet)."""

    server: Endpoint
    mapped: Endpoint | None
    rtt_ms: float | None


@dataclass(frozen=True, slots=True)
class NatReport:
    """Our address as seen from outside, per family, and the IPv4 NAT's kind of mapping."""

    mapping: str
    reflexive_v4: Endpoint | None
    reflexive_v6: Endpoint | None
    servers: tuple[ServerReport, ...]
