"""What members, removed members and strangers try on a network's log; docs/security.md lists these."""

from __future__ import annotations

import base64
import tracemalloc
import zlib

import pytest

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.mesh import fold as fold_module
from nostrvpn.mesh import roster as roster_module
from nostrvpn.mesh.addressing import ipv4_host
from nostrvpn.mesh.authority import MEMBER_OPERATIONS
from nostrvpn.mesh.log_text import MAX_PACKED, unpack_operations
from nostrvpn.mesh.operations import OPERATION_KIND, operation_content
from nostrvpn.mesh.roster import MAX_ASIDE, MAX_PENDING, Role, open_roster
from nostrvpn.nostr.event import Event, sign_event
from tests.unit.mesh.stories import (
    KEYS,
    SECRETS,
    TOKEN,
    WALL,
    added,
    admitted,
    all_of,
    forge,
    grown,
    merged,
    network,
    rotated,
    sign,
    token_fields,
)

KEY = "1" * 16


def test_an_address_is_not_taken_over_by_an_old_place_in_the_log():
    start = grown("admin")
    victim = sign(start, 0, "add", added(3))
    hashed = victim.members[KEYS[3]].host
    # A key of the attacker's whose number is the victim's, added as if before the victim.
    number = 0
    while True:
        number += 1
        thief = f"{number:064x}"
        if ipv4_host(start.network_id, thief, frozenset()) == hashed:
            break
    for name in ("a", "b"):
        fields = added(3) | {"who": thief, "owner": thief, "name": name}
        attacked = victim.merge([forge(start, 1, start.heads, "add", fields)])
        assert thief in attacked.members
        hosts = [member.host for member in attacked.members.values()]
        assert hashed not in hosts
        assert len(set(hosts)) == len(hosts)


def test_who_was_admitted_with_knowledge_of_a_number_gives_way_alone():
    start = sign(grown("admin"), 0, "add", added(3))
    host, number = start.members[KEYS[3]].host, 0
    while True:
        number += 1
        thief = f"{number:064x}"
        if ipv4_host(start.network_id, thief, frozenset()) == host:
            break
    later = sign(start, 1, "add", added(3) | {"who": thief, "owner": thief, "name": "x"})
    assert later.members[KEYS[3]].host == host
    assert later.members[thief].host == host + 1


def test_a_name_given_by_an_admin_is_not_taken_by_renaming():
    start = grown("member")
    named = sign(start, 0, "add", added(2, name="bank"))
    early = forge(start, 1, start.heads, "name", {"who": KEYS[1], "name": "bank"})
    for attacked in (
        named.merge([early]),
        sign(named, 1, "name", {"who": KEYS[1], "name": "bank"}),
    ):
        assert attacked.members[KEYS[2]].name == "bank"
        assert attacked.members[KEYS[1]].name == "bank-2"


def test_a_log_cannot_be_rolled_back_by_giving_less_of_it():
    roster = sign(grown("member", "member"), 0, "remove", {"who": KEYS[1], "key": KEY})
    for part in (roster.log[:1], roster.log[:3], roster.log[-1:], ()):
        assert all_of(roster.merge(part)) == all_of(roster)


def test_a_log_of_another_network_or_a_second_creation_is_refused():
    roster, other = grown("member"), sign(network(), 0, "add", added(5))
    foreign = network(owner=1)
    for log in (foreign.log, sign(foreign, 1, "add", added(5)).log[1:]):
        with pytest.raises(PeerMisbehaved) as caught:
            roster.merge(log)
        assert caught.value.code == "bad_roster"
        with pytest.raises(PeerMisbehaved):
            open_roster([*roster.log, *log])
    # Two histories of one network by its owner come to one, and it is said who made them.
    both = roster.merge(other.log)
    assert all_of(both) == all_of(other.merge(roster.log))
    assert both.equivocators == {KEYS[0]}


