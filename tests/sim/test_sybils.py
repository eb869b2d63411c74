"""A thousand made-up raters and a thousand made-up sellers against a few honest ones.

The bounds are those that ``docs/market.md`` states.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest

from nostrvpn.market.book import MAX_OFFERS, MAX_PER_RELAY, Book
from nostrvpn.market.follows import REPORTS_NEEDED, Circle, Lists
from nostrvpn.market.listing import Asked, Viewer, rows
from nostrvpn.market.offer import Offer
from nostrvpn.market.ratings import Rating, Report
from nostrvpn.market.terms import Price, Terms
from nostrvpn.market.trust import Evidence, judge

NOW = 1_800_000_000
FAKES = 1000
# Of those whom the user follows, so many rated each seller.
RATED_BY = 6
# What docs/market.md promises: at reach 1; with one follow that follows fakes at reach 2, for a seller
# that follows rated, for one that nobody rated, and at worst; with one fake that is followed itself.
BOUND_NEAR, BOUND_FAR, BOUND_UNRATED, BOUND_WORST = 0.0, 0.3 / (2 + RATED_BY), 0.075, 0.15
BOUND_FOLLOWED = 0.081


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


ME = key("me")
FRIENDS = [key(f"friend {n}") for n in range(20)]
SELLERS = [key(f"seller {n}") for n in range(10)]
RATERS = [key(f"fake {n}") for n in range(FAKES)]


def contacts(*, fooled: bool) -> dict[str, frozenset[str]]:
    """Friends follow each other, fakes follow each other, all sellers and all friends; one friend may
    have been fooled to follow them back."""
    graph = {ME: frozenset(FRIENDS)}
    graph |= {one: frozenset(FRIENDS) for one in FRIENDS}
    graph |= {one: frozenset([*RATERS, *FRIENDS, *SELLERS, ME]) for one in RATERS[:50]}
    graph |= {one: frozenset(RATERS) for one in SELLERS}
    if fooled:
        graph[FRIENDS[0]] |= frozenset(RATERS)
    return graph


def honest_ratings(rng: random.Random) -> list[Rating]:
    """The better a seller (the lower its number), the better it is rated by those who bought there."""
    return [
        Rating(author, seller, f"31900:{seller}:exit", 90 - 15 * place + rng.randint(-5, 5))
        for place, seller in enumerate(SELLERS)
        for author in rng.sample(FRIENDS, RATED_BY)
    ]


def with_receipts(ratings: list[Rating]) -> list[Rating]:
    return [
        replace(one, receipt=key(f"{one.author}{one.seller}"), created_at=NOW - 3600)
        for one in ratings
    ]


def fake_ratings(honest: list[Rating]) -> list[Rating]:
    """The worst are praised, the best are run down, with the receipts of honest ratings."""
    return [
        replace(one, author=author, score=-100 if place < len(SELLERS) // 2 else 100)
        for place, seller in enumerate(SELLERS)
        for one, author in zip(
            [one for one in honest if one.seller == seller] * FAKES, RATERS, strict=False
        )
    ]


def scores(ratings: list[Rating], circle: Circle) -> dict[str, float]:
    evidence = {seller: [one for one in ratings if one.seller == seller] for seller in SELLERS}
    return {
        seller: judge(Evidence(seller, ratings=about), circle, NOW).score
        for seller, about in evidence.items()
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("reach", "fooled", "bound"),
    [(1, False, BOUND_NEAR), (1, True, BOUND_NEAR), (2, False, BOUND_NEAR), (2, True, BOUND_FAR)],
)
def test_fake_raters_hardly_move_a_ranking(
    seed: int, reach: int, fooled: bool, bound: float
) -> None:
    honest = with_receipts(honest_ratings(random.Random(seed)))
    circle = Circle.of(frozenset(), ME, contacts(fooled=fooled), reach=reach)
    before = scores(honest, circle)
    after = scores([*honest, *fake_ratings(honest)], circle)
    assert max(abs(after[one] - before[one]) for one in SELLERS) <= bound + 1e-12
    # Honest opinions are heard at all, or a bound of nothing would be easy to keep.
    assert before[SELLERS[0]] - before[SELLERS[-1]] > 0.1
    if bound == BOUND_NEAR:
        assert sorted(SELLERS, key=before.__getitem__) == sorted(SELLERS, key=after.__getitem__)


def test_an_unrated_seller_is_moved_by_no_more_either() -> None:
    seller = SELLERS[0]
    crowd = [Rating(one, seller, "", 100, key(one), (), NOW - 60) for one in RATERS]
    wide = Circle.of(frozenset(), ME, contacts(fooled=True), reach=2)
    moved = judge(Evidence(seller, ratings=crowd), wide, NOW).score - 0.5
    assert 0 < moved <= BOUND_UNRATED + 1e-12
    # At worst all that is known comes from distance 2, and the fakes outnumber it.
    far = Rating(key("far"), seller, "", 100, key("receipt"), (), NOW - 60)
    wide = replace(wide, second=wide.second | {far.author})
    against = [replace(one, score=-100) for one in crowd]
    one, all_of_them = ([far], [far, *against])
    before, after = (
        judge(Evidence(seller, ratings=some), wide, NOW).score for some in (one, all_of_them)
    )
    assert 0.05 < before - after <= BOUND_WORST + 1e-12


@pytest.mark.parametrize("friends", range(6))
@pytest.mark.parametrize("copies", [False, True])
def test_a_fake_that_is_followed_is_one_voice(friends: int, copies: bool) -> None:
    seller, fake = SELLERS[0], RATERS[0]
    near = Circle(follows=frozenset([*FRIENDS, fake]))
    honest = [Rating(one, seller, "", 100, key(one), (), NOW - 60) for one in FRIENDS[:friends]]
    receipt = honest[0].receipt if copies and honest else key("fake receipt")
    lie = Rating(fake, seller, "", -100, receipt, (), NOW - 60)
    before, after = (
        judge(Evidence(seller, ratings=some), near, NOW).score for some in (honest, [*honest, lie])
    )
    assert before - after <= BOUND_FOLLOWED


def test_fake_reports_deny_nobody() -> None:
    wide = Circle.of(frozenset(), ME, contacts(fooled=True), reach=2)
    reports = [Report(one, SELLERS[0], "illegal") for one in RATERS]
    reports += [Report(FRIENDS[0], SELLERS[0], "illegal")] * REPORTS_NEEDED
    assert Lists(reporters=Lists.count_reports(reports, wide)).refusal(SELLERS[0]) is None


# -- sellers ----------------------------------------------------------------------------------

RELAYS = [f"wss://r{n}.example" for n in range(4)]
TERMS = Terms(Price.parse("20sat/GiB"), ("https://mint.example",))


def offered(seller: str, at: int, asn: int = 0, price: str = "20sat/GiB") -> Offer:
    terms = replace(TERMS, price=Price.parse(price))
    return Offer(seller, "exit", terms, "02" + seller, asn=asn, created_at=at, expires_at=at + 1800)


def flooded(salt: bytes, relays: list[str], *, days: int, known: frozenset[str]) -> Book:
    """Honest sellers, ``days`` before a thousand cheaper ones that one host makes up."""
    book = Book(salt)
    then = NOW - days * 86_400
    book.add([(offered(seller, then), RELAYS) for seller in SELLERS], known, then)
    mine = [(offered(seller, NOW), RELAYS) for seller in SELLERS]
    fakes = [(offered(one, NOW, 64666, "1sat/GiB"), relays) for one in RATERS]
    for start in range(0, FAKES, 100):
        book.add(fakes[start : start + 100], known, NOW)
    book.add(mine, known, NOW)
    return book


def honest_in(book: Book) -> int:
    return sum(one.offer.seller in SELLERS for one in book.offers(NOW))


@pytest.mark.parametrize("seed", range(5))
def test_a_flood_of_sellers_is_bounded_and_honest_ones_stay(seed: int) -> None:
    salt = bytes([seed]) * 16
    # Through one relay: that relay's share, whoever was there before.
    book = flooded(salt, RELAYS[:1], days=0, known=frozenset())
    assert len(book.offers(NOW)) <= MAX_PER_RELAY + len(SELLERS)
    assert honest_in(book) == len(SELLERS)
    # Through all of them: whoever was seen for a day before, or is known, stays.
    book = flooded(salt, RELAYS, days=2, known=frozenset())
    assert len(book.offers(NOW)) <= MAX_OFFERS
    assert honest_in(book) == len(SELLERS)
    book = flooded(salt, RELAYS, days=0, known=frozenset(SELLERS))
    assert honest_in(book) == len(SELLERS)
    assert len(book.first_seen) <= 4000


def test_honest_newcomers_have_their_share_of_a_flooded_list() -> None:
    """A draw: of 1,010 sellers that nobody knows 600 have room, whoever they are."""
    there = [
        honest_in(flooded(bytes([n]) * 16, RELAYS, days=0, known=frozenset())) for n in range(20)
    ]
    assert 3 <= sum(there) / len(there) <= 9


def test_sellers_of_one_network_do_not_fill_the_top() -> None:
    book = flooded(b"x" * 16, RELAYS, days=2, known=frozenset())
    circle = Circle()
    judged = [
        (
            one.offer,
            judge(
                Evidence(one.offer.seller, first_seen=book.first_seen[one.offer.seller]),
                circle,
                NOW,
            ),
        )
        for one in book.offers(NOW)
    ]
    found = rows(judged, Asked(sort="price"), Viewer(), NOW)
    usable = [row.offer.seller for row in found if row.is_usable]
    # Cheaper by far, and yet five rows: the honest ones come right behind.
    assert len([one for one in usable if one in RATERS]) == 5
    assert set(usable[5:]) == set(SELLERS)
