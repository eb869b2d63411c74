"""Many pairs at once: a whole mesh that comes back finds its relay ready within seconds."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from nostrvpn.io import nftables
from nostrvpn.stun.binding import parse_stun
from nostrvpn.stun.relaying import Side, render_allocate, render_bind, side_key
from tests.contract.relay_lab import (
    CONTROL_PORT,
    USER,
    RelayLab,
    RunningRelay,
    packet,
    relay_address,
)

MEMBERS, EACH = 20, 15
PAIRS = MEMBERS * EACH
# Processor time of the relay's process for all of them; 2 s on a machine of 2026.
MOST_CPU_S = 8.0
# How long the relay's loop may be busy at a stretch: an answer is missed after 0.5 s.
MOST_BUSY_S = 0.25


class Member:
    """One address of a client: its sockets, one for each pair."""

    def __init__(self, lab: RelayLab, client: int, number: int) -> None:
        self.client = client
        address = f"10.{client}.0.{10 + number}"
        lab.clients[client - 1].ip("addr", "add", f"{address}/24", "dev", "lan")

        def open_sockets() -> list[socket.socket]:
            made = []
            for _ in range(EACH):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.bind((address, 0))
                sock.settimeout(5)
                made.append(sock)
            return made

        self.sockets: list[socket.socket] = lab.clients[client - 1].call(open_sockets)

    def ask(self, index: int, data: bytes, port: int) -> Any:
        sock = self.sockets[index]
        sock.sendto(data, relay_address(self.client, 4, port))
        return parse_stun(sock.recv(2048))

    def bind(self, index: int, port: int, side: Side, pair: str) -> None:
        key = side_key(USER.key, pair, side)
        nonce = self.ask(index, render_bind(os.urandom(12), pair, side, key, None), port).nonce
        data = render_bind(os.urandom(12), pair, side, key, nonce)
        assert self.ask(index, data, port).mapped is not None


class Busy:
    """The longest time that a loop had no turn for others, in its thread's own processor time."""

    def __init__(self, running: RunningRelay) -> None:
        self.longest = 0.0
        self._running = running
        self._stopped = threading.Event()

    async def watch(self) -> None:
        before = time.thread_time()
        while not self._stopped.is_set():
            await asyncio.sleep(0.005)
            now = time.thread_time()
            self.longest, before = max(self.longest, now - before), now

    def __enter__(self) -> Busy:
        self._done = asyncio.run_coroutine_threadsafe(self.watch(), self._running.loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._done.result(5)


def test_three_hundred_pairs_at_once(make_netns: Callable[[], Any], monkeypatch: Any) -> None:
    calls: list[tuple[str, ...]] = []
    original = nftables._run

    def counted(*arguments: str, **keywords: Any) -> str:
        calls.append(arguments)
        return original(*arguments, **keywords)

    monkeypatch.setattr(nftables, "_run", counted)
    lab = RelayLab(make_netns)
    sides = {
        side: [Member(lab, client, n) for n in range(MEMBERS)]
        for side, client in ((Side.ALLOCATOR, 1), (Side.OTHER, 2))
    }
    with RunningRelay(lab, max_pairs=PAIRS, pairs_per_user=PAIRS) as running:
        ports: dict[tuple[int, int], int] = {}
        calls.clear()

        def meet(number: int) -> None:
            for index in range(EACH):
                pair = f"{number:08x}{index:08x}"
                request = render_allocate(os.urandom(12), USER, pair)
                answer = sides[Side.ALLOCATOR][number].ask(index, request, CONTROL_PORT)
                port = ports[number, index] = answer.relayed.port
                for side, members in sides.items():
                    members[number].bind(index, port, side, pair)

        started, cpu = time.monotonic(), time.process_time()
        children = os.times()
        with Busy(running) as busy:
            threads = [threading.Thread(target=meet, args=(n,)) for n in range(MEMBERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            running.settled()
            took, cpu = time.monotonic() - started, time.process_time() - cpu
            after = os.times()
            cpu += after.children_user + after.children_system
            cpu -= children.children_user + children.children_system
            transactions = len(calls)
            before = time.monotonic()
            shown = running.snapshot()
            reading = time.monotonic() - before
        print(  # noqa: T201 (shown when it fails)
            f"{took:.1f} s, {cpu:.1f} s of CPU, {transactions} nft, busy {busy.longest:.3f} s, "
            f"counters {reading:.3f} s"
        )
        assert len(ports) == len(shown.pairs) == PAIRS
        assert running.host.refusal is None
        assert running.host.counters["kernel"] == PAIRS
        # Some packets take the way of each pair, through the kernel, to the right socket.
        carried = dict(running.host.ports.carried)
        for (number, index), port in ports.items():
            near, far = (members[number].sockets[index] for members in sides.values())
            near.sendto(packet(port), relay_address(1, 4, port))
            assert far.recv(2048) == packet(port)
            far.sendto(packet(port), relay_address(2, 4, port))
            assert near.recv(2048) == packet(port)
        assert dict(running.host.ports.carried) == carried
        assert all(pair.carried_bytes >= 2 * 176 for pair in running.snapshot().pairs)
        assert transactions < PAIRS
        assert cpu < MOST_CPU_S
        assert busy.longest < MOST_BUSY_S
    for members in sides.values():
        for member in members:
            for sock in member.sockets:
                sock.close()
