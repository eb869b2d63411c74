"""The loop: inbox -> node.step -> effects -> sleep until the node's deadline."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv6Address
from typing import assert_never

from nostrvpn.daemon.guest_meter import GuestMeter
from nostrvpn.daemon.inbox import Inbox
from nostrvpn.daemon.market_service import MarketService
from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.daemon.rounds import Rounds
from nostrvpn.daemon.services import Services
from nostrvpn.daemon.sleepers import Sleepers
from nostrvpn.daemon.supervise import Supervisor
from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import NostrvpnError, SystemRefused, UserError
from nostrvpn.io.clock_watch import ClockWatch, SleepMeter
from nostrvpn.io.echo import echo
from nostrvpn.io.relays import RelaySockets
from nostrvpn.io.resolver import StunResolver
from nostrvpn.io.service_manager import notify
from nostrvpn.io.store import Record, Store
from nostrvpn.io.tap import Tap
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.node.desired import FWMARK
from nostrvpn.node.events import (
    Command,
    LendTo,
    Log,
    NodeEffect,
    NodeEvent,
    ObserveTunnel,
    Persist,
    Poke,
    Reconcile,
    ReconcileFinished,
    Refuse,
    Reply,
    ResolveStun,
    Resumed,
    SendEcho,
    SendThrough,
    ShutDown,
    StunResolved,
    TunnelSeen,
)
from nostrvpn.node.node import Node
from nostrvpn.paths.events import (
    ChannelAnswered,
    CloseChannel,
    DatagramReceived,
    OpenChannel,
    SendDatagram,
)
from nostrvpn.signaling.relays import CloseRelay, OpenRelay, SendText
from nostrvpn.stun.binding import is_allocate

__all__ = ["Loop", "moment"]

CALL_TIMEOUT_S = 130.0
ECHO_TRIES = 3
OBSERVE_TIMEOUT_S = 3.0
# Idle counters are read every few seconds; whoever asks gets those of now.
_NOT_DROPPED = frozenset({"received", "sent"})
_SHOWS_COUNTERS = frozenset({"status", "peers", "why"})
# Answered when the kernel has what they change: who then opens a door may rely on it.
_IN_FORCE = frozenset(
    {"permit", "shields_up", "network_settings", "peer_remove", "peer_role", "peer_tag"}
    | {"peer_replace", "routes_advertise", "routes_approve", "routes_accept"}
    | {"exit_offer", "exit_offer_stop", "exit_use", "exit_off", "exit_bypass", "exit_trust"}
    | {"exec_begin", "exec_end"}
)
_log = logging.getLogger("nostrvpn.node")


def moment() -> Moment:
    """Return the present: time through suspend, wall time, and fresh randomness for one step."""
    return Moment(time.clock_gettime(time.CLOCK_BOOTTIME), time.time(), Entropy(os.urandom(32)))


class Loop:
    """Feeds the node and carries its effects out. ``run`` ends when the node or the user says so."""

    def __init__(
        self, node: Node, store: Store, reconciler: Reconciler, *, interface: str, port: int
    ) -> None:
        self._node = node
        self._store = store
        self._reconciler = reconciler
        self._interface = interface
        self._calls: dict[int, asyncio.Future[object]] = {}
        self._last_call = 0
        self._unsaved: list[Record] = []
        self._reconcile_wanted = asyncio.Event()
        self._rounds = Rounds()
        self._stopping = asyncio.Event()
        self.restarts = False  # after the end, as it was started
        self._failure: BaseException | None = None
        self._resolver = StunResolver()
        self._sleep = SleepMeter()
        self._clock = ClockWatch(lambda: self.offer(Tick()))
        self.supervisor = Supervisor(self._task_failed)
        self._inbox = Inbox(self.supervisor.start, self._lost)
        self.sockets = RelaySockets(self._inbox.put, mark=FWMARK)
        self.tap = Tap(port, FWMARK, self._datagram)
        self.services: Services | None = None
        self.market: MarketService | None = None
        self.guests: GuestMeter | None = None
        self.sleepers: Sleepers | None = None

    # -- in ---------------------------------------------------------------------------------

    def offer(self, event: NodeEvent) -> None:
        """Put in an event that may be lost (a datagram); a full inbox is counted."""
        self._inbox.offer(event)

    def _lost(self) -> None:
        self._node.paths.counters["inbox_full"] += 1

    def _datagram(
        self, data: bytes, source: Endpoint, arrived_at: IPAddress | None, port: int | None
    ) -> None:
        relay = self.services.relay if self.services is not None else None
        if relay is not None and is_allocate(data):
            relay.allocate(data, source)
            return
        self.offer(DatagramReceived(data, source, arrived_at, port))

    def deliver(self, event: NodeEvent) -> None:
        """Put in an event that should not be lost, from where nothing can wait."""
        self._inbox.deliver(event)

    async def put(self, event: NodeEvent) -> None:
        """Put in an event that must not be lost."""
        await self._inbox.put(event)

    async def call(self, name: str, args: dict[str, object], admin: bool) -> object:
        """Run one control command; its refusal is raised."""
        if self.market is not None and name in self.market.COMMANDS:
            return await self.market.call(name, args)
        if self.market is not None and name == "stop":
            await self.market.leave()
        self._last_call += 1
        number = self._last_call
        future = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            if name in _SHOWS_COUNTERS:
                counters = self.tap.counters.items()
                dropped = {name: count for name, count in counters if name not in _NOT_DROPPED}
                self._node.tap_counters = dropped
                # A kernel that hangs leaves us the counters of before.
                with suppress(TimeoutError):
                    async with asyncio.timeout(OBSERVE_TIMEOUT_S):
                        await self._observe()
            if self.services is not None:
                await self.services.before(name)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._inbox.put(Command(number, name, args))
                answer = await future
            if self.market is not None and isinstance(answer, dict):
                answer = self.market.answered(name, answer)
            if name in _IN_FORCE and isinstance(answer, dict):
                answer = answer | {"applied": await self._rounds.applied()}
            return answer
        except TimeoutError as exc:
            raise SystemRefused(f"the daemon did not answer {name} in time") from exc
        finally:
            self._calls.pop(number, None)

    def reconcile_soon(self) -> None:
        """Compare the kernel with what is desired, although that did not change."""
        self._reconcile_wanted.set()

    async def applied(self) -> bool:
        """Bring the kernel to what is desired; return whether it is so, after some seconds at most."""
        self._rounds.ask()
        self._reconcile_wanted.set()
        return await self._rounds.applied()

    def stop(self, reason: str) -> None:
        """Ask the loop to end."""
        if not self._stopping.is_set():
            _log.info("stopping: %s", reason)
            self._stopping.set()

    # -- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until stopped; raise what made a background task fail."""
        self._clock.start()
        self.supervisor.start("reconcile", self._reconcile_forever())
        self.supervisor.start("step", self._step_forever())
        await self._stopping.wait()
        self._clock.stop()
        await self.supervisor.stop()
        await self.sockets.stop()
        if self._failure is not None:
            raise self._failure

    async def _step_forever(self) -> None:
        self._perform(self._node.start(moment()))
        while True:
            event: NodeEvent = Tick()
            deadline = self._node.deadline
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            if deadline is None or deadline > now:
                wait = None if deadline is None else min(deadline - now, 3600.0)
                try:
                    async with asyncio.timeout(wait):
                        event = await self._inbox.get()
                except TimeoutError:
                    event = Tick()
            else:
                # Due work must not starve the inbox, nor the inbox the rest of the program.
                await asyncio.sleep(0)
            if slept := self._sleep.slept():
                _log.info("resumed after a sleep of %.0f s", slept)
                self._perform(self._node.step(Resumed(slept), moment()))
            self._perform(self._node.step(event, moment()))
            if isinstance(event, ReconcileFinished):
                # Every 30 s at least: the reconciler ended a run, and the node has heard of it.
                notify("WATCHDOG=1")
            if isinstance(event, ChannelAnswered) and self.services is not None:
                self.services.answered(event.channel)

    async def _reconcile_forever(self) -> None:
        while True:
            self._reconcile_wanted.clear()
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            number, desired = self._rounds.begin(), self._node.desired(now)
            changes = self._node.exits.changes
            error = await self._reconciler.reconcile(desired)
            self._rounds.end(number, is_applied=error is None and self._reconciler.is_applied)
            if error is not None:
                _log.error("the tunnel could not be configured: %s", error)
            elif self.sleepers is not None:
                self.sleepers.applied(desired, self.tap)
            if self.services is not None and error is None:
                self.services.names.poke()
                await self.services.use_addresses(desired.host)
            await self._inbox.put(replace(self._reconciler.finished(error), exit_changes=changes))
            try:
                async with asyncio.timeout(self._reconciler.due_in_s):
                    await self._reconcile_wanted.wait()
            except TimeoutError:
                pass

    def _task_failed(self, name: str, error: BaseException) -> None:
        _log.critical("%s failed: %r", name, error, exc_info=error)
        self._failure = self._failure or error
        self._stopping.set()

    # -- effects ----------------------------------------------------------------------------

    def _perform(self, effects: list[NodeEffect]) -> None:
        changes = any(isinstance(effect, Persist) for effect in effects)
        if self._unsaved and effects:
            self._save([])
        records: list[Record] = []
        for effect in effects:
            if isinstance(effect, Persist):
                records.append(Record(effect.space, effect.key, effect.value))
                continue
            if records:
                self._save(records)
                records = []
            if self._unsaved and self._depends_on_saving(effect, changes):
                continue
            self._perform_one(effect)
        if records:
            self._save(records)

    def _depends_on_saving(self, effect: NodeEffect, changes: bool) -> bool:
        """Whether an effect may not leave while records wait for the disk; the caller is told so.

        Messages to relays and through tunnels may tell of what is not stored: the machines send them
        again. A command that only looks is answered.
        """
        if isinstance(effect, Reply) and changes:
            text = f"the state could not be saved: {self._node.storage_error}"
            hint = "free some disk space; until a restart it holds, and it is saved as soon as it can be"
            self._answer(effect.call, SystemRefused(text, hint))
            return True
        return isinstance(effect, SendText | SendThrough)

    def _save(self, records: list[Record]) -> None:
        """Write durably; what cannot be written is kept and tried again before the next effect."""
        self._unsaved += records
        try:
            self._store.put(self._unsaved)
        except NostrvpnError as exc:
            _log.error("state could not be saved: %s", exc)
            self._node.storage_error = str(exc)
        else:
            self._unsaved = []
            self._node.storage_error = None
            self._node.backup_error = self._store.backup_problem

    def _perform_one(self, effect: NodeEffect) -> None:
        match effect:
            case SendDatagram():
                self.tap.send(
                    effect.data,
                    effect.destination,
                    effect.ttl,
                    effect.source_ip,
                    source_port=effect.source_port,
                    dont_fragment=effect.dont_fragment,
                )
            case SendText():
                self.sockets.send(effect.url, effect.text)
            case OpenRelay():
                self.sockets.open(effect.url)
            case CloseRelay():
                self.sockets.close(effect.url)
            case OpenChannel() | CloseChannel() | LendTo() | SendThrough():
                if self.services is not None:
                    self.services.perform(effect)
            case Reconcile():
                self._rounds.ask()
                self._reconcile_wanted.set()
                if self.services is not None:
                    self.services.exits.poke()
                if self.guests is not None:
                    self.guests.poke()
            case ObserveTunnel():
                self.supervisor.start("observe", self._observe())
            case Reply():
                self._answer(effect.call, effect.value)
            case Refuse():
                self._answer(effect.call, _Refusal(effect))
            case SendEcho():
                self.supervisor.start("echo", self._echo(effect))
            case Poke():
                self.supervisor.start("poke", self._poke(effect))
            case ResolveStun():
                self.supervisor.start("resolve", self._resolve(effect.servers))
            case ShutDown(restart=restart):
                self.restarts = restart
                if not restart:
                    self._reconciler.end_with(self._node.exits.shield_after_down)
                # The answer to the caller leaves first.
                asyncio.get_running_loop().call_later(0.05, self.stop, "asked to")
            case Log():
                _log.log(logging.getLevelNamesMapping()[effect.level.upper()], "%s", effect.text)
            case Persist():
                raise AssertionError("written before")
            case _:
                assert_never(effect)

    def _answer(self, call: int, value: object) -> None:
        future = self._calls.get(call)
        if future is None or future.done():
            return
        if isinstance(value, NostrvpnError):
            future.set_exception(value)
        else:
            future.set_result(value)

    async def _observe(self) -> None:
        await self._inbox.put(TunnelSeen(await self._reconciler.observe()))

    async def _poke(self, effect: Poke) -> None:
        # Whether an answer comes shows in the tunnel's counters.
        with suppress(NostrvpnError):
            await echo(effect.address, 1.0, self._interface)

    async def _resolve(self, servers: tuple[str, ...]) -> None:
        endpoints, unresolved = await self._resolver.resolve(servers)
        await self._inbox.put(StunResolved(endpoints, unresolved))

    async def _echo(self, effect: SendEcho) -> None:
        # The first packet for a sleeping peer that never told its WireGuard key only wakes it.
        tries = ECHO_TRIES if effect.context.get("asleep") else 1
        wait, rtt = effect.timeout_s / tries, None
        try:
            while rtt is None and tries:
                rtt = await echo(IPv6Address(effect.address), wait, self._interface)
                tries -= 1
        except NostrvpnError as exc:
            self._answer(effect.call, exc)
            return
        answer = effect.context | {"rtt_ms": None if rtt is None else round(rtt, 2)}
        self._answer(effect.call, answer)


class _Refusal(UserError):
    """A refusal by the node, as the exception the control server knows."""

    def __init__(self, effect: Refuse) -> None:
        super().__init__(effect.text, effect.hint)
        self.code = effect.code
