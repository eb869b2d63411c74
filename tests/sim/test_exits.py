"""Several exits that die and return under a whole node: one at a time, soon another, and no flapping."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_network
from itertools import pairwise

import pytest

from nostrvpn.exits.choice import STAY_S
from nostrvpn.exits.kill_switch import ExitState
from nostrvpn.exits.offer import ExitOffer, offer_to_json
from nostrvpn.host.shield import ShieldKind
from nostrvpn.node.events import ExitProbed
from tests.unit.node.small_mesh import SmallMesh

OFFER = ExitOffer(True, True, True)
EVERYWHERE = {ip_network("0.0.0.0/0"), ip_network("::/0")}
# As the daemon does it (daemon/exit_service.py).
LOOK_S = 0.1
WATCH_S = 0.25


class Exits(SmallMesh):
    """``me`` with three members that offer to be its exit, and the echoes that it asks for."""

    def __init__(self, seed: int) -> None:
        super().__init__("me", "fra", "ams", "nyc", seed=seed)
        self.me, *self.exits = self.all
        self.rtts = {h.name: ms for h, ms in zip(self.exits, (20.0, 35.0, 90.0), strict=True)}
        self.dead: set[str] = set()
        self.changes: list[tuple[float, str | None]] = []
        self._begun: dict[str, float] = {}
        for host in self.exits:
            self.me.node.peers[host.secret.public_key].exit = OFFER
            host.node.outbox.exit_for = lambda _peer: offer_to_json(OFFER)
        self.at(0.0, self._look)
        self.at(0.0, self._watch)

    def name(self, key: str) -> str:
        return next(host.name for host in self.exits if host.secret.public_key == key)

    def _look(self) -> None:
        node = self.me.node
        for probe in node.exits.probes(node):
            due = self._begun.get(probe.key, float("-inf")) + probe.interval_s
            if self.now >= due:
                self._begun[probe.key] = self.now
                self._ask(probe.key)
        self.at(LOOK_S, self._look)

    def _watch(self) -> None:
        self.check()
        self.at(WATCH_S, self._watch)

    def _ask(self, key: str) -> None:
        name = self.name(key)
        if name in self.dead:
            late = self.me.node.exits.choice.late_after(key)
            self.at(late, lambda: self._answered(key, None))
        else:
            self.at(self.rtts[name] / 1000, lambda: self._answered(key, self.rtts[name]))

    def _answered(self, key: str, rtt: float | None) -> None:
        self.step(self.me, ExitProbed(key, rtt))
        self.check()

    def check(self) -> None:
        """Never two exits, and nothing outside the tunnel."""
        node = self.me.node
        desired = node.desired(self.now)
        holders = [p for p in desired.device.peers if p.allowed_ips & EVERYWHERE]
        assert len(holders) <= 1
        if node.exits.is_wanted:
            assert desired.shield.kind in (ShieldKind.BLOCKED, ShieldKind.TUNNELLED)
            assert desired.exit_routing.active
            if desired.shield.kind is ShieldKind.TUNNELLED:
                assert [p.allowed_ips >= EVERYWHERE for p in holders] == [True]
        used = None if node.exits.used is None else self.name(node.exits.used)
        if not self.changes or self.changes[-1][1] != used:
            self.changes.append((self.now, used))

    @property
    def used(self) -> str | None:
        return self.changes[-1][1]

    @property
    def state(self) -> ExitState:
        state = self.me.node.exits.state
        assert isinstance(state, ExitState)
        return state

    def use(self, peer: str) -> None:
        options = {"kill_switch": None, "allow_lan": None, "resolver": None, "dry_run": False}
        self.call(self.me, "exit_use", peer=peer, **options)


@pytest.mark.parametrize("seed", range(1, 4))
def test_an_exit_that_dies_is_replaced_in_five_seconds_and_two_are_never_used(seed: int) -> None:
    rng = random.Random(seed)
    world = Exits(seed)
    world.use("auto")
    world.run(2.0)
    assert world.used == "fra"
    falls = 0
    for _ in range(8):
        world.run(rng.uniform(40.0, 90.0))
        assert world.state is ExitState.CONNECTED
        used = world.used
        assert used is not None
        world.dead.add(used)
        falls += 1
        died = world.now
        assert world.run(
            5.0, lambda: world.state is ExitState.CONNECTED and world.used not in world.dead
        )
        assert world.now - died < 5.0
        world.run(rng.uniform(1.0, 60.0))
        world.dead.discard(used)
    chosen = [at for at, name in world.changes if name is not None]
    late = [b for a, b in pairwise(chosen) if b - a >= STAY_S]
    assert falls <= len(chosen) - 1 <= falls + len(late)


def test_all_exits_gone_blocks_and_the_first_that_returns_is_used() -> None:
    world = Exits(7)
    world.use("auto")
    world.run(60.0)
    world.dead.update({"fra", "ams", "nyc"})
    world.run(30.0)
    assert world.state is ExitState.CONNECTING
    assert world.me.node.desired(world.now).shield.kind is ShieldKind.BLOCKED
    world.dead.discard("nyc")
    assert world.run(6.0, lambda: world.state is ExitState.CONNECTED)
    assert world.used == "nyc"


def test_an_exit_that_flaps_is_not_followed() -> None:
    world = Exits(9)
    world.use("auto")
    world.run(60.0)
    for _ in range(12):
        world.dead.add("fra")
        world.run(6.0)
        world.dead.discard("fra")
        world.run(20.0)
    assert [name for _, name in world.changes if name] == ["fra", "ams"]


def test_a_fixed_exit_is_waited_for() -> None:
    world = Exits(11)
    world.use("nyc")
    world.run(5.0)
    world.dead.add("nyc")
    world.run(120.0)
    assert world.state is ExitState.CONNECTING
    world.dead.clear()
    assert world.run(6.0, lambda: world.state is ExitState.CONNECTED)
    assert [name for _, name in world.changes if name] == ["nyc"]


def test_an_exit_that_stops_offering_is_left_at_once() -> None:
    world = Exits(13)
    world.use("auto")
    world.run(60.0)
    peer = world.me.node.peers[world.exits[0].secret.public_key]
    peer.exit = replace(peer.exit, v4=False, v6=False)
    world.run(2.0)
    assert world.used == "ams"
    assert world.state is ExitState.CONNECTED
