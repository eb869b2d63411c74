"""What status shows of a relay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nostrvpn.relaying.events import Channel, End
from nostrvpn.relaying.pairs import Pair
from nostrvpn.relaying.settings import RelaySettings
from nostrvpn.stun.relaying import Side

__all__ = ["PairSnapshot", "RelaySnapshot", "snapshot_of"]


@dataclass(frozen=True, slots=True)
class PairSnapshot:
    """One pair. ``a`` and ``b`` are "udp4", "udp6", "websocket" or None while unbound; seconds."""

    user: str
    port: int
    a: str | None
    b: str | None
    carried_bytes: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class RelaySnapshot:
    """The relay as it is. ``month_bytes`` is what was carried in the month ``month`` ("2026-11")."""

    pairs: tuple[PairSnapshot, ...]
    channels: int
    month: str
    month_bytes: int
    is_exhausted: bool
    settings: RelaySettings
    counters: Mapping[str, int]


def snapshot_of(pair: Pair, now: float) -> PairSnapshot:
    """Return what status shows of ``pair``."""
    return PairSnapshot(
        user=pair.user,
        port=pair.port,
        a=_carrier(pair.ends.get(Side.ALLOCATOR)),
        b=_carrier(pair.ends.get(Side.OTHER)),
        carried_bytes=pair.carried,
        idle_s=now - pair.active_at,
    )


def _carrier(end: End | None) -> str | None:
    if end is None:
        return None
    if isinstance(end.source, Channel):
        return "websocket"
    return f"udp{end.source.ip.version}"
