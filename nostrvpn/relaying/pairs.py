"""One lent port and its two ends; and all of them, with the caps on their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Network

from nostrvpn.endpoint import IPAddress
from nostrvpn.machine import Entropy
from nostrvpn.relaying.events import End
from nostrvpn.relaying.requests import Request
from nostrvpn.relaying.settings import RelaySettings
from nostrvpn.stun.relaying import Side

__all__ = ["Pair", "Pairs", "origin_of"]

# Ports that others had, tried for one request; when no descriptor is left, all are refused.
MAX_REFUSALS = 8


@dataclass(slots=True)
class Pair:
    """A pair of peers and the port it was lent. ``origin`` is who asked, as ``origin_of`` says.

    ``waiting`` is the request to answer once the port is open, None when it is. ``binds`` counts the
    changes of each side's address, which makes challenges for earlier ones worthless. ``carried``
    is in bytes, and ``active_at`` when the pair was last of use to anybody.
    """

    name: str
    user: str
    origin: str
    port: int
    made_at: float
    active_at: float
    waiting: Request | None = None
    ends: dict[Side, End] = field(default_factory=dict)
    binds: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))
    was_bound: bool = False
    carried: int = 0
    refusals: int = 0

    def deadline(self, settings: RelaySettings) -> float:
        """Return when the port is taken back if nothing happens."""
        return self.active_at + (settings.idle_s if self.was_bound else settings.unbound_s)

    def other(self, side: Side) -> End | None:
        """Return the end of the other side, if it is bound."""
        return self.ends.get(Side.OTHER if side is Side.ALLOCATOR else Side.ALLOCATOR)


class Pairs:
    """All pairs, by (user, pair id), by pair id and by port."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._by_port: dict[int, Pair] = {}
        self._by_name: dict[str, Pair] = {}
        self._refused: set[int] = set()

    def __iter__(self) -> Iterator[Pair]:
        return iter(tuple(self._by_port.values()))

    def __len__(self) -> int:
        return len(self._by_port)

    def named(self, name: str) -> Pair | None:
        """Return the pair with this id."""
        return self._by_name.get(name)

    def at(self, port: int) -> Pair | None:
        """Return the pair at this port."""
        return self._by_port.get(port)

    def is_full_for(self, user: str, origin: str, is_known: bool) -> bool:
        """Say whether this user, or who is at this place and was told us by nobody, has enough."""
        if is_known:
            return sum(pair.user == user for pair in self) >= self._settings.pairs_per_user
        return sum(pair.origin == origin for pair in self) >= self._settings.pairs_per_source

    def add(self, pair: Pair) -> None:
        """Take in a pair whose id and port are free."""
        self._by_port[pair.port] = self._by_name[pair.name] = pair

    def remove(self, pair: Pair) -> None:
        """Forget a pair."""
        del self._by_port[pair.port]
        del self._by_name[pair.name]

    def free_port(self, entropy: Entropy) -> int | None:
        """Return a port that can be lent, at random; None if there is none or the relay is full."""
        ports = self._settings.ports
        if len(self) >= self._settings.max_pairs:
            return None
        start = int(entropy.fraction() * len(ports))
        for offset in range(len(ports)):
            port = ports[(start + offset) % len(ports)]
            if port not in self._by_port and port not in self._refused:
                return port
        self._refused.clear()  # whoever had them may have gone: the next one who asks tries again
        return None

    def refuse(self, pair: Pair, entropy: Entropy) -> bool:
        """Give ``pair`` another port, as its own belongs to somebody else; False if there is none."""
        self.remove(pair)
        self._refused.add(pair.port)
        pair.refusals += 1
        port = self.free_port(entropy) if pair.refusals < MAX_REFUSALS else None
        if port is None:
            return False
        pair.port = port
        self.add(pair)
        return True


def origin_of(ip: IPAddress) -> str:
    """Return what one client can have many addresses of: its IPv4 address, or its IPv6 /64."""
    return str(ip) if ip.version == 4 else str(IPv6Network((ip, 64), strict=False))
