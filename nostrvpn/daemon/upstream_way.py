"""The link to a plain WireGuard provider that guests leave by: made before any is let through.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import replace

from nostrvpn.errors import SystemRefused
from nostrvpn.host import diff as host_diff
from nostrvpn.host.exit_filter import NO_GUESTS
from nostrvpn.host.upstream import Upstream, upstream_interface, upstream_table
from nostrvpn.io.netlink import apply_host, find_link, observe_host
from nostrvpn.io.nftables import delete_table, own_tables
from nostrvpn.io.upstream import apply_upstream, lead_to_upstream, remove_upstream_routing
from nostrvpn.io.wireguard import Backend
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard import diff as wireguard_diff
from nostrvpn.wireguard.device import Device

__all__ = ["UpstreamWay"]

# As for everything else that the reconciler found as desired.
TRUSTED_S = 20.0

_log = logging.getLogger(__name__)


class UpstreamWay:
    """The provider's link of one interface. ``error`` says why it is not as desired; None if it is."""

    def __init__(self, backend: Backend, interface: str) -> None:
        self._backend, self._interface = backend, interface
        self._found: tuple[tuple[Upstream, Device], float] | None = None
        self._applied: dict[str, int] = {}
        self._is_there: bool | None = None
        self.error: str | None = None

    def distrust(self) -> None:
        """Look at all of it the next time."""
        self._found = None

    def prepare(self, desired: Desired) -> Desired:
        """Lead guests to the provider, if there is one; if that fails, let no guest through."""
        upstream, device = desired.upstream, desired.upstream_device
        if upstream is None or device is None:
            self.error = None
            return desired
        now = time.monotonic()
        held = self._found
        if held is None or held[0] != (upstream, device) or now - held[1] >= TRUSTED_S:
            self._found = None
            try:
                self._make(upstream, device)
            except (SystemRefused, OSError) as exc:
                if self.error is None:
                    _log.warning(
                        "guests cannot leave by the provider, nor by anything else: %s", exc
                    )
                self.error = str(exc)
            else:
                self.error, self._found = None, ((upstream, device), now)
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
        name = upstream_interface(self._interface)
        link = find_link(name)
        if link is not None and link.is_ours:
            self._backend.delete(name)
        remove_upstream_routing(self._interface)
        if upstream_table(self._interface) in own_tables():
            delete_table(upstream_table(self._interface))
        self._is_there, self._found, self._applied = False, None, {}

    def _make(self, upstream: Upstream, device: Device) -> None:
        name = upstream.host.interface
        self._is_there = True
        if apply_upstream(upstream, self._interface):
            table = upstream_table(self._interface)
            _log.info("[#] nft: table inet %s: guests leave by %s", table, name)
        self._backend.create(name, upstream.host.mtu)
        observed = self._backend.observe(name)
        operations = wireguard_diff.diff(observed, device, self._applied, interface=name)
        for operation in operations:
            _log.info("[#] %s", operation)
        if operations:
            self._backend.apply(name, operations, device)
        self._applied = wireguard_diff.applied_generations(device)
        changes = host_diff.diff(observe_host(name), upstream.host)
        for change in changes:
            _log.info("[#] %s", change)
        apply_host(changes)
        lead_to_upstream(upstream, self._interface)
