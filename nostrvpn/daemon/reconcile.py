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
from dataclasses import replace
from functools import partial
from typing import TypeVar

from nostrvpn.daemon.booth_way import Booths
from nostrvpn.daemon.bought_way import BoughtWay
from nostrvpn.daemon.exit_way import ExitWay
from nostrvpn.daemon.sold_way import SoldWay
from nostrvpn.daemon.upstream_way import UpstreamWay
from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.host import diff as host_diff
from nostrvpn.host.diff import HostOp
from nostrvpn.host.exit_filter import NO_GUESTS
from nostrvpn.host.exit_meter import ExitMeter, meter_table
from nostrvpn.host.firewall import Firewall, table_name
from nostrvpn.host.inbound import Inbound, inbound_table
from nostrvpn.host.shield import Shield
from nostrvpn.host.state import HostState
from nostrvpn.host.subnet_gateway import Gateway, gateway_table
from nostrvpn.io.exit_meter import apply_meter
from nostrvpn.io.forward_policy import Obstacle, forward_obstacle, input_obstacle
from nostrvpn.io.netlink import apply_host, observe_host, remove_limits
from nostrvpn.io.nftables import apply_firewall, apply_inbound
from nostrvpn.io.own_tables import delete_own_tables
from nostrvpn.io.relay_routing import RoutingMemory
from nostrvpn.io.subnet_gateway import apply_gateway
from nostrvpn.io.wireguard import Backend
from nostrvpn.node.desired import Desired
from nostrvpn.node.events import ReconcileFinished
from nostrvpn.wireguard import diff as wireguard_diff
from nostrvpn.wireguard.device import ObservedDevice

__all__ = ["Reconciler"]

