"""Names: our DNS server, and this host's resolver told of it. What fails here is said in status.

Nothing of it touches the tunnel: it runs beside the loop, its blocking work in a thread of its own,
and a failure is tried again when the kernel is next reconciled.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from nostrvpn.config.model import Dns
from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.host.resolver import (
    DNS_PORT,
    Choice,
    DesiredNames,
    Way,
    choose_way,
    desired_link,
    link_operations,
    resolvconf_record,
)
from nostrvpn.io.dns_server import DnsServer
from nostrvpn.io.name_cleanup import forget_names
from nostrvpn.io.resolv_conf import find_resolver, put_blocks, read_resolv_conf
from nostrvpn.io.resolvconf import add_record
from nostrvpn.io.resolved import apply_link, observe_link, revert_link
from nostrvpn.node.names import NodeNames, own_addresses
from nostrvpn.node.node import Node

__all__ = ["NameService"]

# How often the host's resolver is looked at where nothing changed: two short processes.
LOOK_EVERY_S = 300.0
# Another program that rewrites resolv.conf is answered so often in so long, then left its way.
MAX_REWRITES, REWRITES_IN_S = 5, 600.0

_log = logging.getLogger(__name__)


class NameService:
    """One node's names. ``poke`` after each change; ``stop`` puts the host's resolver back."""

    def __init__(self, node: Node, settings: Dns, interface: str) -> None:
        self._node = node
        self._settings = settings
        self._interface = interface
        self._names = NodeNames(node)
        self._server = DnsServer(self._answer)
        self._endpoint: Endpoint | None = None
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told: tuple[DesiredNames, int] | None = None
        self._way = Way.NONE
        self._looked_at = 0.0
        # A cancelled task leaves its blocking work running.
        self._one_at_a_time = threading.Lock()
        self._rewrites: deque[float] = deque(maxlen=MAX_REWRITES)
        self._show(None, Choice(Way.NONE))

    def start(self) -> None:
        """Begin: what an earlier run left in the resolver goes first."""
        self._task = asyncio.create_task(self._run(), name="names")

    def poke(self) -> None:
        """The kernel is as desired: look whether names changed too."""
        self._wanted.set()

    async def stop(self) -> None:
        """Take everything back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._quietly(self._withdraw)
        await self._server.stop()

    async def _run(self) -> None:
        await self._quietly(partial(forget_names, self._interface))
        while self._settings.enabled:
            await self._wanted.wait()
            self._wanted.clear()
            problem = await self._settle()
            if problem is not None and problem != self._node.dns.get("failure"):
                _log.warning("names: %s", problem)
            self._node.dns["failure"] = problem

    async def _settle(self) -> str | None:
        """Bring server and resolver to what the zone asks for; return what failed."""
        zone, own = self._names.zone(), own_addresses(self._node)
        try:
            if zone is None:  # in no network, or no longer
                if self._way is not Way.NONE:
                    await asyncio.to_thread(self._withdraw)
                self._show(None, Choice(Way.NONE))
                return None
            if self._endpoint is None:
                self._endpoint = await self._server.start()
            desired = DesiredNames(self._endpoint, own[0], zone.domain, zone.origins)
            choice = await asyncio.to_thread(self._integrate, desired)
            self._show(desired, choice)
            if choice.way is Way.RESOLVCONF:
                await self._server.offer_at(desired.overlay)
        except NostrvpnError as exc:
            return str(exc)
        except Exception as exc:
            # Names are a comfort: what nobody foresaw here must not end the tunnels.
            _log.exception("names failed")
            return repr(exc)
        return None

    def _integrate(self, desired: DesiredNames) -> Choice:
        """Blocking: tell the host's resolver, if it does not know yet."""
        with self._one_at_a_time:
            return self._integrate_now(desired)

    def _integrate_now(self, desired: DesiredNames) -> Choice:
        try:
            index = socket.if_nametoindex(self._interface)
        except OSError as exc:
            raise SystemRefused(f"the interface {self._interface} is gone") from exc
        is_told = self._told == (desired, index)
        if is_told and time.monotonic() - self._looked_at < LOOK_EVERY_S:
            if self._way is Way.FILE:
                return Choice(self._way, self._edit(desired))
            return Choice(self._way, str(self._node.dns.get("problem") or ""))
        choice = choose_way(find_resolver(), may_edit=self._settings.resolv_conf)
        choice = self._possible(choice, desired)
        if choice.way is not self._way:
            self._withdraw_now()
        self._way = choice.way
        problem = self._tell(choice.way, desired, index)
        self._told, self._looked_at = (desired, index), time.monotonic()
        return Choice(choice.way, problem or choice.problem)

    def _possible(self, choice: Choice, desired: DesiredNames) -> Choice:
        if choice.way is Way.FILE and desired.server.port != DNS_PORT:
            text = "another program has port 53, and resolv.conf cannot name another port"
            return Choice(Way.NONE, text)
        return choice

    def _tell(self, way: Way, desired: DesiredNames, index: int) -> str:
        """Return what is to be said of it in status, or nothing."""
        match way:
            case Way.RESOLVED:
                found, wanted = observe_link(index), desired_link(desired)
                operations = link_operations(found, wanted, self._interface)
                for operation in operations:
                    _log.info("[#] %s", operation)
                apply_link(index, operations)
            case Way.RESOLVCONF:
                if self._told is None or self._told[0] != desired:
                    _log.info("[#] resolvconf -a %s", self._interface)
                    add_record(self._interface, resolvconf_record(desired))
                if str(desired.overlay) not in read_resolv_conf():
                    return "resolvconf tells another program than resolv.conf of our server"
            case Way.FILE:
                return self._edit(desired)
            case Way.NONE:
                pass
        return ""

    def _edit(self, desired: DesiredNames) -> str:
        now = time.monotonic()
        if len(self._rewrites) == MAX_REWRITES and now - self._rewrites[0] < REWRITES_IN_S:
            return "another program keeps rewriting resolv.conf, so it is left alone for a while"
        if put_blocks(desired, self._interface):
            self._rewrites.append(now)
            _log.warning("resolv.conf was edited, as the configuration allows (dns.resolv_conf)")
        return ""

    def _withdraw(self) -> None:
        """Blocking: take back what the resolver was told."""
        with self._one_at_a_time:
            self._withdraw_now()

    def _withdraw_now(self) -> None:
        if self._way is Way.RESOLVED:
            try:
                index = socket.if_nametoindex(self._interface)
            except OSError:
                return  # systemd-resolved forgets a link that is gone
            revert_link(index)
        elif self._way is not Way.NONE:
            forget_names(self._interface)
        self._way, self._told = Way.NONE, None

    async def _quietly(self, work: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(work)
        except NostrvpnError as exc:
            _log.error("the host's resolver could not be put back: %s", exc)

    def _answer(self, query: bytes, by_tcp: bool) -> bytes | None:
        # Only when somebody asks: dnspython is 3 MB.
        from nostrvpn.mesh.zone_answers import answer

        zone = self._names.zone()
        return None if zone is None else answer(query, zone, tcp=by_tcp)

    def _show(self, desired: DesiredNames | None, choice: Choice) -> None:
        self._node.dns = {
            "enabled": self._settings.enabled,
            "server": str(desired.server) if desired else None,
            "domain": desired.search if desired else None,
            "manager": choice.way.value,
            "problem": choice.problem or None,
            "failure": self._node.dns.get("failure"),
        }
