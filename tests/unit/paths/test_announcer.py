# mypy: allow-untyped-calls
from itertools import pairwise

from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.announcer import MAX_SESSIONS, Announcer
from nostrvpn.paths.description import CachedSession


def moment(now):
    return Moment(now, 0.0, Entropy(str(now).encode()))


def test_repetition_thins_out_and_news_make_it_dense_again():
    announcer = Announcer(None, moment(0.0))
    now, times = 0.0, []
    while now < 1500:
        announcer.describe((), None, moment(now))
        times.append(now)
        assert announcer.deadline is not None
        now = announcer.deadline
    gaps = [after - before for before, after in pairwise(times)]
    for gap, wanted in zip(gaps, (1, 2, 4, 8, 16, 32, 60, 120, 300, 300), strict=False):
        assert abs(gap - wanted) <= wanted * 0.06
    announcer.hurry(now)
    assert announcer.deadline == now
    announcer.describe((), None, moment(now))
    assert announcer.deadline - now < 1.1


def test_a_change_is_a_new_generation_and_a_repetition_is_not():
    announcer = Announcer(None, moment(0.0))
    first = announcer.describe((), None, moment(0.0))
    assert first.generation == 1
    assert announcer.describe((), None, moment(1.0)) == first
    answer = announcer.describe((), "f" * 16, moment(2.0))
    assert (answer.generation, answer.session) == (2, first.session)


def test_old_credentials_stay_valid_for_a_while_and_the_answered_ones_longest():
    announcer = Announcer(None, moment(0.0))
    answered = announcer.ufrag
    announcer.acknowledge(announcer.session)
    announcer.describe((), None, moment(0.0))
    for number in range(20):
        announcer.renew(moment(float(number + 1)))
        assert answered in announcer.ufrags
        assert len(announcer.ufrags) <= MAX_SESSIONS
    assert announcer.password(answered)
    assert announcer.password("nobody") is None


def test_a_restart_goes_on_above_what_the_peer_may_have_seen():
    before = Announcer(None, moment(0.0))
    local = before.describe((), None, moment(0.0))
    remote = Announcer(None, moment(5.0)).describe((), local.session, moment(5.0))
    after = Announcer(CachedSession(local, remote, None), moment(9.0))
    assert after.answered
    again = after.describe((), remote.session, moment(9.0))
    assert again.session == local.session
    assert again.generation > local.generation + 100
