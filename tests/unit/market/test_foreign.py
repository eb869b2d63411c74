"""Offers of other programs: what they cost, in our units, and nothing that contradicts itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import npub
from nostrvpn.market.foreign import mirror_event, parse_foreign
from nostrvpn.market.terms import GIB
from nostrvpn.nostr.event import Event
from tests.unit.market.offers import MINT, NOW, key, moment, offer, secret, signed


def paid_route(tags: dict[str, str] | None = None, **content: Any) -> Event:
    """An offer as nostr-vpn makes them."""
    said: dict[str, Any] = {
        "offer_id": "o1",
        "seller_npub": npub(key(1)),
        "receiver_pubkey_hex": "02" + key(2),
        "fips_endpoints": ["fips://x"],
        "service": "internet_exit",
        "access": {"upstream": "host_default", "private_vpn_access": "denied"},
        "pricing": {"price_msat_per_gb": 20_000},
        "channel": {
            "accepted_mints": [MINT],
            "max_channel_capacity_sat": 1000,
            "channel_expiry_secs": 86_400,
            "free_probe_units": 1 << 20,
            "grace_units": 1 << 18,
        },
        "location": {"network_class": "datacenter", "country_code": "NL", "asn": 64501},
        "ip_support": {"ipv4": True, "ipv6": False},
    } | content
    repeated = {
        "d": "o1",
        "v": "4",
        "service": "internet_exit",
        "payment": "cashu_spilman",
        "price_msat_per_gb": "20000",
        "private_vpn_access": "denied",
        "country": "NL",
        "asn": "64501",
        "expiration": str(NOW + 7200),
    } | (tags or {})
    return signed(37196, tuple(repeated.items()), content=json.dumps(said))


def classified(*tags: tuple[str, ...], at: int = NOW) -> Event:
    usual = (("d", "x"), ("t", "vpn-marketplace"), ("title", "Fast \x1b[31mVPN"))
    return signed(30402, usual + tags, at=at)


def test_a_paid_route_is_priced_by_the_gib() -> None:
    read = parse_foreign(paid_route(), NOW)
    assert read.market == "nostr-vpn"
    assert read.gib_msat == -(-20_000 * GIB // 10**9) == 21_475
    assert (read.country, read.mints, read.versions) == ("NL", (MINT,), (4,))
    # Live for an hour at most, whatever it says.
    assert read.expires_at == NOW + 3600


@pytest.mark.parametrize(
    "event",
    [
        paid_route({"price_msat_per_gb": "19999"}),
        paid_route({"country": "DE"}),
        paid_route({"d": "o2"}),
        paid_route({"private_vpn_access": "granted"}),
        paid_route(access={"upstream": "host_default", "private_vpn_access": "granted"}),
        paid_route(seller_npub=npub(key(2))),
        paid_route(seller_npub=5),
        paid_route(pricing={"price_msat_per_gb": -1}),
        paid_route(pricing={"price_msat_per_gb": 10**40}),
        paid_route(channel=[]),
        signed(37196, (("d", "o1"),), content="[]"),
        signed(37196, (("d", "o1"),), content="{"),
        signed(30402, (("d", "x"), ("t", "bicycles"), ("price", "1", "sat", "hour"))),
        classified(),
        classified(("price", "1", "sat", "hour"), ("status", "sold")),
        classified(("price", "1", "sat", "hour"), at=NOW - 31 * 86_400),
        classified(("price", "1", "sat", "hour"), at=NOW + 301),
    ],
)
def test_what_contradicts_itself_is_dropped(event: Event) -> None:
    with pytest.raises(PeerMisbehaved):
        parse_foreign(event, NOW)


@pytest.mark.parametrize(
    ("price", "gib", "hour"),
    [
        (("100", "sat", "hour"), None, 100_000),
        (("1000", "sats", "day"), None, 41_667),
        (("0.5", "sat", "GiB"), 500, None),
        (("1024", "sat", "TiB"), 1000, None),
        (("0.00000001", "BTC", "GiB"), 1000, None),
        (("5", "USD", "month"), None, None),
        (("a lot", "sat", "hour"), None, None),
        (("99999999999999", "sat", "hour"), None, None),
        (("5", "sat"), None, None),
    ],
)
def test_a_listing_is_priced_where_it_can_be(
    price: tuple[str, ...], gib: int | None, hour: int | None
) -> None:
    read = parse_foreign(classified(("price", *price)), NOW)
    assert (read.gib_msat, read.hour_msat) == (gib, hour)
    assert "\x1b" not in read.title


def test_our_own_listing_leads_back_to_the_offer() -> None:
    made = offer()
    event = mirror_event(made, secret(1), moment())
    assert set(event.tag_values("t")) == {"vpn-marketplace", "wireguard"}
    read = parse_foreign(event, NOW)
    assert read.mirror_of == made.address
    # In round figures: a step is a whole number of bytes, so 20 sat are 20.001 in truth.
    assert round(made.terms.price.per_gib_msat, -1) == read.gib_msat
    # Of somebody else's offer nobody makes a mirror.
    stolen = signed(30402, event.tags, author=2)
    assert parse_foreign(stolen, NOW).mirror_of == ""
