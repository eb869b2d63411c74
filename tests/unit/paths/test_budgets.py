# mypy: allow-untyped-calls
from nostrvpn.paths.budgets import MAX_KEYS, Budget


def test_a_burst_and_then_the_rate():
    budget = Budget(rate=2, burst=3)
    assert [budget.spend("a", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert budget.spend("b", 10.0)
    assert [budget.spend("a", 11.0) for _ in range(3)] == [True, True, False]
    assert not budget.spend("a", 5.0)


def test_the_memory_is_bounded():
    budget = Budget(rate=1, burst=1)
    for key in range(5 * MAX_KEYS):
        budget.spend(key, 0.0)
    assert len(budget._buckets) == MAX_KEYS
