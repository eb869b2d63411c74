"""Bringing the kernel to the desired state: observe -> diff -> apply.

All of it blocks, so it runs in one worker thread, which also is the only writer: two reconciliations
never overlap. It is level-triggered: poked by the node, by netlink changes, and every 30 s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.host import diff as host_diff
from nostrvpn.host.diff import HostOp
from nostrvpn.host.firewall import Firewall, table_name
from nostrvpn.host.state import HostState
from nostrvpn.io.netlink import apply_host, observe_host, remove_limits
from nostrvpn.io.nftables import apply_firewall
from nostrvpn.io.own_tables import delete_own_tables
from nostrvpn.io.wireguard import Backend
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard import diff as wireguard_diff
from nostrvpn.wireguard.device import ObservedDevice

__all__ = ["Reconciler"]

# Less than the 30 s between two runs of an idle loop, so that each of those looks at everything. In
# between, what was found as desired is not read again: routes and addresses take six dumps, a table
# of the packet filter a process, and while a mesh starts there are several runs a second.
TRUSTED_S = 20.0

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Reconciler:
    """The single writer of one interface.

    ``firewall_error`` says why the packet filter is not as desired (nftables is not installed, say);
    None if it is. Everything else goes on without it.
    """

    def __init__(self, backend: Backend, interface: str, mtu: int) -> None:
        self._backend = backend
        self._interface = interface
        self._mtu = mtu
        self._applied: dict[str, int] = {}
        self._ready = False
        self._host: tuple[HostState, float] | None = None
        self._host_moved = False
        self._firewall: tuple[Firewall, float] | None = None
        self.firewall_error: str | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run blocking ``work`` in the worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def reconcile(self, desired: Desired) -> str | None:
        """Bring the kernel to ``desired``; return None, or why it refused."""
        try:
            await self.run(lambda: self.reconcile_now(desired))
        except NostrvpnError as exc:
            return str(exc)
        return None

    def reconcile_now(self, desired: Desired) -> None:
        """The same, in the calling thread; NostrvpnError says what the kernel refused."""
        name = self._interface
        observed = self._find() if self._ready else None
        if observed is None:
            # Idempotent: adopts a device of ours, replaces one whose process hangs.
            self._backend.create(name, self._mtu)
            self._ready, self._applied, self._host = True, {}, None
            observed = self._backend.observe(name)
        host_operations = self._host_operations(desired.host)
        for host_operation in host_operations:
            _log.info("[#] %s", host_operation)
        # Before an endpoint changes, what guards the change is in place.
        self._apply_firewall(desired.firewall)
        # The device is ready before the link comes up and routes lead to it.
        self._apply_device(observed, desired)
        apply_host(host_operations)

    def host_changed(self) -> None:
        """Links, addresses or routes changed: the next run looks at them. From any thread."""
        self._host_moved = True

    def _host_operations(self, desired: HostState) -> list[HostOp]:
        if not self._host_moved and _holds(self._host, desired):
            return []
        self._host, self._host_moved = None, False
        now = time.monotonic()
        operations = host_diff.diff(observe_host(self._interface), desired)
        if not operations:
            self._host = desired, now
        return operations

    def _find(self) -> ObservedDevice | None:
        try:
            return self._backend.observe(self._interface)
        except SystemRefused as exc:
            _log.warning("the tunnel does not answer and is made anew: %s", exc)
            return None

    def _apply_firewall(self, firewall: Firewall) -> None:
        if _holds(self._firewall, firewall):
            return
        self._firewall = None
        try:
            if apply_firewall(firewall, self._interface):
                _log.info(
                    "[#] nft: table inet %s: %s", table_name(self._interface), firewall.summary
                )
        except SystemRefused as exc:
            if self.firewall_error is None:
                _log.warning("the packet filter could not be set: %s", exc)
            self.firewall_error = str(exc)
        else:
            self.firewall_error = None
            self._firewall = firewall, time.monotonic()

    def _apply_device(self, observed: ObservedDevice | None, desired: Desired) -> None:
        name = self._interface
        operations = wireguard_diff.diff(observed, desired.device, self._applied, interface=name)
        for operation in operations:
            _log.info("[#] %s", operation)
        if operations:
            self._backend.apply(name, operations, desired.device)
        self._applied = wireguard_diff.applied_generations(desired.device)

    async def observe(self) -> ObservedDevice | None:
        """Return what WireGuard says now; None if the device is gone or does not answer."""
        try:
            return await self.run(lambda: self._backend.observe(self._interface))
        except NostrvpnError as exc:
            _log.warning("the tunnel does not answer: %s", exc)
            return None

    async def delete(self) -> None:
        """Remove the interface and all that hangs on it."""
        name = self._interface
        for what, remove in (
            ("tunnel", self._backend.delete),
            ("routing rules", remove_limits),
            ("packet filter", delete_own_tables),
        ):
            try:
                await self.run(partial(remove, name))
            except NostrvpnError as exc:
                _log.error("the %s could not be removed: %s", what, exc)

    def close(self) -> None:
        """End the worker thread."""
        self._thread.shutdown(wait=True)


def _holds(found: tuple[_T, float] | None, desired: _T) -> bool:
    """Whether ``desired`` was found or made so a moment ago (monotonic seconds)."""
    return found is not None and found[0] == desired and time.monotonic() - found[1] < TRUSTED_S
