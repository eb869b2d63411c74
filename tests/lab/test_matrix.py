"""Kinds of networks against each other: a representative few of what ``make matrix`` measures whole."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from nostrvpn.lab.matrix import PLACES, RELAY, MatrixLab, expected_path, groups, measure
from nostrvpn.lab.patience import patient
from tests.lab.homes import watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

# One of each sort: in sight of all, easy, hard, twice translated, without IPv4, without UDP. The rest
# of the places, and two of one place, are in the tests of their own: see README.md.
FEW = ("one-to-one", "address-restricted", "symmetric", "double NAT", "IPv6 only", "UDP blocked")


def test_every_pair_is_measured_in_some_small_mesh() -> None:
    seen = set()
    for places, twice in groups():
        names = [place.name for place in (*places, RELAY)]
        assert len(places) * (1 + twice) + 1 <= 9
        seen |= {frozenset((a, b)) for a in names for b in names if a != b or twice}
    wanted = combinations_with_replacement([place.name for place in PLACES], 2)
    assert {frozenset(pair) for pair in wanted} <= seen


def test_hard_against_strict_may_be_direct_and_must_not_be_none() -> None:
    at = {place.name: place for place in PLACES}
    assert expected_path(at["symmetric"], at["port-restricted"]) == "relayed or direct"
    assert expected_path(at["symmetric"], at["symmetric"]) == "relayed"
    assert expected_path(at["symmetric"], at["open"]) == "direct"
    assert expected_path(at["UDP blocked"], at["open"]) == "relayed"


def test_the_few_find_what_is_expected() -> None:
    places = tuple(place for place in PLACES if place.name in FEW)
    with watched(MatrixLab(places, twice=False)) as lab:
        found = measure(lab, print)
    unexpected = [meeting for meeting in found if not meeting.as_expected]
    assert not unexpected, unexpected
