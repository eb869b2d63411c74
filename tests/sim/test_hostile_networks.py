"""Relays, tickets, plans and rounds in the hands of liars: what they can make a node do, and show."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.io.channels import ChannelCalls, Channels
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.node.events import HostChanged, LendTo
from nostrvpn.node.node import Node
from nostrvpn.node.relaying import RelayRole
from nostrvpn.paths import events as ev
from nostrvpn.paths.agent import Paths
from nostrvpn.paths.candidates import CandidateKind, LocalAddress
from nostrvpn.paths.description import description_to_json, parse_description
from nostrvpn.paths.hard_nat.roles import SEARCHES_PER_HOUR
from nostrvpn.paths.relay_end import end_from_offer
from nostrvpn.paths.relay_offers import RelayOffer
from nostrvpn.paths.relay_requests import RelayRequest
from nostrvpn.paths.settings import PathSettings
from nostrvpn.relaying.events import AllocateReceived, OpenPort, PortRefused, SendControl, Users
from nostrvpn.relaying.pairs import MAX_REFUSALS
from nostrvpn.relaying.server import RelayServer
from nostrvpn.relaying.settings import RelaySettings
from nostrvpn.signaling.messages import MessageType
from nostrvpn.stun.binding import Check, StunMethod, parse_stun, render_check, render_response
from nostrvpn.stun.codec import stun
from nostrvpn.stun.relaying import (
    RelayUser,
    Side,
    relay_user,
    render_allocate,
    render_allocated,
    render_relay_error,
    side_key,
)
from tests.sim.hostile import (
    Attacker,
    Harm,
    admitted_member,
    description_of,
    invited,
    network_of,
    node_of,
    watch,
    world_of,
)
from tests.sim.network import Simulation
from tests.sim.nodes import Host, World
from tests.unit.host.test_desired import CAROL, V4, desired, peer

VICTIM = "11.9.9.9"
KEY, USER, TICKET_KEY = "ee" * 16, "dd" * 8, "cc" * 16


# -- machines under fire ---------------------------------------------------------------------


class Target:
    """One path engine, and somebody who knows all its secrets and sends it whatever comes to mind."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.steps = 0
        self.seed = seed
        servers = tuple(Endpoint(IPv4Address(f"11.0.20{n}.1"), 3478) for n in range(2))
        sleepy = PathSettings(sleep_after=self.rng.choice([None, 30.0]))
        self.paths = Paths(stun_servers=servers, settings=sleepy)
        self.peers = [f"{number:064x}" for number in (1, 2, 3)]
        self.sent: list[ev.SendDatagram] = []
        self.channels: list[int] = []
        self.told: dict[str, Any] = {}
        self.said: dict[str, dict[str, Any]] = {}
        self.step(ev.LocalAddresses((self.address(5),), 41000))

    def address(self, last: int) -> LocalAddress:
        return LocalAddress(IPv4Address(f"192.168.1.{last}"), "eth0", 24)

    def step(self, event: ev.PathEvent) -> None:
        self.steps += 1
        entropy = Entropy(f"{self.seed}/{self.steps}".encode())
        for effect in self.paths.step(event, Moment(self.now, 1.7e9 + self.now, entropy)):
            repr(effect)
            match effect:
                case ev.SendDatagram():
                    self.sent = [*self.sent[-60:], effect]
                case ev.OpenChannel():
                    self.channels.append(effect.channel)
                case ev.Describe(peer, description):
                    self.told[peer] = json.loads(json.dumps(description_to_json(description)))
        for key in self.paths.peers:
            self.paths.snapshot(key)

    def endpoint(self) -> Endpoint:
        ips: list[IPAddress] = [IPv4Address(f"11.0.3.{n}") for n in range(1, 6)]
        ip = self.rng.choice([*ips, IPv4Address("192.168.1.7"), IPv6Address("2d00::7")])
        return Endpoint(ip, self.rng.choice([53, 40000, 33001]))

    def description(self, peer: str) -> ev.PathEvent:
        rng, old = self.rng, self.said.get(peer)
        answers = self.told[peer]["session"] if peer in self.told and rng.random() < 0.6 else None
        new = description_of(rng.getrandbits(63), 1) | {"ufrag": rng.randbytes(6).hex()}
        if old is not None and rng.random() < 0.6:
            new = old | {"generation": old["generation"] + 1}
        new["answers"] = answers
        if rng.random() < 0.7:
            new["candidates"] = [
                {"kind": rng.choice(list(CandidateKind)).value, "endpoint": str(self.endpoint()),
                 "priority": rng.randrange(1, 2**31)}
                for _ in range(rng.randrange(6))
            ]  # fmt: skip
        if rng.random() < 0.5:
            new["relays"] = [
                {"pair": rng.choice(["aa" * 8, "bb" * 8, rng.randbytes(8).hex()]),
                 "endpoints": [str(self.endpoint())][: rng.randrange(2)], "key": TICKET_KEY,
                 "websocket": rng.choice([None, "ws://x.example/"])}
                for _ in range(rng.randrange(5))
            ]  # fmt: skip
        if rng.random() < 0.5:
            mapping = rng.choice(["dependent", "independent", "unknown", "random", "sequential"])
            new["nat"] = {"mapping": mapping, "udp": rng.random() < 0.5}
            first = rng.randrange(1, 60000)
            new["search"] = {
                "search": rng.choice(["00" * 4, rng.randbytes(4).hex()]),
                "kind": rng.choice(["forecast", "opened", "scattered"]),
                "ip": str(IPv4Address(f"11.0.3.{rng.randrange(1, 6)}")), "step": rng.randint(-9, 9),
                "ports": [[first, first + rng.randrange(900), rng.choice([0, 41000])]],
            }  # fmt: skip
        self.said[peer] = new
        return ev.RemoteDescription(peer, parse_description(new))

    def offers(self) -> ev.PathEvent:
        rng = self.rng
        return ev.RelayOffers(
            tuple(
                RelayOffer(
                    rng.choice([*self.peers, "r1", "r2"]),
                    (self.endpoint(),)[: rng.randrange(2)],
                    RelayUser(USER, KEY),
                    rng.choice([None, "wss://y.example/"]),
                )
                for _ in range(rng.randrange(4))
            )
        )

    def answer(self) -> ev.PathEvent | None:
        """Answer something that was sent: rightly, wrongly, from elsewhere."""
        rng = self.rng
        asked = rng.choice(self.sent) if self.sent else None
        if asked is None or parse_stun(asked.data).kind.value != "request":
            return None
        message, source = parse_stun(asked.data), asked.destination
        one, name = message.transaction, message.username
        source = self.endpoint() if rng.random() < 0.1 else source
        code, nonce = rng.choice([401, 437, 438, 486, 508, 300]), rng.choice([None, b"n" * 8])
        if message.method is StunMethod.ALLOCATE:
            if rng.random() < 0.6:
                data = render_allocated(one, self.endpoint(), rng.choice([0, 300]), KEY)
            else:
                data = render_relay_error(message.method, one, code, rng.choice([None, KEY]), nonce)
        elif name[16:] in (":a", ":b"):
            side = Side(name[17:])
            key = TICKET_KEY if side is Side.OTHER else side_key(KEY, name[:16], side)
            if rng.random() < 0.5:
                data = render_response(one, self.endpoint(), key)
            else:
                data = render_relay_error(message.method, one, code, rng.choice([None, key]), nonce)
        else:
            data = render_response(one, self.endpoint(), "p" * 32)
        return ev.DatagramReceived(data, source, None, asked.source_port)

    def check(self) -> ev.PathEvent | None:
        rng, peer = self.rng, self.rng.choice(self.peers)
        if peer not in self.told or peer not in self.said:
            return None
        told, said = self.told[peer], self.said[peer]
        check = Check(
            transaction=rng.randbytes(12), username=f"{told['ufrag']}:{said['ufrag']}",
            password=told["password"], priority=1, controlling=peer >= self.me, tie_breaker=7,
            use_candidate=rng.random() < 0.5, round=rng.choice([None, rng.getrandbits(32)]),
        )  # fmt: skip
        source = rng.choice([self.endpoint(), *(sent.destination for sent in self.sent[-5:])])
        port = rng.choice([None, None, None, 50000])
        return ev.DatagramReceived(render_check(check), source, None, port)

    @property
    def me(self) -> str:
        return f"{2:064x}"

    def about_channels(self) -> ev.PathEvent | None:
        rng = self.rng
        if not self.channels:
            return None
        number = rng.choice(self.channels)
        frames = [
            b"junk",
            render_response(b"t" * 12, self.endpoint(), TICKET_KEY),
            render_allocated(b"t" * 12, self.endpoint(), 300, KEY),
            render_relay_error(StunMethod.BINDING, b"t" * 12, 437, None),
        ]
        at = Endpoint(IPv4Address("127.77.0.1") + number % 200, 5000 + number % 999)
        answered = ev.ChannelAnswered(number, rng.choice(frames))
        events: list[ev.PathEvent] = [
            ev.ChannelOpened(number, at),
            ev.ChannelClosed(number, "x"),
            answered,
        ]
        return rng.choice(events)

    def world(self) -> ev.PathEvent:
        rng, peer = self.rng, self.rng.choice(self.peers)
        addresses = tuple(self.address(rng.randrange(5, 8)) for _ in range(rng.randrange(3)))
        return rng.choice(
            [
                ev.AddPeer(peer, peer < self.me),
                ev.AddPeer(peer, peer < self.me),
                ev.RemovePeer(peer) if rng.random() < 0.2 else ev.Wake(peer),
                ev.Restart(peer),
                ev.NetworkChanged(),
                ev.LocalAddresses(addresses, 41000),
                ev.MappedAddresses((self.endpoint(), self.endpoint())),
                ev.TurnAllocated("t", self.endpoint()),
                ev.TurnHeard("t", self.endpoint(), "abcdefgh"),
                ev.TurnLost("t", "x"),
                ev.TunnelObserved(
                    peer,
                    rng.choice([None, 3.0, 500.0]),
                    rng.getrandbits(20),
                    rng.getrandbits(20),
                    rng.choice([None, self.endpoint()]),
                ),
            ]
        )

    def run(self, steps: int) -> None:
        rng = self.rng
        for key in self.peers:
            self.step(ev.AddPeer(key, key < self.me))
        for _ in range(steps):
            self.now += rng.choice([0, 0, 0.01, 0.1, 0.3, 1, 2, 5, 40, 400])
            for _ in range(200):
                if self.paths.deadline is not None and self.paths.deadline <= self.now:
                    self.step(Tick())
            # Whatever is due comes to an end: else the daemon would do nothing else.
            assert self.paths.deadline is None or self.paths.deadline > self.now
            makers = [self.answer, self.check, self.about_channels, self.offers, self.world,
                      lambda: self.description(rng.choice(self.peers))]  # fmt: skip
            event = rng.choices(makers, [4, 3, 2, 1, 3, 3])[0]()
            if event is not None:
                self.step(event)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_that_comes_ends_the_path_engine(seed):
    """States that cannot be, indices that are not there: each would end the daemon."""
    target = Target(seed)
    target.run(350)
    assert target.paths.counters
    assert target.channels


