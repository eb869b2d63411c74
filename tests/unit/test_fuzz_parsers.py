"""Whatever comes from outside, a parser gives a value or its one error, and nothing else."""

from __future__ import annotations

import copy
import json
import random
import subprocess
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import pytest

from nostrvpn.config.parse import parse_config
from nostrvpn.control.schema import COMMANDS, parse_arguments
from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved, SystemRefused, UserError
from nostrvpn.io import nftables
from nostrvpn.io.turn_wire import parse_turn_url
from nostrvpn.machine import Entropy, Moment
from nostrvpn.node.peers import Peer
from nostrvpn.paths.agent import Paths
from nostrvpn.paths.description import (
    cached_session_to_json,
    description_to_json,
    parse_cached_session,
    parse_description,
)
from nostrvpn.paths.events import DatagramReceived
from nostrvpn.paths.hard_nat.plan import parse_plan
from nostrvpn.paths.relay_offers import offer_to_json, parse_offer, parse_ticket, ticket_to_json
from nostrvpn.paths.settings import PathSettings
from nostrvpn.portmap.natpmp import parse_natpmp
from nostrvpn.portmap.pcp import parse_pcp
from nostrvpn.portmap.upnp import parse_description as parse_device
from nostrvpn.portmap.upnp import (
    parse_external_address,
    parse_fault,
    parse_location,
    parse_mapping_entry,
)
from nostrvpn.relaying.requests import parse_request
from nostrvpn.stun.binding import Check, StunMethod, parse_stun, render_check
from nostrvpn.stun.relaying import (
    RelayUser,
    Side,
    render_allocate,
    render_allocated,
    render_bind,
    render_relay_error,
)

SETTINGS = PathSettings()
HERE = Endpoint(IPv4Address("192.0.2.9"), 5351)
GATEWAY = IPv4Address("192.0.2.9")
TICKET = {
    "pair": "ab" * 8,
    "endpoints": ["203.0.113.5:33001", "[2001:db8::5]:33001"],
    "key": "cd" * 16,
    "websocket": "wss://relay.example:443/nostrvpn?x=1",
}
OFFER = {"endpoints": ["203.0.113.5:24001"], "user": "ab" * 8, "key": "cd" * 16, "websocket": None}
PLAN = {"search": "0123abcd", "kind": "opened", "ip": "203.0.113.7", "step": 1,
        "ports": [[40007, 40007, 51820], [1, 65535, 0]]}  # fmt: skip
DESCRIPTION: dict[str, Any] = {
    "session": "ab" * 8, "generation": 1, "answers": None, "ufrag": "abcdefgh",
    "password": "p" * 32, "relays": [TICKET], "nat": {"mapping": "dependent", "udp": True},
    "candidates": [{"kind": "host", "endpoint": "203.0.113.9:40000", "priority": 1}],
    "search": PLAN,
}  # fmt: skip
CACHED = {"local": DESCRIPTION, "remote": DESCRIPTION, "endpoint": "203.0.113.9:40000"}
PEER = {
    "wg": "A" * 42 + "E=",
    "alias": "x",
    "relays": ["wss://r.example"],
    "relay": OFFER,
    "seq": 7,
}
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 65536, 2**31, 2**70, 1.5, float("inf"), "", "x" * 3000, "\ud800",
    "\x00", "\n", [], {}, [[]], [None] * 40, {"a": {}}, "127.0.0.1:80", "[::1]:80", "0.0.0.0:1",
    "[::ffff:127.0.0.1]:9", "[fe80::1%eth0]:1", "ws://[", "ws://x:99999/", "ws://\u2024/", "WS://A@B",
    "wss://0x7f000001/", "\u0661\u0662", "ab" * 8, "cd" * 16, "forecast", "scattered",
]  # fmt: skip


def bent(rng: random.Random, value: Any) -> Any:
    """The value, with one to three of its parts replaced, removed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        spots: list[tuple[Any, Any]] = []
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, dict | list):
                keys = list(item) if isinstance(item, dict) else list(range(len(item)))
                spots += [(item, key) for key in keys]
                waiting += [item[key] for key in keys]
        if not spots:
            return rng.choice(ODD)
        place, key = rng.choice(spots)
        match rng.randrange(4):
            case 0:
                del place[key]
            case 1 if isinstance(place, list):
                place.extend([copy.deepcopy(place[key])] * rng.randint(1, 20))
            case _:
                place[key] = copy.deepcopy(rng.choice(ODD))
    return value


def spoiled(rng: random.Random, data: bytes) -> bytes:
    """The bytes, with some changed, removed or repeated."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made)) if made else 0
        match rng.randrange(5):
            case 0:
                del made[at:]
            case 1:
                made[at:at] = rng.randbytes(rng.randrange(8))
            case 2:
                made += made[at : at + rng.randrange(60)]
            case _ if made:
                made[at] = rng.choice([0, 255, rng.randrange(256)])
    return bytes(made)


