"""What using an exit needs of the outside: echoes to exits, their countries, and nobody beside us."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nostrvpn.errors import NostrvpnError, UserError
from nostrvpn.exits.choice import ECHO_S
from nostrvpn.io.echo import echo
from nostrvpn.io.exit_rivals import exit_rivals
from nostrvpn.node.events import ExitProbed, NodeEvent
from nostrvpn.node.exits import Probe, offer_of
from nostrvpn.node.node import Node

if TYPE_CHECKING:
    from nostrvpn.io.country_database import CountryDatabase

__all__ = ["ExitService"]

# Whom to ask, and how often, may change with every event: looked at as often as this, and so soon after
# an echo that was lost, when the node has heard of it.
LOOK_EVERY_S = 0.25
LOOK_AFTER_S = 0.05
# To one exit, of those that are not back: more than the shortest interval needs.
MAX_UNDER_WAY = 8

_log = logging.getLogger(__name__)


class ExitService:
    """Sends the echoes that the node asks for; ``offer`` takes what came of each: that it is late, and,
    also afterwards, that it came.

    At most ``MAX_UNDER_WAY`` echoes an exit are under way, and the node asks for ``MAX_CANDIDATES`` at
    most.
    """

    def __init__(
        self, node: Node, interface: str, offer: Callable[[NodeEvent], None], database: str = ""
    ) -> None:
        self._node = node
        self._interface = interface
        self._offer = offer
        self._database_path = database
        self._database: CountryDatabase | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._begun: dict[str, float] = {}
        self._under_way: dict[asyncio.Task[None], str] = {}

    def start(self) -> None:
        """Begin; a country database that cannot be read is told and left out."""
        if self._database_path:
            from nostrvpn.io.country_database import CountryDatabase  # most nodes have none

            try:
                self._database = CountryDatabase(self._database_path)
            except UserError as exc:
                _log.warning("%s", exc)
                self._node.notes.append(("exit_country", str(exc)))
        self._task = asyncio.get_running_loop().create_task(self._run(), name="exits")

    def poke(self) -> None:
        """What the node wants changed."""
        self._changed.set()

    async def stop(self) -> None:
        """End; no echo is offered afterwards."""
        tasks = [*self._under_way, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._database is not None:
            self._database.close()

    async def check_alone(self) -> None:
        """UserError if another network of this host uses an exit."""
        rivals = await asyncio.to_thread(exit_rivals, self._interface)
        if rivals:
            where = " and ".join(rivals)
            raise UserError(
                f"another network of this host uses an exit already, on {where}",
                "one network at a time: there, run `nostrvpn exit off` first (with --network)",
            )

    def show(self) -> None:
        """Tell the node where exits are, by the address that they are reached at."""
        if self._database is None:
            return
        countries = {}
        for key in self._node.peers:
            link = self._node.paths.snapshot(key)
            if link is None or link.path != "direct" or link.endpoint is None:
                continue
            if offer_of(self._node, key, time.time()) is None:
                continue
            country = self._database.country(link.endpoint.ip)
            if country is not None:
                countries[key] = country
        self._node.exits.countries = countries

    # -- echoes -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            probes = self._node.exits.probes(self._node)
            now = time.monotonic()
            wanted = {probe.key for probe in probes}
            for gone in self._begun.keys() - wanted:
                del self._begun[gone]
            wait = LOOK_EVERY_S if probes else None
            for probe in probes:
                due = self._begun.get(probe.key, float("-inf")) + probe.interval_s
                if now >= due and list(self._under_way.values()).count(probe.key) < MAX_UNDER_WAY:
                    self._begin(probe, now)
                elif wait is not None and now < due:
                    wait = min(wait, due - now)
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _begin(self, probe: Probe, now: float) -> None:
        self._begun[probe.key] = now
        task = asyncio.get_running_loop().create_task(self._probe(probe), name="exit echo")
        self._under_way[task] = probe.key
        task.add_done_callback(self._under_way.pop)

    async def _probe(self, probe: Probe) -> None:
        asking = asyncio.ensure_future(echo(probe.address, ECHO_S, self._interface))
        late_after = self._node.exits.choice.late_after(probe.key)
        try:
            in_time, _ = await asyncio.wait([asking], timeout=late_after)
            if not in_time:
                self._lost(probe.key)
            rtt = await asking
        except NostrvpnError as exc:
            _log.debug("no echo to an exit: %s", exc)
            rtt = None
        finally:
            asking.cancel()
        if rtt is not None:
            self._offer(ExitProbed(probe.key, rtt))
        elif in_time:
            self._lost(probe.key)

    def _lost(self, key: str) -> None:
        self._offer(ExitProbed(key, None))
        asyncio.get_running_loop().call_later(LOOK_AFTER_S, self._changed.set)
