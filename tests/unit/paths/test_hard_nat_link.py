# mypy: disable-error-code="union-attr,arg-type"
"""A link's searches: within the budget, a Pin with the hit, and each news once."""

from __future__ import annotations

from nostrvpn.paths.events import Pin
from nostrvpn.paths.hard_nat.link_search import LinkSearch
from nostrvpn.paths.hard_nat.roles import PEER_GAP, SearchBudget
from nostrvpn.paths.hard_nat.task import SearchTask
from nostrvpn.paths.open_checks import Credentials
from nostrvpn.paths.snapshot import Mapping
from nostrvpn.stun.binding import parse_stun, render_response
from tests.unit.paths.test_hard_nat import PASSWORD, PEER, PLAN, SERVER, answer_all, moment


def task(own, peer):
    credentials = Credentials("them:us", PASSWORD)
    return SearchTask(
        controlling=True,
        own=own,
        peer=peer,
        target=PEER,
        servers=(SERVER,),
        credentials=credentials,
        tie_breaker=1,
    )


HARD = task(Mapping.PREDICTABLE, Mapping.INDEPENDENT)
EASY = task(Mapping.INDEPENDENT, Mapping.PREDICTABLE)


def test_the_hard_side_tells_a_plan_once_and_pins_the_port_that_was_hit():
    budget = SearchBudget()
    link = LinkSearch("peer", budget)
    burst = link.begin(HARD, moment(100.0))
    assert link.begin(HARD, moment(100.0)) == []
    assert not LinkSearch("other", budget).begin(HARD, moment(100.0))
    assert answer_all(link, burst, (500, 502, 504, 506), 100.1) == []
    assert link.plan is not None
    assert (link.take_news(), link.take_news()) == (True, False)
    hit = burst[1].source_port
    assert link.listens(hit)
    assert not link.listens(51820)
    (back,) = link.asked(PEER, hit, moment(100.5))
    assert link.knows(back.data[8:20])
    link.answered(parse_stun(render_response(back.data[8:20], PEER, PASSWORD)), PEER, moment(100.6))
    effects = []
    while link.deadline is not None:
        effects += link.tick(moment(link.deadline))
    assert effects == [Pin("peer", hit, PEER)]
    assert (link.take_found(), link.take_found()) == (PEER, None)
    assert not link.running
    assert not link.listens(hit)
    assert LinkSearch("other", budget).begin(HARD, moment(110.0))


def test_the_easy_side_follows_a_plan_without_having_begun_and_pins_nothing():
    link = LinkSearch("peer", SearchBudget())
    (check,) = link.told(PLAN, EASY, moment(100.0))
    assert link.attempts == 1
    answer = parse_stun(render_response(check.data[8:20], check.destination, PASSWORD))
    assert link.answered(answer, check.destination, moment(100.1)) == []
    assert link.take_found() == check.destination
    while link.deadline is not None:
        assert not any(isinstance(effect, Pin) for effect in link.tick(moment(link.deadline)))
    assert link.told(PLAN, EASY, moment(400.0)) == []


def test_a_search_in_vain_leaves_its_reason_and_the_next_one_waits():
    link = LinkSearch("peer", SearchBudget())
    link.begin(HARD, moment(100.0))
    while link.deadline is not None:
        link.tick(moment(link.deadline))
    assert "STUN" in link.reason
    assert link.begin(HARD, moment(200.0)) == []
    assert link.begin(HARD, moment(100.0 + PEER_GAP)) != []
    link.stop()
    assert not link.running
    assert link.deadline is None


def test_who_waits_for_a_plan_in_vain_takes_part_when_it_comes():
    link = LinkSearch("peer", SearchBudget())
    assert link.begin(EASY, moment(100.0)) == []
    while link.deadline is not None:
        assert link.tick(moment(link.deadline)) == []
    assert link.reason == "the peer told no plan"
    assert link.told(PLAN, EASY, moment(160.0)) != []
    assert link.attempts == 1


def test_after_six_searches_in_vain_none_is_asked_for_any_more():
    link, asked, now = LinkSearch("peer", SearchBudget()), [], 100.0
    for _ in range(8):
        link.begin(HARD, moment(now))
        while link.deadline is not None:
            link.tick(moment(link.deadline))
        asked.append(link.again_at)
        now += PEER_GAP
    assert asked[:6] == [700.0, 1300.0, 1900.0, 2500.0, 3100.0, None]
    assert asked[6:] == [None, None]