def refuses(parse: Callable[[Any], object], value: Any, *errors: type[Exception]) -> bool:
    """Whether the value is refused with one of the errors; any other exception is a failure."""
    try:
        parse(value)
    except errors:
        return True
    return False


JSON_PARSERS: list[tuple[str, Any, Callable[[Any], object]]] = [
    ("ticket", TICKET, lambda v: ticket_to_json(parse_ticket(v, SETTINGS))),
    ("offer", OFFER, lambda v: offer_to_json(parse_offer(v, "relay", SETTINGS))),
    ("plan", PLAN, parse_plan),
    ("description", DESCRIPTION, lambda v: description_to_json(parse_description(v, SETTINGS))),
    ("session", CACHED, lambda v: cached_session_to_json(parse_cached_session(v, SETTINGS))),
    ("peer", PEER, lambda v: Peer.from_json("ab" * 32, v).to_json()),
]


@pytest.mark.parametrize(("name", "good", "parse"), JSON_PARSERS, ids=[p[0] for p in JSON_PARSERS])
def test_bent_json_is_a_value_or_misbehaviour(name, good, parse):
    assert not refuses(parse, good, PeerMisbehaved)
    rng = random.Random(name)
    refused = sum(refuses(parse, bent(rng, good), PeerMisbehaved) for _ in range(1500))
    assert refused > 500


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:53", "0.0.0.0:53", "224.0.0.1:53", "255.255.255.255:53", "169.254.1.1:53",
     "[::1]:53", "[::]:53", "[ff02::1]:53", "[fe80::1]:53", "[::ffff:10.0.0.1]:53", "1.2.3.4:0"],
)  # fmt: skip
def test_nobody_names_what_is_no_address_of_a_relay(endpoint):
    for good, parse in ((TICKET, JSON_PARSERS[0][2]), (OFFER, JSON_PARSERS[1][2])):
        assert refuses(parse, good | {"endpoints": [endpoint]}, PeerMisbehaved)
        host = endpoint.rpartition(":")[0]
        assert refuses(parse, good | {"websocket": f"ws://{host}/"}, PeerMisbehaved) or (
            endpoint == "1.2.3.4:0"
        )


def stun_messages() -> list[bytes]:
    user, one = RelayUser("ab" * 8, "cd" * 16), b"t" * 12
    check = Check(one, "abcd:efgh", "p" * 32, 7, True, 9, True, 0xC7A1)
    return [
        render_check(check),
        render_allocate(one, user, "ef" * 8),
        render_allocated(one, HERE, 300, user.key),
        render_bind(one, "ef" * 8, Side.OTHER, user.key, b"n" * 12),
        render_relay_error(StunMethod.BINDING, one, 401, user.key, b"n" * 8),
        render_relay_error(StunMethod.ALLOCATE, one, 437, None),
    ]


def test_bent_stun_is_a_message_or_misbehaviour():
    rng = random.Random(1)
    paths = Paths()
    read = 0
    for number in range(6000):
        data = spoiled(rng, rng.choice(stun_messages()))
        read += not refuses(parse_stun, data, PeerMisbehaved)
        port = rng.choice([None, 33001])
        refuses(partial(parse_request, source=HERE, port=port, local_ip=None), data, PeerMisbehaved)
        if not refuses(parse_stun, data, PeerMisbehaved):
            parse_stun(data).is_authentic("p" * 32)
        moment = Moment(number * 0.01, 1.7e9, Entropy(b"x"))
        paths.step(DatagramReceived(data, HERE, None), moment)
    assert read > 50


