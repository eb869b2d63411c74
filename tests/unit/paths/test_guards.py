# mypy: allow-untyped-calls
from ipaddress import IPv4Address

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.events import Guard, Unguard
from nostrvpn.paths.guards import GUARD_FOR, PathGuard

A, B, C = (Endpoint(IPv4Address(f"11.0.0.{n}"), n) for n in (1, 2, 3))


def test_a_change_is_guarded_for_a_while():
    guard = PathGuard("peer")
    assert guard.change(None, A, 0.0) == []
    assert guard.change(A, A, 0.0) == []
    assert guard.change(A, B, 0.0) == [Guard("peer", A, B)]
    assert guard.tick(GUARD_FOR - 0.1) == []
    assert guard.tick(GUARD_FOR) == [Unguard("peer")]
    assert guard.tick(99.0) == []
    assert guard.deadline is None


def test_going_back_lifts_the_guard_at_once_and_going_on_replaces_it():
    guard = PathGuard("peer")
    guard.change(A, B, 0.0)
    assert guard.change(B, A, 1.0) == [Unguard("peer")]
    guard.change(A, B, 2.0)
    assert guard.change(B, C, 3.0) == [Guard("peer", B, C)]
    assert guard.lift() == [Unguard("peer")]
    assert guard.lift() == []
