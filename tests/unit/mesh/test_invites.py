"""Invite links: what is written is read again, and damage is explained."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.errors import UserError
from nostrvpn.identity.keys import RootSecret
from nostrvpn.mesh.invites import Invite, Link, parse_link, render_link

ALICE = RootSecret(b"\x01" * 32)
BOB = RootSecret(b"\x02" * 32)
LINK = Link(
    ALICE.public_key,
    b"s" * 16,
    "ab" * 32,
    1_800_000_000,
    BOB.public_key,
    ("wss://relay.example", "ws://[2001:db8::1]:7777/path"),
)


@pytest.mark.parametrize(
    "link",
    [
        LINK,
        Link(ALICE.public_key, bytes(16), "00" * 32, 1, None, ()),
        Link(ALICE.public_key, b"\xff" * 16, "ff" * 32, 5, None, ("wss://a.example/?x=1&y=2",)),
    ],
)
def test_a_link_is_read_as_it_was_written(link):
    assert parse_link(render_link(link)) == link
    assert parse_link(f"  {render_link(link)}\n") == link


def test_a_link_never_shows_in_a_repr():
    assert "73" * 16 not in repr(LINK)
    assert LINK.secret.hex() not in repr(Invite(LINK.secret, None, 1, 0))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "https://example.org",
        lambda text: text[:-70],
        lambda text: text.replace("net=", "nut="),
        lambda text: text.replace("exp=", "exp=x"),
        lambda text: text.replace("npub1", "npub2"),
        lambda text: text + "&relay=http%3A%2F%2Fa",
        lambda text: text + "&relay=wss://a" * 9,
        lambda text: text + "a" * 3000,
        lambda text: text.replace("exp=1800000000", "exp=0"),
    ],
)
def test_a_damaged_link_is_refused_with_a_hint(damage):
    with pytest.raises(UserError) as caught:
        parse_link(damage(render_link(LINK)))
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_no_text_makes_the_parser_fail_otherwise(text):
    with pytest.raises(UserError):
        parse_link("nostrvpn://" + text)


def test_an_invite_tells_why_it_refuses():
    bound = Invite(b"s" * 16, BOB.public_key, 1000, 0)
    assert bound.refusal(BOB.public_key, 999) is None
    assert bound.refusal(BOB.public_key, 1000) == "expired"
    assert bound.refusal(ALICE.public_key, 1) == "foreign"
    used = Invite(b"s" * 16, None, 1000, 0, used_by=BOB.public_key)
    assert used.refusal(ALICE.public_key, 1) == "used"
    # Whoever was admitted may ask again, even late: the answer may have been lost.
    assert used.refusal(BOB.public_key, 5000) is None


def test_an_invite_survives_the_store():
    for invite in (Invite(b"s" * 16, None, 5, 1), Invite(b"t" * 16, "ab" * 32, 5, 1, "cd" * 32)):
        assert Invite.from_json(invite.to_json()) == invite