# Everything is looked at this often, whether the kernel told of a change or not.
LOOK_AGAIN_S = 30.0
# Less than that, so that one run looks at everything. In between, what was found as desired is not read
# again: routes and addresses take six dumps, a table of the packet filter a process, and while a mesh
# starts there are several runs a second.
TRUSTED_S = 20.0
SHIELD_AGAIN_S = 1.0
# Reading all tables of the host takes a process; other firewalls change rarely.
LOOK_EVERY_S = 300.0

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Reconciler:
    """The single writer of one interface.

    ``firewall_error`` says why the packet filter is not as desired (nftables is not installed, say);
    None if it is. Everything else goes on without it. ``inbound_error`` says why permissions are not
    enforced: with ``must_filter`` nothing more is done then, without it the tunnel stands all the same.
    ``gateway_error`` says why nothing is forwarded into networks behind this host. ``shield_error`` says
    why what may leave beside an exit, or the way to it, is not as desired: no more leaves then. ``sold``
    and ``bought``: what strangers pay for, and what is paid for, each with its ``error`` and counters.
    """

    def __init__(
        self, backend: Backend, interface: str, mtu: int, *, must_filter: bool = True
    ) -> None:
        self._backend = backend
        self._interface = interface
        self._mtu = mtu
        self._applied: dict[str, int] = {}
        self._ready = False
        self._host: tuple[HostState, float] | None = None
        self._host_moved = self._tables_moved = False
        self._firewall: tuple[Firewall, float] | None = None
        self._must_filter = must_filter
        self._inbound: tuple[Inbound, float] | None = None
        self._is_judged = False
        self.firewall_error: str | None = None
        self.inbound_error: str | None = None
        self.obstacle: Obstacle | None = None
        self._gateway: tuple[Gateway, float] | None = None
        self._routing = RoutingMemory(gateway_table(interface))
        self.gateway_error: str | None = None
        self.forward_obstacle: Obstacle | None = None
        self._exit_way = ExitWay(interface)
        self._booths = Booths(interface)
        self._upstream = UpstreamWay(backend, interface)
        self.sold = SoldWay(backend, interface)
        self.bought = BoughtWay(backend, interface)
        self._meter: tuple[ExitMeter, float] | None = None
        self._has_metered = False
        self.meter_error: str | None = None
        self._looked_at: float | None = None
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

    def finished(self, error: str | None) -> ReconcileFinished:
        """Return what the node is told of a run that ended with ``error``."""
        return ReconcileFinished(
            error,
            self.firewall_error,
            self.inbound_error,
            _told(self.obstacle),
            self.gateway_error,
            _told(self.forward_obstacle),
            self.shield_error,
            self.meter_error or self._upstream.error,
            self.exit_rival,
            booths=self._booths.present,
        )

    def reconcile_now(self, desired: Desired) -> None:
        """The same, in the calling thread; NostrvpnError says what the kernel refused."""
        name = self._interface
        was_judged = self._is_judged
        has_moved = self._tables_moved or self._host_moved
        if self._tables_moved:
            self._tables_moved = False
            self._firewall = self._inbound = self._gateway = self._meter = self._looked_at = None
            self._exit_way.distrust_table()
        if self._host_moved:
            self._exit_way.distrust_routing()
        if has_moved:
            for way in (self._booths, self._upstream, self.sold, self.bought):
                way.distrust()
        # Before anything else: from here on nothing leaves that may not.
        self._exit_way.close(desired.shield, desired.exit_routing)
        self._booths.close(desired.booths)
        # The link is there before routes lead to it, and where it was left it goes.
        self.bought.settle(desired.bought)
        desired = self._upstream.prepare(self._metered(desired))
        if not was_judged:
            # Before there is a link: what comes out of it is judged from the first packet on.
            self._apply_inbound(desired.inbound)
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
        if host_operations:
            self._exit_way.distrust_routing()
        self._exit_way.route(desired.shield, desired.exit_routing)
        self._booths.open(desired.booths)
        if was_judged:
            # Last, as it takes longest: until then the filter of before drops what a new peer sends.
            self._apply_inbound(desired.inbound)
        # After the filter: nobody is let through whom it does not know.
        self._apply_gateway(desired.gateway)
        if desired.inbound is not None:
            self._look_around(desired.gateway)
        self._upstream.finish(desired)
        self.sold.settle(desired.sold)
        # After everything else.
        self._exit_way.open(desired.shield)

    @property
    def shield_error(self) -> str | None:
        """Why what may leave beside an exit, or the way to it, is not as desired; None if it is."""
        return self._exit_way.error

    @property
    def exit_rival(self) -> str | None:
        """The interface of another network of this host that uses an exit, so that ours cannot."""
        return self._exit_way.rival

    def end_with(self, shield: Shield) -> None:
        """Let ``delete`` leave this much of what holds traffic back. Without a word it leaves all."""
        self._exit_way.after = shield

    @property
    def is_applied(self) -> bool:
        """Whether the packet filter and what hangs on it were as desired after the last run."""
        errors = (self.inbound_error, self.gateway_error, self.shield_error, self._booths.error)
        return all(error is None for error in errors)

    @property
    def due_in_s(self) -> float:
        """Seconds until the next run is due, at the latest: something was looked at long ago then.

        Soon where the shield is not as desired: until it is, routes alone hold traffic back.
        """
        if self.shield_error is not None:
            return SHIELD_AGAIN_S
        found = (self._host, self._firewall, self._inbound, self._gateway, *self._exit_way.found)
        found += self._booths.found
        oldest = min((one[1] for one in found if one is not None), default=time.monotonic())
        return max(1.0, oldest + LOOK_AGAIN_S - time.monotonic())

    def tables_changed(self) -> None:
        """Somebody removed of our nftables tables: the next run looks at them. From any thread."""
        self._tables_moved = True

    def host_changed(self) -> None:
        """Links, addresses, routes or rules changed: the next run looks at them. From any thread."""
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

    def _apply_inbound(self, inbound: Inbound | None) -> None:
        if inbound is None or _holds(self._inbound, inbound):
            return
        self._inbound = None
        try:
            if apply_inbound(inbound, self._interface):
                table = inbound_table(self._interface)
                _log.info("[#] nft: table inet %s: %s", table, inbound.summary)
        except SystemRefused as exc:
            if self.inbound_error is None:
                _log.warning("permissions cannot be enforced: %s", exc)
            self.inbound_error = str(exc)
            if self._must_filter:
                hint = "install nftables, or set permissions.enforce: best-effort"
                raise SystemRefused(f"permissions cannot be enforced: {exc}", hint) from exc
        else:
            self.inbound_error = None
            self._is_judged, self._inbound = True, (inbound, time.monotonic())

    def _metered(self, desired: Desired) -> Desired:
        """Measure guests before any is let through; if that fails, none is."""
        meter = desired.exit_meter
        if not _holds(self._meter, meter):
            self._meter = None
            try:
                # What an earlier run counted is not known; the month's account was stored.
                if apply_meter(meter, self._interface, anew=not self._has_metered):
                    table = meter_table(self._interface)
                    _log.info("[#] nft: table inet %s: %s", table, meter.summary)
            except SystemRefused as exc:
                if self.meter_error is None:
                    _log.warning("guests cannot be measured, and are not let through: %s", exc)
                self.meter_error = str(exc)
            else:
                self.meter_error = None
                self._has_metered = self._has_metered or bool(meter.guests)
                self._meter = meter, time.monotonic()
        if self.meter_error is None or desired.inbound is None:
            return desired
        return replace(desired, inbound=replace(desired.inbound, exit=NO_GUESTS))

    def _apply_gateway(self, gateway: Gateway) -> None:
        if _holds(self._gateway, gateway):
            return
        before, self._gateway = self._gateway, None
        if before is None or before[0] != gateway:
            self._looked_at = None
        try:
            if not gateway.is_empty and self.inbound_error is not None:
                # Whoever came out of the tunnel would be let through.
                raise SystemRefused(f"permissions cannot be enforced: {self.inbound_error}")
            if apply_gateway(gateway, self._interface, self._routing):
                table = gateway_table(self._interface)
                _log.info("[#] nft: table inet %s: %s", table, gateway.summary)
        except SystemRefused as exc:
            if self.gateway_error is None:
                _log.warning("networks behind this host cannot be reached through it: %s", exc)
            self.gateway_error = str(exc)
        else:
            self.gateway_error = None
            self._gateway = gateway, time.monotonic()

    def _look_around(self, gateway: Gateway) -> None:
        """Look, now and then, whether another firewall drops what members may send."""
        now = time.monotonic()
        # Whoever takes away what stops the service is not kept waiting.
        every = LOOK_EVERY_S if self.forward_obstacle is None else LOOK_AGAIN_S
        if self._looked_at is not None and now - self._looked_at < every:
            return
        self._looked_at, self.obstacle, self.forward_obstacle = now, None, None
        try:
            self.obstacle = input_obstacle(self._interface)
            if gateway.networks or gateway.exit_versions:
                self.forward_obstacle = forward_obstacle(self._interface, gateway.versions)
        except Exception as exc:  # only advice, out of what others wrote
            _log.error("other firewalls are not understood: %r", exc, exc_info=exc)

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
        """Remove the interface and all that hangs on it, but what holds traffic back (``end_with``)."""
        name = self._interface
        for what, remove in (
            ("kill switch", self._exit_way.end_closed),
            ("way of commands", self._booths.end),
            ("way to the provider", self._upstream.end),
            ("way of strangers", self.sold.end),
            ("way to what was bought", self.bought.end),
            ("tunnel", self._backend.delete),
            ("routing rules", remove_limits),
            # First what it remembers, for its table may have been flushed just now.
            ("routing", lambda _name: self._routing.put_back()),
            ("packet filter", partial(delete_own_tables, keep_shield=True)),
            ("kill switch", self._exit_way.end_open),
        ):
            try:
                await self.run(partial(remove, name))
            except NostrvpnError as exc:
                _log.error("the %s could not be removed: %s", what, exc)

    def close(self) -> None:
        """End the worker thread."""
        self._thread.shutdown(wait=True)


def _told(obstacle: Obstacle | None) -> tuple[str, str] | None:
    return None if obstacle is None else (obstacle.where, obstacle.remedy)


def _holds(found: tuple[_T, float] | None, desired: _T) -> bool:
    """Whether ``desired`` was found or made so a moment ago (monotonic seconds)."""
    return found is not None and found[0] == desired and time.monotonic() - found[1] < TRUSTED_S
