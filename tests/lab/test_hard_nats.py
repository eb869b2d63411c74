"""The search for a path through hard NATs on real ones, and a pinned port that carries a tunnel.

Two taps and two search machines in two namespaces, driven by one loop: no daemons. The rules that
pin WireGuard's port are the ones that a node would write.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.io.tap import Tap
from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.leftovers import PREFIX
from nostrvpn.lab.nat import SEQUENCE, NatKind
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.lab.topologies import TwoNats
from nostrvpn.lab.topology import Host, Lab, Router
from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.events import SendDatagram
from nostrvpn.paths.hard_nat.plan import parse_plan, plan_to_json
from nostrvpn.paths.hard_nat.search import SOURCE_PORTS, Search
from nostrvpn.paths.hard_nat.task import Found, SearchTask, Tell
from nostrvpn.paths.open_checks import Credentials
from nostrvpn.paths.reflexive import ReflexiveProbe
from nostrvpn.paths.settings import PathSettings
from nostrvpn.paths.snapshot import Mapping
from nostrvpn.stun.binding import StunKind, parse_stun, render_query, render_response
from tests.lab.homes import ping, watched
from tests.lab.test_topology import LAPTOP_PORT, House, receive_until

pytestmark = pytest.mark.lab

PORT = 40_404
HELLO = b"hello"
SIGNALING_DELAY = 0.1
LIMIT = 20.0
# The core's router process reads and writes packets, so a wrong checksum does not arrive.
INTERNET = Internet(delay=0.005)

STATEFUL = """
table inet host_firewall {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        iifname "wg*" accept
        ct state established,related accept
    }
}
"""


def moment() -> Moment:
    return Moment(time.monotonic(), time.time(), Entropy(os.urandom(32)))


@dataclass
class Half:
    """One laptop: whoever owns the port, the tap beside it, and the machines."""

    host: Host
    router: Router
    tap: Tap
    probe: ReflexiveProbe
    password: str
    peer: Half | None = None
    search: Search | None = None
    requests: int = 0
    _timer: asyncio.TimerHandle | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def reflexive(self) -> Endpoint:
        return self.probe.endpoints[0]

    @property
    def mapping(self) -> Mapping:
        return Mapping(self.probe.report().mapping)

    @property
    def result(self) -> Found:
        assert self.search is not None
        assert isinstance(self.search.result, Found), self.search.result
        return self.search.result

    def perform(self, effects: list[SendDatagram | Tell]) -> None:
        loop = asyncio.get_running_loop()
        for effect in effects:
            if isinstance(effect, Tell):
                loop.call_later(SIGNALING_DELAY, self._told_by, plan_to_json(effect.plan))
            else:
                self.send(effect)
        self._schedule()
        self.changed.set()

    def send(self, effect: SendDatagram) -> None:
        # The address is given: a tap asks for routes in the namespace of the caller's thread.
        port = effect.source_port
        ip = self.host.address
        self.tap.send(effect.data, effect.destination, effect.ttl, ip, source_port=port)

    def _told_by(self, plan: dict[str, object]) -> None:
        assert self.peer is not None
        assert self.peer.search is not None
        self.peer.perform(self.peer.search.told(parse_plan(plan), moment()))

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.search.deadline if self.search else self.probe.deadline
        if deadline is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, deadline - time.monotonic()), self._due)

    def _due(self) -> None:
        if self.search is not None:
            self.perform(self.search.tick(moment()))
        else:
            sent, _ = self.probe.tick(moment())
            self.perform([*sent])

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.tap.close()

    def deliver(
        self, data: bytes, source: Endpoint, _arrived_at: IPAddress | None, port: int | None
    ) -> None:
        message = parse_stun(data)
        if message.kind is StunKind.REQUEST:
            if self.probe.saw_request(message.transaction):
                return
            assert message.is_authentic(self.password)
            self.requests += 1
            answer = render_response(message.transaction, source, self.password)
            self.send(SendDatagram(answer, source, source_port=port))
            if self.search is not None:
                self.perform(self.search.asked(source, port, moment()))
        elif self.search is not None and self.search.knows(message.transaction):
            self.perform(self.search.answered(message, source, moment()))
        elif self.probe.knows(message.transaction):
            self.probe.answered(message, source, moment())
            self.changed.set()


async def until(halves: tuple[Half, Half], done: Callable[[Half], bool]) -> None:
    async with asyncio.timeout(patient(LIMIT)):
        for half in halves:
            while not done(half):
                half.changed.clear()
                await half.changed.wait()


@contextlib.asynccontextmanager
async def two_halves(lab: TwoNats) -> AsyncIterator[tuple[Half, Half]]:
    """Taps on both laptops, whose NATs are classified already."""
    halves = []
    places = ((lab.laptop_a, lab.nat_a), (lab.laptop_b, lab.nat_b))
    try:
        for number, (host, router) in enumerate(places):
            probe = ReflexiveProbe(lab.server.stun, PathSettings())
            holder: list[Half] = []
            tap = Tap(PORT, 0, lambda *item, holder=holder: holder[0].deliver(*item))
            half = Half(host, router, tap, probe, password=f"{number}" * 24)
            holder.append(half)
            with host.namespace.enter():
                tap.open()
            tap.listen_on(SOURCE_PORTS)
            halves.append(half)
            half.perform([*probe.start(frozenset({4}), moment())])
        one, other = halves
        one.peer, other.peer = other, one
        known = lambda half: sum(s.mapped is not None for s in half.probe.report().servers) == 3  # noqa: E731
        await until((one, other), known)
        yield one, other
    finally:
        for half in halves:
            half.close()


async def search(one: Half, other: Half) -> None:
    for half in (one, other):
        assert half.peer is not None
        # As after the ordinary round: there is a mapping towards the peer's endpoint already.
        half.send(SendDatagram(render_query(os.urandom(12)), half.peer.reflexive, 3))
        task = SearchTask(
            controlling=half is one,
            own=half.mapping,
            peer=half.peer.mapping,
            target=half.peer.reflexive,
            servers=tuple(server.server for server in half.probe.report().servers),
            credentials=Credentials("them:us", half.peer.password),
            tie_breaker=1,
        )
        half.search = Search(task, moment())
    for half in (one, other):
        assert half.search is not None
        half.perform(half.search.start(moment()))
    await until((one, other), lambda half: half.search is not None and bool(half.search.result))


def pin(half: Half) -> None:
    """Rewrite WireGuard's port to the one that was found, as a node's own table does."""
    port, remote = half.result.local_port, half.result.remote
    if port is None:
        return
    there = f"ip daddr {remote.ip} udp dport {remote.port}"
    back = f"ip saddr {remote.ip} udp sport {remote.port}"
    # Conntrack (priority -200) has to see WireGuard's port both ways: arriving packets are rewritten
    # before it, leaving ones after it. Else a stateful host firewall drops what arrives.
    half.host.namespace.nft(
        "table inet nostrvpn_test {\n"
        "chain arriving {\ntype filter hook prerouting priority -310;\n"
        f"{back} udp dport {port} udp dport set {PORT}\n}}\n"
        "chain leaving {\ntype filter hook output priority mangle;\n"
        f"{there} udp sport {PORT} udp sport set {port}\n}}\n}}\n"
    )


def owner_of(half: Half) -> socket.socket:
    with half.host.namespace.enter():
        owner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    owner.bind(("0.0.0.0", PORT))
    owner.settimeout(patient(3.0))
    return owner


def exchange(one: Half, other: Half) -> None:
    """Plain UDP from the owner of the port to the other's, both ways, several times and sizes."""
    with contextlib.ExitStack() as stack:
        owners = [stack.enter_context(owner_of(half)) for half in (one, other)]
        remotes = [(str(h.result.remote.ip), h.result.remote.port) for h in (one, other)]
        # A stateful host firewall lets in what answers WireGuard's port: it must have sent before.
        for owner, remote in zip(owners, remotes, strict=True):
            owner.sendto(HELLO, remote)
        for size in (1, 33, 1200, 1201):
            for sender in (0, 1):
                data = os.urandom(size)
                owners[sender].sendto(data, remotes[sender])
                arrived = owners[1 - sender].recvfrom(2048)
                while arrived[0] == HELLO:
                    arrived = owners[1 - sender].recvfrom(2048)
                assert arrived == (data, remotes[1 - sender])


