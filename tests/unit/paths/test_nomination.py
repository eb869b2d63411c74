# mypy: allow-untyped-calls
"""Who is followed, and who is not: nominations that are old, refused, or ever more of them."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.candidates import CandidateKind
from nostrvpn.paths.events import Guard, TunnelObserved, UseEndpoint
from nostrvpn.paths.nomination import CHANGES, GRACE, RETRY, Nominated, Nominations
from nostrvpn.paths.pair import Pair
from nostrvpn.paths.selection import REASSERT_GAPS, Due, Selection
from nostrvpn.stun.binding import Check, parse_stun, render_check

HERE, THERE = (Endpoint(IPv4Address(f"11.0.0.{n}"), 5) for n in (1, 2))


def nominating(number=None, *, link=7):
    check = Check(b"t" * 12, "them:us", "p" * 22, 1, True, link, True, nomination=number)
    return parse_stun(render_check(check))


def working(endpoint, now, *, rank=100):
    pair = Pair(endpoint, CandidateKind.REFLEXIVE, (False, rank, 4, 0))
    pair.answered(0.02, now)
    return pair


def chosen(*, controlling):
    selection = Selection("peer", controlling=controlling)
    here = working(HERE, 100.0)
    selection.use(here, 100.0, keep_proof=False, wait=False)
    return selection, here


def test_a_nomination_says_which_it_is():
    assert nominating(3).nomination == 3
    assert nominating(3).tie_breaker == 7
    assert nominating(3).use_candidate
    assert nominating().nomination is None


def test_a_nomination_of_before_is_not_taken():
    nominated = Nominated()
    assert nominated.take(HERE, nominating(1))
    assert nominated.take(THERE, nominating(2))
    assert not nominated.take(HERE, nominating(1))
    assert nominated.endpoint == THERE
    # A NAT moved the port of the same choice; the peer began anew; an older version does not count.
    assert nominated.take(HERE, nominating(2))
    assert nominated.take(THERE, nominating(1, link=8))
    assert nominated.take(HERE, nominating())
    assert nominated.endpoint == HERE


def test_a_worse_pair_is_used_at_once_if_it_is_nominated():
    selection, _ = chosen(controlling=False)
    worse = working(THERE, 100.1, rank=1)
    assert not selection.wants(worse, 100.1)
    assert selection.take_nomination(worse, nominating(1))
    assert selection.wants(worse, 100.1)
    selection.use(worse, 100.1, keep_proof=False, wait=False)
    # What was nominated before has no right to come back, whatever it answers.
    assert not selection.wants(working(HERE, 100.2), 100.2)


def test_who_cannot_use_a_pair_does_not_say_that_he_follows():
    selection, _ = chosen(controlling=False)
    pair = working(THERE, 100.0)
    pair.fail("no answer")
    assert not selection.take_nomination(pair, nominating(1))
    pair.answered(0.02, 100.2)
    assert selection.wants(pair, 100.2)
    assert selection.take_nomination(pair, nominating(1))


def test_a_nomination_is_repeated_until_its_own_answer_comes():
    nominations = Nominations()
    nominations.choose(10.0, wait=True)
    assert not nominations.is_due(10.0)
    now = 10.0 + GRACE
    for gap in RETRY:
        assert nominations.is_due(now)
        now += gap
        assert nominations.deadline == pytest.approx(now)
        nominations.answered(nominations.number - 1)
    assert nominations.is_due(now)
    assert nominations.in_vain
    nominations.choose(20.0, wait=False)
    assert nominations.is_due(20.0)
    nominations.answered(nominations.number)
    assert nominations.deadline is None
    assert not nominations.in_vain


def test_a_pair_whose_nomination_is_never_answered_is_given_up():
    selection, _ = chosen(controlling=True)
    now = 100.0
    for _ in range(60):
        assert selection.deadline is not None
        now = selection.deadline
        if selection.tick(now) is Due.LOST:
            break
    assert 103.0 < now < 112.0


def test_only_so_many_changes_are_the_peers_to_ask_for():
    selection, _ = chosen(controlling=False)
    changed = 0
    for number in range(100):
        now = 100.0 + 0.1 * number
        pair = working((THERE, HERE)[number % 2], now)
        assert selection.take_nomination(pair, nominating(number))
        if selection.wants(pair, now):
            selection.use(pair, now, keep_proof=True, wait=False)
            changed += 1
    assert changed <= CHANGES + 1


def test_when_wireguard_is_brought_back_packets_of_the_other_path_count_as_from_this_one():
    selection, here = chosen(controlling=True)
    roamed = TunnelObserved("peer", 1.0, 0, 0, THERE)
    now = 101.0
    assert selection.observe(roamed, now) == []
    assert selection.tick(now) is Due.CHECK
    now += REASSERT_GAPS[0]
    assert selection.observe(roamed, now) == []  # the peer may have left
    here.answered(0.02, now)
    assert not selection.wants(here, now)
    assert selection.observe(roamed, now) == []  # it may not know yet which pair is used
    selection.nominated(selection.nomination)
    guard, use = selection.observe(roamed, now)
    assert guard == Guard("peer", THERE, HERE)
    assert isinstance(use, UseEndpoint)
    assert use.endpoint == HERE


def test_a_peer_that_goes_on_sending_from_elsewhere_is_followed_in_the_end():
    """Its host chooses the address it sends from, not the peer."""
    selection, here = chosen(controlling=True)
    selection.nominated(selection.nomination)
    roamed = TunnelObserved("peer", 1.0, 0, 0, THERE)
    now, brought_back = 101.0, 0
    for _ in range(60):
        now += 0.5
        elsewhere = working(THERE, now + 0.1)
        if selection.roamed(elsewhere, now):
            selection.follow(THERE)
        if selection.wants(elsewhere, now):
            break
        selection.tick(now)
        here.answered(0.02, now)
        selection.wants(here, now)
        brought_back += len(selection.observe(roamed, now))
        selection.lift_guard(now)
    assert brought_back >= len(REASSERT_GAPS)
    assert now < 120.0
