"""Frames between client and relay."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.nostr.event import sign_event
from nostrvpn.nostr.frames import (
    AuthFrame,
    ClosedFrame,
    EoseFrame,
    EventFrame,
    NoticeFrame,
    OkFrame,
    RelayFrame,
    parse_frame,
    render_auth,
    render_close,
    render_event,
    render_req,
)

EVENT = sign_event(
    bytes(31) + b"\x03", kind=1, tags=(("p", "x"),), content="é", created_at=5, aux=bytes(32)
)


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ('["OK","a",true,""]', OkFrame("a", True, "")),
        ('["OK","a",false]', OkFrame("a", False, "")),
        ('["EOSE","s"]', EoseFrame("s")),
        ('["CLOSED","s","why"]', ClosedFrame("s", "why")),
        ('["CLOSED","s"]', ClosedFrame("s", "")),
        ('["NOTICE","n"]', NoticeFrame("n")),
        ('["AUTH","c"]', AuthFrame("c")),
        ('["NOTICE","' + "n" * 900 + '"]', NoticeFrame("n" * 200)),
    ],
)
def test_frames_of_a_relay(text: str, frame: RelayFrame) -> None:
    assert parse_frame(text) == frame


def test_an_event_frame_round_trips() -> None:
    obj = json.loads(render_event(EVENT))
    assert obj[0] == "EVENT"
    assert parse_frame(json.dumps(["EVENT", "s", obj[1]])) == EventFrame("s", EVENT)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "malformed_json"),
        ("<binary>", "malformed_json"),
        ("[]", "malformed_frame"),
        ("{}", "malformed_frame"),
        ("5", "malformed_frame"),
        ('["OK","a","yes",""]', "malformed_frame"),
        ('["OK",1,true,""]', "malformed_frame"),
        ('["EOSE"]', "malformed_frame"),
        ('["AUTH",""]', "malformed_frame"),
        ('["AUTH","' + "c" * 513 + '"]', "malformed_frame"),
        ('["COUNT","s",{"count":1}]', "malformed_frame"),
        ('["EVENT","s",{}]', "malformed_event"),
        ('["NOTICE","' + "x" * 131_072 + '"]', "oversized"),
    ],
)
def test_what_is_no_frame_is_refused(text: str, code: str) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        parse_frame(text)
    assert caught.value.code == code


def test_frames_of_a_client() -> None:
    assert json.loads(render_req("s", [{"kinds": [1]}, {"#p": ["x"]}])) == [
        "REQ",
        "s",
        {"kinds": [1]},
        {"#p": ["x"]},
    ]
    assert json.loads(render_close("s")) == ["CLOSE", "s"]
    assert json.loads(render_auth(EVENT))[0] == "AUTH"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    ).map(lambda value: ["EVENT", "s", value] if isinstance(value, dict) else value)
)
def test_any_json_is_a_frame_or_refused(value: object) -> None:
    with contextlib.suppress(PeerMisbehaved):
        parse_frame(json.dumps(value))


@given(st.text())
def test_any_text_is_a_frame_or_refused(text: str) -> None:
    with contextlib.suppress(PeerMisbehaved):
        parse_frame(text)
