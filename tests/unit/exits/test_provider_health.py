"""When a WireGuard provider counts as silent, by the counters of its link."""

from __future__ import annotations

from nostrvpn.exits.provider_health import SILENT_S, ProviderHealth


class Link:
    """A link that is looked at every 5 s; ``silent_after``: how long it took to be called silent."""

    def __init__(self) -> None:
        self.health = ProviderHealth()
        self.received, self.sent, self.now = 1_000, 1_000, 0.0
        self.health.seen(self.received, self.sent, self.now)

    def look(self, *, received: int = 0, sent: int = 0) -> bool:
        self.received += received
        self.sent += sent
        self.now += 5.0
        self.health.seen(self.received, self.sent, self.now)
        return self.health.is_silent


def test_what_is_sent_and_never_answered_makes_it_silent_and_any_answer_ends_that() -> None:
    link = Link()
    assert [link.look(sent=1_500) for _ in range(6)] == [False] * 3 + [True] * 3
    assert link.now >= SILENT_S
    assert not link.look(received=92)
    assert not link.look(sent=1_500)


def test_requests_for_new_keys_that_nobody_answers_make_it_silent() -> None:
    link = Link()
    assert [link.look(sent=148) for _ in range(4)][-1]


def test_a_provider_that_only_asks_for_new_keys_hears_nothing() -> None:
    link = Link()
    assert [link.look(sent=1_500, received=148) for _ in range(5)][-1]


def test_keepalives_are_answered_by_nobody_and_prove_nothing() -> None:
    link = Link()
    assert not any(link.look(sent=32) for _ in range(40))


def test_guests_that_send_nothing_prove_nothing() -> None:
    link = Link()
    assert not any(link.look() for _ in range(40))


def test_one_way_traffic_is_answered_by_empty_packets() -> None:
    link = Link()
    assert not any(link.look(sent=100_000, received=32 * (turn % 2)) for turn in range(40))


def test_a_link_that_was_made_anew_is_not_judged_by_the_old_one() -> None:
    link = Link()
    link.look(sent=1_500)
    link.received = link.sent = 0
    assert not any(link.look(sent=100) for _ in range(10))