def test_a_relay_without_an_address_is_left_out():
    """An offer may name a WebSocket only; there is no port to lend at such a relay."""
    world, (alice,) = world_of("alice")
    liar, other = admitted_member(world, alice, 60), admitted_member(world, alice, 61)
    offer = {"endpoints": [], "user": USER, "key": KEY, "websocket": "wss://r.example/x"}
    about = liar.about(relay=offer, desc=description_of(1, 1, f"{VICTIM}:53"))
    liar.send(alice, MessageType.DESCRIBE, about, network=network_of(alice))
    about = other.about(desc=description_of(2, 1, f"{VICTIM}:54"))
    other.send(alice, MessageType.DESCRIBE, about, network=network_of(alice))
    world.run(60)
    assert world.status(alice)["peers"]


# -- a victim's address in everything that can name one ----------------------------------------


def lies(mode: str, number: int, who: int) -> dict[str, Any]:
    """What one liar says of itself, the ``number``th time; different each time."""
    ports = [1024 + (number * 16 + offset) % 60000 for offset in range(16)]
    match mode:
        case "candidates":
            return {"desc": description_of(1, number, *(f"{VICTIM}:{port}" for port in ports))}
        case "sessions":
            named = [f"{VICTIM}:{port}" for port in ports]
            return {"desc": description_of(number * 100 + who, 1, *named)}
        case "everybody":
            named = [f"12.{number % 250}.{who}.{n + 1}:53" for n in range(15)]
            return {"desc": description_of(number * 100 + who, 1, f"{VICTIM}:53", *named)}
        case "tickets":
            tickets = [
                {"pair": f"{number * 4 + n:016x}", "endpoints": [f"{VICTIM}:{ports[n]}"],
                 "key": TICKET_KEY, "websocket": "ws://victim.example:25/"}
                for n in range(4)
            ]  # fmt: skip
            return {"desc": description_of(1, number, relays=tickets)}
    offer = {"endpoints": [f"{VICTIM}:{ports[0]}"], "user": f"{number:016x}", "key": KEY,
             "websocket": "wss://victim.example/"}  # fmt: skip
    return {"relay": offer}


