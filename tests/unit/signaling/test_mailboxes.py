"""Mailboxes: both sides compute the same one, and nobody can tell whose it is."""

from __future__ import annotations

from nostrvpn.identity.keys import RootSecret
from nostrvpn.nostr.nip44 import conversation_key
from nostrvpn.signaling.mailboxes import (
    invite_mailbox,
    network_board,
    node_inbox,
    noticeboard_mailboxes_around,
    pair_mailbox,
    pair_mailboxes_around,
    reply_mailbox,
    token_mailbox,
)

ALICE, BOB = RootSecret(b"\x01" * 32), RootSecret(b"\x02" * 32)
DAY = 20_000
NOON = DAY * 86_400 + 43_200


def test_both_sides_compute_the_same_pair_mailbox():
    here = conversation_key(ALICE.reveal(), BOB.public_key)
    there = conversation_key(BOB.reveal(), ALICE.public_key)
    assert pair_mailbox(here, BOB.public_key, DAY) == pair_mailbox(there, BOB.public_key, DAY)


def test_recipient_day_key_and_pair_each_make_another_mailbox():
    shared = conversation_key(ALICE.reveal(), BOB.public_key)
    other = conversation_key(RootSecret(b"\x03" * 32).reveal(), BOB.public_key)
    seen = [
        pair_mailbox(shared, BOB.public_key, DAY).public_key,
        pair_mailbox(shared, ALICE.public_key, DAY).public_key,
        pair_mailbox(shared, BOB.public_key, DAY + 1).public_key,
        pair_mailbox(other, BOB.public_key, DAY).public_key,
        invite_mailbox(b"s" * 16).public_key,
        invite_mailbox(b"t" * 16).public_key,
        token_mailbox(b"s" * 16).public_key,
        reply_mailbox(b"s" * 16, ALICE.public_key).public_key,
        reply_mailbox(b"s" * 16, BOB.public_key).public_key,
        node_inbox(b"k" * 32, "aa", DAY, ALICE.public_key).public_key,
        node_inbox(b"k" * 32, "aa", DAY, BOB.public_key).public_key,
        node_inbox(b"l" * 32, "aa", DAY, BOB.public_key).public_key,
        network_board(b"k" * 32, "aa", DAY).public_key,
        noticeboard_mailboxes_around(NOON)[0].public_key,
        ALICE.public_key,
        BOB.public_key,
    ]
    assert len(set(seen)) == len(seen)


def test_a_board_and_an_inbox_of_one_key_have_different_salts():
    inbox, board = (
        node_inbox(b"k" * 32, "aa", DAY, BOB.public_key),
        network_board(b"k" * 32, "aa", DAY),
    )
    assert len(inbox.salt) == len(board.salt) == 32
    assert inbox.salt != board.salt
    assert not invite_mailbox(b"s" * 16).salt


def test_around_midnight_both_days_are_listened_to():
    shared, me = conversation_key(ALICE.reveal(), BOB.public_key), ALICE.public_key
    midnight = DAY * 86_400
    assert len(pair_mailboxes_around(shared, me, NOON)) == 1
    for offset in (-1800, 0, 1800):
        around = pair_mailboxes_around(shared, me, midnight + offset)
        assert around == (pair_mailbox(shared, me, DAY - 1), pair_mailbox(shared, me, DAY))


def test_the_secret_owns_the_address_and_does_not_show():
    mailbox = node_inbox(b"k" * 32, "aa", DAY, BOB.public_key)
    assert RootSecret(mailbox.secret).public_key == mailbox.public_key
    for hidden in (mailbox.secret, mailbox.salt):
        assert repr(hidden) not in repr(mailbox)
        assert hidden.hex() not in repr(mailbox)
