"""A new key reaches every remaining member, and nobody else."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Entropy
from nostrvpn.signaling.courier import Courier
from nostrvpn.signaling.mailboxes import network_board
from nostrvpn.signaling.messages import MAX_MESSAGE, Message, MessageType, render_message
from nostrvpn.signaling.network_key import make_key
from nostrvpn.signaling.rekey import ENTRIES_PER_MESSAGE, entry_key, open_rekey, rekey_bodies

ALICE, BOB, EVE = (RootSecret(bytes([i]) * 32) for i in (1, 2, 3))
DAY = 20_000
BOARD = network_board(b"k" * 32, "00" * 8, DAY)
KEY = make_key("5a" * 8, DAY * 86_400 + 43_200.0, Entropy(b"new"))


def courier(secret: RootSecret) -> Courier:
    return Courier(secret.reveal(), secret.public_key)


def opened(reader: RootSecret, author: RootSecret, body: object):
    return open_rekey(
        body, reader.public_key, courier(reader).entry_keys_of(author.public_key, BOARD)
    )


def handed(*recipients: RootSecret) -> Any:
    secrets = courier(ALICE).entry_keys([r.public_key for r in recipients], BOARD)
    return json.loads(json.dumps(list(rekey_bodies(KEY, secrets))))


def test_who_stays_gets_the_key_and_who_was_removed_does_not():
    (body,) = handed(BOB)
    assert opened(BOB, ALICE, body) == KEY
    assert opened(EVE, ALICE, body) is None
    assert opened(BOB, EVE, body) is None  # nobody else can have written it
    assert len(base64.b64decode(body["entries"])) == 48
    assert KEY.secret.hex() not in json.dumps(body)


def test_the_removed_ones_knowledge_of_the_key_before_does_not_help():
    """The entry key needs the pair's static key; the board's salt alone, which EVE has, is no key."""
    (body,) = handed(BOB)
    guesses = [entry_key(bytes(32), BOARD.salt, None), BOARD.salt, BOARD.secret]
    assert open_rekey(body, BOB.public_key, guesses) is None


def test_another_id_or_day_or_a_changed_entry_opens_nothing():
    (body,) = handed(BOB)
    packed = bytearray(base64.b64decode(body["entries"]))
    packed[5] ^= 1
    for change in (
        {"id": "f" * 16},
        {"day": KEY.day + 1},
        {"entries": base64.b64encode(bytes(packed)).decode()},
    ):
        assert opened(BOB, ALICE, body | change) is None


def test_a_thousand_members_need_few_messages_and_each_finds_its_own():
    secrets = {f"{i:064x}": bytes([i % 256, i // 256]) * 16 for i in range(1_000)}
    bodies = list(rekey_bodies(KEY, secrets))
    assert len(bodies) == -(-1_000 // ENTRIES_PER_MESSAGE)
    for body in bodies:
        message = Message(MessageType.NEWS, "ab" * 32, 1, {"rekey": body})
        assert len(render_message(message)) < MAX_MESSAGE
    for number in (0, 499, 500, 999):
        name = f"{number:064x}"
        found = [open_rekey(body, name, [secrets[name]]) for body in bodies]
        assert [key for key in found if key is not None] == [KEY]


@pytest.mark.parametrize(
    "change",
    [
        {"entries": "!"},
        {"entries": ""},
        {"entries": "AAAA"},
        {"entries": base64.b64encode(bytes(48 * (ENTRIES_PER_MESSAGE + 1))).decode()},
        {"id": "zz"},
        {"id": 5},
        {"day": -1},
        {"day": "x"},
    ],
)
def test_bent_entries_are_refused(change):
    (body,) = handed(BOB)
    with pytest.raises(PeerMisbehaved):
        opened(BOB, ALICE, body | change)
    with pytest.raises(PeerMisbehaved):
        opened(BOB, ALICE, [])
