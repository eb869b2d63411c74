"""The network's board: members are read by all, once; everybody else is dropped and counted."""

from __future__ import annotations

import dataclasses

import pytest

from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Entropy, Moment
from nostrvpn.nostr.nip59 import STORED_WRAP, open_wrap
from nostrvpn.signaling.board import (
    AUTHOR_BURST,
    BURST,
    NEWS_EXPIRES_S,
    PRESENCE_EXPIRES_S,
    Board,
)
from nostrvpn.signaling.mailboxes import network_board
from nostrvpn.signaling.messages import Message, MessageType
from nostrvpn.signaling.noticeboard import BURST as NOTICES
from nostrvpn.signaling.noticeboard import Noticeboard, post_notice

ALICE, BOB, EVE = (RootSecret(bytes([i]) * 32) for i in (1, 2, 3))
MEMBERS = frozenset({ALICE.public_key, BOB.public_key})
NET = "ab" * 32
DAY = 20_000
NOON = DAY * 86_400 + 43_200
PLACE = network_board(b"k" * 32, "00" * 8, DAY)


def at(seconds: float = 0.0) -> Moment:
    return Moment(seconds, NOON + seconds, Entropy(str(seconds).encode()))


def reader(secret: RootSecret = BOB) -> Board:
    board = Board(secret.reveal(), secret.public_key)
    board.open([PLACE], MEMBERS)
    return board


def posted(secret=ALICE, kind=MessageType.PRESENCE, seq=1, moment=None, body=None):
    board = Board(secret.reveal(), secret.public_key)
    message = Message(kind, NET, seq, body or {"a": 1})
    return board.post(PLACE, message, moment or at())[STORED_WRAP]


def test_a_member_is_read_once_and_its_key_is_told():
    bob, wrap = reader(), posted()
    posting = bob.read(wrap, at(1))
    assert posting is not None
    assert (posting.author, posting.message.body) == (ALICE.public_key, {"a": 1})
    assert posting.key_id == "00" * 8
    assert bob.read(wrap, at(1)) is None
    assert not bob.dropped


def test_ones_own_words_are_no_news():
    alice = reader(ALICE)
    assert alice.read(posted(), at()) is None
    assert not alice.dropped


def test_strangers_and_who_was_removed_are_dropped_and_counted():
    bob = reader()
    assert bob.read(posted(EVE), at()) is None
    bob.open([PLACE], MEMBERS - {ALICE.public_key})
    assert bob.read(posted(), at()) is None
    assert bob.dropped == {"not_a_member": 2}


@pytest.mark.parametrize(
    ("kind", "stands"),
    [(MessageType.PRESENCE, PRESENCE_EXPIRES_S), (MessageType.NEWS, NEWS_EXPIRES_S)],
)
def test_words_stand_for_their_time(kind, stands):
    wrap = posted(kind=kind)
    assert wrap.tag_values("expiration") == (str(wrap.created_at + stands),)
    bob = reader()
    assert bob.read(wrap, at(stands + 700)) is None
    assert bob.dropped == {"clock_skew": 1}
    assert bob.read(wrap, at(stands)) is not None
    assert reader().read(posted(kind=kind, moment=at(1_000)), at()) is None


def test_an_older_presence_does_not_replace_a_newer_and_news_are_all_read():
    bob = reader()
    assert bob.read(posted(seq=5), at()) is not None
    assert bob.read(posted(seq=4, moment=at(1)), at(1)) is None
    assert bob.dropped == {"old_message": 1}
    for seq in (9, 8):
        assert bob.read(posted(kind=MessageType.NEWS, seq=seq, moment=at(seq)), at(9)) is not None


def test_only_presence_and_news_belong_there():
    board = Board(ALICE.reveal(), ALICE.public_key)
    with pytest.raises(KeyError):
        board.post(PLACE, Message(MessageType.ROSTER, NET, 1, {}), at())


def test_a_members_flood_is_bounded_and_spares_the_others():
    bob = reader()
    read = 0
    for seq in range(1, int(AUTHOR_BURST) + 11):
        wrap = posted(kind=MessageType.NEWS, seq=seq, moment=at(seq / 100))
        read += bob.read(wrap, at(1)) is not None
    assert read == AUTHOR_BURST
    assert bob.dropped["sender_flood"] == 10


def test_all_together_cost_a_bounded_effort():
    bob = reader()
    wrap = posted(EVE)
    for _ in range(int(BURST)):
        bob._boards._allowances[PLACE.public_key].spend(0.0)
    assert bob.read(wrap, at()) is None
    assert bob.dropped == {"notice_flood": 1}
    assert bob.read(posted(), at(1)) is not None


def test_what_is_not_whole_is_counted():
    bob, wrap = reader(), posted()
    for content in (wrap.content[:-8], "", "AAAA", wrap.content.swapcase()):
        assert bob.read(dataclasses.replace(wrap, content=content), at()) is None
    assert sum(bob.dropped.values()) == 4
    assert not bob.owns(dataclasses.replace(wrap, tags=()))


def test_the_mailboxs_secret_alone_does_not_open_what_lies_there():
    """The seal has a key of its own: NIP-44 with the board's address opens the wrap and no more."""
    seal = open_wrap(posted(body={"name": "secret-word"}), PLACE.secret)
    assert "secret-word" not in seal.content
    other = dataclasses.replace(PLACE, salt=b"x" * 32)
    bob = Board(BOB.reveal(), BOB.public_key)
    bob.open([other], MEMBERS)
    assert bob.read(posted(), at()) is None
    assert bob.dropped == {"bad_payload": 1}


def test_the_public_noticeboard_reads_what_anybody_left_within_bounds():
    board = Noticeboard()
    board.open(NOON)
    wraps = [post_notice(EVE.reveal(), {"n": i}, at(i / 1000), expires_s=60) for i in range(3)]
    notices = [board.read(wrap[STORED_WRAP], at(1)) for wrap in wraps]
    assert [notice.body for notice in notices if notice] == [{"n": 0}, {"n": 1}, {"n": 2}]
    for _ in range(int(NOTICES)):
        board.read(wraps[0][STORED_WRAP], at(1))
    assert board.read(wraps[0][STORED_WRAP], at(1)) is None
    assert board.dropped["notice_flood"] >= 1