def lied_to(mode: str, liars: int, seconds: int = 60) -> Harm:
    """Let members lie once a second; return what a node did in that time."""
    world, (alice,) = world_of("alice")
    members = [admitted_member(world, alice, 60 + who) for who in range(liars)]
    harm = watch(world, alice)
    for number in range(1, seconds + 1):
        for who, member in enumerate(members):
            about = member.about(**lies(mode, number, who))
            member.send(alice, MessageType.DESCRIBE, about, network=network_of(alice))
        world.run(1.0)
    return harm


@pytest.mark.parametrize("liars", [1, 3])
@pytest.mark.parametrize("mode", ["candidates", "sessions", "everybody", "tickets", "offers"])
def test_a_victim_gets_two_packets_a_second_however_many_lie(mode, liars):
    harm = lied_to(mode, liars)
    assert harm.datagrams[VICTIM] <= 60 + 60
    assert harm.sizes[VICTIM] <= 120 * 130
    # Also who names another address each time gets us to send 640 packets at once, and 240 a minute.
    assert sum(harm.datagrams.values()) <= liars * (640 + 240 + 120)
    assert len(harm.channels) <= liars * (8 + 2)
    # The disk is not written at their pace.
    assert harm.effects["Persist"] <= 2 * liars + 1


def test_rounds_called_again_and_again_are_bounded():
    sim = Simulation(1)
    alice, liar = sim.host("alice", "open"), sim.host("liar", "open")
    liar.online = liar.signaling = False
    sim.boot(alice)
    sim.add(alice, liar)
    sent: Counter[str] = Counter()
    sim.on_datagram = lambda host, effect: sent.update([str(effect.destination.ip)])
    said = description_of(1, 1, *(f"{VICTIM}:{4000 + n}" for n in range(16)))
    sim.step(alice, ev.RemoteDescription(liar.key, parse_description(said)))
    ours = alice.paths._links[liar.key].announcer
    for number in range(240):
        password = ours.password(ours.ufrag)
        assert password is not None
        check = Check(
            number.to_bytes(12, "big"), f"{ours.ufrag}:abcdefgh", password, 1, True, 7, True, number
        )
        check = replace(check, controlling=liar.key < alice.key)
        source = Endpoint(IPv4Address("11.7.7.7"), 5000 + number % 3)
        sim.step(alice, ev.DatagramReceived(render_check(check), source, alice.address.ip))
        sim.run(0.5)
    # Two minutes: 60 and one a second.
    assert 60 < sent[VICTIM] <= 60 + 120
    assert not alice.paths.counters["forged_check"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("symmetric", "independent"), ("port-restricted", "random"), ("symmetric", "dependent")],
)
def test_a_search_for_a_victims_port_is_rare_and_never_goes_elsewhere(ours, theirs):
    sim = Simulation(1)
    alice = sim.host("alice", ours, settings=PathSettings())
    liars = [sim.host(f"liar{n}", "open") for n in range(4)]
    sim.boot(alice)
    sim.run(2)
    sent: Counter[str] = Counter()
    sim.on_datagram = lambda host, effect: sent.update([str(effect.destination.ip)])
    for liar in liars:
        liar.online = liar.signaling = False
        sim.add(alice, liar)
    for number in range(1, 121):
        for liar in liars:
            kind = ("opened", "scattered", "forecast")[number % 3]
            plan = {"search": f"{number:08x}", "kind": kind, "ip": VICTIM, "step": 1,
                    "ports": [[1024, 65000, alice.address.port]]}  # fmt: skip
            elsewhere = plan | {"ip": "11.8.8.8"} if number % 5 == 0 else plan
            said = description_of(1, number, f"{VICTIM}:40000", search=elsewhere,
                                  nat={"mapping": theirs, "udp": True})  # fmt: skip
            sim.step(alice, ev.RemoteDescription(liar.key, parse_description(said)))
        sim.run(30)
    searches = [link.hard.attempts for link in alice.paths._links.values()]
    assert 0 < sum(searches) <= SEARCHES_PER_HOUR
    assert sent[VICTIM] <= SEARCHES_PER_HOUR * 1500 + 3600 + 60
    assert not sent["11.8.8.8"]


