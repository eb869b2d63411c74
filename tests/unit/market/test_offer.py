"""Offers: what is published is read back, and nothing else passes."""

from __future__ import annotations

import base64
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret, wireguard_public_key
from nostrvpn.market.listing import usable_relays
from nostrvpn.market.offer import (
    NETWORK_CLASSES,
    OFFER_KIND,
    Offer,
    offer_event,
    parse_offer,
    withdrawal_event,
)
from nostrvpn.market.terms import GIB, PayMode, Price, Terms
from nostrvpn.nostr.event import Event, verify_event
from tests.unit.market.offers import MINT, NOW, key, moment, offer, secret, signed

TAGS = {
    *("d", "v", "t", "service", "metric", "step_size", "price_per_step", "price_per_hour"),
    *("receiver_pubkey", "pay", "free_bytes", "grace_bytes", "max_slice_sat", "ip", "policy"),
    *("relay", "L", "l", "ln", "network_class", "max_sessions", "asn", "pow", "down_bps"),
    *("up_bps", "contact", "escrow", "expiration", "alt"),
}

names = st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True)
ids = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
prices = st.builds(Price, st.integers(1, 1 << 50), st.integers(0, 10**15), st.integers(0, 10**15))
mints = st.lists(
    st.from_regex(r"https://[a-z]{1,20}\.example(/[a-z]{1,8})?", fullmatch=True),
    min_size=1,
    max_size=8,
    unique=True,
)
modes = st.lists(st.sampled_from(list(PayMode)), unique=True)
terms = st.builds(
    Terms,
    price=prices,
    mints=mints.map(tuple),
    pay=modes.map(tuple),
    free_bytes=st.integers(0, GIB),
    grace_bytes=st.integers(0, GIB),
    max_slice_sat=st.integers(1, 10**7),
)
offers = st.builds(
    Offer,
    seller=st.just(key(1)),
    offer_id=ids,
    terms=terms,
    receiver_pubkey=st.integers(2, 50).map(lambda number: "02" + key(number)),
    relays=st.lists(st.sampled_from([f"wss://r{n}.example" for n in range(8)]), unique=True).map(
        tuple
    ),
    country=st.sampled_from(["", "DE", "US"]),
    versions=st.sampled_from([(4,), (6,), (4, 6)]),
    policies=st.lists(names, unique=True, max_size=8).map(tuple),
    pow_bits=st.integers(0, 28),
    max_sessions=st.integers(0, 65_535),
    network_class=st.sampled_from(["", *NETWORK_CLASSES]),
    asn=st.integers(0, 0xFFFF_FFFF),
    down_bps=st.integers(0, 10**13),
    up_bps=st.integers(0, 10**13),
    contact=st.sampled_from(["", "abuse@example.org", "https://example.org/abuse · Müller"]),
)


@given(offers)
@settings(max_examples=60, deadline=None)
def test_what_is_published_is_read_back(made: Offer) -> None:
    event = offer_event(made, secret(1), moment())
    verify_event(event)
    read = parse_offer(event, NOW)
    dated = replace(made, created_at=NOW, expires_at=NOW + 1800, event_id=event.id)
    assert read == dated
    assert event.content == ""
    assert {tag[0] for tag in event.tags} <= TAGS


def test_no_endpoint_and_no_wireguard_key_are_in_it() -> None:
    root = RootSecret(secret(7))
    made = offer_event(offer(7, seller=key(7)), secret(7), moment())
    text = repr(made)
    for private in (root.market_wireguard_key(), root.wireguard_private_key()):
        public = wireguard_public_key(private)
        assert public not in text
        assert base64.b64decode(public).hex() not in text
    # Whoever adds a field that could hold one has to think of this.
    assert {field.name for field in fields(Offer)} == {
        *("seller", "offer_id", "terms", "receiver_pubkey", "relays", "country", "versions"),
        *("policies", "pow_bits", "max_sessions", "network_class", "asn", "down_bps", "up_bps"),
        *("contact", "escrow", "created_at", "expires_at", "event_id"),
    }


def changed(name: str, *values: tuple[str, ...]) -> Event:
    """Return the offer with other tags of this name, or without any."""
    event = offer_event(offer(), secret(1), moment())
    kept = tuple(tag for tag in event.tags if tag[0] != name)
    return signed(OFFER_KIND, kept + tuple((name, *value) for value in values))


