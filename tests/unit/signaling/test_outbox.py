"""Accounting for messages on their way."""

from __future__ import annotations

from nostrvpn.nostr.event import sign_event
from nostrvpn.signaling.outbox import MAX_MESSAGES, Delivery, Outbox
from nostrvpn.signaling.relay_events import Published

EVENT = sign_event(
    bytes(31) + b"\x01", kind=21059, tags=(), content="", created_at=1, aux=bytes(32)
)


def delivery(token: str = "t") -> Delivery:
    return Delivery(token, {21059: EVENT}, 10.0)


def test_the_first_acceptance_is_told_and_the_rest_is_silent() -> None:
    outbox, one = Outbox(), delivery()
    assert outbox.add(one, {"a", "b", "c"}) == []
    assert outbox.answered(one, "a", False, "no") == []
    assert outbox.answered(one, "b", True, "") == [Published("t", 1, (("a", "no"),))]
    assert len(outbox) == 1
    assert outbox.answered(one, "c", True, "") == []
    assert len(outbox) == 0


def test_all_refusals_are_told_together() -> None:
    outbox, one = Outbox(), delivery()
    outbox.add(one, {"a", "b"})
    assert outbox.answered(one, "a", False, "no") == []
    assert outbox.answered(one, "a", False, "again") == []
    assert outbox.answered(one, "b", False, "never") == [
        Published("t", 0, (("a", "no"), ("b", "never")))
    ]
    assert outbox.answered(one, "b", True, "") == []


def test_the_same_token_twice_is_two_messages() -> None:
    outbox, one, two = Outbox(), delivery(), delivery()
    outbox.add(one, {"a"})
    outbox.add(two, {"a"})
    assert len(outbox.answered(one, "a", True, "")) == 1
    assert len(outbox.answered(two, "a", True, "")) == 1


def test_too_many_messages_are_refused_visibly() -> None:
    outbox = Outbox()
    for _ in range(MAX_MESSAGES):
        assert outbox.add(delivery(), {"a"}) == []
    assert outbox.add(delivery("x"), {"a"}) == [
        Published("x", 0, (("", "too many messages on their way"),))
    ]


def test_a_wrap_is_encoded_once() -> None:
    one = delivery()
    assert one.frame(21059) is one.frame(21059)
    assert one.frame(21059).startswith('["EVENT",{"id":"')
    assert one.has_ephemeral
    assert not one.has_stored