# -- answers that are not the relay's ----------------------------------------------------------


def offered() -> RelayOffer:
    return RelayOffer("relay", (V4,), RelayUser(USER, KEY), "ws://r.example/")


def test_a_success_with_an_error_code_needs_the_key_too():
    """Only a refusal may come without integrity: who does not know us has no key."""
    end = end_from_offer(offered(), Moment(0.0, 0.0, Entropy(b"x")))
    request = RelayRequest(end, end.state, V4, 0.0)
    attributes = {"ERROR-CODE": (437, ""), "XOR-RELAYED-ADDRESS": ("0.0.0.0", 53)}
    forged = stun.Message(stun.Method.ALLOCATE, stun.Class.RESPONSE, b"t" * 12, attributes)
    with pytest.raises(PeerMisbehaved):
        request.authenticate(parse_stun(bytes(forged)))
    request.authenticate(parse_stun(render_relay_error(StunMethod.ALLOCATE, b"t" * 12, 437, None)))


def test_who_answers_at_a_websocket_and_is_not_the_relay_carries_nothing():
    target = Target(1)
    target.step(ev.AddPeer(target.peers[0], controlling=True))
    target.step(ev.RelayOffers((offered(),)))
    while not target.channels:
        assert target.paths.deadline is not None
        target.now = max(target.now, target.paths.deadline)
        target.step(Tick())
    moment = Moment(target.now, 0.0, Entropy(b"y"))
    effects = target.paths.step(ev.ChannelAnswered(target.channels[0], b"junk"), moment)
    assert ev.CloseChannel(target.channels[0]) in effects