def test_a_removed_member_does_nothing_any_more_also_not_with_an_old_date():
    before = sign(grown("admin", "member"), 0, "token", token_fields())
    removed = sign(before, 0, "remove", {"who": KEYS[1], "key": KEY})
    for action, fields in (
        ("add", added(5)),
        ("role", {"who": KEYS[2], "role": "guest", "expires": None}),
        ("remove", {"who": KEYS[2], "key": None}),
        ("admit", admitted(before, 5)),
        ("settings", {"inbound": "all"}),
        ("name", {"who": KEYS[1], "name": "back"}),
    ):
        for parents in (before.heads, [before.log[2].id], removed.heads):
            event = forge(before, 1, parents, action, fields)
            assert all_of(removed.merge([event])) == all_of(removed)
        # It counts no more either where it was heard before the removal.
        early = before.merge([forge(before, 1, before.heads, action, fields)])
        assert all_of(early.merge(removed.log)) == all_of(removed)
        with pytest.raises(UserError):
            sign(removed, 1, action, fields)


def test_what_a_removed_admin_signed_before_stays():
    roster = sign(grown("admin"), 1, "add", added(5))
    roster = sign(roster, 0, "remove", {"who": KEYS[1], "key": KEY})
    assert KEYS[5] in roster.members


def test_nobody_makes_himself_an_admin():
    roster = grown("member", "guest", "admin")
    for author in (1, 2, 3, 7):
        for action, fields in (
            ("role", {"who": KEYS[author], "role": "admin", "expires": None}),
            ("add", added(8, "admin")),
            ("rotate", rotated(roster, author, 0, 8)),
            ("role", {"who": KEYS[0], "role": "guest", "expires": None}),
            ("remove", {"who": KEYS[0], "key": KEY}),
            ("tag", {"who": KEYS[author], "tags": ["admin"]}),
            ("permit", {"rule": None, "withdraw": True}),
        ):
            if action in ("tag", "permit") and author == 3:
                continue
            if action == "permit":
                fields = {"key": KEY}
                action = "rekey"
            with pytest.raises(UserError):
                sign(roster, author, action, fields)
            event = forge(roster, author, roster.heads, action, fields)
            assert all_of(merged(roster, [event])) == all_of(roster)


def test_an_admin_does_not_touch_admins_also_not_from_before_they_were():
    before = grown("admin", "member")
    after = sign(before, 0, "role", {"who": KEYS[2], "role": "admin", "expires": None})
    acted = sign(after, 2, "add", added(6))
    for action, fields in (
        ("remove", {"who": KEYS[2], "key": KEY}),
        ("role", {"who": KEYS[2], "role": "guest", "expires": None}),
        ("rotate", rotated(before, 1, 2, 9)),
    ):
        for parents in (acted.heads, before.heads):
            event = forge(before, 1, parents, action, fields)
            assert all_of(merged(acted, [event])) == all_of(acted)


def test_an_admin_does_not_undo_the_owners_rotation_by_striking_beside_it():
    before = grown("admin")
    after = sign(before, 0, "rotate", rotated(before, 0, 0, 9))
    strikes: list[tuple[str, dict[str, object]]] = [
        ("role", {"who": KEYS[0], "role": "guest", "expires": None})
    ]
    strikes += [("rotate", rotated(before, 1, 0, to)) for to in range(5, 9)]
    # Which of the two is first in order is a matter of their ids.
    strikes += [("remove", {"who": KEYS[0], "key": digit * 16}) for digit in "1234567890"]
    for action, fields in strikes:
        event = forge(before, 1, before.heads, action, fields)
        assert all_of(merged(after, [event])) == all_of(after)
        assert all_of(merged(merged(before, [event]), after.log)) == all_of(after)


def test_who_leaves_while_its_key_is_replaced_does_not_undo_that():
    start = grown("admin", "member")
    left = sign(start, 2, "remove", {"who": KEYS[2], "key": None})
    for to in range(5, 13):  # other ids, so another order
        for author in (0, 1):
            replaced = sign(start, author, "rotate", rotated(start, author, 2, to))
            both = replaced.merge(left.log)
            assert all_of(left.merge(replaced.log)) == all_of(both)
            assert all_of(merged(left, both.lacking(left.sample()))) == all_of(both)
            assert KEYS[2] not in both.members
            assert KEYS[to] in both.members


def test_what_the_owner_says_of_an_admin_in_vain_is_told_to_all_who_judge_by_it():
    before = grown("admin", "member")
    # Who is a member already is not added; yet the owner's word goes before an admin's.
    vain = forge(before, 0, before.heads, "add", added(2, "admin"))
    struck = sign(before, 1, "remove", {"who": KEYS[2], "key": None})
    both = merged(struck, [vain])
    assert KEYS[2] in both.members
    assert all_of(merged(merged(before, [vain]), struck.log)) == all_of(both)
    assert all_of(merged(struck, both.lacking(struck.sample()))) == all_of(both)
    assert all_of(merged(before, both.lacking(before.sample()))) == all_of(both)


