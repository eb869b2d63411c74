"""Mailboxes: both sides compute the same one, and nobody can tell whose it is."""

from __future__ import annotations

from nostrvpn.identity.keys import RootSecret
from nostrvpn.nostr.nip44 import conversation_key
from nostrvpn.signaling.mailboxes import invite_mailbox, pair_mailbox, pair_mailboxes_around

ALICE, BOB = RootSecret(b"\x01" * 32), RootSecret(b"\x02" * 32)
NOON = 20_000 * 86_400 + 43_200


def test_both_sides_compute_the_same_mailbox():
    here = conversation_key(ALICE.reveal(), BOB.public_key)
    there = conversation_key(BOB.reveal(), ALICE.public_key)
    assert pair_mailbox(here, BOB.public_key, NOON) == pair_mailbox(there, BOB.public_key, NOON)


def test_recipient_day_and_pair_each_make_another_mailbox():
    shared = conversation_key(ALICE.reveal(), BOB.public_key)
    other = conversation_key(RootSecret(b"\x03" * 32).reveal(), BOB.public_key)
    seen = {
        pair_mailbox(shared, BOB.public_key, NOON).public_key,
        pair_mailbox(shared, ALICE.public_key, NOON).public_key,
        pair_mailbox(shared, BOB.public_key, NOON + 86_400).public_key,
        pair_mailbox(other, BOB.public_key, NOON).public_key,
        invite_mailbox(b"s" * 16).public_key,
        invite_mailbox(b"t" * 16).public_key,
        ALICE.public_key,
        BOB.public_key,
    }
    assert len(seen) == 8


def test_around_midnight_both_days_are_listened_to():
    shared, me = conversation_key(ALICE.reveal(), BOB.public_key), ALICE.public_key
    midnight = 20_000 * 86_400
    assert len(pair_mailboxes_around(shared, me, NOON)) == 1
    for offset in (-1800, 0, 1800):
        around = pair_mailboxes_around(shared, me, midnight + offset)
        assert pair_mailbox(shared, me, midnight - 1) in around
        assert pair_mailbox(shared, me, midnight + 1) in around


def test_the_secret_owns_the_address_and_does_not_show():
    mailbox = invite_mailbox(b"s" * 16)
    assert RootSecret(mailbox.secret).public_key == mailbox.public_key
    assert mailbox.secret.hex() not in repr(mailbox)
