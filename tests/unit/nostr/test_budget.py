"""The budget for nonsense."""

from __future__ import annotations

from nostrvpn.nostr.budget import Budget


def test_a_burst_is_forgiven_and_a_stream_is_not() -> None:
    budget = Budget()
    assert all(budget.spend("bad_signature", 0.0) for _ in range(32))
    assert not budget.spend("bad_signature", 0.0)


def test_patience_comes_back_with_time_but_not_without_end() -> None:
    budget = Budget()
    for _ in range(33):
        budget.spend("bad_signature", 0.0)
    assert budget.spend("bad_signature", 1.0)
    left = sum(budget.spend("bad_signature", 1e9) for _ in range(100))
    assert left == 32


def test_duplicates_after_a_reconnect_are_cheap() -> None:
    budget = Budget()
    assert all(budget.spend("duplicate", 0.0) for _ in range(5000))
