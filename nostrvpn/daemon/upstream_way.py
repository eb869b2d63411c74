"""The link to a plain WireGuard provider that guests leave by: made before any is let through.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

from nostrvpn.daemon.own_link import OwnLink
from nostrvpn.daemon.settled import Settled
from nostrvpn.errors import SystemRefused
from nostrvpn.host.exit_filter import NO_GUESTS
from nostrvpn.host.upstream import Upstream, upstream_interface, upstream_table
from nostrvpn.io.nftables import delete_table, own_tables
from nostrvpn.io.upstream import apply_upstream, lead_to_upstream, remove_upstream_routing
from nostrvpn.io.wireguard import Backend
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard.device import Device

__all__ = ["UpstreamWay"]

_log = logging.getLogger(__name__)


class UpstreamWay:
    """The provider's link of one interface. ``error`` says why it is not as desired; None if it is."""

    def __init__(self, backend: Backend, interface: str) -> None:
        self._interface = interface
        self._link = OwnLink(backend, upstream_interface(interface))
        self._settled = Settled[tuple[Upstream, Device]](
            "guests cannot leave by the provider, nor by anything else: %s",
            refusals=(SystemRefused, OSError),
        )
        self._is_there: bool | None = None

    @property
    def error(self) -> str | None:
        """Why it is not as desired, in words."""
        return self._settled.error

    def distrust(self) -> None:
        """Look at all of it the next time."""
        self._settled.forget()

    def prepare(self, desired: Desired) -> Desired:
        """Lead guests to the provider, if there is one; if that fails, let no guest through."""
        upstream, device = desired.upstream, desired.upstream_device
        if upstream is None or device is None:
            self._settled.end()
            return desired
        if not self._settled.holds((upstream, device)):
            with self._settled.making((upstream, device)):
                self._make(upstream, device)
        if self.error is None or desired.inbound is None:
            return desired
        return replace(desired, inbound=replace(desired.inbound, exit=NO_GUESTS))

    def finish(self, desired: Desired) -> None:
        """Take it away if there is no provider any more, after guests were let go."""
        if desired.upstream is None and self._is_there is not False:
            with suppress(SystemRefused):
                self.end(self._interface)

    def end(self, _interface: str) -> None:
        """Remove the link and all that leads there; SystemRefused by the kernel."""
        self._link.remove()
        remove_upstream_routing(self._interface)
        if upstream_table(self._interface) in own_tables():
            delete_table(upstream_table(self._interface))
        self._is_there = False
        self._settled.forget()

    def _make(self, upstream: Upstream, device: Device) -> None:
        self._is_there = True
        if apply_upstream(upstream, self._interface):
            table = upstream_table(self._interface)
            _log.info("[#] nft: table inet %s: guests leave by %s", table, upstream.host.interface)
        self._link.settle(device, upstream.host)
        lead_to_upstream(upstream, self._interface)
