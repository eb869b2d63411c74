# mypy: allow-untyped-calls
import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.paths.candidates import Candidate, CandidateKind
from nostrvpn.paths.description import (
    CachedSession,
    Description,
    NatInfo,
    cached_session_to_json,
    description_to_json,
    parse_cached_session,
    parse_description,
)
from nostrvpn.paths.relay_offers import RelayTicket, ticket_to_json
from nostrvpn.paths.snapshot import Mapping
from nostrvpn.stun.relaying import Side

CANDIDATES = (
    Candidate(CandidateKind.HOST, Endpoint(IPv6Address("2d00::1"), 51820), 2130706431),
    Candidate(CandidateKind.REFLEXIVE, Endpoint(IPv4Address("11.0.0.1"), 1), 1),
)
DESCRIPTION = Description("0123456789abcdef", 3, "f" * 16, "abcd+/19", "p" * 32, CANDIDATES)
JSON: dict[str, Any] = description_to_json(DESCRIPTION)


def test_round_trips_through_json():
    assert parse_description(json.loads(json.dumps(JSON))) == DESCRIPTION
    for endpoint in (None, CANDIDATES[0].endpoint):
        cached = CachedSession(DESCRIPTION, DESCRIPTION, endpoint)
        text = json.dumps(cached_session_to_json(cached))
        assert parse_cached_session(json.loads(text)) == cached


def test_no_password_in_a_repr():
    assert "p" * 32 not in repr(CachedSession(DESCRIPTION, DESCRIPTION, None))


def candidate(**changes):
    return {"candidates": [JSON["candidates"][0] | changes]}


@pytest.mark.parametrize(
    "change",
    [
        {"session": "0123"}, {"session": "0123456789ABCDEF"}, {"session": "0123456789abcdef\n"},
        {"session": None}, {"generation": 0}, {"generation": True}, {"generation": 1 << 31},
        {"generation": "1"}, {"answers": 5}, {"answers": ""}, {"ufrag": "abc"},
        {"ufrag": "a:bc"}, {"ufrag": "a" * 33}, {"password": "short"}, {"password": "é" * 32},
        {"candidates": None}, {"candidates": [{}]}, {"candidates": JSON["candidates"] * 9},
        candidate(kind=5), candidate(endpoint="127.0.0.1:5"), candidate(endpoint="224.0.0.1:5"),
        candidate(endpoint="0.0.0.0:5"), candidate(endpoint="255.255.255.255:5"),
        candidate(endpoint="11.0.0.1:0"), candidate(endpoint="host:1"), candidate(endpoint=1),
        candidate(endpoint="[fe80::1%eth0]:5"), candidate(priority=-1), candidate(priority=1 << 32),
        candidate(endpoint="1" * 5000),
    ],
)  # fmt: skip
def test_what_breaks_a_bound_is_refused(change):
    with pytest.raises(PeerMisbehaved) as caught:
        parse_description(JSON | change)
    assert caught.value.code == "bad_description"


def test_a_kind_of_a_later_version_is_skipped():
    assert parse_description(JSON | candidate(kind="teleport")).candidates == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from(sorted(JSON)))
def test_any_json_is_refused_or_parsed(value, key):
    for document in (value, JSON | {key: value}, JSON | candidate(endpoint=value)):
        try:
            parse_description(document)
        except PeerMisbehaved:
            continue


@given(json_values)
def test_a_damaged_state_database_is_refused(value):
    with pytest.raises(PeerMisbehaved):
        parse_cached_session({"local": value, "remote": JSON, "endpoint": None})


TICKET = RelayTicket(
    "a" * 16, (Endpoint(ip_address("11.0.9.9"), 33000),), Side.OTHER, "b" * 32, "wss://r.example/"
)


def test_tickets_and_the_nat_survive_the_journey_and_may_be_missing():
    told = replace(DESCRIPTION, relays=(TICKET,), nat=NatInfo(Mapping.DEPENDENT, udp=False))
    form = json.loads(json.dumps(description_to_json(told)))
    assert parse_description(form) == told
    del form["relays"], form["nat"]
    assert parse_description(form) == replace(told, relays=(), nat=None)


@pytest.mark.parametrize(
    "change",
    [
        {"relays": [ticket_to_json(TICKET)] * 5},
        {"relays": {}},
        {"relays": [ticket_to_json(TICKET) | {"endpoints": ["127.0.0.1:9"]}]},
        {"relays": [ticket_to_json(TICKET) | {"websocket": "ws://127.0.0.1:80/"}]},
        {"relays": [ticket_to_json(TICKET) | {"websocket": "ws://localhost/"}]},
        {"relays": [ticket_to_json(TICKET) | {"websocket": "http://r.example/"}]},
        {"nat": {"mapping": 1, "udp": True}},
        {"nat": {"mapping": "x" * 99, "udp": True}},
        {"nat": {"mapping": "dependent", "udp": 1}},
    ],
)
def test_tickets_and_nats_out_of_bounds_are_refused(change):
    with pytest.raises(PeerMisbehaved):
        parse_description(description_to_json(DESCRIPTION) | change)
