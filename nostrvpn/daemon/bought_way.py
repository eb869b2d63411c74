"""The links that exits are behind which are paid for, and the table around them.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from nostrvpn.daemon.sold_way import counted
from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.host import diff as host_diff
from nostrvpn.host.bought import (
    Bought,
    bought_interfaces,
    bought_marks,
    bought_table,
    render_bought,
)
from nostrvpn.host.state import ALIAS_MARK, FWMARK, HostState, IPNetwork
from nostrvpn.io.netlink import apply_host, find_link, observe_host
from nostrvpn.io.nftables import apply_ruleset, delete_table, has_marks
from nostrvpn.io.wireguard import Backend
from nostrvpn.market.effects import Counted
from nostrvpn.wireguard import diff as wireguard_diff
from nostrvpn.wireguard.device import Device, Peer, SecretKey

__all__ = ["BoughtWay"]

# As for everything else that the reconciler found as desired.
TRUSTED_S = 20.0
_EVERYWHERE = frozenset({ip_network("0.0.0.0/0"), ip_network("::/0")})

_log = logging.getLogger(__name__)


class BoughtWay:
    """What one interface's node buys. ``error`` says why it is not as desired; None if it is."""

    def __init__(self, backend: Backend, interface: str) -> None:
        self._backend, self._interface = backend, interface
        self._found: tuple[tuple[Bought, ...], float] | None = None
        self._applied: dict[str, dict[str, int]] = {}
        self._is_there: bool | None = None
        self.error: str | None = None

    def distrust(self) -> None:
        """Look at all of it the next time."""
        self._found = None

    def settle(self, bought: tuple[Bought, ...]) -> None:
        """Have these links and no others. What fails is told in ``error``."""
        if not bought:
            self.error = None
            if self._is_there is not False:
                with suppress(SystemRefused):
                    self.end(self._interface)
            return
        now, held = time.monotonic(), self._found
        if held is not None and held[0] == bought and now - held[1] < TRUSTED_S:
            return
        self._found, self._is_there = None, True
        try:
            self._settle(bought)
        except (SystemRefused, OSError, ValueError) as exc:  # what strangers said is in it
            if self.error is None:
                _log.warning("the way to an exit that was bought could not be set: %s", exc)
            self.error = str(exc)
        else:
            self.error, self._found = None, (bought, now)

    def end(self, _interface: str) -> None:
        """Remove the links, then the table; SystemRefused by the kernel."""
        self._remove_links(bought_interfaces(self._interface))
        delete_table(bought_table(self._interface))
        self._is_there, self._found, self._applied = False, None, {}

    def read(self, link: str) -> Counted | None:
        """Return what WireGuard counted on one link; None without it. SystemRefused."""
        return counted(self._backend, link)

    def _settle(self, bought: tuple[Bought, ...]) -> None:
        name = bought_table(self._interface)
        if not has_marks(name, bought_marks(bought)):
            apply_ruleset(render_bought(bought, self._interface))
            _log.info("[#] nft: table inet %s: %d exits bought", name, len(bought))
        wanted = {one.link for one in bought}
        self._remove_links(set(bought_interfaces(self._interface)) - wanted)
        # Sellers choose their addresses: of two alike, that of the exit in use is reached. The other
        # link lets go of it first.
        taken = frozenset[IPAddress]().union(*(one.seller for one in bought if one.used))
        for one in sorted(bought, key=lambda one: (one.used, one.link)):
            seller = one.seller if one.used else one.seller - taken
            self._make_link(one, frozenset(map(ip_network, seller)))
            taken |= one.seller

    def _remove_links(self, names: set[str] | tuple[str, ...]) -> None:
        for name in sorted(names):
            link = find_link(name)
            if link is not None and link.is_ours:
                _log.info("[#] ip link delete dev %s", name)
                self._backend.delete(name)
            self._applied.pop(name, None)

    def _make_link(self, one: Bought, routes: frozenset[IPNetwork]) -> None:
        name, device = one.link, _device(one)
        if find_link(name) is None:
            self._applied.pop(name, None)
        self._backend.create(name, one.mtu)
        observed = self._backend.observe(name)
        applied = self._applied.get(name, {})
        operations = wireguard_diff.diff(observed, device, applied, interface=name)
        for operation in operations:
            _log.info("[#] %s", operation)
        if operations:
            self._backend.apply(name, operations, device)
        self._applied[name] = wireguard_diff.applied_generations(device)
        state = HostState(name, one.mtu, one.addresses, routes, alias=ALIAS_MARK)
        changes = host_diff.diff(observe_host(name), state)
        for change in changes:
            _log.info("[#] %s", change)
        apply_host(changes)
        with suppress(OSError):  # what answers a probe comes in by a link that no route leads to
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("2", encoding="ascii")


def _device(one: Bought) -> Device:
    psk = None if one.psk is None else SecretKey(one.psk.raw)
    peer = Peer(one.peer_key, _EVERYWHERE, one.keepalive, one.endpoint, one.generation, psk)
    return Device(SecretKey(one.private_key.raw), 0, FWMARK, (peer,))
