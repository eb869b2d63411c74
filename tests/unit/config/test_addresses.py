"""Relay URLs and host:port pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.config.addresses import (
    TurnAddress,
    check_host_port,
    check_ip_port,
    check_port_range,
    check_public_ip,
    check_relay_url,
    parse_turn_url,
)
from nostrvpn.config.names import check_name, name_from_hostname


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("wss://nos.lol", "wss://nos.lol"),
        ("WSS://Nos.Lol/", "wss://nos.lol"),
        ("ws://127.0.0.1:7777", "ws://127.0.0.1:7777"),
        ("ws://[2001:DB8:0::1]:80/x?y=1", "ws://[2001:db8::1]:80/x?y=1"),
        ("wss://a.example/Path/", "wss://a.example/Path/"),
        ("ws://relay_1.lab", "ws://relay_1.lab"),
    ],
)
def test_relay_urls(text: str, spelling: str) -> None:
    assert check_relay_url(text) == spelling == check_relay_url(spelling)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nos.lol",
        "http://nos.lol",
        "wss://",
        "wss:///x",
        "wss://user@nos.lol",
        "wss://:pw@nos.lol",
        "wss://nos.lol#x",
        "wss://nos.lol:0",
        "wss://nos.lol:99999",
        "wss://nos.lol:x",
        "wss://nos .lol",
        "wss://nos.lol\n",
        "wss://ünos.lol",
        "wss://[::1",
        "wss://[fe80::1%eth0]",
        "wss://-a.example",
        "wss://a..example",
        "wss://" + "a" * 190 + "!",
        "wss://" + "a" * 300,
    ],
)
def test_bad_relay_urls(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        check_relay_url(text)


def test_host_port() -> None:
    assert check_host_port("STUN.example.org:3478") == ("stun.example.org", 3478)
    assert check_host_port("[2001:db8::0:1]:1") == ("2001:db8::1", 1)
    assert check_host_port("192.0.2.1:65535") == ("192.0.2.1", 65535)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        ":1",
        "a:",
        "a:0",
        "a:65536",
        "a:9999999999",
        "::1:3478",
        "[x]:1",
        "a b:1",
        "a:\u0661",
    ],
)
def test_bad_host_port(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        check_host_port(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for check in (check_relay_url, check_host_port):
        try:
            check(text)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - the property: nothing else comes out


@given(st.text(max_size=80))
def test_every_host_name_gives_a_name(hostname: str) -> None:
    assert check_name(name_from_hostname(hostname))


def test_names() -> None:
    assert name_from_hostname("Bob's-Laptop.local") == "bob-s-laptop"
    assert name_from_hostname("") == "node"
    for bad in ("", "-a", "a-", "A", "a.b", "a" * 64, "a\n"):
        with pytest.raises(ValueError, match="is not a name"):
            check_name(bad)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("turn:a.example", TurnAddress("a.example", 3478, "udp", False)),
        ("TURN:A.example:5000", TurnAddress("a.example", 5000, "udp", False)),
        ("turn:a.example?transport=tcp", TurnAddress("a.example", 3478, "tcp", False)),
        ("turn:[2001:db8::1]?transport=udp", TurnAddress("2001:db8::1", 3478, "udp", False)),
        ("turn:[2001:db8::1]:99", TurnAddress("2001:db8::1", 99, "udp", False)),
        ("turns:a.example", TurnAddress("a.example", 5349, "tcp", True)),
        ("turns:a.example:443?transport=tcp", TurnAddress("a.example", 443, "tcp", True)),
    ],
)
def test_turn_urls(text: str, meant: TurnAddress) -> None:
    assert parse_turn_url(text) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must start with turn:"),
        ("a.example", "must start with turn:"),
        ("stun:a.example", "must start with turn:"),
        ("turn:", "names no host"),
        ("turn://a.example", "without //"),
        ("turn:a.example:0", "no valid port"),
        ("turn:2001:db8::1", "in brackets"),
        ("turn:a.example?transport=sctp", "transport=udp or"),
        ("turn:a.example?x=y", "transport=udp or"),
        ("turn:a.example?", "transport=udp or"),
        ("turns:a.example?transport=udp", "DTLS"),
        ("turn:me:secret@a.example", "has no user or password"),
    ],
)
def test_what_is_no_turn_url(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_turn_url(text)
    assert "secret" not in str(caught.value)


@given(
    st.text(max_size=40) | st.text("turns:[].@?=0123456789ab", max_size=40).map("turn:{}".format)
)
def test_any_text_is_a_turn_server_an_ip_or_a_value_error(text: str) -> None:
    for parse in (parse_turn_url, check_ip_port, check_public_ip, check_port_range):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - the property: nothing else comes out
