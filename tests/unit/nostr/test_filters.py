"""Filters as relays apply them, and events that are lists of people."""

from __future__ import annotations

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.nostr.event import MAX_LIST_TAGS, MAX_TAGS, Event, parse_event
from nostrvpn.nostr.filters import Filter, matches

EVENT = Event("a" * 64, "b" * 64, 1000, 7, (("t", "x"), ("t", "y"), ("e",)), "", "c" * 128)


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({}, True),
        ({"kinds": [7, 8], "authors": ["b" * 64], "ids": ["a" * 64], "limit": 0}, True),
        ({"kinds": [8]}, False),
        ({"authors": ["d" * 64]}, False),
        ({"ids": []}, False),
        ({"#t": ["z", "y"]}, True),
        ({"#t": ["z"]}, False),
        ({"#e": ["x"]}, False),
        ({"since": 1000, "until": 1000}, True),
        ({"since": 1001}, False),
        ({"until": 999}, False),
        ({"kinds": [7], "#t": ["z"]}, False),
    ],
)
def test_one_filter(asked: Filter, fits: bool) -> None:
    assert matches([asked], EVENT) is fits
    # Any of several is enough; none asks for nothing.
    assert matches([{"kinds": [1]}, asked], EVENT) is fits
    assert not matches([], EVENT)


@pytest.mark.parametrize(
    ("kind", "most"),
    [(1, MAX_TAGS), (3, MAX_LIST_TAGS), (10000, MAX_LIST_TAGS), (30000, MAX_LIST_TAGS)],
)
def test_lists_of_people_may_be_long(kind: int, most: int) -> None:
    made = {"id": "a" * 64, "pubkey": "b" * 64, "created_at": 1, "kind": kind, "content": ""}
    made["sig"] = "c" * 128
    tags = [["p", "b" * 64]] * most
    assert len(parse_event(made | {"tags": tags}).tags) == most
    with pytest.raises(PeerMisbehaved):
        parse_event(made | {"tags": [*tags, ["p"]]})
