"""The knobs of the path engine. Defaults are for the internet; labs and tests change them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

__all__ = ["PathSettings"]

# Interfaces whose addresses lead back into this host, into containers, or into a tunnel (a path
# through another VPN would be a loop or a detour).
TUNNELS_AND_CONTAINERS = (
    "br-",
    "cali",
    "cni",
    "docker",
    "flannel",
    "lxc",
    "lxd",
    "nebula",
    "nvpn",
    "podman",
    "tailscale",
    "vbox",
    "veth",
    "virbr",
    "vmnet",
    "wg",
    "wt",
    "zt",
)


@dataclass(frozen=True, slots=True)
class PathSettings:
    """Durations are in seconds."""

    opener_ttl: int = 4
    """IPv4 TTL of an opener: enough to leave our own NATs, too small to reach the peer's."""
    check_interval: float = 0.05
    """Pacing of ordinary checks after the first burst (RFC 8445, 14.2: Ta)."""
    hold: float = 0.7
    """How long an answerer keeps its own checks of NATed pairs back."""
    gather_wait: float = 0.3
    """How long a description waits for the first answer of a STUN server and of relays."""
    sleep_after: float | None = None
    """Without traffic for this long a link goes to sleep; None: never."""
    hard_nat_search: bool = True
    """Search for a path through NATs that give another port to each destination."""
    allow_loopback: bool = False
    """Accept loopback candidates: only for tests on one host."""
    skip_interfaces: tuple[str, ...] = TUNNELS_AND_CONTAINERS
    """Prefixes of interface names whose addresses are not offered."""
    overlay: tuple[IPv4Network | IPv6Network, ...] = ()
    """The mesh's own prefixes: never a candidate, on either side."""
