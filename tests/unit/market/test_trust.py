"""Trust as a table, and the events that it is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.follows import Circle, Lists, latest, parse_contacts, parse_mutes, parse_set
from nostrvpn.market.ranks import mean_ranks, parse_rank, parse_services
from nostrvpn.market.ratings import (
    RATING_WINDOW_S,
    Rating,
    Report,
    parse_rating,
    parse_report,
    rating_event,
    report_event,
)
from nostrvpn.market.trust import Evidence, History, Outcome, Probe, Trust, explain, judge
from nostrvpn.nostr.event import Event
from tests.unit.market.offers import NOW, key, moment, secret, signed

SELLER = key(1)
ME, FRIEND, OTHER, FAR, STRANGER, MUTED = (key(n) for n in range(10, 16))
ADDRESS = f"31900:{SELLER}:exit"
HASH = "ab" * 32
CIRCLE = Circle(
    own=frozenset([ME]),
    follows=frozenset([FRIEND, OTHER, MUTED, SELLER]),
    second=frozenset([FAR]),
    muted=frozenset([MUTED]),
)


def rated(author: str, score: int, *, at: int = NOW - 60, receipt: str = "") -> Rating:
    return Rating(author, SELLER, ADDRESS, score, receipt, (), at)


def bought(outcome: Outcome, number: int = 0) -> History:
    return History(f"lease{number}", SELLER, NOW - 100, 1 << 20, 1000, outcome)


def judged(circle: Circle = CIRCLE, **evidence: Any) -> Trust:
    return judge(Evidence(SELLER, **evidence), circle, NOW)


SERVED, CHEATED = Outcome.SERVED, Outcome.OVERCHARGED
TABLE: list[tuple[str, dict[str, Any], float]] = [
    ("a stranger is neutral", {}, 0.5),
    ("one good lease", {"history": [bought(SERVED)]}, 0.5 + 0.4 * (2 / 3 - 0.5)),
    (
        "eight good leases",
        {"history": [bought(SERVED, n) for n in range(8)]},
        0.5 + 0.4 * (0.9 - 0.5),
    ),
    ("no service", {"history": [bought(Outcome.NO_SERVICE)]}, 0.5 + 0.4 * (1 / 3 - 0.5)),
    (
        "cheated once among good ones",
        {"history": [*(bought(SERVED, n) for n in range(8)), bought(CHEATED, 9)]},
        0.5 - 0.4 * 0.5,
    ),
    (
        "a friend with a receipt",
        {"ratings": [rated(FRIEND, 100, receipt=HASH)]},
        0.5 + 0.3 * 0.25,
    ),
    ("a friend without one", {"ratings": [rated(FRIEND, 100)]}, 0.5 + 0.3 * (1 / 1.5 - 0.5)),
    ("a friend's warning", {"ratings": [rated(FRIEND, -100, receipt=HASH)]}, 0.5 - 0.3 * 0.25),
    ("a stranger's praise", {"ratings": [rated(STRANGER, 100, receipt=HASH)]}, 0.5),
    ("a muted friend", {"ratings": [rated(MUTED, 100, receipt=HASH)]}, 0.5),
    ("a friend's friend, at reach 1", {"ratings": [rated(FAR, 100, receipt=HASH)]}, 0.5),
    ("the seller itself", {"ratings": [replace(rated(SELLER, 100), author=SELLER)]}, 0.5),
    (
        "the newest of one author counts",
        {
            "ratings": [
                rated(FRIEND, -100, at=NOW - 50, receipt=HASH),
                rated(FRIEND, 100, at=NOW - 90, receipt="cd" * 32),
            ]
        },
        0.5 - 0.3 * 0.25,
    ),
    ("too old", {"ratings": [rated(FRIEND, 100, at=NOW - RATING_WINDOW_S)]}, 0.5),
    ("of next week", {"ratings": [rated(FRIEND, 100, at=NOW + 7 * 86_400)]}, 0.5),
    (
        "about another",
        {"ratings": [replace(rated(FRIEND, 100), seller=key(2))]},
        0.5,
    ),
    (
        "one receipt shown twice is nobody's",
        {"ratings": [rated(FRIEND, 100, receipt=HASH), rated(OTHER, 100, receipt=HASH)]},
        0.5 + 0.3 * (1.5 / 2 - 0.5),
    ),
    (
        "a stranger's copy of a receipt takes nothing away",
        {"ratings": [rated(FRIEND, 100, receipt=HASH), rated(STRANGER, -100, receipt=HASH)]},
        0.5 + 0.3 * 0.25,
    ),
    ("a rank", {"rank": 100}, 0.55),
    ("a bad rank", {"rank": 0}, 0.45),
    ("known for 15 days", {"first_seen": NOW - 15 * 86_400}, 0.525),
    ("known for a year", {"first_seen": NOW - 365 * 86_400}, 0.55),
    ("a fast probe", {"probe": Probe(True, 100.0, at=NOW)}, 0.5 + 0.1 * 0.45),
    ("a failed probe", {"probe": Probe(False, at=NOW)}, 0.45),
    ("another country", {"probe": Probe(True, 10.0, "US", at=NOW), "claimed": "DE"}, 0.46),
    ("another country, not tried", {"probe": Probe(country="US", at=NOW), "claimed": "DE"}, 0.46),
    ("a quote only", {"probe": Probe(quote_ms=30.0, at=NOW)}, 0.5),
    ("a probe of long ago", {"probe": Probe(False, at=NOW - 31 * 86_400)}, 0.5),
    ("the same country", {"probe": Probe(True, 1000.0, "DE", at=NOW), "claimed": "DE"}, 0.5),
]


@pytest.mark.parametrize(
    ("evidence", "score"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_the_score(evidence: dict[str, Any], score: float) -> None:
    assert judged(**evidence).score == pytest.approx(score)


def test_at_reach_two_friends_of_friends_weigh_less_and_together_like_one() -> None:
    wide = replace(CIRCLE, reach=2)
    one = judged(wide, ratings=[rated(FAR, 100, receipt=HASH)]).score
    assert one == pytest.approx(0.5 + 0.3 * (1 / 1.5 - 0.5))
    crowd = [key(n) for n in range(100, 140)]
    wide = replace(wide, second=frozenset(crowd))
    many = judged(wide, ratings=[rated(author, 100) for author in crowd]).score
    assert many == pytest.approx(0.5 + 0.3 * 0.25)


def test_nothing_but_age_is_known_of_a_stranger() -> None:
    assert not judged(first_seen=NOW - 10**7).is_known
    assert judged(probe=Probe(False, at=NOW)).is_known


def test_a_score_explains_itself() -> None:
    trust = judged(history=[bought(CHEATED)], ratings=[rated(FRIEND, 50)], first_seen=NOW - 86_400)
    lines = explain(trust)
    assert lines[0].startswith(f"trust {trust.score:.2f}")
    assert "history: 0.00 x 0.4, it overcharged once" in lines
    assert any("rated +50 by 1 person of your circle" in line for line in lines)
    assert "rank: 0.50 x 0.1, no rank by a service that you trust (NIP-85)" in lines
    assert sum(part.weight for part in trust.parts) == pytest.approx(1.0)


# -- ratings and reports ----------------------------------------------------------------------


def test_a_rating_tells_little() -> None:
    given = Rating("", SELLER, ADDRESS, -40, HASH, ("speed", "overcharge"))
    event = rating_event(given, secret(20), moment(NOW + 1234))
    assert event.content == ""
    # By the hour, so that nobody can tell when the lease ended.
    assert event.created_at % 3600 == 0
    names = {tag[0] for tag in event.tags}
    assert names == {"p", "a", "rating", "r", "L", "l", "expiration"}
    read = parse_rating(event, NOW + 1234)
    assert read == replace(given, author=key(20), created_at=event.created_at)


def rating_tags(**changes: str) -> Event:
    tags = {"p": SELLER, "a": ADDRESS, "rating": "5"} | changes
    return signed(7900, tuple((name, value) for name, value in tags.items() if value))


@pytest.mark.parametrize(
    "event",
    [
        rating_tags(rating="101"),
        rating_tags(rating="-101"),
        rating_tags(rating="+5"),
        rating_tags(rating="5.0"),
        rating_tags(rating=""),
        rating_tags(p="x"),
        rating_tags(p=key(2)),
        rating_tags(a=""),
        rating_tags(a=f"30402:{SELLER}:exit"),
        rating_tags(r="receipt"),
        rating_tags(l="Very Bad"),
        signed(7900, (("p", SELLER), ("a", ADDRESS), ("rating", "5")), at=NOW + 301),
        signed(7900, (("p", SELLER), ("a", ADDRESS), ("rating", "5")), at=NOW - RATING_WINDOW_S),
        signed(7901, (("p", SELLER), ("a", ADDRESS), ("rating", "5"))),
    ],
)
def test_a_rating_that_is_none_is_dropped(event: Event) -> None:
    with pytest.raises(PeerMisbehaved):
        parse_rating(event, NOW)


def test_reports_count_once_for_each_who_is_followed() -> None:
    event = report_event(SELLER, "malware", secret(21), moment())
    assert parse_report(event, NOW) == (Report(key(21), SELLER, "malware"),)
    authors = [FRIEND, FRIEND, OTHER, STRANGER, FAR, MUTED, ME]
    wide = replace(CIRCLE, reach=2)
    counted = Lists.count_reports([Report(one, SELLER, "spam") for one in authors], wide)
    assert counted == {SELLER: frozenset([FRIEND, OTHER, ME])}
    assert Lists(reporters=counted).refusal(SELLER) == ("reported", "reported by 3 whom you follow")
    two = {SELLER: frozenset([FRIEND, OTHER])}
    assert Lists(reporters=two).refusal(SELLER) is None


# -- whose word counts ------------------------------------------------------------------------


def test_only_contact_lists_bring_somebody_closer() -> None:
    contacts = {
        ME: parse_contacts(signed(3, (("p", FRIEND), ("p", "junk"), ("p", ME)))),
        FRIEND: frozenset([FAR, ME]),
        FAR: frozenset([STRANGER]),
        STRANGER: frozenset([ME]),
    }
    near = Circle.of(frozenset(), ME, contacts)
    assert [near.distance(one) for one in (ME, FRIEND, FAR, STRANGER)] == [0, 1, None, None]
    wide = Circle.of(frozenset(), ME, contacts, reach=2)
    assert [wide.distance(one) for one in (ME, FRIEND, FAR, STRANGER)] == [0, 1, 2, None]
    alone = Circle.of(frozenset([key(50)]), None, contacts)
    assert alone.distance(key(50)) == 0
    assert alone.distance(FRIEND) is None


def test_lists_refuse_and_one_word_of_the_host_overrides_them() -> None:
    lists = Lists(muted=parse_mutes(signed(10000, (("p", SELLER),))))
    assert lists.refusal(SELLER) == ("muted", "on your mute list")
    name, keys = parse_set(signed(30000, (("d", "exit-deny"), ("p", SELLER))))
    assert name == "exit-deny"
    theirs = Lists(lists={OTHER: keys})
    assert theirs.refusal(SELLER) is not None
    assert replace(theirs, allowed=frozenset([SELLER])).refusal(SELLER) is None
    both = replace(theirs, allowed=frozenset([SELLER]), denied=frozenset([SELLER]))
    assert both.refusal(SELLER) == ("denied", "denied on this host")
    with pytest.raises(PeerMisbehaved):
        parse_set(signed(30000, (("d", "friends"), ("p", SELLER))))


def test_the_newest_of_a_replaceable_event_counts() -> None:
    old, new = signed(3, (("p", FRIEND),), at=NOW - 5), signed(3, (), at=NOW)
    deny = signed(30000, (("d", "exit-deny"),))
    allow = signed(30000, (("d", "exit-allow"),))
    found = latest([new, old, deny, allow])
    assert found[(key(1), 3, "")] is new
    assert found[(key(1), 30000, "exit-deny")] is deny
    assert found[(key(1), 30000, "exit-allow")] is allow


def test_ranks_count_of_trusted_services_only() -> None:
    named = signed(
        10040,
        (
            ("30382:rank", key(30), "wss://rank.example"),
            ("30382:zap", key(31), "wss://rank.example"),
            ("30382:rank", key(32), "not a url"),
            ("30382:rank", "junk", "wss://rank.example"),
        ),
    )
    services = parse_services(named)
    assert services == ((key(30), "wss://rank.example"),)
    rank = parse_rank(signed(30382, (("d", SELLER), ("rank", "80")), author=30), NOW)
    fake = parse_rank(signed(30382, (("d", SELLER), ("rank", "0")), author=33), NOW)
    assert mean_ranks([rank, fake], [one for one, _ in services]) == {SELLER: 80}
    with pytest.raises(PeerMisbehaved):
        parse_rank(signed(30382, (("d", SELLER), ("rank", "101"))), NOW)
