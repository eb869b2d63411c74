"""The links that exits are behind which are paid for, and the table around them.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from nostrvpn.daemon.own_link import OwnLink
from nostrvpn.daemon.settled import Settled
from nostrvpn.daemon.sold_way import counted
from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.host.bought import (
    Bought,
    bought_interfaces,
    bought_marks,
    bought_table,
    render_bought,
)
from nostrvpn.host.state import ALIAS_MARK, FWMARK, HostState, IPNetwork
from nostrvpn.io.nftables import apply_ruleset, delete_table, has_marks
from nostrvpn.io.wireguard import Backend
from nostrvpn.market.effects import Counted
from nostrvpn.wireguard.device import Device, Peer, SecretKey

__all__ = ["BoughtWay"]

_EVERYWHERE = frozenset({ip_network("0.0.0.0/0"), ip_network("::/0")})

_log = logging.getLogger(__name__)


class BoughtWay:
    """What one interface's node buys. ``error`` says why it is not as desired; None if it is."""

    def __init__(self, backend: Backend, interface: str) -> None:
        self._backend, self._interface = backend, interface
        names = bought_interfaces(interface)
        self._links = {name: OwnLink(backend, name) for name in names}
        self._settled = Settled[tuple[Bought, ...]](
            "the way to an exit that was bought could not be set: %s",
            refusals=(SystemRefused, OSError, ValueError),  # what strangers said is in it
        )
        self._sessions: dict[str, int] = {}
        self._is_there: bool | None = None

    @property
    def error(self) -> str | None:
        """Why it is not as desired, in words."""
        return self._settled.error

    def distrust(self) -> None:
        """Look at all of it the next time."""
        self._settled.forget()

    def settle(self, bought: tuple[Bought, ...]) -> bool:
        """Have these links and no others; return whether some may be new. What fails is told in
        ``error``."""
        if not bought:
            self._settled.end()
            if self._is_there is not False:
                with suppress(SystemRefused):
                    self.end(self._interface)
            return False
        if self._settled.holds(bought):
            return False
        self._is_there = True
        with self._settled.making(bought):
            self._settle(bought)
        return True

    def end(self, _interface: str) -> None:
        """Remove the links, then the table; SystemRefused by the kernel."""
        for link in self._links.values():
            link.remove()
        delete_table(bought_table(self._interface))
        self._is_there = False
        self._settled.forget()

    def read(self, link: str) -> Counted | None:
        """Return what WireGuard counted on one link; None without it. SystemRefused."""
        return counted(self._backend, link)

    def _settle(self, bought: tuple[Bought, ...]) -> None:
        name = bought_table(self._interface)
        if not has_marks(name, bought_marks(bought)):
            apply_ruleset(render_bought(bought, self._interface))
            _log.info("[#] nft: table inet %s: %d exits bought", name, len(bought))
        wanted = {one.link for one in bought}
        for unwanted in self._links.keys() - wanted:
            self._links[unwanted].remove()
        # Sellers choose their addresses: of two alike, that of the exit in use is reached. The other
        # link lets go of it first.
        taken = frozenset[IPAddress]().union(*(one.seller for one in bought if one.used))
        for one in sorted(bought, key=lambda one: (one.used, one.link)):
            seller = one.seller if one.used else one.seller - taken
            self._make_link(one, frozenset(map(ip_network, seller)))
            taken |= one.seller

    def _make_link(self, one: Bought, routes: frozenset[IPNetwork]) -> None:
        host = HostState(one.link, one.mtu, one.addresses, routes, alias=ALIAS_MARK)
        link, device = self._links[one.link], _device(one)
        is_anew = self._sessions.get(one.link, one.session) != one.session
        self._sessions[one.link] = one.session
        link.settle(device, host, anew=is_anew)
        with suppress(OSError):  # what answers a probe comes in by a link that no route leads to
            path = Path(f"/proc/sys/net/ipv4/conf/{one.link}/rp_filter")
            path.write_text("2", encoding="ascii")


def _device(one: Bought) -> Device:
    psk = None if one.psk is None else SecretKey(one.psk.raw)
    peer = Peer(one.peer_key, _EVERYWHERE, one.keepalive, one.endpoint, one.generation, psk)
    return Device(SecretKey(one.private_key.raw), 0, FWMARK, (peer,))
