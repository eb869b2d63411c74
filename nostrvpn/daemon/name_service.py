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
from dataclasses import replace
from functools import partial

from nostrvpn.config.model import Dns, Exit
from nostrvpn.daemon.exit_names import ExitNames
from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.host.dns_message import read_question
from nostrvpn.host.resolver import (
    DNS_PORT,
    Choice,
    DesiredNames,
    Way,
    choose_way,
    desired_link,
    link_operations,
    resolvconf_record,
    servers_in,
)
from nostrvpn.io.blocklists import Blocklists
from nostrvpn.io.dns_server import DnsServer, Reply
from nostrvpn.io.guest_names import GuestNames
from nostrvpn.io.name_cleanup import forget_names
from nostrvpn.io.resolv_conf import find_resolver, put_blocks, read_resolv_conf
from nostrvpn.io.resolvconf import add_record, remove_records
from nostrvpn.io.resolved import (
    all_within,
    apply_link,
    flush_caches,
    observe_link,
    revert_link,
)
from nostrvpn.io.resolver import ask_outside
from nostrvpn.mesh.zone import Outcome, Zone
from nostrvpn.node.names import NodeNames, guest_addresses, own_addresses
from nostrvpn.node.node import Node

__all__ = ["NameService"]

# How often the host's resolver is looked at where nothing changed: two short processes.
LOOK_EVERY_S = 300.0
# Another program that rewrites resolv.conf is answered so often in so long, then left its way.
MAX_REWRITES, REWRITES_IN_S = 5, 600.0
# For all that systemd-resolved is told at once: `down` waits 15 s, for one such piece of work that is
# under way and the last one.
_BUS_S = 5.0

_log = logging.getLogger(__name__)


