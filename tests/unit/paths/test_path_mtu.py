"""The search for a path's MTU, in virtual time, over paths that lose packets, shrink and grow."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.path_mtu import (
    HEADERS,
    LARGEST_PROBE,
    LEAST,
    PATIENCE,
    RECHECK,
    SETTLE,
    MtuProber,
    Probe,
    inner_mtu,
    pad_check,
)
from nostrvpn.stun.binding import Check, parse_stun, render_check
from nostrvpn.stun.codec import stun

PASSWORD = "p" * 24
# Every search ends: two sizes, and six halvings of what lies between, three tries each.
LONGEST = SETTLE + 8 * 3 * PATIENCE


def moment(now: float, seed: int = 0) -> Moment:
    return Moment(now, now, Entropy(f"{seed} {now}".encode()))


@dataclass
class Path:
    """A prober on a path that carries packets of up to ``mtu`` bytes."""

    mtu: int
    ipv6: bool = False
    loss: float = 0.0
    rtt: float = 0.02
    seed: int = 0
    now: float = 100.0
    sent: list[Probe] = field(default_factory=list)
    changes: list[tuple[float, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prober = MtuProber()
        self.random = random.Random(self.seed)
        self.answers: list[tuple[float, bytes]] = []

    def start(self) -> Path:
        self.prober.start(self.now, ipv6=self.ipv6)
        return self

    def run(self, seconds: float) -> Path:
        """Step the prober and deliver answers until so much time has passed."""
        end = self.now + seconds
        while True:
            due = [at for at, _ in self.answers[:1]]
            due += [self.prober.deadline] if self.prober.deadline is not None else []
            if not due or min(due) > end:
                self.now = end
                return self
            self.now = max(self.now, min(due))
            if self.answers and self.answers[0][0] <= self.now:
                self.prober.answered(self.answers.pop(0)[1], self.now)
            elif (probe := self.prober.due(moment(self.now, self.seed))) is not None:
                self.sent.append(probe)
                if probe.size <= self.mtu and self.random.random() >= self.loss:
                    self.answers.append((self.now + self.rtt, probe.transaction))
            if not self.changes or self.changes[-1][1] != self.prober.mtu:
                self.changes.append((self.now, self.prober.mtu))
            assert len(self.sent) < 1000


def largest(mtu: int, *, ipv6: bool) -> int:
    """The largest size of interest that passes."""
    overhead = 80 if ipv6 else 60
    return inner_mtu(min(mtu, LARGEST_PROBE), ipv6=ipv6) + overhead


@pytest.mark.parametrize("ipv6", [False, True])
def test_every_mtu_is_found_in_bounded_time(ipv6: bool) -> None:
    for mtu in range(LEAST[ipv6] + 15, 1600):
        path = Path(mtu, ipv6).start().run(LONGEST)
        assert path.prober.mtu == largest(mtu, ipv6=ipv6), mtu
        assert path.prober.deadline is None
        assert len(path.sent) <= 24


def test_a_full_path_costs_two_packets() -> None:
    path = Path(1500).start().run(1e6)
    assert [probe.size for probe in path.sent] == [1340, 1500]
    assert path.prober.mtu == 1500
    assert inner_mtu(1500, ipv6=False) == 1440
    assert inner_mtu(1500, ipv6=True) == 1408


def test_probing_waits_until_the_choice_of_a_path_has_settled() -> None:
    path = Path(1500).start().run(SETTLE / 2)
    path.prober.start(path.now, ipv6=False)
    path.run(SETTLE * 0.9)
    assert path.sent == []


@pytest.mark.parametrize("seed", range(200))
def test_loss_and_late_answers_only_cost_size_never_truth(seed: int) -> None:
    draw = random.Random(seed)
    mtu = draw.randrange(600, 1520)
    path = Path(mtu, loss=draw.choice([0.1, 0.3]), rtt=draw.choice([0.02, 0.7, 1.2]), seed=seed)
    path.start().run(120)
    found = path.prober.mtu
    assert found is None or found <= mtu
    assert path.prober.deadline is None
    assert len(path.sent) < 60


def test_loss_of_one_in_ten_is_overcome() -> None:
    found = [Path(1500, loss=0.1, seed=seed).start().run(60).prober.mtu for seed in range(300)]
    assert found.count(1500) > 290


def test_a_slow_path_is_measured_by_late_answers() -> None:
    for mtu in (700, 1124, 1300, 1400, 1500):
        assert Path(mtu, rtt=1.3).start().run(120).prober.mtu == largest(mtu, ipv6=False)


def test_a_peer_that_does_not_answer_padded_checks_leaves_it_unknown() -> None:
    path = Path(500).start().run(1e6)
    assert path.prober.mtu is None
    assert [probe.size for probe in path.sent] == [1340] * 3 + [588] * 3
    assert path.prober.deadline is None


def test_a_narrow_path_is_told_before_its_exact_size_is_known() -> None:
    path = Path(1124).start().run(LONGEST)
    told = [(at, mtu) for at, mtu in path.changes if mtu is not None]
    assert [mtu for _, mtu in told] == [588, 1116]
    assert told[0][0] - 100.0 < SETTLE + 3 * PATIENCE + 0.1


def test_it_is_checked_again_only_in_use() -> None:
    path = Path(1500).start().run(LONGEST)
    path.run(10 * RECHECK)
    assert len(path.sent) == 2
    path.prober.set_active(True, path.now)
    path.run(1.0)
    assert [probe.size for probe in path.sent[2:]] == [1500]
    path.run(3 * RECHECK)
    assert len(path.sent) == 6
    path.prober.set_active(False, path.now)
    path.run(3 * RECHECK)
    assert len(path.sent) == 6


def in_use(mtu: int) -> Path:
    path = Path(mtu).start()
    path.prober.set_active(True, path.now)
    return path.run(LONGEST)


@pytest.mark.parametrize(
    ("before", "after"), [(1500, 1400), (1500, 1124), (1400, 1350), (1124, 700)]
)
@pytest.mark.parametrize("hinted", [True, False])
def test_a_path_that_shrinks_is_found_out(before: int, after: int, hinted: bool) -> None:
    path = in_use(before)
    path.mtu = after
    if hinted:
        path.prober.suspect(path.now)
    path.run(LONGEST if hinted else RECHECK + LONGEST)
    assert path.prober.mtu == largest(after, ipv6=False)


def test_a_path_that_grows_to_a_full_one_is_found_out() -> None:
    path = in_use(1400)
    sent = len(path.sent)
    path.run(RECHECK)
    assert [probe.size for probe in path.sent[sent:]] == [1388, 1500, 1500, 1500]
    path.mtu = 1500
    assert path.run(RECHECK).prober.mtu == 1500


def test_hints_are_followed_at_a_bounded_rate() -> None:
    path = in_use(1500)
    sent = len(path.sent)
    for _ in range(60):
        path.prober.suspect(path.now)
        path.run(1.0)
    assert len(path.sent) - sent <= 3


def test_a_dead_path_does_not_change_the_result() -> None:
    path = in_use(1500)
    path.mtu = 0
    path.prober.suspect(path.now)
    path.run(LONGEST)
    assert path.prober.mtu == 1500


def test_a_new_path_begins_anew_and_old_answers_do_not_count() -> None:
    path = Path(1500, rtt=5.0).start().run(SETTLE + 0.1)
    assert path.sent
    path.prober.start(path.now, ipv6=True)
    assert not path.prober.answered(path.sent[0].transaction, path.now)
    path.prober.stop()
    assert path.prober.deadline is None
    assert path.prober.mtu is None
    assert path.prober.due(moment(path.now + 10)) is None


def test_an_answer_to_another_check_is_not_ours() -> None:
    path = Path(1500).start().run(LONGEST)
    assert not path.prober.answered(b"x" * 12, path.now)


# -- padding --------------------------------------------------------------------------------------


def check(**changes: object) -> bytes:
    values: dict[str, object] = {
        "transaction": b"t" * 12,
        "username": "aaaa:bbbb",
        "password": PASSWORD,
        "priority": 1,
        "controlling": True,
        "tie_breaker": 7,
        "use_candidate": True,
    }
    make: Callable[..., Check] = Check
    return render_check(make(**(values | changes)))


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_padded_check_is_the_same_check(ipv6: bool) -> None:
    for size in range(HEADERS[ipv6] + 200, 1501, 4):
        padded = pad_check(check(), size, PASSWORD, ipv6=ipv6)
        assert len(padded) + HEADERS[ipv6] == size
        message = stun.parse_message(padded)
        assert message.check_message_integrity(PASSWORD.encode())
        assert not message.check_message_integrity(b"another")
        assert message.attributes["USERNAME"] == "aaaa:bbbb"
    parsed = parse_stun(pad_check(check(), 548, PASSWORD, ipv6=ipv6))
    assert parsed.is_authentic(PASSWORD)
    assert parsed.has_fingerprint
    assert parsed.use_candidate


@pytest.mark.parametrize("size", [100, 1341])
def test_what_cannot_be_padded_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="cannot be padded"):
        pad_check(check(), size, PASSWORD, ipv6=False)
    with pytest.raises(ValueError, match="cannot be padded"):
        pad_check(check()[:-24], 1340, PASSWORD, ipv6=False)