KINDS = [
    (NatKind.SYMMETRIC_SEQUENTIAL, NatKind.PORT_RESTRICTED),
    (NatKind.ACCEPT_INPUT, NatKind.SYMMETRIC_SEQUENTIAL),
    (NatKind.SYMMETRIC_SEQUENTIAL, NatKind.SYMMETRIC_SEQUENTIAL),
    (NatKind.SYMMETRIC, NatKind.PORT_RESTRICTED),
]
MAPPINGS = {
    NatKind.SYMMETRIC_SEQUENTIAL: Mapping.PREDICTABLE,
    NatKind.SYMMETRIC: Mapping.RANDOM,
}


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
async def test_hard_nats_are_met_and_the_port_that_was_found_carries_data(kinds):
    with TwoNats(kinds[0], kinds[1], INTERNET, relay=False) as lab:
        for laptop in (lab.laptop_a, lab.laptop_b):
            laptop.namespace.nft(STATEFUL)
        async with two_halves(lab) as (one, other):
            for half in (one, other):
                kind = half.router.kind
                assert half.mapping is MAPPINGS.get(kind, Mapping.INDEPENDENT)
            if one.mapping is Mapping.PREDICTABLE:
                assert one.probe.report().step == 1
                assert one.probe.report().last_port in SEQUENCE
            await search(one, other)
            assert one.search is not None
            assert other.search is not None
            assert one.search.packets + other.search.packets < 1_500
        pin(one)
        pin(other)
        assert {one.result.local_port, other.result.local_port} > {None}
        exchange(one, other)