class NameService:
    """One node's names. ``poke`` after each change; ``stop`` puts the host's resolver back.

    ``changed`` is called when guests of this node as an exit are answered from now on, or no more.
    """

    def __init__(
        self, node: Node, settings: Dns, interface: str, exit_settings: Exit | None = None
    ) -> None:
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
        self._exit = ExitNames(node, interface)
        # What programs were answered before counts no more once this changes.
        self._asked_by: tuple[object, ...] = (False, frozenset())
        exit_settings = exit_settings or Exit()
        self.changed: Callable[[], None] = lambda: None
        self._guests: frozenset[IPAddress] = frozenset()
        self._blocklists = Blocklists(exit_settings.blocklists)
        self._guest_names = GuestNames(
            lambda asker: asker in self._guests,
            self._exit.for_guests,
            self._exit.servers.searched,
            self._blocklists,
            private=exit_settings.private_names,
        )
        # From the first lookup on: the kernel may hold everything else back already.
        ask_outside(self._exit.outside)
        self._show(None, Choice(Way.NONE))

    def answers_for(self, may_ask: Callable[[IPAddress], bool]) -> GuestNames:
        """Return what other guests than members are answered: as they are, and no private names."""
        return GuestNames(
            may_ask, self._exit.for_guests, self._exit.servers.searched, self._blocklists
        )

    def start(self) -> None:
        """Begin: what an earlier run left in the resolver goes first."""
        self._exit.servers.outside()  # as they are before we change anything
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
        ask_outside(lambda: None)
        await self._server.stop()

    async def _run(self) -> None:
        await self._quietly(partial(forget_names, self._interface))
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            problem = await self._settle()
            if problem is not None and problem != self._node.dns.get("failure"):
                _log.warning("names: %s", problem)
            self._node.dns["failure"] = problem
            self._node.exits.dns_error = self._exit_error() if self._exit.everything else None

    def _exit_error(self) -> str | None:
        """Return why the host's programs do not ask us for everything, or None if they do."""
        if not self._settings.enabled:
            return "the host's resolver is not told of ours (dns.enabled is false)"
        said = self._node.dns["failure"] or self._node.dns["problem"]
        if said and self._way is Way.NONE:
            return f"{said}; `dns: {{resolv_conf: true}}` lets us edit resolv.conf"
        return str(said) if said else None

    async def _settle(self) -> str | None:
        """Bring server and resolver to what the zone asks for; return what failed."""
        zone, own = self._names.zone(), own_addresses(self._node)
        try:
            if not self._settings.enabled:
                return await self._settle_mesh(own, for_us=False)
            exits = self._exit
            if zone is None and not exits.everything:  # in no network, or no longer
                if self._way is not Way.NONE:
                    await asyncio.to_thread(self._withdraw)
                self._show(None, Choice(Way.NONE))
                return await self._settle_mesh((), for_us=False)
            if self._endpoint is None:
                self._endpoint = await self._server.start()
            # An exit that is bought needs no network.
            names = DesiredNames(self._endpoint, self._endpoint.ip, "", ())
            if zone is not None:
                names = DesiredNames(self._endpoint, own[0], zone.domain, zone.origins)
            desired = replace(names, upstream=exits.upstream, everything=exits.everything)
            choice = await asyncio.to_thread(self._integrate, desired)
            self._show(desired, choice)
            by_mesh = choice.way is Way.RESOLVCONF and not desired.everything
            return await self._settle_mesh(own, for_us=by_mesh)
        except NostrvpnError as exc:
            return str(exc)
        except Exception as exc:
            # Names are a comfort: what nobody foresaw here must not end the tunnels.
            _log.exception("names failed")
            return repr(exc)

    async def _settle_mesh(self, own: tuple[IPAddress, ...], *, for_us: bool) -> str | None:
        """Listen in the mesh where guests may ask, or our own programs do; return what failed."""
        offering, failure = self._node.exit_offer, None
        self._guests = guest_addresses(self._node) if own else frozenset()
        answer, addresses = None, own[:1] if for_us else ()
        if self._guests:
            answer, addresses = self._guest_names.answer, own
            await asyncio.to_thread(self._blocklists.refresh)
            failure = self._blocklists.problem or None
        try:
            await self._server.offer_at(addresses, self._interface, guests=answer)
        except NostrvpnError as exc:
            self._guests, failure = frozenset(), str(exc)
        if offering.answers_dns != bool(self._guests):
            offering.answers_dns = bool(self._guests)
            self.changed()
        return failure

    def _integrate(self, desired: DesiredNames) -> Choice:
        """Blocking: tell the host's resolver, if it does not know yet."""
        with self._one_at_a_time, all_within(_BUS_S):
            choice = self._integrate_now(replace(desired, upstream=()))
            asked_by = desired.everything, self._exit.domains
            if asked_by != self._asked_by and choice.way is Way.RESOLVED:
                flush_caches()
            self._asked_by = asked_by
            return choice

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
                return self._record(desired)
            case Way.FILE:
                return self._edit(desired)
            case Way.NONE:
                pass
        return ""

    def _record(self, desired: DesiredNames) -> str:
        if self._told is None or self._told[0] != desired:
            if self._told is not None and self._told[0].everything:
                remove_records(self._interface)  # alone until now, and it would stay so
            _log.info("[#] resolvconf -a %s", self._interface)
            record = resolvconf_record(desired)
            add_record(self._interface, record, alone=desired.everything)
        ours = str(desired.server.ip if desired.everything else desired.overlay)
        made = read_resolv_conf()
        if ours not in made:
            return "resolvconf tells another program than resolv.conf of our server"
        if desired.everything and servers_in(made):
            return "resolvconf keeps other name servers in resolv.conf beside ours"
        return ""

    def _edit(self, desired: DesiredNames) -> str:
        now = time.monotonic()
        # Not if we want something else than before: an exit was taken, or left.
        is_mended = self._told is None or self._told[0] == desired
        is_often = len(self._rewrites) == MAX_REWRITES and now - self._rewrites[0] < REWRITES_IN_S
        if is_mended and is_often:
            return "another program keeps rewriting resolv.conf, so it is left alone for a while"
        if put_blocks(desired, self._interface):
            if is_mended:
                self._rewrites.append(now)
            _log.warning("resolv.conf was edited, as the configuration allows (dns.resolv_conf)")
        return ""

    def _withdraw(self) -> None:
        """Blocking: take back what the resolver was told."""
        with self._one_at_a_time, all_within(_BUS_S):
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
        except Exception:
            # Whoever stops us has more to take back.
            _log.exception("the host's resolver could not be put back")

    def _answer(self, query: bytes, by_tcp: bool) -> Reply:
        zone = self._names.zone()
        if self._exit.everything and not _is_ours(zone, query):
            return self._exit.answer(query, by_tcp)
        # Only when somebody asks: dnspython is 3 MB.
        from nostrvpn.mesh.zone_answers import answer

        return None if zone is None else answer(query, zone, tcp=by_tcp)

    def _show(self, desired: DesiredNames | None, choice: Choice) -> None:
        self._node.dns = {
            "enabled": self._settings.enabled,
            "server": str(desired.server) if desired else None,
            "domain": (desired.search or None) if desired else None,
            "manager": choice.way.value,
            "problem": choice.problem or None,
            "everything": bool(desired and desired.everything),
            "upstream": [str(server) for server in desired.upstream] if desired else [],
            "failure": self._node.dns.get("failure"),
        }


def _is_ours(zone: Zone | None, query: bytes) -> bool:
    """Whether a question is the mesh's to answer, or cannot be read."""
    asked = read_question(query)
    return asked is None or (
        zone is not None and zone.look_up(asked.labels).outcome is not Outcome.ELSEWHERE
    )
