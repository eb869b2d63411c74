"""Lease messages under seals and wraps."""

import json

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.messages import MAX_MESSAGE, RUMOR_KIND
from nostrvpn.market.sealing import (
    KEPT_S,
    open_sealed,
    open_wrapped,
    seal_message,
    sealed_text,
    wrap_message,
)
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import parse_event, public_key, verify_event
from nostrvpn.nostr.nip59 import Rumor, seal_rumor

BUYER, SELLER, OTHER = (bytes([n]) * 32 for n in (3, 5, 7))
NOW = 1_800_000_000
MOMENT = Moment(0.0, float(NOW), Entropy(bytes(32)))


def sealed(text="hello", by=BUYER, to=SELLER):
    return seal_message(text, by, public_key(to), MOMENT)


@pytest.mark.parametrize("stored", [True, False])
def test_a_wrap_shows_neither_sender_nor_text(stored):
    wrap = wrap_message(sealed(), public_key(SELLER), MOMENT, stored=stored)
    verify_event(wrap)
    assert wrap.kind == (1059 if stored else 21059)
    assert wrap.tag_values("expiration") == ((str(NOW + KEPT_S),) if stored else ())
    assert public_key(BUYER) not in json.dumps(wrap.tags) + wrap.pubkey
    opened = open_wrapped(wrap, SELLER)
    assert (opened.sender, opened.receiver) == (public_key(BUYER), public_key(SELLER))
    assert (opened.text, opened.created_at) == ("hello", NOW)
    assert "hello" not in repr(opened)


def test_through_the_tunnel_it_is_the_bare_seal():
    seal = sealed()
    opened = open_sealed(sealed_text(seal), SELLER)
    assert opened == open_wrapped(
        wrap_message(seal, public_key(SELLER), MOMENT, stored=True), SELLER
    )


def test_the_largest_message_fits():
    text = "x" * MAX_MESSAGE
    wrap = wrap_message(sealed(text), public_key(SELLER), MOMENT, stored=True)
    assert open_wrapped(wrap, SELLER).text == text
    with pytest.raises(PeerMisbehaved):
        open_sealed(sealed_text(sealed(text + "x")), SELLER)


def test_nobody_elses_message_is_opened():
    with pytest.raises(PeerMisbehaved):
        open_sealed(sealed_text(sealed()), OTHER)
    with pytest.raises(PeerMisbehaved):
        open_wrapped(wrap_message(sealed(), public_key(SELLER), MOMENT, stored=True), OTHER)


def test_a_message_to_somebody_else_is_not_passed_on():
    """A seal has no receiver of its own: the seller of one lease could show its messages to another."""
    rumor = Rumor(public_key(BUYER), NOW, RUMOR_KIND, (("p", public_key(OTHER)),), "pay")
    conversation = nip44.conversation_key(BUYER, public_key(SELLER))
    seal = seal_rumor(rumor, BUYER, conversation, created_at=NOW, entropy=Entropy(bytes(32)))
    with pytest.raises(PeerMisbehaved) as caught:
        open_sealed(sealed_text(seal), SELLER)
    assert caught.value.code == "not_for_us"


@pytest.mark.parametrize(
    "change", [{"kind": 14}, {"tags": [["p", "x"]]}, {"content": "x"}, {"sig": "0" * 128}]
)
def test_what_is_no_seal_is_dropped(change):
    made = json.loads(sealed_text(sealed())) | change
    with pytest.raises(PeerMisbehaved):
        open_sealed(json.dumps(made), SELLER)
    parse_event(json.loads(sealed_text(sealed())))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 5000])
def test_garbage_is_dropped(text):
    with pytest.raises(PeerMisbehaved):
        open_sealed(text, SELLER)
