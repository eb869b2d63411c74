# mypy: allow-untyped-calls
from nostrvpn.paths.heartbeat import Heartbeat, Pulse


def run(heartbeat, now, until, answer):
    """Tick at each deadline; return (time, pulse) of each; answer checks if told so."""
    log = []
    while heartbeat.deadline is not None and heartbeat.deadline <= until:
        now = max(now, heartbeat.deadline)
        pulse = heartbeat.pulse(now)
        log.append((round(now, 2), pulse))
        if pulse is Pulse.CHECK and answer:
            heartbeat.answered(now + 0.02)
    return log


def test_an_idle_path_is_checked_by_the_controlling_side_on_a_common_grid():
    log = run(started(controlling=True, now=1003.0), 1003.0, 1100.0, answer=True)
    assert log == [(t, Pulse.CHECK) for t in (1025, 1050, 1075, 1100)]


def started(*, controlling, now):
    heartbeat = Heartbeat(controlling=controlling)
    heartbeat.start(now)
    return heartbeat


def test_the_listener_checks_only_when_it_hears_nothing():
    heartbeat = started(controlling=False, now=1000.0)
    checks = []
    for now in range(1000, 1200):
        if now % 25 == 0:
            heartbeat.heard(float(now))
        if heartbeat.pulse(float(now)) is Pulse.CHECK:
            checks.append(now)
    assert checks == []
    log = run(heartbeat, 1200.0, 1210.0, answer=True)
    assert log == [(1210.0, Pulse.CHECK)]


def test_a_path_in_use_is_lost_five_seconds_after_it_broke():
    heartbeat = started(controlling=True, now=1000.0)
    heartbeat.set_active(True, 1000.0)
    log = run(heartbeat, 1000.0, 1100.0, answer=False)
    assert log[:2] == [(1002.0, Pulse.CHECK), (1002.4, Pulse.CHECK)]
    assert log[-1] == (1005.0, Pulse.LOST)
    assert heartbeat.deadline is None


def test_one_lost_answer_is_forgiven():
    heartbeat = started(controlling=True, now=1000.0)
    assert heartbeat.pulse(1025.0) is Pulse.CHECK
    assert heartbeat.pulse(1026.0) is Pulse.CHECK
    assert heartbeat.doubtful
    heartbeat.answered(1026.1)
    assert not heartbeat.doubtful
    assert heartbeat.deadline == 1050.0


def test_a_far_peer_is_not_doubted_before_its_answer_can_come():
    heartbeat = started(controlling=True, now=1000.0)
    heartbeat.set_active(True, 1000.0)
    assert heartbeat.pulse(1002.0) is Pulse.CHECK
    heartbeat.answered(1002.4, 0.4)
    assert heartbeat.pulse(1004.4) is Pulse.CHECK
    assert heartbeat.deadline == 1004.4 + 0.8
    heartbeat.answered(1004.5, 3.0)
    assert heartbeat.pulse(1006.5) is Pulse.CHECK
    assert heartbeat.deadline == 1007.5


def test_doubt_checks_at_once_on_either_side():
    for controlling in (True, False):
        heartbeat = started(controlling=controlling, now=1000.0)
        heartbeat.probe(1001.0)
        assert heartbeat.pulse(1001.0) is Pulse.CHECK
