# mypy: allow-untyped-calls
import os
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from aioice import stun as referee
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.stun.binding import (
    Check,
    StunKind,
    looks_like_stun,
    parse_stun,
    render_check,
    render_query,
    render_response,
)

ENDPOINTS = [Endpoint(IPv4Address("192.0.2.1"), 32853), Endpoint(IPv6Address("2001:db8::7"), 1)]
TRANSACTION = bytes(range(12))


def check(**changes):
    fields: dict[str, Any] = {
        "transaction": TRANSACTION,
        "username": "them:us",
        "password": "p" * 32,
        "priority": 7,
        "controlling": True,
        "tie_breaker": 9,
        "use_candidate": True,
    }
    return render_check(Check(**(fields | changes)))


def test_rfc_5769_request_vector_is_authentic():
    data = bytes.fromhex(
        "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74"
        "002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020"
        "0008001"
        "49aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf"
    )
    message = parse_stun(data)
    assert message.username == "evtj:h6vY"
    assert message.priority == 0x6E0001FF
    assert message.sender_controls is False
    assert message.is_authentic("VOkJxbRl1RmTxUk/WvJxBt")
    assert not message.is_authentic("VOkJxbRl1RmTxUk/WvJxBu")


def test_a_check_has_all_that_ice_asks_for():
    message = parse_stun(check())
    assert message.kind is StunKind.REQUEST
    assert message.username == "them:us"
    assert message.use_candidate
    assert message.sender_controls is True
    assert message.has_fingerprint
    assert message.is_authentic("p" * 32)
    other = parse_stun(check(controlling=False, use_candidate=False))
    assert other.sender_controls is False
    assert not other.use_candidate


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_answer_is_smaller_than_its_check_and_reads_back(endpoint):
    data = render_response(TRANSACTION, endpoint, "secret")
    message = parse_stun(data)
    assert message.kind is StunKind.RESPONSE
    assert message.mapped == endpoint
    assert message.is_authentic("secret")
    assert len(data) < len(check(use_candidate=False))


def test_a_mapped_address_in_ipv6_form_is_unmapped():
    message = referee.Message(referee.Method.BINDING, referee.Class.RESPONSE, TRANSACTION)
    message.attributes["XOR-MAPPED-ADDRESS"] = ("::ffff:192.0.2.1", 5)
    assert parse_stun(bytes(message)).mapped == Endpoint(IPv4Address("192.0.2.1"), 5)


@given(st.binary(max_size=700))
def test_random_bytes_are_refused_or_parsed(data):
    try:
        parse_stun(data)
    except PeerMisbehaved as exc:
        assert exc.code == "malformed_stun"  # noqa: PT017


@given(st.data())
def test_damaged_messages_are_refused_or_parsed_and_never_authentic(data):
    original = data.draw(
        st.sampled_from(
            [
                check(),
                render_query(TRANSACTION),
                render_response(TRANSACTION, ENDPOINTS[1], "p" * 32),
            ]
        )
    )
    position = data.draw(st.integers(0, len(original) - 1))
    damaged = bytearray(original)
    damaged[position] ^= data.draw(st.integers(1, 255))
    try:
        message = parse_stun(bytes(damaged))
    except PeerMisbehaved:
        return
    # Attributes after MESSAGE-INTEGRITY (the fingerprint) are not covered by it.
    assert not message.is_authentic("p" * 32) or position >= len(original) - 8


@given(st.binary(max_size=200), st.integers(0, 3))
def test_attributes_of_any_shape_are_refused_or_parsed(body, kind):
    padded = body + bytes(-len(body) % 4)
    header = (
        [b"\0\1", b"\1\1", b"\1\x11", b"\0\x11"][kind]
        + len(padded).to_bytes(2, "big")
        + bytes.fromhex("2112a442")
    )
    try:
        message = parse_stun(header + os.urandom(12) + padded)
    except PeerMisbehaved:
        return
    assert message.size == 20 + len(padded)


@pytest.mark.parametrize(
    "data", [b"", b"\0\1", b"\x80" + check()[1:], check()[:19], check() + bytes(1500)]
)
def test_what_does_not_look_like_stun(data):
    assert not looks_like_stun(data)
