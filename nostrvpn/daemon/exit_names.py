"""Names while an exit is wanted: who is asked for those not of the mesh, and what goes around it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import NostrvpnError
from nostrvpn.exits.kill_switch import ExitState
from nostrvpn.exits.offer import EXIT_DNS_PORT
from nostrvpn.host.dns_message import (
    SERVFAIL,
    Question,
    fitting,
    is_cut,
    rcode_of,
    read_addresses,
    read_question,
    refusal_of,
)
from nostrvpn.host.state import FWMARK
from nostrvpn.host.upstream import upstream_interface
from nostrvpn.io.dns_forwarder import Forwarder, Way
from nostrvpn.io.host_servers import HostServers
from nostrvpn.io.shield import add_bypassed
from nostrvpn.node.exits import overlay_networks
from nostrvpn.node.node import Node

__all__ = ["ExitNames"]

# For how long an address of a name goes around the exit: as long as programs keep it, and a little
# more; connections begin some time after the answer.
LEAST_S, MOST_S = 60, 3600
SLACK_S = 10
# Addresses that go around at the same time, of all names.
MAX_AROUND = 4096

_log = logging.getLogger(__name__)


class ExitNames:
    """``everything``: the host's programs shall ask us for every name."""

    def __init__(self, node: Node, interface: str) -> None:
        self._node = node
        self._interface = interface
        self._forwarder = Forwarder()
        self._around: dict[IPAddress, float] = {}
        self.servers = HostServers()

    @property
    def everything(self) -> bool:
        """Whether an exit is wanted, or none can be had although one is."""
        return self._node.exits.state not in (ExitState.OFF, ExitState.LOCKDOWN)

    @property
    def upstream(self) -> tuple[Endpoint, ...]:
        """Who is asked through the tunnel, the best first; empty while the exit does not carry."""
        exits = self._node.exits
        if exits.state is not ExitState.CONNECTED:
            return ()
        return tuple(Endpoint(ip, EXIT_DNS_PORT) for ip in exits.resolvers(self._node))

    @property
    def domains(self) -> frozenset[str]:
        """The domains that go around the exit, and the names below them."""
        return self._node.exits.bypass_domains if self.everything else frozenset()

    def outside(self) -> Way | None:
        """Return how the agent itself looks names up; None: as every program does."""
        if self._node.exits.state is ExitState.OFF:
            return None
        return self._outside()

    def for_guests(self) -> Way:
        """Return whom to ask for the guests of this node as an exit."""
        if self.everything:
            return self._tunnelled()
        provider = self._node.exit_offer.provider
        if provider is not None and provider.dns:
            servers = tuple(Endpoint(ip, EXIT_DNS_PORT) for ip in provider.dns)
            return Way(servers, 0, upstream_interface(self._interface))
        return Way(self.servers.own())

    async def answer(self, query: bytes, by_tcp: bool) -> bytes | None:
        """Return the answer to a program of this host, for a name that is not the mesh's."""
        asked = read_question(query)
        if asked is None or not self._goes_around(asked):
            return await self._forwarder.ask(query, self._tunnelled(), tcp=by_tcp)
        found = await self._forwarder.ask(query, self._outside(), tcp=by_tcp)
        if found is None or rcode_of(found) or is_cut(found):
            return found
        try:
            addresses, found = read_addresses(found, most_ttl=MOST_S)
        except ValueError:
            return refusal_of(query, SERVFAIL)
        await self._let_around(addresses.ips, addresses.ttl)
        return fitting(found, asked, tcp=by_tcp)

    def _tunnelled(self) -> Way:
        return Way(self.upstream, 0, self._node.exits.link or self._interface)

    def _outside(self) -> Way:
        return Way(self.servers.outside(), FWMARK)

    def _goes_around(self, asked: Question) -> bool:
        domains = self.domains
        return bool(domains) and any(
            ".".join(asked.labels[at:]) in domains for at in range(len(asked.labels))
        )

    async def _let_around(self, ips: Iterable[IPAddress], ttl: int) -> None:
        """Let packets to a name's addresses leave outside, before a program hears of them."""
        now = time.monotonic()
        until = now + min(max(ttl, LEAST_S), MOST_S) + SLACK_S
        wanted = {}
        for ip in ips:
            if not self._may_go_around(ip):
                continue
            if ip not in self._around and len(self._around) >= MAX_AROUND:
                self._around = {known: end for known, end in self._around.items() if end > now}
                if len(self._around) >= MAX_AROUND:
                    _log.warning("more addresses than %d go around the exit", MAX_AROUND)
                    break
            # Never shortened: another program may still keep an older answer.
            self._around[ip] = max(until, self._around.get(ip, 0.0))
            wanted[ip] = int(self._around[ip] - now)
        if not wanted:
            return
        try:
            await asyncio.to_thread(add_bypassed, self._interface, wanted)
        except NostrvpnError as exc:
            # Then it goes through the exit, which is no leak.
            _log.warning("addresses of a name do not go around the exit: %s", exc)

    def _may_go_around(self, ip: IPAddress) -> bool:
        """Whether a name may lead outside to this address: never to this host, the mesh, a resolver."""
        special = ip.is_loopback or ip.is_multicast or ip.is_unspecified or ip.is_link_local
        networks = overlay_networks(self._node)
        inside = any(ip.version == n.version and ip in n for n in networks)
        return not (special or inside or ip in self._node.exits.resolvers(self._node))
