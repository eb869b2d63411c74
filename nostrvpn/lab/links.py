"""Virtual cables between namespaces."""

from __future__ import annotations

from nostrvpn.lab.namespaces import Namespace

__all__ = ["INTERFACE_NAME_LIMIT", "connect", "interface_name"]

INTERFACE_NAME_LIMIT = 15
"""IFNAMSIZ - 1 (linux/if.h)."""


def interface_name(wanted: str) -> str:
    """Return ``wanted`` cut to what the kernel allows for an interface name."""
    return wanted[:INTERFACE_NAME_LIMIT]


def connect(left: tuple[Namespace, str], right: tuple[Namespace, str], *, mtu: int = 1500) -> None:
    """Lay a veth pair between two namespaces, each end under its given name, both up.

    Both ends are born inside their namespaces, so the host's own namespace never sees them.
    """
    (near, near_name), (far, far_name) = left, right
    near.ip(
        f"link add {near_name} mtu {mtu} type veth peer name {far_name} mtu {mtu} netns {far.name}",
        f"link set {near_name} up",
    )
    far.ip(f"link set {far_name} up")