ROUTER_TEXTS = [
    b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"LOCATION: http://192.0.2.9:5000/root.xml\r\n\r\n",
    b"<root><URLBase>http://192.0.2.9:80/</URLBase><service><serviceType>urn:schemas-upnp-org:service:"
    b"WANIPConnection:1</serviceType><controlURL>/ctl</controlURL></service></root>",
    b"<s><NewExternalIPAddress>203.0.113.1</NewExternalIPAddress></s>",
    b"<s><NewInternalClient>192.0.2.2</NewInternalClient><NewInternalPort>5</NewInternalPort></s>",
    b"<s><errorCode>718</errorCode></s>",
    bytes.fromhex("028100000000001c00000001" + "00" * 12 + "61" * 12 + "11000000" + "c000c000")
    + b"\0" * 10 + b"\xff\xff\xcb\x00\x71\x01",
    bytes.fromhex("00810000000000010fa00fa000000e10"),
]  # fmt: skip


def test_bent_answers_of_a_router_are_values_or_misbehaviour():
    rng = random.Random(2)
    location = "http://192.0.2.9:5000/root.xml"
    parsers: list[Callable[[bytes], object]] = [
        lambda d: parse_location(d, GATEWAY),
        lambda d: parse_device(d, location, GATEWAY),
        parse_external_address,
        parse_mapping_entry,
        parse_fault,
        parse_pcp,
        parse_natpmp,
    ]
    for parse, text in zip(parsers, ROUTER_TEXTS, strict=True):
        assert not refuses(parse, text, PeerMisbehaved)
    for _ in range(4000):
        data = spoiled(rng, rng.choice(ROUTER_TEXTS))
        for parse in parsers:
            refuses(parse, data, PeerMisbehaved)


CONFIG = """
paths: {opener_ttl: 3, port_mapping: required, hard_nat_search: false, sleep_after_minutes: 0}
relay:
  offer: members
  address: [203.0.113.5, "2001:db8::5"]
  pairs: 8
  ports: 30000-30007
  websocket: {listen: "0.0.0.0:443", url: "wss://r.example/x"}
turn:
- {url: "turn:turn.example.org:3478?transport=udp", username: u, password: hidden-word}
"""


def test_a_bent_configuration_is_one_or_the_users_error():
    rng = random.Random(3)
    assert not refuses(parse_config, CONFIG, UserError)
    for _ in range(250):
        text = spoiled(rng, CONFIG.encode()).decode("utf-8", "replace")
        refuses(parse_config, text, UserError)
    for _ in range(1000):
        url = spoiled(rng, b"turns:[2001:db8::1]:3478?transport=tcp").decode("latin-1")
        refuses(lambda u: parse_turn_url(u, "u", "p"), url, UserError)


def test_a_configuration_does_not_show_its_passwords():
    assert "hidden-word" not in repr(parse_config(CONFIG))


@pytest.mark.parametrize("name", COMMANDS)
def test_bent_arguments_are_some_or_the_users_error(name):
    rng = random.Random(name)
    good = {"peer": "npub1x", "timeout_s": 1.0, "name": "x", "link": "nostrvpn:x", "once": True}
    for _ in range(300):
        body = json.dumps(bent(rng, good)).encode("utf-8", "replace")
        refuses(lambda b: parse_arguments(COMMANDS[name], b), body, UserError)
        refuses(lambda b: parse_arguments(COMMANDS[name], b), spoiled(rng, body), UserError)


CHAIN = {"family": "inet", "table": "filter", "name": "forward", "hook": "forward"}
LISTED = {
    "nftables": [
        {"metainfo": {"version": "1.0"}},
        {"chain": CHAIN | {"policy": "accept"}},
        {
            "rule": {
                "family": "inet",
                "table": "filter",
                "chain": "forward",
                "expr": [{"drop": None}],
            }
        },
    ]
}


def test_what_nft_says_is_understood_or_refused(monkeypatch):
    rng = random.Random(4)
    said = json.dumps(LISTED)
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0, said, "")
    )
    assert len(nftables.list_objects("ruleset")) == 2
    for _ in range(800):
        text = json.dumps(LISTED)
        if rng.random() < 0.5:
            said = spoiled(rng, text.encode()).decode("latin-1")
        else:
            said = json.dumps(rng.choice([[], 7, None, {"nftables": 7}, {"nftables": [7]}, "x"]))
        refuses(lambda _: nftables.list_objects("ruleset"), None, SystemRefused)


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError(),
        PermissionError(13, "no"),
        BlockingIOError(11, "no process left"),
        OSError(24, "too many open files"),
        subprocess.TimeoutExpired("nft", 10),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_an_nft_that_cannot_run_refuses_and_does_not_end_the_daemon(monkeypatch, failure):
    def run(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemRefused):
        nftables.apply_ruleset("")
    with pytest.raises(SystemRefused):
        nftables.list_objects("ruleset")