def test_a_relay_that_refuses_every_bind_is_asked_ever_more_seldom():
    """It lends a port each time, and knows nothing of it afterwards."""
    target = Target(2)
    target.step(ev.AddPeer(target.peers[0], controlling=True))
    target.step(ev.RelayOffers((offered(),)))
    asked = 0
    while target.now < 1000.0 + 3600:
        target.now = max(target.now, target.paths.deadline or target.now + 1)
        target.step(Tick())
        for sent in [sent for sent in target.sent if sent.destination == V4]:
            asked += 1
            message = parse_stun(sent.data)
            data = render_relay_error(message.method, message.transaction, 437, None)
            if message.method is StunMethod.ALLOCATE:
                data = render_allocated(message.transaction, V4, 300, KEY)
            target.sent = [other for other in target.sent if other is not sent]
            target.step(ev.DatagramReceived(data, V4, None))
        target.sent = [sent for sent in target.sent if sent.destination == V4]
    assert 4 < asked <= 60


def test_a_relay_without_a_free_descriptor_does_not_try_a_thousand_ports():
    secret, settings = bytes(32), RelaySettings()
    server = RelayServer(secret, settings)
    user = relay_user(secret, "ab" * 32)
    moment = Moment(0.0, 0.0, Entropy(b"x"))
    server.step(Users(frozenset([user.name])), moment)
    request = AllocateReceived(render_allocate(b"t" * 12, user, "ab" * 8), V4)
    effects, tries = server.step(request, moment), 0
    while isinstance(effects[0], OpenPort):
        tries += 1
        effects = server.step(PortRefused(effects[0].port), moment)
    assert tries == MAX_REFUSALS
    assert isinstance(effects[0], SendControl)


