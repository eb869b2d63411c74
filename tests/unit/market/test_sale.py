"""What a seller decided, stored and read again."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved, UsageError
from nostrvpn.exits.limits import ExitLimits
from nostrvpn.exits.policy import ExitPolicy, parse_word
from nostrvpn.market.sale import Sale, parse_contact, parse_place
from nostrvpn.market.terms import GIB, HOUR_MS, PayMode, Price, Terms

SALE = Sale(
    Terms(Price.parse("20sat/GiB", "5sat/h"), ("https://mint.example",), (PayMode.PLAIN,)),
    ExitPolicy("web", (parse_word("tcp/22"),)),
    ExitLimits(1000, 2000, 3, 4000),
    "DE",
    False,
    7,
    "vpn.example.org:51821",
    51821,
    12,
    "abuse@example.org",
    True,
    ("79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",),
    ("c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5",),
    ("f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9",),
)


def test_what_is_stored_comes_back():
    assert Sale.from_json(SALE.to_json()) == SALE
    before = {key: value for key, value in SALE.to_json().items() if key != "escrow"}
    assert Sale.from_json(before) == replace(SALE, escrow=())
    plain = Sale(Terms(Price.parse("1msat/MB"), ()))
    assert Sale.from_json(plain.to_json()) == plain


@pytest.mark.parametrize("name", SALE.to_json())
@pytest.mark.parametrize("value", [None, "x", -1, 1 << 80, [3], {}])
def test_a_damaged_record_is_refused_or_means_something(name, value):
    record = SALE.to_json() | {name: value}
    with suppress(PeerMisbehaved):  # any other error is a fault
        made = Sale.from_json(record)
        assert Sale.from_json(made.to_json()) == made


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_any_other_record_is_refused(value):
    with pytest.raises(PeerMisbehaved):
        Sale.from_json(value)


@pytest.mark.parametrize("text", ["", "host", "host:0", "host:70000", "a b:1", "h:1\nx", "[::1"])
def test_what_is_no_place_is_refused(text):
    with pytest.raises(UsageError):
        parse_place(text)
    assert parse_place("[2001:db8::1]:51821") == "[2001:db8::1]:51821"


def test_a_contact_is_one_line():
    assert parse_contact(" abuse@example.org ") == "abuse@example.org"
    for text in ("a\nb", "x" * 201, "\x1b[2J"):
        with pytest.raises(UsageError):
            parse_contact(text)


@pytest.mark.parametrize(
    ("text", "step", "msat"),
    [
        ("20sat/GiB", 53_687_091, 1000),
        ("1 sat/MiB", 1 << 20, 1000),
        ("20sats/gb", 50_000_000, 1000),
        ("500msat/MB", 2_000_000, 1000),
        ("0sat/GiB", GIB, 0),
    ],
)
def test_prices_of_traffic(text, step, msat):
    price = Price.parse(text)
    assert (price.step_bytes, price.step_msat, price.hour_msat) == (step, msat, 0)


@pytest.mark.parametrize(
    "text",
    ["", "20", "20sat", "-1sat/GiB", "1.5sat/GiB", "20btc/GiB", "20sat/TB", "9" * 13 + "sat/MB"],
)
def test_what_is_no_price_is_refused(text):
    with pytest.raises(UsageError):
        Price.parse(text)
    with pytest.raises(UsageError):
        Price.parse("1sat/GiB", text)


def test_what_is_owed_is_rounded_up_and_never_less_than_before():
    price = Price(1000, 3, 7)
    assert price.due(0, 0) == 0
    assert price.due(1, 0) == 1
    assert price.due(1000, 0) == 3
    assert price.due(1001, 1) == 4 + 1
    assert price.due(0, HOUR_MS) == 7


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 40), st.integers(1, 1 << 30))
def test_what_a_sum_buys_costs_no_more_than_the_sum(bytes_, msat, step):
    price = Price(step, 1000)
    assert price.due(price.bytes_for(msat), 0) <= msat
    assert price.bytes_for(price.due(bytes_, 0)) >= bytes_
    assert Price(step, 0).bytes_for(msat) >= bytes_
