"""The roster: only the owner's unbroken log counts, in whatever portions it arrives."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret
from nostrvpn.mesh.roster import OPERATION_KIND, create_network, open_roster, parse_operations
from nostrvpn.nostr.event import event_json, sign_event

OWNER = RootSecret(b"\x01" * 32)
MALLORY = RootSecret(b"\x66" * 32)
PEOPLE = [RootSecret(bytes([i]) * 32).public_key for i in range(2, 9)]


def network():
    return create_network(
        OWNER.reveal(), "home", "alice", wall=1000, nonce=b"n" * 16, aux=b"\0" * 32
    )


def sign(roster, action, subject, name="", secret=OWNER):
    return roster.sign(secret.reveal(), action, subject, name, wall=1001, aux=b"\1" * 32)


def grown():
    roster = network()
    for i, person in enumerate(PEOPLE):
        roster = sign(roster, "add", person, f"p{i}")
    return sign(roster, "remove", PEOPLE[3])


def test_the_fold_of_the_log_is_the_roster():
    roster = grown()
    again = open_roster(parse_operations([event_json(event) for event in roster.log]))
    assert again.members == roster.members
    assert again.network_id == roster.network_id == roster.log[0].id
    assert PEOPLE[3] not in again.members
    assert set(again.members) == {OWNER.public_key, *PEOPLE} - {PEOPLE[3]}


def test_addresses_never_change_hands():
    before = sign(network(), "add", PEOPLE[0])
    after = sign(sign(before, "remove", PEOPLE[0]), "add", PEOPLE[1])
    assert after.address(PEOPLE[0]) == before.address(PEOPLE[0])
    assert after.address(PEOPLE[1]) != after.address(PEOPLE[0])
    back = sign(after, "add", PEOPLE[0])
    assert back.address(PEOPLE[0]) == before.address(PEOPLE[0])


@given(st.lists(st.integers(0, 8), max_size=20))
def test_any_portions_of_the_log_lead_to_a_prefix_of_it(cuts):
    whole, roster = grown(), network()
    for cut in cuts:
        if cut > roster.version:
            with pytest.raises(PeerMisbehaved, match="does not follow"):
                roster.extend(whole.log[cut : cut + 3] or whole.log[-1:])
        else:
            roster = roster.extend(whole.log[cut : cut + 3])
        assert roster.log == whole.log[: roster.version]
    assert roster.extend(whole.log).members == whole.members


def test_there_is_no_rollback():
    whole = grown()
    assert whole.extend(whole.log[:3]).version == whole.version


def test_a_second_history_is_refused():
    base = network()
    ours, theirs = sign(base, "add", PEOPLE[0]), sign(base, "add", PEOPLE[1])
    with pytest.raises(PeerMisbehaved) as caught:
        ours.extend(theirs.log)
    assert caught.value.code == "roster_fork"


def forged(roster, *, secret=OWNER, **changes):
    content = {
        "v": 1,
        "net": roster.network_id,
        "ver": roster.version + 1,
        "prev": roster.log[-1].id,
        "op": "add",
        "who": PEOPLE[0],
        "name": "",
    }
    content.update(changes)
    return sign_event(
        secret.reveal(),
        kind=changes.pop("kind", OPERATION_KIND),
        tags=(),
        content=json.dumps(content),
        created_at=1,
        aux=b"\0" * 32,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": MALLORY},
        {"net": "00" * 32},
        {"prev": "00" * 32},
        {"ver": 7},
        {"ver": 0},
        {"ver": "2"},
        {"ver": True},
        {"op": "crown"},
        {"op": "remove", "who": OWNER.public_key},
        {"op": "remove", "who": PEOPLE[5]},
        {"op": "rename", "who": PEOPLE[5]},
        {"who": "nobody"},
        {"name": "x" * 65},
        {"name": "a\nb"},
        {"name": 5},
        {"v": 2},
        {"kind": 1},
    ],
)
def test_an_operation_that_does_not_follow_is_refused(changes):
    roster = network()
    with pytest.raises(PeerMisbehaved):
        roster.extend([forged(roster, **changes)])


def test_a_changed_operation_is_refused():
    roster = sign(network(), "add", PEOPLE[0], "bob")
    event = roster.log[1]
    changed = dataclasses.replace(event, content=event.content.replace("bob", "eve"))
    with pytest.raises(PeerMisbehaved):
        network().extend([changed])


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3)))
def test_whatever_comes_instead_of_operations_is_refused(value):
    with pytest.raises(PeerMisbehaved):
        open_roster(parse_operations([value]))
