"""What render writes, parse reads; and every default is shown."""

from __future__ import annotations

import re

import pytest

from nostrvpn.config.amend import amend_config
from nostrvpn.config.defaults import DEFAULT_RELAYS, DEFAULT_STUN
from nostrvpn.config.model import Config, Paths, Relay, Relays, Turn, WebSocket, WireGuard
from nostrvpn.config.parse import ConfigError, parse_config
from nostrvpn.config.render import render_config

SAMPLES = [
    Config(),
    Config(name="bob"),
    Config(relays=Relays(urls=("ws://127.0.0.1:7777",))),
    Config(relays=Relays(active=1), stun=(), log_level="error"),
    Config(wireguard=WireGuard(mtu=1400, backend="kernel"), paths=Paths(opener_ttl=9)),
    Config(relay=Relay(offer="anyone", address=("203.0.113.5",), gigabytes=9)),
    Config(relay=Relay(websocket=WebSocket(listen="[::]:443", url="wss://a.example"))),
    Config(paths=Paths(port_mapping="required", sleep_after_minutes=0)),
    Config(turn=(Turn(url="turn:a", username="u", password="p"),)),
]


@pytest.mark.parametrize("config", SAMPLES, ids=range(len(SAMPLES)))
def test_round_trip(config: Config) -> None:
    assert parse_config(render_config(config)) == config


def test_defaults_are_all_there_as_comments() -> None:
    text = render_config(Config())
    assert not [line for line in text.splitlines() if line and not line.startswith("#")]
    uncommented = re.sub(r"^# ((?:  |- )?[\w-]+(?:[:.].*)?)$", r"\1", text, flags=re.MULTILINE)
    assert "\nwireguard:\n  interface: nvpn0\n" in uncommented
    for server in (*DEFAULT_RELAYS, *DEFAULT_STUN):
        assert f"- {server}\n" in text


def test_defaults_come_from_many_operators() -> None:
    assert len({url.rsplit(".", 2)[-2:][0] for url in DEFAULT_RELAYS}) >= 6
    assert len({server.split(":")[0].rsplit(".", 2)[-2] for server in DEFAULT_STUN}) >= 4
    assert parse_config(f"stun: {list(DEFAULT_STUN)}\nrelays: {{urls: {list(DEFAULT_RELAYS)}}}")


def test_amending_leaves_what_the_user_wrote() -> None:
    text = "# mine\nwireguard:\n  mtu: 1400  # because"
    amended = amend_config(text, "f", "bob", ("wss://a.example",))
    assert amended.startswith(text + "\n")
    config = parse_config(amended)
    assert (config.name, config.relays.urls, config.wireguard.mtu) == (
        "bob",
        ("wss://a.example",),
        1400,
    )
    assert amend_config(amended, "f", "bob", ("wss://a.example",)) == amended
    assert amend_config(text, "f", None, ()) == text


@pytest.mark.parametrize(
    "text",
    [
        "name: alice\nrelays: {urls: ['wss://b.example']}",
        "{name: alice}",
        "{wireguard: {mtu: 1400}}",
        "name: alice\n...\n",
    ],
)
def test_amending_never_overrides(text: str) -> None:
    with pytest.raises(ConfigError, match="already sets"):
        amend_config(text, "f", "bob", ("wss://a.example",))
