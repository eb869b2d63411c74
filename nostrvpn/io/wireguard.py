"""The one interface to a WireGuard device, and the choice between the two that implement it.

Everything here blocks and acts in the network namespace of the calling thread; the agent calls it
from one worker thread. ``tests/contract/test_wireguard_backend.py`` runs the same suite on both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from nostrvpn.errors import SystemRefused
from nostrvpn.io.privilege import has_net_admin
from nostrvpn.wireguard.device import Device, ObservedDevice
from nostrvpn.wireguard.diff import Op

__all__ = ["Backend", "BackendName", "select_backend"]

BackendName = Literal["kernel", "userspace"]


class Backend(Protocol):
    """A way to have WireGuard devices. Each method raises SystemRefused if the system says no."""

    @property
    def name(self) -> BackendName:
        """Which of the two this is."""

    def unavailable(self) -> str:
        """Return why this backend cannot work here, or an empty string if it can."""

    def create(self, interface: str, mtu: int) -> None:
        """Make the device exist, marked as ours, with this MTU; adopt one of ours that is running.

        Refuses a link of this name that is not ours.
        """

    def observe(self, interface: str) -> ObservedDevice | None:
        """Return the device as it is, or None if there is none (any more) in this namespace."""

    def apply(self, interface: str, ops: Iterable[Op], device: Device) -> None:
        """Apply operations in order; ``device`` is the desired one, which holds the keys.

        Refuses a device that is not ours: one that is found at the start was not made by ``create``.
        """

    def delete(self, interface: str) -> None:
        """Remove the device and all that belongs to it (link, process, socket); gone is fine.

        Refuses a link of this name that is not ours.
        """


def select_backend(preference: Literal["auto", "kernel", "userspace"]) -> Backend:
    """Return a backend that works here, the kernel's first; SystemRefused names why none does."""
    from nostrvpn.io.wireguard_kernel import KernelBackend
    from nostrvpn.io.wireguard_userspace import UserspaceBackend

    if not has_net_admin():
        raise SystemRefused(
            "managing network interfaces is not permitted",
            "Run it as root (sudo), or with CAP_NET_ADMIN and CAP_NET_RAW.",
        )
    candidates: list[Backend] = []
    if preference in ("auto", "kernel"):
        candidates.append(KernelBackend())
    if preference in ("auto", "userspace"):
        candidates.append(UserspaceBackend())
    reasons = []
    for backend in candidates:
        reason = backend.unavailable()
        if not reason:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise SystemRefused(
        f"no WireGuard here ({'; '.join(reasons)})",
        "Load the kernel module (modprobe wireguard) or install one in user space "
        "(apt install wireguard-go).",
    )