def test_nobody_acts_on_the_strength_of_what_comes_later():
    start = grown("admin")
    early = forge(start, 5, start.heads, "name", {"who": KEYS[5], "name": "x"})
    roster = sign(start, 0, "add", added(5, "admin"))
    assert all_of(merged(roster, [early])) == all_of(roster)


def test_who_was_removed_does_not_act_on_a_readmission_it_has_not_heard_of():
    start = grown("admin", "member")
    removed = sign(start, 0, "remove", {"who": KEYS[2], "key": KEY})
    for name in "abcd":
        again = sign(removed, 1, "add", added(2, name=name))
        early = forge(removed, 2, removed.heads, "name", {"who": KEYS[2], "name": "x"})
        assert all_of(merged(again, [early])) == all_of(again)
    assert sign(again, 2, "name", {"who": KEYS[2], "name": "x"}).version == again.version + 1


def test_an_admin_who_says_different_things_to_different_people_is_found_out():
    start = grown("admin", "member")
    one = sign(start, 1, "role", {"who": KEYS[2], "role": "guest", "expires": None})
    other = sign(start, 1, "remove", {"who": KEYS[2], "key": KEY})
    both = one.merge(other.log)
    assert all_of(both) == all_of(other.merge(one.log))
    assert both.equivocators == {KEYS[1]}
    assert KEYS[2] not in both.members


def test_a_removed_admin_cannot_fill_the_log():
    before = grown("admin")
    removed = sign(before, 0, "remove", {"who": KEYS[1], "key": KEY})
    flood = [
        forge(before, 1, before.heads, "add", added(5, name=f"n{number}"))
        for number in range(2 * MAX_ASIDE)
    ]
    flooded = removed.merge(flood)
    assert all_of(flooded) == all_of(removed)
    assert len(flooded.aside) == MAX_ASIDE
    orphans = [
        forge(before, 1, ["e" * 64], "add", added(5, name=f"n{number}"))
        for number in range(MAX_PENDING + 9)
    ]
    assert removed.merge(orphans).pending == MAX_PENDING


def test_a_member_cannot_fill_the_log():
    roster = grown("member")
    named = [
        forge(roster, 1, roster.heads, "name", {"who": KEYS[1], "name": f"n{number}"})
        for number in range(3 * MEMBER_OPERATIONS)
    ]
    assert roster.merge(named).version == roster.version + MEMBER_OPERATIONS


def test_a_member_cannot_fill_the_log_with_proofs_that_it_shows_again():
    start = sign(grown("member", "member"), 0, "token", token_fields(uses=1))
    roster = sign(start, 1, "admit", admitted(start, 5))
    again = [
        forge(start, 2, start.heads, "admit", admitted(start, 5) | {"name": f"n{number}"})
        for number in range(2 * MEMBER_OPERATIONS)
    ]
    full = roster.merge(again)
    assert (
        full.version <= roster.version + 1 + MEMBER_OPERATIONS
    )  # one may stand before the honest one
    assert full.members.keys() == roster.members.keys()
    # Who has used up what it may write admits those who are not in yet, and leaves.
    start = sign(start, 0, "token", token_fields(secret=b"another secret.."))
    for number in range(MEMBER_OPERATIONS):
        start = sign(start, 2, "name", {"who": KEYS[2], "name": f"n{number}"})
    with pytest.raises(UserError):
        sign(start, 2, "name", {"who": KEYS[2], "name": "n"})
    for who in (6, 7):
        start = sign(start, 2, "admit", admitted(start, who, b"another secret.."))
    assert KEYS[2] not in sign(start, 2, "remove", {"who": KEYS[2], "key": None}).members


