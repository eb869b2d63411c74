"""What a search for a path through a hard NAT starts from, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.events import SendDatagram
from nostrvpn.paths.hard_nat.plan import SearchPlan
from nostrvpn.paths.open_checks import Credentials
from nostrvpn.paths.snapshot import Mapping

__all__ = ["Failed", "Found", "SearchEffect", "SearchTask", "Tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTask:
    """What a search starts from. ``target`` is the peer's reflexive IPv4 endpoint, by its own word.

    ``servers``: STUN servers (IPv4) that answered us. ``attempt`` counts the searches with this
    peer: every second one does without a low TTL on openers (``opener_ttl``), which a carrier's NAT
    many hops away needs.
    """

    controlling: bool
    own: Mapping
    peer: Mapping
    target: Endpoint
    servers: tuple[Endpoint, ...]
    credentials: Credentials
    tie_breaker: int
    attempt: int = 0
    opener_ttl: int = 4


@dataclass(frozen=True, slots=True)
class Tell:
    """Bring ``plan`` to the peer, over the relayed path or by signaling; twice does no harm."""

    plan: SearchPlan


@dataclass(frozen=True, slots=True)
class Found:
    """The peer is at ``remote``, from ``local_port`` (None: WireGuard's own)."""

    local_port: int | None
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing was found; ``reason`` in words."""

    reason: str


SearchEffect = SendDatagram | Tell
