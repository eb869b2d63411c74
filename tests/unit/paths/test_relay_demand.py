# mypy: allow-untyped-calls
"""One relay at first and from one side; two where no direct path is found; none when nobody asks."""

from __future__ import annotations

from nostrvpn.paths.relay_demand import RelayDemand


def demand(*, controlling=True):
    made = RelayDemand(controlling=controlling)
    made.want(100.0, wanted=True)
    return made


def test_the_controlling_side_asks_one_relay_at_once_and_the_spare_one_later():
    one = demand()
    assert one.count(100.0, live=False, direct=False) == 1
    assert one.deadline == 100.5
    assert one.count(100.5, live=False, direct=False) == 2
    assert one.deadline is None
    assert one.count(200.0, live=True, direct=True) == 1


def test_the_controlled_side_leaves_it_to_the_other_first():
    one = demand(controlling=False)
    assert one.count(100.0, live=False, direct=False) == 0
    assert one.deadline == 100.5
    assert one.count(100.5, live=False, direct=False) == 2
    live = demand(controlling=False)
    assert live.count(109.0, live=True, direct=True) == 0
    assert live.count(110.0, live=True, direct=True) == 1


def test_a_known_peer_is_tried_directly_first():
    one = demand()
    one.be_patient(100.0)
    assert one.count(100.29, live=False, direct=False) == 0
    assert one.deadline == 100.3
    assert one.count(100.3, live=False, direct=False) == 1


def test_what_nobody_wants_is_let_go_once():
    one = demand()
    one.want(110.0, wanted=False)
    one.want(150.0, wanted=False)
    assert not one.wanted
    assert one.count(150.0, live=True, direct=True) == 0
    assert one.deadline == 170.0
    assert not one.take_release(169.0)
    assert one.take_release(170.0)
    assert not one.take_release(171.0)
    assert one.deadline is None
    one.want(180.0, wanted=True)
    assert one.count(180.0, live=False, direct=False) == 1
