"""A configuration file is understood, or the mistake in it is named with line, key and way out."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.config.model import Config, Paths, Relay, Relays, Turn, WebSocket, WireGuard
from nostrvpn.config.parse import MAX_TEXT, ConfigError, parse_config


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "\ufeff# byte order mark\n"])
def test_nothing_means_the_defaults(text: str) -> None:
    assert parse_config(text) == Config()


def test_everything_can_be_said() -> None:
    text = """
    name: home-server
    relays:
      urls: [WSS://Relay.Example.org/, "ws://[::1]:7777", "wss://relay.example.org"]
      active: 2
    stun: ["stun.example.org:3478", "[2001:db8::1]:3478"]
    wireguard: {interface: wg-x, mtu: 1420, listen_port: 51820, backend: userspace, keepalive: 0}
    paths:
      {opener_ttl: 3, port_mapping: required, hard_nat_search: false, sleep_after_minutes: 0}
    relay:
      offer: members
      address: [203.0.113.5, "2001:DB8:0::5"]
      pairs: 8
      mbit: 20
      gigabytes: 500
      ports: 30000-30007
      websocket:
        {listen: "0.0.0.0:443", url: "WSS://R.example/x", certificate: /c.pem, key: /k.pem}
    turn:
    - {url: "turn:turn.example.org:3478?transport=udp", username: u, password: p}
    - {url: "turns:turn.example.org", username: u, password_file: /etc/turn}
    log_level: debug
    """
    assert parse_config(text) == Config(
        name="home-server",
        relays=Relays(urls=("wss://relay.example.org", "ws://[::1]:7777"), active=2),
        stun=("stun.example.org:3478", "[2001:db8::1]:3478"),
        wireguard=WireGuard(
            interface="wg-x", mtu=1420, listen_port=51820, backend="userspace", keepalive=0
        ),
        paths=Paths(
            opener_ttl=3, port_mapping="required", hard_nat_search=False, sleep_after_minutes=0
        ),
        relay=Relay(
            offer="members",
            address=("203.0.113.5", "2001:db8::5"),
            pairs=8,
            mbit=20,
            gigabytes=500,
            ports="30000-30007",
            websocket=WebSocket(
                listen="0.0.0.0:443", url="wss://r.example/x", certificate="/c.pem", key="/k.pem"
            ),
        ),
        turn=(
            Turn(url="turn:turn.example.org:3478?transport=udp", username="u", password="p"),
            Turn(url="turns:turn.example.org", username="u", password_file="/etc/turn"),
        ),
        log_level="debug",
    )


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("relay: [wss://a]", "line 1: relay: expected keys with values", "in relays.urls"),
        ("relay: 3", "line 1: relay: expected keys with values, got a whole number", ""),
        ("relay:\n  adress: []", "line 2: relay.adress: there is no such key", "relay.address?"),
        ("relay: {offer: all}", "relay.offer: expected none or members or anyone", ""),
        ("relay: {pairs: 0}", "relay.pairs: expected a whole number >= 1", ""),
        ("relay: {address: ['::1']}", "relay.address[0]: '::1' is not an address at which", "203"),
        ("relay: {address: [home]}", "relay.address[0]: 'home' is not an IP", "203.0.113.5"),
        ("relay: {address: [11.0.0.1, 11.0.0.2]}", "relay.address[1]: at most one IPv4", ""),
        ("relay: {ports: 1-2}", "relay.ports: '1-2' must rise, within 1024", "33000"),
        ("relay: {ports: 9000}", "relay.ports: expected text, got a whole number", ""),
        ("relay: {ports: 9000:9100}", "relay.ports: '9000:9100' is no range of ports", "33000"),
        ("relay:\n  ports: 9000-9001", "line 2: relay.ports: 9000-9001 are 2 ports, 256 pairs", ""),
        ("relay: {websocket: {url: wss://a}}", "relay.websocket: it needs listen", "0.0.0.0"),
        ("relay: {websocket: {listen: 443}}", "websocket.listen: expected text", ""),
        ("relay: {websocket: {listen: 'a.b:443'}}", "websocket.listen: 'a.b:443' is no IP", "443"),
        (
            "relay: {websocket: {lsten: 1}}",
            "relay.websocket.lsten: there is no",
            "websocket.listen",
        ),
        (
            "relay: {websocket: {listen: '[::]:443', key: /k}}",
            "relay.websocket: certificate and key belong together",
            "PEM",
        ),
        (
            "relay: {websocket: {listen: '[::]:443', certificate: /c, key: /k, url: ws://a}}",
            "so url must be wss://HOST",
            "wss://",
        ),
        ("turn: x", "turn: expected a list, got text", ""),
        ("turn: [{}]", "turn[0]: object missing required field url", ""),
        ("turn:\n- url: turn:a\n  pasword: x", "line 3: turn[0].pasword: there is", "password?"),
        ("turn: [{url: 'stun:a', password: p}]", "turn[0].url: 'stun:a' must start with", "turn:"),
        ("turn: [{url: 'turn:a'}]", "turn[0]: it needs either password or password_file", "file"),
        (
            "turn: [{url: 'turn:a', password: p, password_file: f}]",
            "it needs either password or password_file",
            "file",
        ),
        (
            "permissions: {inbound: maybe}",
            "expected network or none or ping or all, got 'maybe'",
            "",
        ),
        ("permissions: {same_owner: 1}", "permissions.same_owner: ", ""),
        ("paths: {port_mapping: maybe}", "expected true or false or required, got 'maybe'", ""),
        ("paths: {sleep_after_minutes: -1}", "paths.sleep_after_minutes: expected", ""),
        ("\nrelays:\n  url: []", "line 3: relays.url: there is no such key", "relays.urls?"),
        ("mtu: 1300", "line 1: mtu", "did you mean wireguard.mtu?"),
        ("wireguard: {prot: 1}", "wireguard.prot", "listen_port"),
        ("zzz: 1", "zzz: there is no such key", "keys here are: name, relays"),
        ("1: 2", "line 1: 1: there is no such key", "keys here are"),
        ("wireguard:\n  mtu: 12", "line 2: wireguard.mtu: expected a whole number >= 1280", ""),
        ("wireguard: {mtu: '1300'}", "expected a whole number, got text", ""),
        ("wireguard: {backend: foo}", "expected auto or kernel or userspace, got 'foo'", ""),
        ("wireguard: {interface: a/b}", "wireguard.interface: expected 1 to 15", ""),
        ("wireguard: 3", "wireguard: expected keys with values, got a whole number", ""),
        ("name: Bob's", "line 1: name: expected 1 to 63", ""),
        ("name: 12", "name: expected text, got a whole number", ""),
        ("name:", "name: expected text, got nothing", ""),
        ("log_level: loud", "expected debug or info", ""),
        ("relays: {urls: []}", "relays.urls: expected a list of length >= 1", ""),
        ("relays:\n  urls:\n  - wss://a.example\n  - 3", "line 4: relays.urls[1]", ""),
        ("relays:\n  urls:\n  - http://a", "line 3: relays.urls[0]: 'http://a' must start", "wss"),
        ("stun:\n- a.example\n", "line 2: stun[0]: 'a.example' has no port", "stun."),
        ("name: a\nname: b", "line 2: name is given twice", "line 1"),
        ("a: [1\nb: 2", "line 2: ", "indentation"),
        ("name: a\n\twireguard: b", "line 2: ", "tabs"),
        ("a: &x [1]\nname: *x", "line 2: aliases", ""),
        ("name: !!python/object/apply:os.system [id]", "line 1: could not determine", ""),
        ("- a", "expected 'key: value' lines", ""),
        ("text", "expected 'key: value' lines", ""),
        ("name: a\n---\nname: b", "line 2", ""),
        ("\x00", "unacceptable character", ""),
        ("name: 2001-99-99", "month must be in 1..12", ""),
        ("[" * 5000, "recursion", ""),
        ("#" * (MAX_TEXT + 1), "too large", ""),
    ],
)
def test_mistakes_are_named(text: str, said: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "config.yaml")
    assert str(caught.value).startswith("config.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.hint


@given(st.text(max_size=60) | st.text("{}[]:-,&*!|>'\"%@`#? \n\tab1", max_size=60))
def test_any_text_gives_a_config_or_a_config_error(text: str) -> None:
    try:
        parse_config(text)
    except ConfigError as error:
        assert str(error)  # noqa: PT017 - the property: nothing else comes out


@pytest.mark.parametrize(
    "text",
    [
        "turn: [{url: 'turn:me:hunter22@a.example', password: hunter22}]",
        "turn: [{url: 'turn:a b', password: hunter22}]",
        "turn: [{url: 'turn:a', password: hunter22, password_file: x}]",
        "turn: [{url: 'turn:a', password: hunter22, unknown: 1}]",
        "turn: [{url: 3, password: hunter22}]",
        "turn: [{url: 'turn:a', password: [hunter22]}]",
        "turn: [{url: 'turn:a', password: {hunter22: 1}}]",
        "turn: [{url: 'turn:a', password: %s}]" % ("hunter22" * 40),
        "turn: [{url: 'turn:a', password: 'hunter22}]",
    ],
)
def test_a_password_is_never_in_an_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert "hunter22" not in str(caught.value) + caught.value.hint + repr(caught.value)


def test_a_password_is_never_in_a_repr() -> None:
    config = parse_config("turn: [{url: 'turn:a', username: u, password: hunter22}]")
    assert config.turn[0].password == "hunter22"
    assert "hunter22" not in repr(config) + str(config) + f"{config.turn[0]}"


_WORDS = st.sampled_from(
    ["none", "members", "", "443", "0.0.0.0:443", "1-2", "turn:a", "::", "wss://a", "x" * 400]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=5,
)
_SECTIONS = {
    "relay": ("offer", "address", "pairs", "mbit", "gigabytes", "ports", "websocket"),
    "permissions": ("inbound", "same_owner", "enforce"),
    "paths": ("opener_ttl", "port_mapping", "hard_nat_search", "sleep_after_minutes"),
    "turn": ("url", "username", "password", "password_file"),
}


@given(st.data())
def test_any_value_of_a_section_is_taken_or_named(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(_SECTIONS)))
    section = data.draw(st.dictionaries(st.sampled_from(_SECTIONS[name]), _VALUES, max_size=3))
    value: object = [section] if name == "turn" else section
    try:
        parse_config(yaml.safe_dump({name: value}))
    except ConfigError as error:
        assert name in str(error)  # noqa: PT017 - the property: the place is named
        assert "\n" not in str(error)  # noqa: PT017


def test_a_short_sleep_is_a_fraction_of_a_minute():
    assert parse_config("paths: {sleep_after_minutes: 0.05}").paths.sleep_after_minutes == 0.05
