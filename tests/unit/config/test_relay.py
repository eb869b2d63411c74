"""What the command line says about relaying, over what the configuration says."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.config.model import Config, Relay, WebSocket
from nostrvpn.config.options import Options, RelayOptions
from nostrvpn.config.relay import BadRelay


def settings(config: Relay, **options: Any) -> Relay:
    return Options(relay=RelayOptions(**options)).relay_settings(Config(relay=config))


def test_without_options_the_configuration_stands() -> None:
    chosen = Relay(offer="members", pairs=3, websocket=WebSocket(listen="0.0.0.0:443"))
    assert settings(chosen) == chosen
    assert settings(Relay()) == Relay()


def test_each_option_overrides_its_setting_alone() -> None:
    before = Relay(
        offer="members",
        address=("203.0.113.5",),
        mbit=7,
        websocket=WebSocket(listen="0.0.0.0:80", url="wss://relay.example.org"),
    )
    after = settings(
        before, offer="anyone", address=("2001:db8::5",), websocket="[::]:443", gigabytes=9
    )
    assert after == Relay(
        offer="anyone",
        address=("2001:db8::5",),
        mbit=7,
        gigabytes=9,
        websocket=WebSocket(listen="[::]:443", url="wss://relay.example.org"),
    )
    assert settings(before, offer="none").offer == "none"
    assert settings(before, gigabytes=0).gigabytes == 0


def test_options_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(BadRelay, match="not to relay for anybody") as caught:
        settings(Relay(), pairs=3)
    assert caught.value.hint == "add --relay-for members"
    with pytest.raises(BadRelay):
        settings(Relay(offer="members"), offer="none", mbit=3)


def test_options_are_checked_against_the_configuration() -> None:
    with pytest.raises(BadRelay, match="10 ports, 11 pairs"):
        settings(Relay(ports="33000-33009", pairs=10), offer="members", pairs=11)
