"""What a relay that cannot have everything says of itself, and what it remembers of the month."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nostrvpn.config.model import Relay
from nostrvpn.daemon import relay_service
from nostrvpn.daemon.relay_service import RelayService
from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.io.relay_table import RelayTable
from nostrvpn.io.store import Store
from nostrvpn.machine import Entropy, Moment
from nostrvpn.relaying.events import OpenPort

GIGABYTE = 10**9
SEPTEMBER = 1.8e9  # wall time


class Running:
    """A relay without a network: what pairs carried is added by hand, and its clock stands."""

    def __init__(self, store: Store, gigabytes: int) -> None:
        self.now = 0.0
        self.store = store
        self.service = RelayService(
            bytes(32),
            Relay(offer="members", gigabytes=gigabytes),
            store,
            moment=self.moment,
            send_control=lambda _data, _destination: None,
        )

    def moment(self) -> Moment:
        return Moment(self.now, SEPTEMBER + self.now, Entropy(b"x"))

    async def carry(self, number: int, seconds: float = 0.0) -> int:
        """Carry bytes, read the counters, and return what a killed daemon would know of it."""
        self.now += seconds
        self.service._server._meter.add(number, self.moment())
        await self.service._host.read_counters()
        remembered = self.store.all("meta").get("relay_month", ["", 0])
        assert isinstance(remembered, list)
        return int(remembered[1])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(str(tmp_path / "store"))) as made:
        yield made


async def test_the_months_bytes_are_stored_every_minute_while_they_grow(store: Store, monkeypatch):
    relay = Running(store, gigabytes=0)
    assert await relay.carry(1000, 59) == 0
    assert await relay.carry(1000, 1) == 2000
    assert await relay.carry(1000, 59) == 2000
    assert await relay.carry(1000, 2) == 4000
    written: list[object] = []
    monkeypatch.setattr(store, "put", written.extend)
    await relay.carry(0, 300)
    assert not written


async def test_a_hundredth_of_the_month_is_stored_at_once_and_so_is_the_last_byte(store: Store):
    relay = Running(store, gigabytes=1)
    assert await relay.carry(GIGABYTE // 100 - 1) == 0
    assert await relay.carry(1) == GIGABYTE // 100
    assert await relay.carry(GIGABYTE - GIGABYTE // 100 - 5) == GIGABYTE - 5
    assert await relay.carry(5) == GIGABYTE
    again = Running(store, gigabytes=1)
    assert again.service._server.snapshot(again.moment()).is_exhausted


async def test_bytes_that_cannot_be_stored_are_one_problem_until_they_can(
    store: Store, monkeypatch, caplog
):
    relay = Running(store, gigabytes=0)

    def refuse(_records: object) -> None:
        raise SystemRefused("no space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(store, "put", refuse)
        for _ in range(20):
            assert await relay.carry(1000, 61) == 0
        assert relay.service.troubles["unsaved"] == "no space left on device"
    assert caplog.text.count("no space left on device") == 1
    assert await relay.carry(1000, 61) == 21_000
    assert relay.service.troubles["unsaved"] is None


async def test_an_error_that_nobody_foresaw_ends_no_counting(store: Store, monkeypatch, caplog):
    monkeypatch.setattr("nostrvpn.io.relay_host.COUNTERS_EVERY_S", 0.0)
    monkeypatch.setattr(relay_service, "uplinks", lambda: None)
    relay = Running(store, gigabytes=0)
    host = relay.service._host
    counted = asyncio.Event()

    async def fail() -> None:
        raise ZeroDivisionError("look")

    monkeypatch.setattr(host, "look_around", fail)
    host.counted = counted.set
    with caplog.at_level(logging.ERROR):
        await relay.service.start("nvpn0")
        for _ in range(3):
            async with asyncio.timeout(5):
                await counted.wait()
            counted.clear()
        await relay.service.stop()
    assert relay.service.troubles["failure"] == "ZeroDivisionError: look"
    failures = relay.service.troubles["failures"]
    assert isinstance(failures, int)
    assert failures >= 3
    assert caplog.text.count("relaying goes on after ZeroDivisionError") == 1


async def test_an_error_in_the_kernels_worker_costs_one_change_and_no_other(
    store: Store, monkeypatch
):
    relay = Running(store, gigabytes=0)
    host = relay.service._host
    table = RelayTable("nvpn0", 100)
    applied: list[set[int]] = []

    def apply() -> dict[int, str]:
        applied.append(set(table._wanted))
        if len(applied) <= 2:
            raise ZeroDivisionError("apply")
        return {}

    def note(port: int) -> None:
        if port == 1:
            raise ZeroDivisionError("open")
        table._wanted[port] = frozenset()

    monkeypatch.setattr(table, "apply", apply)
    monkeypatch.setattr(table, "open", note)
    monkeypatch.setattr("nostrvpn.io.relay_host.forward_obstacles", dict)
    host._table = table
    for port in (1, 2):
        host._tell_kernel(OpenPort(port))
        await host.settled()
    await host.look_around()  # what failed to reach the kernel is told again
    await host.look_around()
    host._table = None
    await relay.service.stop()
    assert applied == [set(), {2}, {2}]
    assert relay.service.troubles["failures"] == 3


async def test_a_relay_that_the_kernel_does_not_help_still_relays(
    monkeypatch, tmp_path: Path, caplog
):
    def refuse(_table: object, _uplinks: tuple[str, ...]) -> None:
        raise SystemRefused("there is no nft here")

    monkeypatch.setattr(relay_service, "uplinks", lambda: ("eth0",))
    monkeypatch.setattr("nostrvpn.io.relay_host.RelayTable.create", refuse)
    with closing(Store.open(str(tmp_path / "store"))) as store:
        service = RelayService(
            bytes(32),
            Relay(offer="members"),
            store,
            moment=lambda: Moment(0.0, 1.8e9, Entropy(b"x")),
            send_control=lambda _data, _destination: None,
        )
        with caplog.at_level(logging.WARNING):
            await service.start("nvpn0")
        await service.stop()
    assert service.error is None
    assert "there is no nft here" in caplog.text


async def test_a_renewed_certificate_is_taken_up_and_a_bad_one_ends_nothing(
    store: Store, monkeypatch, caplog
):
    relay = Running(store, gigabytes=0)
    looks: list[bool] = []

    class WebSocket:
        def renew_certificate(self) -> None:
            looks.append(True)
            if len(looks) == 2:
                raise UserError("no certificate for the relay")

    monkeypatch.setattr(relay.service, "_websocket", WebSocket())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await relay.carry(1000, 15)
    assert len(looks) == 3
    assert caplog.text.count("no certificate for the relay") == 1
