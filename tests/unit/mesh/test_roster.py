"""The roster: all who hold the same operations come to the same, however they got them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.mesh.addressing import ipv4_host
from nostrvpn.mesh.log_text import pack_operations, split_operations, unpack_operations
from nostrvpn.mesh.roster import Role, open_roster
from tests.unit.mesh.stories import (
    KEYS,
    actions,
    added,
    admitted,
    all_of,
    fields_of,
    forge,
    grown,
    merged,
    network,
    sign,
    stories,
    token_fields,
)

KEY = "1" * 16
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(stories(), st.data())
def test_any_order_in_any_portions_comes_to_the_same(story, data):
    start, events = story
    whole = merged(start, events)
    piecewise, order = start, data.draw(st.permutations(events))
    while order:
        count = data.draw(st.integers(1, 5))
        piecewise = merged(piecewise, order[:count])
        order = order[count:]
    assert all_of(piecewise) == all_of(whole)
    assert piecewise.leaks == whole.leaks
    # What is known already changes nothing, and what was stored comes to the same again.
    assert all_of(merged(whole, events)) == all_of(whole)
    assert all_of(open_roster(whole.log)) == all_of(whole)


@SLOW
@given(stories(), st.data())
def test_merging_is_associative(story, data):
    start, events = story
    parts: list[list[Any]] = [[], [], []]
    for event in events:
        parts[data.draw(st.integers(0, 2))].append(event)
    one = merged(merged(start, parts[0]), [*parts[1], *parts[2]])
    other = merged(merged(start, [*parts[2], *parts[0]]), parts[1])
    assert all_of(one) == all_of(other)


@SLOW
@given(stories())
def test_whoever_has_a_role_got_it_from_somebody_above(story):
    """No privilege from outside the log: a simple reading of it finds a giver for each role."""
    roster = merged(*story)
    operations = roster.folded.operations
    owners, admins = {roster.folded.history.order[0]: KEYS[0]}, set()
    owning, admitted_keys = {KEYS[0]}, {KEYS[0]}
    for key in roster.folded.history.order:
        item = operations[key]
        if item.action == "rotate":
            if item.who in owning and item.author == item.who:
                owning.add(item.fields["to"])
            if item.who in admins:
                admins.add(item.fields["to"])
            admitted_keys.add(item.fields["to"])
        if item.fields.get("role") == "admin" and item.author in owning:
            admins.add(item.who)
        if item.action in ("add", "admit"):
            admitted_keys.add(item.who)
    assert owners
    for key, member in roster.members.items():
        assert key in admitted_keys
        assert member.role is not Role.OWNER or key in owning
        assert member.role is not Role.ADMIN or key in admins
    assert [m.role for m in roster.members.values()].count(Role.OWNER) == 1
    names = [member.name for member in roster.members.values()]
    hosts = [member.host for member in roster.members.values()]
    assert len(set(names)) == len(names)
    assert len(set(hosts)) == len(hosts)


class Partitions(RuleBasedStateMachine):
    """Admins, members and one who cheats, each with a view of its own; they meet at random."""

    @initialize()
    def begin(self) -> None:
        start = grown("admin", "admin", "member")
        start = sign(start, 0, "token", token_fields())
        self.views = dict.fromkeys(range(4), start)

    @rule(author=st.integers(0, 3), action=actions)
    def act(self, author: int, action: Any) -> None:
        view = self.views[author]
        name, who, more = action
        try:
            grown_view = sign(view, author, name, fields_of(view, name, who, more, author))
        except UserError:
            return
        self.views[author] = grown_view

    @rule(author=st.integers(0, 3), back=st.integers(1, 6), action=actions)
    def cheat(self, author: int, back: int, action: Any) -> None:
        """Sign with an old place, and tell one other only."""
        view = self.views[author]
        old = view.log[max(0, view.version - back)].id
        name, who, more = action
        event = forge(view, author, [old], name, fields_of(view, name, who, more, author))
        other = (author + 1) % 4
        self.views[other] = merged(self.views[other], [event])

    @rule(one=st.integers(0, 3), other=st.integers(0, 3))
    def meet(self, one: int, other: int) -> None:
        self.tell(one, other)

    @rule()
    @precondition(lambda self: self.rounds_left())
    def gather(self) -> None:
        """With everybody telling everybody, few rounds are enough."""
        for _ in range(6):
            for one in range(4):
                for other in range(4):
                    self.tell(one, other)
        first, *others = (all_of(self.views[who]) for who in range(4))
        assert all(one == first for one in others)

    def rounds_left(self) -> bool:
        return len({view.digest for view in self.views.values()}) > 1

    def tell(self, one: int, other: int) -> None:
        """``other`` shows a sample of what it has, ``one`` sends what it lacks."""
        lacking = self.views[one].lacking(self.views[other].sample())
        for part in split_operations(lacking):
            events = unpack_operations(pack_operations(part))
            self.views[other] = merged(self.views[other], events)

    @invariant()
    def an_equal_digest_means_the_same(self) -> None:
        by_digest: dict[str, Any] = {}
        for view in self.views.values():
            assert all_of(by_digest.setdefault(view.digest, view)) == all_of(view)

    def teardown(self) -> None:
        if hasattr(self, "views"):
            self.gather()


PATIENT = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_partitions_heal_by_samples():
    run_state_machine_as_test(Partitions, settings=PATIENT)


def test_what_operations_do():
    roster = grown("admin", "member")
    for action, fields in (
        ("tag", {"who": KEYS[2], "tags": ["nas", "web"]}),
        ("routes", {"who": KEYS[2], "networks": ["192.168.1.0/24"]}),
        ("name", {"who": KEYS[2], "name": "attic"}),
        ("settings", {"name": "office", "inbound": "all"}),
        ("permit", fields_of(roster, "permit", 0, False)),
        ("role", {"who": KEYS[2], "role": "guest", "expires": 1_900_000_000}),
    ):
        roster = sign(roster, 1, action, fields)
    member = roster.members[KEYS[2]]
    assert (member.name, member.role, sorted(member.tags)) == ("attic", Role.GUEST, ["nas", "web"])
    assert [str(network) for network in member.routes] == ["192.168.1.0/24"]
    assert (member.is_active(1_899_999_999), member.is_active(1_900_000_000)) == (True, False)
    assert (roster.name, roster.settings.inbound, len(roster.rules)) == ("office", "all", 1)
    assert sign(roster, 0, "permit", fields_of(roster, "permit", 0, True)).rules == ()
    assert roster.is_admin(KEYS[0])
    assert roster.is_admin(KEYS[1])
    assert not roster.is_admin(KEYS[2])


def test_a_removal_with_a_key_needs_no_other_and_one_without_does():
    start = grown("admin", "member", "member")
    assert start.key_id == "0" * 16
    one = sign(start, 0, "remove", {"who": KEYS[2], "key": "1" * 16})
    assert (one.key_id, one.needs_rekey) == ("1" * 16, False)
    other = sign(start, 1, "remove", {"who": KEYS[3], "key": "2" * 16})
    both = one.merge(other.log)
    assert both.needs_rekey  # each key was given to somebody whom the other removed
    assert not sign(both, 1, "rekey", {"key": "3" * 16}).needs_rekey
    assert sign(start, 2, "remove", {"who": KEYS[2], "key": None}).needs_rekey
    with pytest.raises(UserError):  # who leaves does not choose the key of those who stay
        sign(start, 2, "remove", {"who": KEYS[2], "key": "1" * 16})


def test_a_removal_wins_over_an_admission_that_did_not_know_of_it():
    start = sign(grown("admin", "admin"), 0, "add", added(5))
    gone = sign(start, 0, "remove", {"who": KEYS[5], "key": KEY})
    again = sign(gone, 1, "add", added(5))
    assert KEYS[5] in again.members
    twice = sign(again, 2, "remove", {"who": KEYS[5], "key": KEY})
    back = sign(gone, 2, "add", added(5))
    assert KEYS[5] not in twice.merge(back.log).members
    # Also where the admission comes later in order.
    late = sign(sign(gone, 2, "name", {"who": KEYS[2], "name": "x"}), 2, "rekey", {"key": KEY})
    late = sign(late, 2, "add", added(5))
    early = forge(gone, 0, [gone.log[-2].id], "remove", {"who": KEYS[5], "key": KEY})
    assert KEYS[5] in late.members
    assert KEYS[5] not in late.merge([early]).members
    assert again.address(KEYS[5]) == start.address(KEYS[5])


def test_a_removal_is_not_lost_where_somebody_was_admitted_twice():
    start = sign(grown("admin", "admin", "member"), 0, "token", token_fields(uses=9))
    ways = [(1, "add", added(5)), (2, "add", added(5)), (3, "admit", admitted(start, 5))]
    for author, action, fields in ways:
        one = sign(start, author, action, fields)
        removed = sign(one, 0, "remove", {"who": KEYS[5], "key": KEY})
        for other_author, other_action, other_fields in ways:
            if other_author != author:
                other = sign(start, other_author, other_action, other_fields)
                assert KEYS[5] in one.merge(other.log).members
                assert KEYS[5] not in removed.merge(other.log).members


def test_admitted_twice_somebody_is_what_those_above_said():
    start = sign(grown("admin", "admin", "member"), 0, "token", token_fields(uses=1))
    admin = sign(start, 0, "add", added(5, "admin", tags=["web"]))
    acted = sign(admin, 5, "add", added(6))
    for author, action, fields in (
        (1, "add", added(5, "guest")),
        (3, "admit", admitted(start, 5)),
    ):
        both = acted.merge(sign(start, author, action, fields).log)
        assert both.members[KEYS[5]].role is Role.ADMIN
        assert both.members[KEYS[5]].tags == {"web"}
        assert KEYS[6] in both.members
        assert KEYS[7] in sign(both, 5, "add", added(7)).members


def test_addresses_never_change_hands():
    roster = grown("admin", "member", "member")
    gone = sign(roster, 0, "remove", {"who": KEYS[2], "key": KEY})
    number = 0
    while True:  # somebody whose hashed number is the removed one's
        number += 1
        heir = f"{number:064x}"
        if ipv4_host(roster.network_id, heir, frozenset()) == roster.former[KEYS[2]]:
            break
    after = sign(gone, 1, "add", added(4) | {"who": heir, "owner": heir})
    assert after.address(heir).ipv4 != roster.address(KEYS[2]).ipv4
    assert all(after.address(key) == roster.address(key) for key in KEYS[:4])
    back = sign(after, 0, "add", added(2))
    assert back.address(KEYS[2]) == roster.address(KEYS[2])


def test_two_of_one_name_are_told_apart():
    start = grown("admin")
    one = sign(start, 0, "add", added(5, name="nas"))
    other = sign(start, 1, "add", added(6, name="nas"))
    names = {member.name for member in one.merge(other.log).members.values()}
    assert names == {"owner", "n1", "nas", "nas-2"}


def test_what_comes_before_its_predecessors_waits():
    whole = grown("member", "admin")
    late = network().merge(whole.log[-1:])
    assert (late.pending, late.version) == (1, 1)
    assert all_of(late.merge(whole.log[1:-1])) == all_of(whole)


def test_a_guest_admits_nobody_and_members_do_by_tokens():
    roster = sign(grown("guest", "member"), 0, "token", token_fields())
    with pytest.raises(UserError):
        sign(roster, 1, "admit", admitted(roster, 5))
    after = sign(roster, 2, "admit", admitted(roster, 5))
    assert after.members[KEYS[5]].role is Role.MEMBER
    assert after.tokens[str(token_fields()["id"])].used == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"who": KEYS[5].upper()},
        {"who": "5"},
        {"name": "Zoë"},
        {"name": ""},
        {"name": "npub1x"},
        {"role": "owner"},
        {"role": 1},
        {"tags": ["b", "a"]},
        {"tags": ["tag with spaces"]},
        {"tags": "a"},
        {"expires": 0},
        {"expires": True},
        {"expires": 1.5},
        {"ephemeral": 1},
        {"more": 1},
    ],
)
def test_an_operation_of_a_bad_shape_is_refused(changes):
    roster = grown("member")
    with pytest.raises(UserError):
        sign(roster, 0, "add", added(5) | changes)


@pytest.mark.parametrize("value", [None, 5, "", {}, {"id": "x"}])
def test_a_stored_log_that_is_none_is_refused(value):
    from nostrvpn.nostr.event import parse_event

    with pytest.raises(PeerMisbehaved):
        open_roster([parse_event(value)])
    with pytest.raises(PeerMisbehaved):
        open_roster([])
    whole = grown("member", "member")
    with pytest.raises(PeerMisbehaved, match="gaps"):
        open_roster([whole.log[0], whole.log[2]])
