"""A configuration file is understood, or the mistake in it is named with line, key and way out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.config.model import Config, Paths, Relays, WireGuard
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
    paths: {opener_ttl: 3}
    log_level: debug
    """
    assert parse_config(text) == Config(
        name="home-server",
        relays=Relays(urls=("wss://relay.example.org", "ws://[::1]:7777"), active=2),
        stun=("stun.example.org:3478", "[2001:db8::1]:3478"),
        wireguard=WireGuard(
            interface="wg-x", mtu=1420, listen_port=51820, backend="userspace", keepalive=0
        ),
        paths=Paths(opener_ttl=3),
        log_level="debug",
    )


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("relay: []", "line 1: relay: there is no such key", "did you mean relays?"),
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