async def test_wireguard_crosses_a_pinned_port():
    kinds = (NatKind.SYMMETRIC_SEQUENTIAL, NatKind.PORT_RESTRICTED)
    with TwoNats(kinds[0], kinds[1], INTERNET, relay=False) as lab, contextlib.ExitStack() as stack:
        for laptop in (lab.laptop_a, lab.laptop_b):
            laptop.namespace.nft(STATEFUL)
        async with two_halves(lab) as (one, other):
            await search(one, other)
        pin(one)
        pin(other)
        keys = [X25519PrivateKey.generate() for _ in range(2)]
        publics = [b64encode(key.public_key().public_bytes_raw()).decode() for key in keys]
        for number, half in enumerate((one, other)):
            namespace = half.host.namespace
            interface = f"{PREFIX}{os.getpid()}-w{number}"
            log = lab.directory / f"wg{number}.log"
            process = Process(
                namespace,
                ("wireguard-go", "-f", interface),
                log=log,
                environment={"WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"},
            )
            stack.callback(process.stop)
            uapi = f"/var/run/wireguard/{interface}.sock"
            wait_until(partial(os.path.exists, uapi), uapi)
            key_file = lab.directory / f"key{number}"
            key_file.write_bytes(b64encode(keys[number].private_bytes_raw()))
            peer = publics[1 - number]
            namespace.run(
                *("wg", "set", interface, "listen-port", str(PORT), "private-key", str(key_file)),
                *("peer", peer, "allowed-ips", "10.9.0.0/24", "endpoint", str(half.result.remote)),
            )
            namespace.ip(
                f"addr add 10.9.0.{number + 1}/24 dev {interface}",
                f"link set {interface} mtu 1280 up",
            )
            namespace.nft(f'insert rule inet host_firewall input iifname "{interface}" accept')
        for sender, target in ((one, 2), (other, 1)):
            argv = (
                "ping",
                "-n",
                "-c",
                "3",
                "-i",
                "0.2",
                "-w",
                "8",
                "-s",
                "1200",
                f"10.9.0.{target}",
            )
            assert " 0% packet loss" in sender.host.run(*argv, timeout=15)
        shown = one.host.run("wg", "show", f"{PREFIX}{os.getpid()}-w0", "endpoints")
        assert str(one.result.remote) in shown


class WithRelay(Lab):
    """Two laptops behind the NATs of a case, and a member with a public address that relays."""

    def __init__(self, kinds: tuple[NatKind, NatKind]) -> None:
        super().__init__(INTERNET)
        self._kinds = kinds

    def build(self) -> None:
        server = self.server_host()
        self.node(self.host("vps"), server, relay={"offer": "members"})
        for name, kind in zip("ab", self._kinds, strict=True):
            self.node(self.host(f"laptop-{name}", self.router(f"nat-{name}", kind)), server)


@pytest.mark.parametrize("kinds", [KINDS[0], KINDS[2]], ids="+".join)
def test_daemons_are_relayed_first_and_direct_within_a_minute(
    kinds: tuple[NatKind, NatKind],
) -> None:
    with watched(WithRelay(kinds)) as lab:
        vps, a, b = lab.nodes
        gather(vps, [a, b])
        started = time.monotonic()
        a.wait_for_peer(b.npub, path="relayed")
        for node, other in ((a, b), (b, a)):
            node.wait_for_peer(other.npub, path="direct", timeout=patient(60.0))
        sys.stdout.write(f"{'+'.join(kinds)}: direct {time.monotonic() - started:.1f} s later\n")
        ping(a, b)
        ping(b, a)
        rules = [node.namespace.run("nft", "list", "ruleset").stdout for node in (a, b)]
        assert any("udp sport set" in text for text in rules)
        before = vps.query("netcheck")["relay_service"]["bytes"]
        ping(a, b)
        assert vps.query("netcheck")["relay_service"]["bytes"] - before < 3_000
        a.stop()
        b.stop()
        rules = [node.namespace.run("nft", "list", "ruleset").stdout for node in (a, b)]
        assert not any("udp sport set" in text for text in rules)


def test_one_to_one_keeps_the_port_and_lets_everything_in() -> None:
    with contextlib.ExitStack() as stack:
        house = House(stack, NatKind.ONE_TO_ONE, Internet())
        mapped = house.mapping_towards(house.same)
        assert mapped == (str(house.router.address), LAPTOP_PORT)
        for sender, word in (
            (house.other_port, b"port"),
            (house.other_address, b"address"),
            (house.same, b"same"),
        ):
            sender.sendto(word, mapped)
        assert set(receive_until(house.socket, b"same")) == {b"port", b"address", b"same"}
