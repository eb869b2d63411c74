# mypy: allow-untyped-calls
from typing import Any

from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.rounds import Rounds


def moment(now):
    return Moment(now, 0.0, Entropy(str(now).encode()))


def test_rounds_back_off_to_hourly_and_news_start_over():
    rounds: Any = Rounds(controlling=True)
    now, gaps = 1000.0, []
    for _ in range(7):
        rounds.failed(now)
        gaps.append(rounds.retry_at - now)
        now = rounds.retry_at
        assert rounds.due(now)
        assert not rounds.due(now)
    assert gaps == [35, 60, 300, 1800, 3600, 3600, 3600]
    rounds.reset()
    rounds.failed(now)
    assert rounds.retry_at == now + 35


def test_a_call_is_repeated_until_it_is_answered_and_put_off_if_it_is_not():
    rounds: Any = Rounds(controlling=True)
    rounds.call(moment(1000.0))
    number = rounds.next_call(1000.0)
    assert rounds.next_call(1000.1) is None
    assert rounds.next_call(1000.3) == number
    assert not rounds.answered(number ^ 1)
    assert rounds.answered(number)
    assert not rounds.answered(number)
    assert rounds.deadline is None
    rounds.call(moment(2000.0))
    calls = [rounds.next_call(2000.0 + n) for n in range(20)]
    assert len([call for call in calls if call is not None]) == 5
    assert not rounds.answered(calls[0])
    assert rounds.retry_at is not None


def test_a_number_is_obeyed_once_and_calls_cannot_come_in_a_storm():
    rounds = Rounds(controlling=False)
    assert rounds.called(7, 1000.0)
    assert not rounds.called(7, 1000.2)
    assert not rounds.called(8, 1001.0)
    assert rounds.called(9, 1003.0)
    assert not rounds.called(None, 1009.0)


def test_a_path_that_keeps_breaking_is_looked_for_ever_later():
    rounds: Any = Rounds(controlling=True)
    gaps = []
    for n in range(5):
        rounds.lost(1000.0 + n * 400)
        gaps.append(rounds.retry_at - 1000.0 - n * 400)
        rounds.succeeded()
    assert gaps == [1, 35, 300, 1800, 1800]
    rounds.lost(10_000.0)
    assert rounds.retry_at == 10_001.0
