"""What the kernel lets this process do."""

from __future__ import annotations

from pathlib import Path

__all__ = ["has_net_admin", "has_net_raw"]

# Spec: linux/capability.h.
_CAP_NET_ADMIN = 12
_CAP_NET_RAW = 13


def has_net_admin() -> bool:
    """Whether this process may change interfaces, routes and WireGuard devices."""
    return _has(_CAP_NET_ADMIN)


def has_net_raw() -> bool:
    """Whether this process may open raw sockets."""
    return _has(_CAP_NET_RAW)


def _has(capability: int) -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False