BAD = [
    ("v", [("2",)], "unknown_offer"),
    ("v", [], "unknown_offer"),
    ("service", [("compute",)], "unknown_offer"),
    ("metric", [("milliseconds",)], "unknown_offer"),
    ("d", [], "malformed_tag"),
    ("d", [("x" * 65,)], "malformed_tag"),
    ("d", [("a b",)], "malformed_tag"),
    ("d", [("a",), ("b",)], "malformed_tag"),
    ("step_size", [("0",)], "malformed_tag"),
    ("step_size", [("-5",)], "malformed_tag"),
    ("step_size", [("1e3",)], "malformed_tag"),
    ("step_size", [("٣",)], "malformed_tag"),
    ("step_size", [(str(1 << 51),)], "malformed_tag"),
    ("price_per_step", [], "malformed_tag"),
    ("price_per_step", [("cashu", "1", "sat")], "malformed_tag"),
    ("price_per_step", [("cashu", "1", "usd", MINT)], "malformed_tag"),
    ("price_per_step", [("bolt11", "1", "sat", MINT)], "malformed_tag"),
    ("price_per_step", [("cashu", "1", "sat", "ftp://mint")], "malformed_tag"),
    ("price_per_step", [("cashu", "9" * 18, "sat", MINT)], "malformed_tag"),
    (
        "price_per_step",
        [("cashu", "1", "sat", MINT), ("cashu", "2", "sat", "https://b.example")],
        "malformed_tag",
    ),
    (
        "price_per_step",
        [("cashu", "1", "sat", f"https://m{n}.example") for n in range(9)],
        "malformed_tag",
    ),
    ("price_per_hour", [("1",)], "malformed_tag"),
    ("price_per_hour", [("1", "sat"), ("2", "sat")], "malformed_tag"),
    ("receiver_pubkey", [], "malformed_tag"),
    ("receiver_pubkey", [("03" + key(5),)], "malformed_tag"),
    ("receiver_pubkey", [("f" * 64,)], "malformed_tag"),
    ("max_slice_sat", [("0",)], "malformed_tag"),
    ("free_bytes", [(str(GIB + 1),)], "malformed_tag"),
    ("ip", [], "malformed_tag"),
    ("ip", [("ipv5",)], "malformed_tag"),
    ("l", [("Germany", "ISO-3166-1")], "malformed_tag"),
    ("policy", [("\x1b[2J",)], "malformed_tag"),
    ("policy", [(f"p{n}",) for n in range(9)], "malformed_tag"),
    ("relay", [("http://relay.example",)], "malformed_tag"),
    ("relay", [(f"wss://r{n}.example",) for n in range(9)], "malformed_tag"),
    ("network_class", [("palace",)], "malformed_tag"),
    ("pow", [("29",)], "malformed_tag"),
    ("contact", [("x" * 201,)], "malformed_tag"),
    ("contact", [("a\nb",)], "malformed_tag"),
    ("contact", [("\x1b[2J",)], "malformed_tag"),
    ("contact", [("\u202eevil",)], "malformed_tag"),
    ("contact", [("a",), ("b",)], "malformed_tag"),
    ("asn", [(str(1 << 32),)], "malformed_tag"),
    ("expiration", [], "malformed_tag"),
    ("expiration", [(str(NOW),)], "expired"),
]


@pytest.mark.parametrize(("name", "values", "code"), BAD)
def test_each_field_is_bounded(name: str, values: list[tuple[str, ...]], code: str) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        parse_offer(changed(name, *values), NOW)
    assert caught.value.code == code


def test_an_offer_is_short_lived_and_not_of_tomorrow() -> None:
    event = changed("expiration", (str(NOW + 10**6),))
    assert parse_offer(event, NOW).expires_at == NOW + 3600
    with pytest.raises(PeerMisbehaved) as caught:
        parse_offer(event, NOW + 3600)
    assert caught.value.code == "expired"
    assert parse_offer(event, NOW - 300)
    with pytest.raises(PeerMisbehaved) as caught:
        parse_offer(event, NOW - 301)
    assert caught.value.code == "future"


def test_a_way_to_pay_of_later_times_is_passed_over() -> None:
    assert parse_offer(changed("pay", ("quantum",)), NOW).terms.pay == ()
    both = parse_offer(changed("pay", ("quantum",), ("plain",)), NOW)
    assert both.terms.pay == (PayMode.PLAIN,)


def test_a_key_without_its_first_byte_is_the_same_key() -> None:
    read = parse_offer(changed("receiver_pubkey", (key(5),)), NOW)
    assert read.receiver_pubkey == "02" + key(5)


def test_only_the_seller_signs() -> None:
    with pytest.raises(ValueError, match="seller"):
        offer_event(offer(1), secret(2), moment())


def test_taking_back_names_the_offer() -> None:
    event = withdrawal_event(offer().address, secret(1), moment())
    assert event.kind == 5
    assert event.tags == (("a", f"31900:{key(1)}:exit"), ("k", "31900"))


@given(st.lists(st.lists(st.text(max_size=20), min_size=1, max_size=5), max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_tags_are_read_or_refused(tags: list[list[str]]) -> None:
    event = Event("0" * 64, key(1), NOW, OFFER_KIND, tuple(tuple(tag) for tag in tags), "", "")
    with pytest.raises(PeerMisbehaved):
        parse_offer(event, NOW)


def test_relays_inside_our_networks_are_not_knocked_at() -> None:
    inside = ["ws://127.0.0.1:80", "ws://192.168.1.1", "wss://[::1]", "ws://localhost:7"]
    inside += ["ws://router", "ws://169.254.169.254", "wss://nas.local", "ws://[fd00::1]"]
    own = "ws://10.0.0.5:7777"
    hints = [*inside, "wss://relay.example", own]
    assert usable_relays(hints, [own]) == (own, "wss://relay.example")
