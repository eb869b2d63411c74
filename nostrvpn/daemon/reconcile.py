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

from nostrvpn.config.options import BOOT_BLOCK
from nostrvpn.daemon.booth_way import Booths
from nostrvpn.daemon.bought_way import BoughtWay
from nostrvpn.daemon.exit_way import ExitWay
from nostrvpn.daemon.own_link import OwnLink
from nostrvpn.daemon.settled import Settled
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
from nostrvpn.io.boot_block import keep_boot_block
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
from nostrvpn.wireguard.device import ObservedDevice

__all__ = ["Reconciler"]

# Everything is looked at this often, whether the kernel told of a change or not.
LOOK_AGAIN_S = 30.0
SHIELD_AGAIN_S = 1.0
# Reading all tables of the host takes a process; other firewalls change rarely.
LOOK_EVERY_S = 300.0

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Reconciler:
    """The single writer of one interface.

    Where permissions cannot be enforced (nftables is not installed, say), nothing more is done with
    ``must_filter``; without it the tunnel stands all the same. Everything else goes on without what
    failed, which ``finished`` tells. ``shield_error`` says why what may leave beside an exit, or the way
    to it, is not as desired: no more leaves then. ``sold`` and ``bought``: what strangers pay for, and
    what is paid for, each with its ``error`` and counters. ``home``: the state directory in which what
    holds traffic back when the host starts is kept; None keeps it nowhere.
    """

    def __init__(
        self,
        backend: Backend,
        interface: str,
        mtu: int,
        *,
        must_filter: bool = True,
        home: str | None = None,
    ) -> None:
        self._backend = backend
        self._interface = interface
        self._mtu = mtu
        self._link = OwnLink(backend, interface)
        self._ready = False
        self._host = Settled[HostState]()
        self._host_moved = self._tables_moved = False
        self._firewall = Settled[Firewall]("the packet filter could not be set: %s")
        self._must_filter = must_filter
        self._inbound = Settled[Inbound]("permissions cannot be enforced: %s")
        self._is_judged = False
        self.obstacle: Obstacle | None = None
        self._gateway = Settled[Gateway](
            "networks behind this host cannot be reached through it: %s"
        )
        self._routing = RoutingMemory(gateway_table(interface))
        self.forward_obstacle: Obstacle | None = None
        self._exit_way = ExitWay(interface)
        self._home = home
        self._at_boot = Settled[Shield](
            "what lockdown holds back could not be kept for the next start: %s",
            refusals=(NostrvpnError,),
        )
        self._booths = Booths(interface)
        self._upstream = UpstreamWay(backend, interface)
        self.sold = SoldWay(backend, interface)
        self.bought = BoughtWay(backend, interface)
        self._meter = Settled[ExitMeter]("guests cannot be measured, and are not let through: %s")
        self._has_metered = False
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
            self._firewall.error,
            self._inbound.error,
            _told(self.obstacle),
            self._gateway.error,
            _told(self.forward_obstacle),
            self.shield_error,
            self._meter.error or self._upstream.error,
            self.exit_rival,
            booths=self._booths.present,
        )

    def reconcile_now(self, desired: Desired) -> None:
        """The same, in the calling thread; NostrvpnError says what the kernel refused."""
        was_judged = self._is_judged
        has_moved = self._tables_moved or self._host_moved
        if self._tables_moved:
            self._tables_moved = False
            self._looked_at = None
            for one in (self._firewall, self._inbound, self._gateway, self._meter):
                one.forget()
            self._exit_way.distrust_table()
        if self._host_moved:
            self._exit_way.distrust_routing()
        if has_moved:
            for way in (self._booths, self._upstream, self.sold, self.bought):
                way.distrust()
        # Before anything else: from here on nothing leaves that may not.
        self._exit_way.close(desired.shield, desired.exit_routing)
        self._keep_for_boot(desired.shield_at_boot)
        self._booths.close(desired.booths)
        # The link is there before routes lead to it, and where it was left it goes.
        if self.bought.settle(desired.bought):
            self._exit_way.distrust_routing()
        desired = self._upstream.prepare(self._metered(desired))
        if not was_judged:
            # Before there is a link: what comes out of it is judged from the first packet on.
            self._apply_inbound(desired.inbound)
        observed = self._link.find() if self._ready else None
        if observed is None:
            observed = self._link.make(self._mtu)
            self._ready = True
            self._host.forget()
        host_operations = self._host_operations(desired.host)
        for host_operation in host_operations:
            _log.info("[#] %s", host_operation)
        # Before an endpoint changes, what guards the change is in place.
        self._apply_firewall(desired.firewall)
        # The device is ready before the link comes up and routes lead to it.
        self._link.set_device(observed, desired.device)
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
        ways = (self._inbound, self._gateway, self._exit_way, self._booths)
        return all(way.error is None for way in ways)

    @property
    def due_in_s(self) -> float:
        """Seconds until the next run is due, at the latest: something was looked at long ago then.

        Soon where the shield is not as desired: until it is, routes alone hold traffic back.
        """
        if self.shield_error is not None:
            return SHIELD_AGAIN_S
        things = (self._host, self._firewall, self._inbound, self._gateway, self._booths)
        found = [*(one.since for one in things), *self._exit_way.since]
        oldest = min((at for at in found if at is not None), default=time.monotonic())
        return max(1.0, oldest + LOOK_AGAIN_S - time.monotonic())

    def tables_changed(self) -> None:
        """Somebody removed of our nftables tables: the next run looks at them. From any thread."""
        self._tables_moved = True

    def host_changed(self) -> None:
        """Links, addresses, routes or rules changed: the next run looks at them. From any thread."""
        self._host_moved = True

    def _host_operations(self, desired: HostState) -> list[HostOp]:
        if not self._host_moved and self._host.holds(desired):
            return []
        self._host.forget()
        self._host_moved = False
        operations = host_diff.diff(observe_host(self._interface), desired)
        if not operations:
            self._host.found(desired)
        return operations

    def _apply_firewall(self, firewall: Firewall) -> None:
        if self._firewall.holds(firewall):
            return
        with self._firewall.making(firewall):
            if apply_firewall(firewall, self._interface):
                table = table_name(self._interface)
                _log.info("[#] nft: table inet %s: %s", table, firewall.summary)

    def _apply_inbound(self, inbound: Inbound | None) -> None:
        if inbound is None or self._inbound.holds(inbound):
            return
        with self._inbound.making(inbound):
            if apply_inbound(inbound, self._interface):
                table = inbound_table(self._interface)
                _log.info("[#] nft: table inet %s: %s", table, inbound.summary)
            self._is_judged = True
        if self._inbound.error is not None and self._must_filter:
            hint = "install nftables, or set permissions.enforce: best-effort"
            raise SystemRefused(f"permissions cannot be enforced: {self._inbound.error}", hint)

    def _keep_for_boot(self, shield: Shield) -> None:
        home = self._home
        if home is None or self._at_boot.holds(shield):
            return
        with self._at_boot.making(shield):
            if keep_boot_block(home, self._interface, shield):
                _log.info("[#] %s/%s: %s", home, BOOT_BLOCK, shield.summary)

    def _metered(self, desired: Desired) -> Desired:
        """Measure guests before any is let through; if that fails, none is."""
        meter = desired.exit_meter
        if not self._meter.holds(meter):
            with self._meter.making(meter):
                # What an earlier run counted is not known; the month's account was stored.
                if apply_meter(meter, self._interface, anew=not self._has_metered):
                    table = meter_table(self._interface)
                    _log.info("[#] nft: table inet %s: %s", table, meter.summary)
                self._has_metered = self._has_metered or bool(meter.guests)
        if self._meter.error is None or desired.inbound is None:
            return desired
        return replace(desired, inbound=replace(desired.inbound, exit=NO_GUESTS))

    def _apply_gateway(self, gateway: Gateway) -> None:
        if self._gateway.holds(gateway):
            return
        if self._gateway.value != gateway:
            self._looked_at = None
        with self._gateway.making(gateway):
            if not gateway.is_empty and self._inbound.error is not None:
                # Whoever came out of the tunnel would be let through.
                raise SystemRefused(f"permissions cannot be enforced: {self._inbound.error}")
            if apply_gateway(gateway, self._interface, self._routing):
                table = gateway_table(self._interface)
                _log.info("[#] nft: table inet %s: %s", table, gateway.summary)

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
