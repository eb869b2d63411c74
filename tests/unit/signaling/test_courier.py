"""The courier: what is sealed opens once, at the right place and time, and nothing else does."""

from __future__ import annotations

import dataclasses

import pytest

from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Entropy, Moment
from nostrvpn.nostr.event import encode_json, event_json
from nostrvpn.nostr.nip59 import BLUR_S, EPHEMERAL_WRAP, STORED_WRAP
from nostrvpn.signaling.courier import (
    LIVE_SKEW_S,
    SENDER_BURST,
    STORED_AGE_S,
    Courier,
)
from nostrvpn.signaling.mailboxes import invite_mailbox, node_inbox, token_mailbox
from nostrvpn.signaling.messages import MAX_MESSAGE, Message, MessageType

ALICE, BOB, EVE = (RootSecret(bytes([i]) * 32) for i in (1, 2, 3))
NET = "ab" * 32
NOON = 20_000 * 86_400 + 43_200


def at(seconds: float = 0.0) -> Moment:
    return Moment(seconds, NOON + seconds, Entropy(str(seconds).encode()))


def courier(secret: RootSecret) -> Courier:
    return Courier(secret.reveal(), secret.public_key)


@pytest.fixture
def pair():
    alice, bob = courier(ALICE), courier(BOB)
    mailbox = node_inbox(b"k" * 32, "00" * 8, 20_000, BOB.public_key)
    bob.listen({mailbox.public_key: mailbox})
    return alice, bob, mailbox


def seal(pair, moment=None, *, kind=MessageType.DESCRIBE, body=None, expires_s=None, seq=None):
    alice, _, mailbox = pair
    moment = moment or at()
    message = Message(kind, NET, seq or alice.next_seq(moment), body or {"a": 1})
    return alice.seal(BOB.public_key, mailbox, message, moment, expires_s=expires_s)


def test_a_live_message_opens_once_by_either_wrap(pair):
    _, bob, _ = pair
    wraps = seal(pair)
    assert set(wraps) == {EPHEMERAL_WRAP, STORED_WRAP}
    delivery = bob.open(wraps[EPHEMERAL_WRAP], at(1))
    assert delivery is not None
    assert delivery.sender == ALICE.public_key
    assert delivery.message.body == {"a": 1}
    assert bob.open(wraps[STORED_WRAP], at(1)) is None
    assert bob.open(wraps[EPHEMERAL_WRAP], at(1)) is None
    assert not bob.dropped


def test_wraps_show_no_npub_and_are_dated_now(pair):
    for wrap in seal(pair).values():
        assert abs(wrap.created_at - NOON) <= BLUR_S + 1
        text = repr(wrap)
        for secret in (ALICE, BOB):
            assert secret.public_key not in text
            assert secret.npub not in text
        assert NET not in text


def test_the_stored_wrap_expires(pair):
    wraps = seal(pair, expires_s=3600)
    assert set(wraps) == {STORED_WRAP}
    wrap = wraps[STORED_WRAP]
    assert wrap.tag_values("expiration") == (str(wrap.created_at + 3600),)


def test_stored_messages_open_late_and_live_ones_do_not(pair):
    _, bob, _ = pair
    wraps = seal(pair)
    assert bob.open(wraps[EPHEMERAL_WRAP], at(LIVE_SKEW_S + 1)) is None
    assert bob.dropped["clock_skew"] == 1
    assert ALICE.public_key in bob.clock_offsets
    assert bob.open(wraps[STORED_WRAP], at(LIVE_SKEW_S + 2)) is not None
    assert ALICE.public_key not in bob.clock_offsets


def test_a_message_from_the_future_is_refused(pair):
    _, bob, _ = pair
    wraps = seal(pair, at(LIVE_SKEW_S + 5), expires_s=100)
    assert bob.open(wraps[STORED_WRAP], at()) is None
    assert bob.dropped["clock_skew"] == 1


def test_a_stored_message_grows_too_old(pair):
    _, bob, _ = pair
    wraps = seal(pair, expires_s=100)
    assert bob.open(wraps[STORED_WRAP], at(STORED_AGE_S + 1)) is None


def test_an_older_description_does_not_replace_a_newer(pair):
    _, bob, _ = pair
    old, new = seal(pair, at(0)), seal(pair, at(1))
    assert bob.open(new[EPHEMERAL_WRAP], at(1)) is not None
    assert bob.open(old[EPHEMERAL_WRAP], at(1)) is None
    assert bob.dropped["old_message"] == 1


def test_joins_and_rosters_may_arrive_in_any_order(pair):
    _, bob, _ = pair
    old = seal(pair, at(0), kind=MessageType.ROSTER)
    new = seal(pair, at(1), kind=MessageType.ROSTER)
    assert bob.open(new[EPHEMERAL_WRAP], at(1)) is not None
    assert bob.open(old[EPHEMERAL_WRAP], at(1)) is not None


