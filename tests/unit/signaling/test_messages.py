"""The envelope: read as written, bounded, and everything else refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.signaling.messages import (
    MAX_MESSAGE,
    Message,
    MessageType,
    parse_message,
    render_message,
)

NET = "ab" * 32
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.sampled_from(MessageType), st.dictionaries(st.text(), JSON), st.integers(1, 2**52))
def test_a_message_is_read_as_it_was_written(kind, body, seq):
    message = Message(kind, NET, seq, body)
    assert parse_message(render_message(message)) == message


@pytest.mark.parametrize(
    "change",
    [
        {"v": 1},
        {"type": "crown"},
        {"net": "AB" * 32},
        {"net": 5},
        {"seq": 0},
        {"seq": True},
        {"seq": 1 << 53},
        {"seq": "1"},
        {"body": []},
        {"body": None},
    ],
)
def test_a_field_out_of_bounds_is_refused(change):
    good = {"v": 2, "type": "describe", "net": NET, "seq": 1, "body": {}}
    with pytest.raises(PeerMisbehaved):
        parse_message(json.dumps(good | change))


@given(st.text() | JSON.map(json.dumps))
def test_anything_else_is_refused(text):
    with pytest.raises(PeerMisbehaved):
        parse_message(text)


def test_size_is_bounded_both_ways():
    with pytest.raises(ValueError, match="characters"):
        render_message(Message(MessageType.ROSTER, NET, 1, {"x": "y" * MAX_MESSAGE}))
    with pytest.raises(PeerMisbehaved):
        parse_message("[" * MAX_MESSAGE + "]")
    with pytest.raises(PeerMisbehaved):
        parse_message("[" * 5000)
