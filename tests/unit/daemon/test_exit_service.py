"""Echoes to exits, countries by a database, and what holds traffic back while no daemon runs."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nostrvpn.config.options import Options
from nostrvpn.daemon import boot_guard, exit_service
from nostrvpn.daemon.exit_service import ExitService
from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.exits.choice import ECHO_S
from nostrvpn.exits.kill_switch import KillSwitch
from nostrvpn.exits.settings import ExitSettings
from nostrvpn.host.shield import Shield, ShieldKind
from nostrvpn.io import shield as io_shield
from nostrvpn.io.country_database import CountryDatabase
from nostrvpn.io.lock import StateLock
from nostrvpn.io.store import Record, Store
from nostrvpn.node.events import ExitProbed
from nostrvpn.node.exits import Probe
from tests.unit.io.country_file import write_countries

A, B = "a" * 64, "b" * 64
LIMIT = 10.0


class Outside:
    """A node that wants echoes, and exits that answer or hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wanted: list[Probe] = []
        self.heard: list[ExitProbed] = []
        self.sent: list[str] = []
        self.under_way = self.most = 0
        self.takes = 0.02
        self.rtts: dict[IPv6Address, float | Exception | None] = {}
        self.news = asyncio.Event()
        self.late_after = 0.5
        choice = SimpleNamespace(late_after=lambda _key: self.late_after)
        uses = SimpleNamespace(probes=lambda _node: self.wanted, countries={}, choice=choice)
        node: Any = SimpleNamespace(exits=uses, notes=[], peers={})
        self.node = node
        self.service = ExitService(node, "nvpn0", self.hear)
        monkeypatch.setattr(exit_service, "echo", self.echo)
        monkeypatch.setattr(exit_service, "LOOK_EVERY_S", 0.01)

    def hear(self, event: Any) -> None:
        self.heard.append(event)
        self.news.set()

    async def echo(self, address: IPv6Address, timeout_s: float, interface: str) -> float | None:
        assert interface == "nvpn0"
        assert timeout_s == ECHO_S
        self.sent.append(str(address))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            answer = self.rtts.get(address)
            await asyncio.sleep(self.takes)
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.under_way -= 1

    async def hears(self, count: int) -> None:
        async with asyncio.timeout(LIMIT):
            while len(self.heard) < count:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def outside(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Outside(monkeypatch)
    found.service.start()
    yield found
    await found.service.stop()


async def test_echoes_are_sent_as_asked_and_what_came_of_them_is_told(outside: Outside) -> None:
    near, gone, refused = (IPv6Address(f"fd00::{n}") for n in (1, 2, 3))
    outside.rtts = {near: 7.0, gone: None, refused: SystemRefused("no")}
    outside.wanted = [Probe(A, near, 60.0), Probe(B, gone, 60.0), Probe("c" * 64, refused, 60.0)]
    outside.service.poke()
    await outside.hears(3)
    told = {event.peer_key: event.rtt_ms for event in outside.heard}
    assert told == {A: 7.0, B: None, "c" * 64: None}
    # Each once a minute, and what is wanted sooner comes sooner.
    assert len(outside.sent) == 3
    outside.wanted = [Probe(A, near, 0.03)]
    await outside.hears(6)
    assert outside.most <= 3


async def test_an_echo_that_is_late_is_told_as_lost_and_as_an_answer_when_it_comes(
    outside: Outside,
) -> None:
    far = IPv6Address("fd00::1")
    outside.rtts, outside.takes, outside.late_after = {far: 300.0}, 0.1, 0.01
    outside.wanted = [Probe(A, far, 60.0)]
    outside.service.poke()
    await outside.hears(2)
    assert [event.rtt_ms for event in outside.heard] == [None, 300.0]


async def test_the_next_echo_waits_for_none_and_they_are_bounded(outside: Outside) -> None:
    gone = IPv6Address("fd00::1")
    outside.rtts, outside.takes, outside.late_after = {gone: None}, 60.0, 0.005
    outside.wanted = [Probe(A, gone, 0.01)]
    outside.service.poke()
    await outside.hears(exit_service.MAX_UNDER_WAY)
    await asyncio.sleep(0.05)
    assert outside.most == exit_service.MAX_UNDER_WAY == len(outside.heard)


async def test_no_exit_wanted_no_echo_and_none_after_the_end(outside: Outside) -> None:
    near = IPv6Address("fd00::1")
    outside.rtts = {near: 7.0}
    outside.wanted = [Probe(A, near, 0.0)]
    outside.service.poke()
    await outside.hears(2)
    outside.wanted = []
    async with asyncio.timeout(LIMIT):
        while outside.under_way:  # noqa: ASYNC110 (the service tells nobody)
            await asyncio.sleep(0.005)
    await outside.service.stop()
    heard = len(outside.heard)
    outside.wanted = [Probe(A, near, 0.0)]
    outside.service.poke()
    await asyncio.sleep(0.05)
    assert len(outside.heard) == heard


async def test_a_second_network_is_refused(
    monkeypatch: pytest.MonkeyPatch, outside: Outside
) -> None:
    monkeypatch.setattr(exit_service, "exit_rivals", lambda interface: ["nvpn1"])
    with pytest.raises(UserError, match="nvpn1"):
        await outside.service.check_alone()
    monkeypatch.setattr(exit_service, "exit_rivals", lambda interface: [])
    await outside.service.check_alone()


async def test_a_country_database_that_cannot_be_read_is_told(
    outside: Outside, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.mmdb"
    damaged.write_bytes(b"no database")
    for path in (str(damaged), str(tmp_path / "missing.mmdb")):
        outside.node.notes.clear()
        service = ExitService(outside.node, "nvpn0", outside.hear, path)
        service.start()
        assert [code for code, _ in outside.node.notes] == ["exit_country"]
        service.show()
        await service.stop()


def test_a_country_is_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "countries.mmdb"
    write_countries(path, {"198.51.100.0/24": "NL", "2001:db8::/32": "SE", "203.0.113.7/32": "DE"})
    database = CountryDatabase(str(path))
    found = {
        text: database.country(ip_address(text))
        for text in ("198.51.100.9", "203.0.113.7", "203.0.113.8", "2001:db8::1", "2001:db9::1")
    }
    assert list(found.values()) == ["NL", "DE", None, "SE", None]
    database.close()


# -- at boot --------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path: Path) -> Options:
    base = str(tmp_path)
    return Options(f"{base}/state", f"{base}/run", f"{base}/none.yaml", "nvtest0")


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Shield, str]]:
    done: list[tuple[Shield, str]] = []

    def apply(shield: Shield, interface: str) -> bool:
        done.append((shield, interface))
        return True

    monkeypatch.setattr(io_shield, "apply_shield", apply)
    return done