def test_sequence_numbers_grow_even_when_the_clock_goes_back():
    alice = Courier(ALICE.reveal(), ALICE.public_key, reserved_seq=NOON * 1000 + 60_000)
    numbers = [alice.next_seq(at(seconds)) for seconds in (0, 5, -100, -100, 200)]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > NOON * 1000 + 60_000


def test_a_flood_of_one_sender_is_bounded_and_spares_the_others(pair):
    _, bob, mailbox = pair
    eve = courier(EVE)
    opened = 0
    for i in range(int(SENDER_BURST) + 20):
        message = Message(MessageType.ROSTER, NET, i + 1, {})
        wraps = eve.seal(BOB.public_key, mailbox, message, at(), expires_s=60)
        opened += bob.open(wraps[STORED_WRAP], at()) is not None
    assert opened == SENDER_BURST
    assert bob.dropped["sender_flood"] == 20
    assert bob.open(seal(pair)[EPHEMERAL_WRAP], at()) is not None
    late = Message(MessageType.ROSTER, NET, 999, {})
    wraps = eve.seal(BOB.public_key, mailbox, late, at(60), expires_s=60)
    assert bob.open(wraps[STORED_WRAP], at(60)) is not None


def test_what_is_not_for_us_or_not_whole_is_counted(pair):
    alice, bob, mailbox = pair
    wrap = seal(pair)[EPHEMERAL_WRAP]
    assert courier(EVE).open(wrap, at()) is None
    alice.listen({mailbox.public_key: mailbox})
    assert alice.open(wrap, at()) is None
    assert alice.dropped == {"own_message": 1}
    for content in (wrap.content[:-8], "", "AAAA", wrap.content.swapcase()):
        assert bob.open(dataclasses.replace(wrap, content=content), at()) is None
    assert bob.open(dataclasses.replace(wrap, tags=()), at()) is None
    assert sum(bob.dropped.values()) == 5


# Bytes of an event: the default of strfry, whose operators seldom raise it.
RELAYS_TAKE = 65_536


def test_the_largest_message_fits_all_layers_and_relays(pair):
    _, bob, _ = pair
    body = {"x": "é" * (MAX_MESSAGE // 2 - 100)}
    wrap = seal(pair, body=body)[EPHEMERAL_WRAP]
    assert len(encode_json(event_json(wrap)).encode()) < RELAYS_TAKE
    delivery = bob.open(wrap, at())
    assert delivery is not None
    assert delivery.message.body == body


@pytest.mark.parametrize(
    ("kind", "is_first_contact", "code"),
    [
        (MessageType.DESCRIBE, True, "wrong_place"),
        (MessageType.ROSTER, True, "wrong_place"),
        (MessageType.JOIN, False, "wrong_place"),
        (MessageType.REFUSED, False, "wrong_place"),
        (MessageType.WELCOME, True, "wrong_place"),  # without the exchange of ephemeral keys
        (MessageType.PRESENCE, False, "wrong_place"),
        (MessageType.NEWS, False, "wrong_place"),
    ],
)
def test_each_message_belongs_in_its_kind_of_mailbox(kind, is_first_contact, code):
    alice, bob = courier(ALICE), courier(BOB)
    inbox = node_inbox(b"k" * 32, "00" * 8, 20_000, BOB.public_key)
    mailbox = invite_mailbox(b"s" * 16) if is_first_contact else inbox
    bob.listen({mailbox.public_key: mailbox})
    wraps = alice.seal(BOB.public_key, mailbox, Message(kind, NET, 1, {}), at(), expires_s=60)
    assert bob.open(wraps[STORED_WRAP], at()) is None
    assert bob.dropped == {code: 1}


def test_any_holder_of_a_tokens_mailbox_reads_an_application():
    alice = courier(ALICE)
    mailbox = token_mailbox(b"t" * 32)
    message = Message(MessageType.JOIN, NET, 1, {"a": 1})
    wraps = alice.seal(BOB.public_key, mailbox, message, at(), expires_s=60)
    for secret in (BOB, EVE):
        reader = courier(secret)
        reader.listen({mailbox.public_key: mailbox})
        delivery = reader.open(wraps[STORED_WRAP], at())
        assert delivery is not None
        assert (delivery.sender, delivery.message.body) == (ALICE.public_key, {"a": 1})


def test_wraps_come_in_three_sizes(pair):
    _, bob, _ = pair
    sizes = set()
    for length in (0, 10, 700, 1_400, 2_500, 5_000, 7_000, 9_000, 16_000, 24_000):
        wraps = seal(pair, at(length), body={"x": "a" * length})
        sizes |= {len(wrap.content) for wrap in wraps.values()}
        assert bob.open(wraps[EPHEMERAL_WRAP], at(length)) is not None
    assert len(sizes) == 3
