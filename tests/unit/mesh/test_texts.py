"""Operations packed, names made labels, token links: what goes in comes out, nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.mesh.history import SAMPLE, build_history, members_of
from nostrvpn.mesh.log_text import (
    MAX_PACKED,
    pack_operations,
    split_operations,
    unpack_operations,
)
from nostrvpn.mesh.names import dns_label, free_label, is_label
from nostrvpn.mesh.tokens import TokenLink, parse_token_link, render_token_link
from tests.unit.mesh.stories import added, forge, grown, network, stories

LINK = TokenLink(b"s" * 16, "ab" * 32, 1_800_000_000, ("wss://r.example/a?b=1",))


@given(stories())
def test_packed_operations_come_out_as_they_were(story):
    _, events = story
    assert list(unpack_operations(pack_operations(events))) == events


def test_many_operations_are_split_and_fit():
    roster = network()
    events = []
    for number in range(1, 601):
        fields = added(5) | {"who": f"{number * 7919:064x}", "name": f"node-{number}"}
        events.append(forge(roster, 0, roster.heads, "add", fields))
    parts = split_operations(events)
    assert [event for part in parts for event in part] == events
    assert all(len(pack_operations(part)) <= MAX_PACKED for part in parts)
    assert len(parts) <= 4
    with pytest.raises(ValueError, match="operations in"):
        pack_operations(events)


@given(st.data())
def test_a_damaged_text_is_refused_and_nothing_else_happens(data):
    text = pack_operations(grown("member").log)
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_ü ="))
    changed = data.draw(st.sampled_from([text[:at], text[:at] + letter + text[at + 1 :]]))
    try:
        assert unpack_operations(changed) == grown("member").log
    except PeerMisbehaved:
        assert changed != text


@pytest.mark.parametrize("value", [None, 5, "", "x", "A" * (MAX_PACKED + 1), "AAAA" * 9])
def test_a_text_that_is_none_is_refused(value):
    with pytest.raises(PeerMisbehaved):
        unpack_operations(value)


@given(st.text() | st.none() | st.integers())
def test_every_label_is_one(text):
    label = dns_label(text)
    assert is_label(label)
    assert dns_label(label) == label


def test_labels_stay_near_to_the_name():
    assert dns_label("Bob's Laptop (new)") == "bobs-laptop-new"
    assert dns_label("Zoë") == "zoe"
    assert dns_label("🐢") == dns_label("NPUB1xyz") == dns_label("---") == "node"
    assert len(dns_label("a" * 500)) == 63
    taken = {"a" * 63, "b", "b-2"}
    assert free_label("b", taken) == "b-3"
    assert free_label("a" * 63, taken) == "a" * 61 + "-2"


def test_a_token_link_says_all_and_shows_nothing():
    text = render_token_link(LINK)
    assert parse_token_link(f" {text}\n") == LINK
    assert "c3Nz" not in repr(LINK)
    for bad in (
        text[:60],
        text.replace("join", "npub1x"),
        text.replace("exp=1800000000", "exp=0"),
        text.replace("nostrvpn:", "http:"),
        text + "&relay=wss://r.example" * 6,
        text + "x" * 2000,
        text.replace("wss:", "https:"),
    ):
        with pytest.raises(UserError):
            parse_token_link(bad)


@given(st.lists(st.sets(st.integers(0, 30), max_size=3), max_size=30))
@example([set()] * 30)
def test_a_history_is_in_order_and_knows_what_is_concurrent(named):
    parents = {
        f"{number:02}": sorted(f"{one:02}" for one in some if one < number)
        for number, some in enumerate(named)
    }
    parents["99"] = ["missing"]
    history = build_history(parents)
    assert set(history.order) == set(parents) - {"99"}
    before = {key: set(parents[key]) for key in history.order}
    for key in history.order:
        for parent in parents[key]:
            before[key] |= before[parent]
    concurrent = history.concurrent()
    for place, key in enumerate(history.order):
        assert {history.order[one] for one in members_of(history.ancestors[place])} == before[key]
        beside = {history.order[one] for one in members_of(concurrent[place])}
        assert beside == {
            one
            for one in history.order
            if one != key and one not in before[key] and key not in before[one]
        }
    sample = history.sample()
    assert len(sample) <= SAMPLE
    assert history.lacking(sample) == ()
    assert list(history.lacking(())) == list(history.order)
    for key in history.order:
        lacking = set(history.order) - before[key] - {key}
        assert set(history.lacking([key, "unknown"])) == lacking


def test_a_sample_costs_at_most_twice_what_is_lacking():
    chain = {f"{n:04}": [f"{n - 1:04}"] if n else [] for n in range(1000)}
    whole = build_history(chain)
    for lacked in (1, 10, 100, 900):
        held = dict(list(chain.items())[: 1000 - lacked])
        other = build_history(held | {"own": [f"{999 - lacked:04}"]})  # unknown to the first
        assert lacked <= len(whole.lacking(other.sample())) <= 2 * lacked + 1


def test_a_history_grows_on_top():
    history = build_history({"a": [], "b": ["a"], "c": ["a"]})
    again = build_history({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]})
    assert history.append("d") == again