# -- one member's lies about another one's path -----------------------------------------------


def test_who_answers_no_large_check_does_not_have_others_packets_cut():
    """Two peers behind one address, of a relay say: relays drop fragments."""
    honest, liar = peer(endpoint=V4, mtu=1420), peer(CAROL, Endpoint(V4.ip, 33002), mtu=600)
    assert not desired(honest, liar).host.outer_limits
    assert desired(liar).host.outer_limits


# -- where a WebSocket's URL leads -------------------------------------------------------------


def test_a_peers_url_does_not_reach_what_listens_on_loopback():
    """Names are resolved late, numbers have many spellings, and servers redirect."""

    async def attack(refuses: bool) -> int:
        visits = 0

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal visits
            visits += 1
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        closed: asyncio.Queue[int] = asyncio.Queue()
        calls = ChannelCalls(
            lambda *_: None, lambda *_: None, lambda number, _: closed.put_nowait(number)
        )
        channels = Channels(40000, calls)
        channels.refuses = lambda ip: refuses and ip.is_loopback
        hosts = ("0x7f000001", "localhost", "127.0.0.1")
        for number, host in enumerate(hosts):
            target = ev.WebSocketTarget(f"ws://{host}:{port}/", b"hello")
            channels.open(number, target)
        async with asyncio.timeout(10):
            for _ in hosts:
                await closed.get()
        await channels.close_all()
        server.close()
        return visits

    assert asyncio.run(attack(refuses=False)) >= 3
    assert asyncio.run(attack(refuses=True)) == 0


# -- who learns what ---------------------------------------------------------------------------


def relay_host(world: World) -> Host:
    """A node that relays for the members of its network."""
    alice = world.host("alice")
    alice.address = Endpoint(IPv4Address("11.0.1.2"), alice.address.port)
    world.start(alice)
    settings = replace(node_of(alice).settings, relay=RelayRole(b"r" * 32, 24001))
    alice.node = Node(settings, alice.records, "kernel")
    world._perform(alice, alice.node.start(world.moment(alice)))
    world.step(alice, HostChanged((LocalAddress(alice.address.ip, "eth0", 24),)))
    world.run(5)
    return alice


def test_who_is_removed_loses_the_relay_at_once_and_applicants_never_had_it():
    world = World(1)
    world.relay()
    alice = relay_host(world)
    harm = watch(world, alice)
    lent: list[frozenset[str]] = []
    perform = world._perform

    def performed(host: Host, effects: list[Any]) -> None:
        lent.extend(effect.users for effect in effects if isinstance(effect, LendTo))
        perform(host, effects)

    world.__dict__["_perform"] = performed
    node = node_of(alice)
    mallory = Attacker(world, 60)
    name = relay_user(b"r" * 32, mallory.secret.public_key).name
    link = invited(world, alice, mallory.secret.npub)
    assert node.relays.offer_for(mallory.secret.public_key) is None
    mallory.join(alice, link)
    assert node.relays.offer_for(mallory.secret.public_key) is not None
    assert name in lent[-1]
    world.run(2)
    world.call(alice, "peer_remove", peer=mallory.secret.npub)
    assert name not in lent[-1]
    assert node.relays.offer_for(mallory.secret.public_key) is None
    shown = "\n".join([*harm.shown, *alice.logs, json.dumps(world.status(alice))])
    assert relay_user(b"r" * 32, mallory.secret.public_key).key not in shown
    assert (b"r" * 32).hex() not in shown


def test_keys_of_offers_and_tickets_show_nowhere():
    world, (alice,) = world_of("alice")
    harm = watch(world, alice)
    liar = admitted_member(world, alice, 60)
    about = liar.about(**lies("offers", 1, 0)) | lies("tickets", 1, 0)
    liar.send(alice, MessageType.DESCRIBE, about, network=network_of(alice))
    world.run(20)
    status = world.call(alice, "why", peer=liar.secret.npub)
    shown = "\n".join([*harm.shown, *alice.logs, json.dumps(status), repr(node_of(alice).peers)])
    assert "OpenChannel" in shown
    assert KEY not in shown
    assert TICKET_KEY not in shown
