# mypy: allow-untyped-calls
"""Endpoints that the peer withdrew, or that WireGuard roamed to; and ports that a router opened."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.budgets import Budget
from nostrvpn.paths.candidates import Candidate, CandidateKind, Surroundings
from nostrvpn.paths.checks import CheckList
from nostrvpn.paths.events import TunnelObserved
from nostrvpn.paths.open_checks import Credentials
from nostrvpn.paths.pair import Pair
from nostrvpn.paths.selection import Due, Selection
from nostrvpn.paths.settings import PathSettings

OLD, NEW = (Endpoint(IPv4Address(f"11.0.0.{n}"), 5) for n in (1, 2))


def working(endpoint, now, *, rank=100, kind=CandidateKind.REFLEXIVE):
    pair = Pair(endpoint, kind, (False, rank, 4, 0))
    pair.answered(0.02, now)
    return pair


def chosen(*, controlling=True):
    selection = Selection("peer", controlling=controlling)
    old = working(OLD, 100.0)
    selection.use(old, 100.0, keep_proof=False, wait=False)
    return selection, old


@pytest.mark.parametrize("controlling", [True, False])
def test_a_withdrawn_endpoint_is_left_for_any_direct_one_that_answers(controlling):
    selection, old = chosen(controlling=controlling)
    new = working(NEW, 101.0, rank=90)
    assert not selection.wants(new, 101.0)
    old.withdrawn_at = 101.0
    relay = working(NEW, 101.0, rank=0, kind=CandidateKind.RELAYED)
    assert not selection.wants(relay, 101.0)
    assert selection.wants(new, 101.0)


def test_an_answer_that_was_asked_for_later_lifts_a_withdrawal():
    pair = working(OLD, 100.0)
    pair.withdrawn_at = 101.0
    pair.answered(0.5, 101.2)
    assert pair.withdrawn
    pair.answered(0.1, 101.3)
    assert not pair.withdrawn


def test_a_genuine_roam_is_followed_and_a_late_packet_is_not():
    selection, old = chosen(controlling=False)
    late = working(NEW, 99.0)
    assert not selection.roamed(late, 110.0)
    fresh = working(NEW, 109.0)
    assert selection.roamed(fresh, 110.0)
    assert selection.roamed(None, 110.0)
    relay = working(NEW, 109.0, rank=0, kind=CandidateKind.RELAYED)
    assert not selection.roamed(relay, 110.0)
    selection.follow(NEW)
    assert not selection.observe(TunnelObserved("peer", 1.0, 0, 0, NEW), 110.0)
    assert selection.tick(110.0) is Due.CHECK
    assert not selection.observe(TunnelObserved("peer", 1.0, 0, 0, NEW), 110.9)
    assert not selection.wants(fresh, 110.1)  # both may live
    assert selection.tick(111.0) is Due.CHECK
    assert selection.wants(fresh, 111.0)
    assert old.works


def test_a_late_packet_is_answered_by_setting_the_endpoint_again():
    selection, old = chosen(controlling=False)
    roamed = TunnelObserved("peer", 1.0, 0, 0, NEW)
    assert not selection.observe(roamed, 110.0)
    assert selection.tick(110.0) is Due.CHECK
    old.answered(0.1, 110.1)
    assert selection.observe(roamed, 110.2)


def check_list():
    checks = CheckList(
        controlling=True, tie_breaker=1, settings=PathSettings(), probes=Budget(1.0, 60)
    )
    checks.authorize(Credentials("them:us", "p" * 22))
    kinds = ((CandidateKind.REFLEXIVE, OLD), (CandidateKind.MAPPED, NEW))
    candidates = tuple(Candidate(kind, endpoint, 1) for kind, endpoint in kinds)
    checks.set_remote(candidates, Surroundings(versions=frozenset({4})))
    return checks, candidates


def sent(checks, now):
    return {effect.destination for effect in checks.tick(Moment(now, 0.0, Entropy(b"x")))}


def test_what_a_router_opened_is_not_held_back():
    checks, _ = check_list()
    checks.begin(100.0, hold=0.7, keep=None)
    assert sent(checks, 100.0) == {NEW}
    assert OLD in sent(checks, 100.7)


def test_behind_a_hard_nat_with_an_opened_port_nothing_leaves_before_the_peers_check():
    checks, _ = check_list()
    checks.let_come = True
    checks.open_nats(100.0)
    checks.begin(100.0, hold=0.0, keep=None)
    assert sent(checks, 100.0) == set()
    checks.trigger(OLD, 100.1)
    checks.release(100.1)
    assert sent(checks, 100.1) == {OLD, NEW}
    bounded, _ = check_list()
    bounded.let_come = True
    bounded.begin(100.0, hold=0.0, keep=None)
    assert sent(bounded, 100.5) == {OLD, NEW}


def test_an_address_that_is_named_no_more_is_withdrawn_with_what_was_learnt_of_it():
    checks, candidates = check_list()
    learnt = Endpoint(OLD.ip, 777)
    checks.trigger(learnt, 100.0)
    checks.withdraw(candidates, candidates[1:], 101.0)
    withdrawn = {endpoint for endpoint, pair in checks.pairs.items() if pair.withdrawn}
    assert withdrawn == {OLD, learnt}
    checks.withdraw(candidates[1:], candidates, 102.0)
    assert not checks.pairs[OLD].withdrawn
