"""What admins do by the clock, for a network key that somebody has who should not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nostrvpn.machine import Entropy, Moment
from nostrvpn.mesh import fold as fold_module
from nostrvpn.mesh import roster as roster_module
from nostrvpn.mesh.effects import MakeKey
from nostrvpn.mesh.ledger import Ledger
from nostrvpn.mesh.roster import Roster
from nostrvpn.mesh.upkeep import LEAK_S, RANK_S, SETTLE_S, Upkeep
from tests.unit.mesh.stories import (
    KEYS,
    SECRETS,
    WALL,
    added,
    admitted,
    forge,
    grown,
    sign,
    token_fields,
)


def at(seconds: float) -> Moment:
    return Moment(seconds, WALL + seconds, Entropy(str(seconds).encode()))


def duty(roster: Roster, who: int = 0) -> tuple[Ledger, Upkeep]:
    ledger = Ledger(SECRETS[who])
    ledger.adopt(roster)
    return ledger, Upkeep(ledger)


def ticks(upkeep: Upkeep, begin: float, end: float) -> Iterator[tuple[float, int]]:
    """Let an admin do all that is due; yield when new keys were made, and how many."""
    for _ in range(1000):
        due = upkeep.deadline
        if due is None or due > end:
            return
        now = max(begin, due)
        begin = now
        keys = [effect for effect in upkeep.tick(at(now)) if isinstance(effect, MakeKey)]
        if keys:
            yield now, len(keys)
    raise AssertionError("it is due again and again")


def lied_to(roster: Roster, who: int) -> Roster:
    """Member 1 admits somebody by the token for one that is used up already."""
    event = forge(roster, 1, roster.heads, "admit", admitted(roster, who))
    return roster.merge([event])


def used_up() -> Roster:
    roster = sign(grown("member"), 0, "token", token_fields(uses=1))
    return sign(roster, 1, "admit", admitted(roster, 5))


def test_for_admissions_in_vain_there_is_a_new_key_an_hour_at_most() -> None:
    ledger, upkeep = duty(lied_to(used_up(), 6))
    assert [made for _, made in ticks(upkeep, 100, 200)] == [1]
    assert ledger.roster is not None
    assert ledger.roster.is_key_former is False
    assert not ledger.roster.leaks
    times: list[float] = []
    for number in range(7, 12):
        ledger.adopt(lied_to(ledger.roster, number))
        assert ledger.roster.needs_rekey
        times += [
            now
            for now, _ in ticks(upkeep, 200 + 1200.0 * (number - 7), 200 + 1200.0 * (number - 6))
        ]
    assert [now - 100 - SETTLE_S for now in times] == pytest.approx(
        [
            LEAK_S,
        ],
        abs=SETTLE_S,
    )
    # Somebody who leaves does not wait for that.
    ledger.adopt(sign(ledger.roster, 1, "remove", {"who": KEYS[1], "key": None}))
    [(now, _)] = ticks(upkeep, 6300.0, 6300.0 + SETTLE_S)
    assert now == 6300.0 + SETTLE_S


def test_of_two_admins_the_second_counts_the_hour_from_the_firsts_key() -> None:
    roster = sign(used_up(), 0, "add", added(9, "admin"))
    owner, first = duty(lied_to(roster, 6))
    admin, second = duty(lied_to(roster, 6), 9)
    begin = 100.0
    first.tick(at(begin))
    second.tick(at(begin))
    [(one, (_, ledger)), (_, (other, told))] = sorted(
        (
            (upkeep.deadline, (upkeep, ledger))
            for upkeep, ledger in ((first, owner), (second, admin))
        ),
        key=lambda item: item[0] or 0.0,
    )
    assert (one, other.deadline) == (begin + SETTLE_S, begin + SETTLE_S + RANK_S)
    assert one is not None
    leader = first if ledger is owner else second
    assert leader.tick(at(one))
    assert ledger.roster is not None
    told.adopt(ledger.roster)
    assert not list(ticks(other, one, one + 100))
    told.adopt(lied_to(ledger.roster, 7))
    assert [now for now, _ in ticks(other, one + 100, one + 2 * LEAK_S)] == [
        pytest.approx(one + LEAK_S, abs=RANK_S)
    ]


def test_in_a_full_log_a_new_key_is_not_tried_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (fold_module, roster_module):
        monkeypatch.setattr(module, "MAX_OPERATIONS", 60)
    monkeypatch.setattr(roster_module, "ROOM", 57)
    roster = sign(grown("member", "admin"), 0, "token", token_fields())
    roster = sign(roster, 1, "remove", {"who": KEYS[1], "key": None})
    for number in range(60 - roster.version):
        roster = sign(roster, 2, "name", {"who": KEYS[2], "name": f"n{number}"})
    ledger, upkeep = duty(roster)
    assert roster.needs_rekey
    assert list(ticks(upkeep, 100, 100_000)) == []
    # When there is room again, it is made.
    ledger.adopt(sign(roster, 0, "remove", {"who": KEYS[2], "key": "1" * 16}))
    assert [made for _, made in ticks(upkeep, 100_000, 100_100)] == [1]
    assert ledger.roster is not None
    assert not ledger.roster.needs_rekey