def decide(options: Options, stored: object) -> None:
    store = Store.open(options.store_path, boot_guard.PRECIOUS_SPACES, boot_guard.SECRET_SPACES)
    store.put([Record("meta", "listen_port", 1), Record("policy", "exit", stored)])
    store.close()


@pytest.mark.parametrize("kill_switch", KillSwitch)
@pytest.mark.parametrize("chosen", ["", "auto"])
def test_only_lockdown_blocks_at_boot(
    options: Options, applied: list[Any], kill_switch: KillSwitch, chosen: str
) -> None:
    decide(options, ExitSettings(chosen, kill_switch, allow_lan=True).to_json())
    (one,) = boot_guard.guard(options)
    locked = kill_switch is KillSwitch.LOCKDOWN
    assert one.state == ("blocked" if locked else "open")
    assert boot_guard.is_locked(options) == locked
    expected = [(Shield(ShieldKind.BLOCKED, allow_lan=True), "nvtest0")]
    assert applied == (expected if locked else [])


def test_a_node_without_decisions_or_state_is_let_be(options: Options, applied: list[Any]) -> None:
    assert [one.state for one in boot_guard.guard(options)] == ["open"]
    assert not Path(options.store_path).exists()
    decide(options, None)
    assert [one.state for one in boot_guard.guard(options)] == ["open"]
    assert applied == []


def test_a_damaged_record_blocks_at_boot(options: Options, applied: list[Any]) -> None:
    decide(options, {"kill_switch": "of"})
    assert [one.state for one in boot_guard.guard(options)] == ["blocked"]
    assert applied == [(Shield(ShieldKind.BLOCKED), "nvtest0")]


def test_a_database_lost_for_good_blocks_and_goes_on_blocking(
    options: Options, applied: list[Any]
) -> None:
    decide(options, ExitSettings(kill_switch=KillSwitch.OFF).to_json())
    for path in Path(options.home).glob("state.db*"):
        path.write_bytes(b"noise" * 5000)
    assert [one.state for one in boot_guard.guard(options)] == ["blocked"]
    # The database is sound now, and it still is not known what was decided.
    assert [one.state for one in boot_guard.guard(options)] == ["blocked"]


def test_a_database_that_came_back_from_its_backup_is_believed(
    options: Options, applied: list[Any]
) -> None:
    decide(options, ExitSettings(kill_switch=KillSwitch.OFF).to_json())
    Path(options.store_path).write_bytes(b"noise" * 5000)
    assert [one.state for one in boot_guard.guard(options)] == ["open"]


def test_a_running_daemon_sees_to_it_itself(options: Options, applied: list[Any]) -> None:
    decide(options, {"kill_switch": "of"})
    lock = StateLock(options.lock_path)
    lock.acquire()
    try:
        assert [one.state for one in boot_guard.guard(options)] == ["running"]
    finally:
        lock.release()
    assert applied == []
