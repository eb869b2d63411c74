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
from nostrvpn.mesh.roster import MAX_ASIDE, MAX_PENDING, Role, open_roster
from nostrvpn.nostr.event import Event
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
            ("rotate", {"who": KEYS[0], "to": KEYS[8]}),
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
        ("rotate", {"who": KEYS[2], "to": KEYS[9]}),
    ):
        for parents in (acted.heads, before.heads):
            event = forge(before, 1, parents, action, fields)
            assert all_of(merged(acted, [event])) == all_of(acted)


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
        after = sign(before, who, "rotate", {"who": KEYS[who], "to": KEYS[9]})
        assert after.role(KEYS[9]) is before.role(KEYS[who])
        assert after.members[KEYS[9]].host == before.members[KEYS[who]].host
        assert after.needs_rekey
        stolen = [
            forge(before, who, before.heads, "name", {"who": KEYS[who], "name": "x"}),
            forge(before, who, after.heads, "rotate", {"who": KEYS[who], "to": KEYS[8]}),
            forge(before, who, after.heads, "name", {"who": KEYS[9], "name": "x"}),
        ]
        assert all_of(merged(after, stolen)) == all_of(after)
        if who:
            with pytest.raises(UserError):
                sign(after, 9 if who == 1 else 0, "add", added(who))
    assert sign(before, 0, "rotate", {"who": KEYS[0], "to": KEYS[9]}).owner == KEYS[9]


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
