"""The list: what is left out, what is grey and why, in which order; and the book behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nostrvpn.errors import UserError
from nostrvpn.identity.keys import npub
from nostrvpn.market.book import MAX_PER_SELLER, AnyOffer, Book
from nostrvpn.market.follows import Circle, Lists
from nostrvpn.market.foreign import mirror_event, parse_foreign
from nostrvpn.market.listing import MAX_PER_PLACE, Asked, Row, Viewer, rows
from nostrvpn.market.terms import PayMode, Price
from nostrvpn.market.trust import Evidence, Probe, Trust, judge
from tests.unit.market.offers import MINT, NOW, RELAY, key, moment, offer, priced, secret, signed


def trust(made: AnyOffer, probe: Probe | None = None) -> Trust:
    return judge(Evidence(made.seller, probe=probe), Circle(), NOW)


def listed(
    *offers: AnyOffer, asked: Asked | None = None, viewer: Viewer | None = None
) -> tuple[Row, ...]:
    judged = [(made, trust(made)) for made in offers]
    return rows(judged, asked or Asked(), viewer or Viewer(), NOW)


def codes(row: Row) -> list[str]:
    return [code for code, _ in row.why_not]


GREY = [
    ("no_common_mint", offer(), Asked(), Viewer(mints=frozenset(["https://mine.example"]))),
    ("too_dear", offer(), Asked(max_gib_msat=20_000), Viewer()),
    ("too_dear", offer(), Asked(max_hour_msat=4_999), Viewer()),
    ("expired", offer(expires_at=NOW), Asked(), Viewer()),
    ("ip_version", offer(versions=(4,)), Asked(version=6), Viewer()),
    ("pay_mode", priced(1, "20sat/GiB", pay=()), Asked(), Viewer()),
    ("pay_mode", priced(1, "20sat/GiB", pay=(PayMode.CHANNEL,)), Asked(), Viewer()),
    ("denied", offer(), Asked(), Viewer(lists=Lists(denied=frozenset([key(1)])))),
    ("muted", offer(), Asked(), Viewer(lists=Lists(muted=frozenset([key(1)])))),
    ("wrong_country", offer(country="DE"), Asked(), Viewer(probes={key(1): Probe(country="US")})),
    ("listed", offer(), Asked(), Viewer(lists=Lists(lists={key(3): frozenset([key(1)])}))),
]


@pytest.mark.parametrize(("code", "made", "asked", "viewer"), GREY)
def test_why_a_row_is_grey(code: str, made: AnyOffer, asked: Asked, viewer: Viewer) -> None:
    (row,) = listed(made, asked=asked, viewer=viewer)
    assert codes(row) == [code]
    assert all(text for _, text in row.why_not)


def test_where_a_seller_is_seen_counts_until_it_says_so_or_the_user_allows_it() -> None:
    probes = {key(1): Probe(country="US")}
    viewer = Viewer(probes=probes)
    assert listed(offer(country="DE"), asked=Asked(frozenset(["DE"])), viewer=viewer) == ()
    for made, seen in (
        (offer(country="US"), viewer),
        (offer(country=""), viewer),
        (offer(country="DE"), Viewer(probes=probes, lists=Lists(allowed=frozenset([key(1)])))),
    ):
        (row,) = listed(made, asked=Asked(frozenset(["US"])), viewer=seen)
        assert row.is_usable, made.country


def test_latency_through_the_tunnel_comes_before_that_of_a_quote() -> None:
    probes = {
        key(1): Probe(quote_ms=10.0),
        key(2): Probe(rtt_ms=300.0, quote_ms=900.0),
        key(3): Probe(rtt_ms=20.0),
    }
    made = [priced(n, "20sat/GiB") for n in (4, 1, 2, 3)]
    found = listed(*made, asked=Asked(sort="latency"), viewer=Viewer(probes=probes))
    assert [row.offer.seller for row in found] == [key(3), key(2), key(1), key(4)]


def test_what_is_just_within_is_not_grey() -> None:
    asked = Asked(
        max_gib_msat=Price.parse("20sat/GiB").per_gib_msat, max_hour_msat=5_000, version=6
    )
    viewer = Viewer(mints=frozenset([MINT]))
    assert listed(offer(), asked=asked, viewer=viewer)[0].is_usable


def test_a_foreign_offer_shows_its_price_and_is_not_sold() -> None:
    tags = (("d", "x"), ("t", "vpn-marketplace"), ("price", "3", "sat", "GiB"))
    (row,) = listed(parse_foreign(signed(30402, tags), NOW))
    assert codes(row) == ["foreign"]
    assert row.gib_msat == 3000


def test_country_and_mint_leave_others_out() -> None:
    german, french = offer(1), offer(2, country="FR")
    assert [row.offer for row in listed(german, french, asked=Asked(frozenset(["FR"])))] == [french]
    nobody = Asked(mints=frozenset(["https://nobody.example"]))
    assert listed(german, french, asked=nobody) == ()
    assert len(listed(german, french, asked=Asked(mints=frozenset([MINT])))) == 2


def test_the_order() -> None:
    cheap, dear, grey = priced(1, "5sat/GiB"), priced(2, "50sat/GiB"), priced(3, "1sat/GiB", pay=())
    viewer = Viewer(probes={dear.seller: Probe(rtt_ms=10.0)})
    judged = [
        (grey, trust(grey)),
        (cheap, trust(cheap)),
        (dear, trust(dear, Probe(True, 10.0, at=NOW))),
    ]

    def order(sort: str) -> list[AnyOffer]:
        return [row.offer for row in rows(judged, Asked(sort=sort), viewer, NOW)]

    # What cannot be bought comes last, however cheap.
    assert order("trust") == [dear, cheap, grey]
    assert order("price") == [cheap, dear, grey]
    assert order("latency") == [dear, cheap, grey]


def test_one_network_does_not_fill_the_list() -> None:
    many = [priced(n, f"{n}sat/GiB", asn=64500) for n in range(1, MAX_PER_PLACE + 3)]
    other = priced(50, "90sat/GiB", asn=64501)
    found = listed(*many, other)
    usable = [row.offer for row in found if row.is_usable]
    assert usable == [*many[:MAX_PER_PLACE], other]
    assert [codes(row) for row in found if not row.is_usable] == [["crowded"]] * 2
    # Where a seller really is counts before what it says.
    places = {made.seller: f"203.0.113.{n}/32" for n, made in enumerate(many)}
    assert all(row.is_usable for row in listed(*many, viewer=Viewer(places=places)))


# -- the book ---------------------------------------------------------------------------------


def book() -> Book:
    return Book(b"0123456789abcdef")


def test_the_newest_of_an_offer_stays() -> None:
    kept, old, new = book(), offer(created_at=NOW - 60), offer(country="FR")
    kept.add([(new, [RELAY]), (old, ["wss://b.example"])], (), NOW)
    assert [one.offer for one in kept.offers(NOW)] == [new]
    assert kept.offers(NOW + 1800) == ()


def test_a_seller_has_few_offers() -> None:
    kept = book()
    kept.add([(offer(offer_id=f"o{n}"), [RELAY]) for n in range(20)], (), NOW)
    assert len(kept.offers(NOW)) == MAX_PER_SELLER


def test_what_no_relay_has_any_more_was_taken_back() -> None:
    kept, gone, elsewhere = book(), offer(1), offer(2)
    kept.add([(gone, [RELAY]), (elsewhere, [RELAY, "wss://b.example"])], (), NOW)
    kept.keep_only([], [RELAY])
    assert [one.offer for one in kept.offers(NOW)] == [elsewhere]


def test_a_mirror_of_an_offer_is_no_second_offer() -> None:
    kept, made = book(), offer()
    mirror = parse_foreign(mirror_event(made, secret(1), moment()), NOW)
    kept.add([(made, [RELAY]), (mirror, [RELAY])], (), NOW)
    assert [one.offer for one in kept.offers(NOW)] == [made]


def test_references() -> None:
    kept, one, two = book(), offer(1), offer(1, offer_id="two")
    kept.add([(one, [RELAY]), (two, [RELAY]), (offer(2), [RELAY])], (), NOW)
    for ref in (one.ref, one.address, f"{npub(key(1))}/exit", f"{key(1)[:8]}/exit"):
        assert kept.find(ref, NOW) == one
    assert kept.find(npub(key(2)), NOW).seller == key(2)
    for ref in (npub(key(1)), key(1), key(1)[:7] + "/exit", "", "/", "npub1x", "\x1b[2J"):
        with pytest.raises(UserError):
            kept.find(ref, NOW)


def test_when_a_seller_was_first_seen_outlives_its_offers() -> None:
    kept = book()
    kept.add([(offer(), [RELAY])], (), NOW)
    later = NOW + 86_400
    kept.add([(replace(offer(), created_at=later, expires_at=later + 9), [RELAY])], (), later)
    assert kept.first_seen == {key(1): NOW}