def test_a_member_does_not_fill_the_log_by_one_key_after_another():
    roster = grown("guest")
    for who in (*range(1, 9),):
        mine = [
            forge(roster, who, roster.heads, "name", {"who": KEYS[who], "name": f"n{number}"})
            for number in range(MEMBER_OPERATIONS // 4)
        ]
        roster = merged(roster, mine)
        event = forge(roster, who, roster.heads[:32], "rotate", rotated(roster, who, who, who + 1))
        roster = merged(roster, [event])
    assert roster.version <= 2 + MEMBER_OPERATIONS


def test_a_full_log_takes_the_removal_of_who_filled_it(monkeypatch):
    for module in (fold_module, roster_module):
        monkeypatch.setattr(module, "MAX_OPERATIONS", 60)
    monkeypatch.setattr(roster_module, "ROOM", 40)
    roster = grown("admin")
    full = roster
    for number in range(70):
        if full.version < 60:
            full = sign(full, 1, "name", {"who": KEYS[1], "name": f"n{number}"})
    with pytest.raises(UserError, match="full"):
        sign(full, 0, "add", added(5))
    freed = sign(full, 0, "remove", {"who": KEYS[1], "key": KEY})
    assert KEYS[1] not in freed.members
    assert freed.version < 30
    assert KEYS[5] in sign(freed, 0, "add", added(5)).members


def test_who_was_admitted_in_vain_calls_for_a_new_key():
    """By a token for one, whom two members let in; the one in vain was told the network key."""
    start = sign(grown("member", "member", "admin"), 0, "token", token_fields(uses=1))
    one = sign(start, 1, "admit", admitted(start, 5))
    other = sign(start, 2, "admit", admitted(start, 6))
    both = one.merge(other.log)
    for roster in (both, other.merge(one.log)):
        assert len({KEYS[5], KEYS[6]} & roster.members.keys()) == 1
        assert (roster.needs_rekey, roster.is_key_former) == (True, False)
        assert roster.leaks == both.leaks
        named = sign(roster, 0, "name", {"who": KEYS[1], "name": "x"})
        assert named.needs_rekey
        renewed = sign(named, 3, "rekey", {"key": KEY})
        assert not renewed.needs_rekey
        # Also where all that is known is told anew.
        assert not renewed.merge([*one.log, *other.log]).needs_rekey
        assert not one.merge(renewed.log).merge(other.log).needs_rekey
        [void] = {KEYS[5], KEYS[6]} - roster.members.keys()
        let_in = sign(roster, 3, "add", added(KEYS.index(void)))
        assert not let_in.needs_rekey
    # Also one that its token's end, or its admin's demotion, voids, or that others built on.
    late = sign(start, 0, "token_revoke", {"id": token_fields()["id"]}).merge(one.log)
    assert late.needs_rekey
    assert not sign(late, 0, "rekey", {"key": KEY}).needs_rekey
    demoted = sign(start, 0, "role", {"who": KEYS[3], "role": "guest", "expires": None})
    assert demoted.merge(sign(start, 3, "add", added(7)).log).needs_rekey
    built = sign(one, 1, "name", {"who": KEYS[1], "name": "x"}).merge(
        sign(other, 2, "name", {"who": KEYS[2], "name": "y"}).log
    )
    assert built.needs_rekey
    assert open_roster(built.log).needs_rekey
    assert not sign(built, 0, "rekey", {"key": KEY}).needs_rekey


def test_a_liar_does_not_call_for_new_keys_with_what_others_would_not_have_signed():
    start = sign(grown("member", "member", "guest"), 0, "token", token_fields(uses=1))
    roster = sign(start, 1, "admit", admitted(start, 5))
    gone = sign(roster, 0, "remove", {"who": KEYS[5], "key": KEY})
    again = forge(gone, 2, gone.heads, "admit", admitted(start, 5))  # the log shows this proof
    early = forge(gone, 2, [start.log[-1].id], "admit", admitted(start, 6))  # under the key before
    unproven = admitted(gone, 6) | {"proof": "0" * 128}
    forged = [
        forge(gone, 2, gone.heads, "admit", unproven),
        forge(gone, 3, gone.heads, "admit", admitted(gone, 6)),  # by a guest
        forge(gone, 2, gone.heads, "add", added(6)),  # by a member
        forge(gone, 2, gone.heads, "admit", admitted(gone, 6, b"another secret..")),
    ]
    for event in (again, early, *forged):
        assert not merged(gone, [event]).needs_rekey
    # Who was removed calls for none by what it signed, whenever that was.
    out = sign(start, 0, "remove", {"who": KEYS[2], "key": KEY})
    assert not out.merge([forge(out, 2, start.heads, "admit", admitted(out, 6))]).needs_rekey
    late = sign(out, 0, "name", {"who": KEYS[0], "name": "x"})
    assert not merged(late, [forge(out, 2, out.heads, "admit", admitted(out, 6))]).needs_rekey


def test_a_full_log_takes_the_removal_of_who_came_in_last(monkeypatch):
    for module in (fold_module, roster_module):
        monkeypatch.setattr(module, "MAX_OPERATIONS", 60)
    monkeypatch.setattr(roster_module, "ROOM", 40)

    def filled(roster, who=0, most=60):
        for number in range(min(most, 60 - roster.version)):
            roster = sign(roster, who, "name", {"who": KEYS[who], "name": f"n{number}"})
        return roster

    start = sign(grown("admin", "member", "member"), 0, "token", token_fields())
    for _ in range(30):
        start = sign(start, 0, "rekey", {"key": KEY})
    # By a rotation: who was there before goes, and the rotation with it.
    late = sign(start, 2, "rotate", rotated(start, 2, 2, 5))
    late = filled(late, 5, 10)
    late = filled(sign(late, 5, "rotate", rotated(late, 5, 5, 6)), 6)
    assert late.version == 60
    for author in (0, 1):
        freed = sign(late, author, "remove", {"who": KEYS[6], "key": KEY})
        assert not {KEYS[2], KEYS[5], KEYS[6]} & freed.members.keys()
        assert freed.version < 40
    # By an admission, by an admin who has been one for as short a time; and whoever wants to leave.
    late = sign(start, 0, "role", {"who": KEYS[2], "role": "admin", "expires": None})
    late = filled(sign(sign(late, 0, "add", added(7)), 0, "admit", admitted(late, 8)))
    assert late.version == 60
    for author, who, key in (
        (0, 7, KEY),
        (2, 3, KEY),
        (2, 7, KEY),
        (2, 8, KEY),
        (8, 8, None),
        (7, 7, None),
    ):
        freed = sign(late, author, "remove", {"who": KEYS[who], "key": key})
        assert KEYS[who] not in freed.members


def test_many_heads_do_not_keep_anybody_from_signing():
    """As many as nobody can follow at once, all from before somebody had the standing."""
    start = grown("member", "member")
    flood = [
        forge(start, 1, start.heads, "name", {"who": KEYS[1], "name": f"n{number}"})
        for number in range(MEMBER_OPERATIONS)
    ]
    honest = sign(start, 0, "role", {"who": KEYS[2], "role": "admin", "expires": None})
    other = sign(start, 0, "add", added(5))
    roster = honest.merge(flood).merge(other.log)
    assert len(roster.heads) == MEMBER_OPERATIONS + 2
    for author in (0, 2):
        for who in (5, 1):
            removed = sign(roster, author, "remove", {"who": KEYS[who], "key": KEY})
            assert KEYS[who] not in removed.members
    assert KEYS[7] in sign(roster, 2, "add", added(7)).members


def test_a_bomb_is_never_unpacked():
    stream = zlib.compress(b"[" + b" " * (200 << 20) + b"]", 9)
    packed = len(stream).to_bytes(4, "big") + stream
    text = base64.urlsafe_b64encode(packed).rstrip(b"=").decode()
    with pytest.raises(PeerMisbehaved):
        unpack_operations(text)
    tracemalloc.start()
    small = zlib.compress(b"[" + b" " * (8 << 20) + b"]", 9)
    packed = len(small).to_bytes(4, "big") + small
    text = base64.urlsafe_b64encode(packed).rstrip(b"=").decode()
    assert len(text) < MAX_PACKED
    tracemalloc.reset_peak()
    with pytest.raises(PeerMisbehaved, match="too large"):
        unpack_operations(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_token_admits_no_more_than_it_says():
    start = sign(grown("member", "member"), 0, "token", token_fields(uses=2))
    one = sign(start, 1, "admit", admitted(start, 5))
    other = sign(sign(start, 2, "admit", admitted(start, 6)), 2, "admit", admitted(start, 7))
    both = one.merge(other.log)
    assert len([key for key in KEYS[5:8] if key in both.members]) == 2
    assert both.tokens == other.merge(one.log).tokens
    with pytest.raises(UserError):
        sign(both, 1, "admit", admitted(start, 8))


def test_a_member_without_the_link_admits_nobody_by_a_token():
    roster = sign(grown("member"), 0, "token", token_fields())
    wrong = admitted(roster, 5, secret=b"another secret..")
    for fields in (
        wrong | {"token": admitted(roster, 5)["token"]},
        admitted(roster, 5) | {"who": KEYS[6]},  # somebody else's proof
        admitted(roster, 5) | {"proof": "0" * 128},
        wrong,
    ):
        with pytest.raises(UserError):
            sign(roster, 1, "admit", fields)
    assert KEYS[5] in sign(roster, 1, "admit", admitted(roster, 5)).members


def test_a_removed_member_does_not_come_back_by_an_old_proof():
    roster = sign(grown("member"), 0, "token", token_fields(uses=5))
    roster = sign(roster, 1, "admit", admitted(roster, 5))
    roster = sign(roster, 0, "remove", {"who": KEYS[5], "key": KEY})
    with pytest.raises(UserError):
        sign(roster, 1, "admit", admitted(roster, 5))


def test_a_revoked_token_admits_nobody_also_not_with_an_old_place():
    before = sign(grown("member"), 0, "token", token_fields(uses=5))
    early = forge(before, 1, before.heads, "admit", admitted(before, 5, TOKEN))
    assert KEYS[5] in before.merge([early]).members
    orders = set()
    for number in range(12):  # ids, and so places, on either side of the admission's
        revoked = before.sign(
            SECRETS[0].reveal(),
            "token_revoke",
            {"id": token_fields()["id"]},
            wall=WALL + number,
            aux=bytes(32),
        )
        orders.add(revoked.heads[0] < early.id)
        assert KEYS[5] not in revoked.merge([early]).members
        assert KEYS[5] not in before.merge([early]).merge(revoked.log).members
    assert orders == {True, False}


def test_a_stolen_key_that_was_replaced_is_worth_nothing():
    before = grown("admin", "member")
    for who in (0, 1, 2):
        after = sign(before, who, "rotate", rotated(before, who, who, 9))
        assert after.role(KEYS[9]) is before.role(KEYS[who])
        assert after.members[KEYS[9]].host == before.members[KEYS[who]].host
        assert after.needs_rekey
        stolen = [
            forge(before, who, before.heads, "name", {"who": KEYS[who], "name": "x"}),
            forge(before, who, after.heads, "rotate", rotated(before, who, who, 8)),
            forge(before, who, after.heads, "name", {"who": KEYS[9], "name": "x"}),
        ]
        assert all_of(merged(after, stolen)) == all_of(after)
        if who:
            with pytest.raises(UserError):
                sign(after, 9 if who == 1 else 0, "add", added(who))
    assert sign(before, 0, "rotate", rotated(before, 0, 0, 9)).owner == KEYS[9]


def test_a_member_does_not_put_its_key_in_anothers_place():
    """Signed as if before the other was admitted, that would void its admission and all it did."""
    start = sign(grown("admin", "member"), 1, "add", added(3, "guest"))
    victim = sign(start, 0, "add", added(5, "admin", tags=["web"]))
    acted = sign(victim, 5, "add", added(6))
    agreed = rotated(start, 3, 3, 5)["proof"]
    for who, parents, proof in (
        (3, start.heads, None),
        (3, start.heads, "0" * 128),
        (3, start.heads, rotated(start, 3, 3, 8)["proof"]),  # another key's
        (3, start.heads, rotated(network(owner=1), 3, 3, 5)["proof"]),  # for another network
        (2, start.heads, agreed),  # to another member
        (2, [start.log[0].id], agreed),
    ):
        fields = {"who": KEYS[who], "to": KEYS[5], "proof": proof}
        with pytest.raises(PeerMisbehaved, match="agree"):
            forge(start, who, parents, "rotate", fields)
        with pytest.raises(UserError):
            sign(start, who, "rotate", fields)
        event = unchecked(start, who, parents, "rotate", fields)
        assert all_of(merged(acted, [event])) == all_of(acted)
        assert all_of(merged(merged(start, [event]), acted.log)) == all_of(acted)
    # Whose key agreed to it, its admission that was concurrent with that comes to nothing.
    event, orders = forge(start, 3, start.heads, "rotate", rotated(start, 3, 3, 5)), set()
    for number in range(40):
        victim = sign(start, 0, "add", added(5, "admin", name=f"v{number}"))
        orders.add(event.id < victim.heads[0])
        assert victim.merge([event]).members[KEYS[5]].role is Role.GUEST
    assert orders == {True, False}


def test_an_admin_does_not_replace_somebody_by_one_who_was_admitted_meanwhile():
    """Whom an admin replaces is out all the same; the other stays what it was admitted as."""
    start = sign(grown("admin", "guest", "member"), 0, "token", token_fields())
    ways = {
        0: ("add", added(5, "admin", tags=["web"])),
        1: ("add", added(5, tags=["web"])),
        3: ("admit", admitted(start, 5)),
    }
    for author, (action, fields) in ways.items():
        orders = set()
        for number in range(10):  # ids, and so places, on either side of the admission's
            fields["name"] = f"v{number}"
            victim = sign(start, author, action, fields)
            acted = sign(victim, 5, "name", {"who": KEYS[5], "name": "mine"})
            event = forge(start, 1, start.heads, "rotate", rotated(start, 1, 2, 5))
            orders.add(event.id < victim.heads[0])
            both = acted.merge([event])
            assert all_of(both) == all_of(start.merge([event]).merge(acted.log))
            expected = {k: m for k, m in acted.members.items() if k != KEYS[2]}
            assert both.members == expected
            assert both.address(KEYS[2]) == acted.address(KEYS[2])
            assert both.needs_rekey
            # The number of who is out is nobody's, and it stays out.
            assert sign(both, 0, "remove", {"who": KEYS[5], "key": KEY}).role(KEYS[5]) is None
        assert orders == {True, False}


def test_a_key_that_was_put_in_anothers_place_by_an_admin_has_its_number():
    start = sign(
        grown("admin", "member"), 0, "routes", {"who": KEYS[2], "networks": ["10.1.0.0/16"]}
    )
    after = sign(start, 1, "rotate", rotated(start, 1, 2, 5))
    assert after.members[KEYS[5]].host == start.members[KEYS[2]].host
    assert after.members[KEYS[5]].routes == start.members[KEYS[2]].routes
    again = sign(after, 5, "rotate", rotated(after, 5, 5, 6))
    assert again.members[KEYS[6]].host == start.members[KEYS[2]].host


def test_a_thief_does_not_undo_the_replacement_of_a_stolen_key():
    start = grown("admin", "member")
    orders = set()
    for number in range(10):
        replaced = start.sign(
            SECRETS[1].reveal(),
            "rotate",
            rotated(start, 1, 2, 5),
            wall=WALL + number,
            aux=bytes(32),
        )
        stolen = forge(start, 2, start.heads, "rotate", rotated(start, 2, 2, 9))
        orders.add(stolen.id < replaced.heads[0])
        assert all_of(merged(replaced, [stolen])) == all_of(replaced)
        early = start.merge([stolen])
        assert KEYS[9] in early.members
        assert all_of(early.merge(replaced.log)) == all_of(replaced)
    assert orders == {True, False}


def test_a_key_in_another_persons_name_is_the_owners_to_give():
    roster = grown("admin", "member")
    with pytest.raises(UserError):
        sign(roster, 1, "add", added(5, owner=KEYS[2]))
    assert sign(roster, 1, "add", added(5, owner=KEYS[1])).members[KEYS[5]].owner == KEYS[1]
    assert sign(roster, 0, "add", added(5, owner=KEYS[2])).members[KEYS[5]].owner == KEYS[2]


def test_a_forged_operation_is_refused():
    roster = grown("member")
    event = forge(roster, 0, roster.heads, "add", added(5))
    changed = Event(*(*event_fields(event)[:5], event.content.replace("n5", "n6"), event.sig))
    resigned = Event(*(*event_fields(event)[:6], event.sig[:-2] + "00"))
    for bad in (changed, resigned):
        with pytest.raises(PeerMisbehaved):
            roster.merge([bad])
    assert roster.merge([changed, event]).role(KEYS[5]) is Role.MEMBER


def unchecked(roster, author, parents, action, fields):
    """Sign what no operation may be."""
    content = operation_content(roster.network_id, sorted(parents), action, fields)
    return sign_event(
        SECRETS[author].reveal(),
        kind=OPERATION_KIND,
        tags=(),
        content=content,
        created_at=WALL,
        aux=bytes(32),
    )


def event_fields(event):
    return (
        event.id,
        event.pubkey,
        event.created_at,
        event.kind,
        event.tags,
        event.content,
        event.sig,
    )
