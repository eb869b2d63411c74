"""The membership machine, both sides of it, without any network between them."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Entropy, Moment
from nostrvpn.mesh.admission import CATCH_UP_S, MAX_INVITES, TURN_S
from nostrvpn.mesh.effects import (
    JoinState,
    MakeKey,
    MembersChanged,
    RequestJoin,
    SendRefusal,
    SendRoster,
    SpreadOperations,
    Store,
    Welcome,
)
from nostrvpn.mesh.invites import Invite, Link, Terms, parse_link, render_link
from nostrvpn.mesh.joining import KEEP_USED_S, MAX_WELCOMERS, clean_text
from nostrvpn.mesh.log_text import pack_operations
from nostrvpn.mesh.membership import Membership
from nostrvpn.mesh.roster import Role
from nostrvpn.mesh.tokens import parse_token_link
from nostrvpn.mesh.upkeep import UNHEARD_S

DAY = 86_400.0


def at(seconds: float) -> Moment:
    return Moment(seconds, 1_800_000_000 + seconds, Entropy(str(seconds).encode()))


def node(number: int) -> Any:
    return Membership(RootSecret(bytes([number]) * 32), f"node{number}")


def public(number: int) -> str:
    return RootSecret(bytes([number]) * 32).public_key


def request(link_text: str, name: str = "bob") -> dict[str, object]:
    link = parse_link(link_text)
    return {"invite": link.invite_id, "secret": link.secret.hex(), "name": name}


def welcome_bodies(effects):
    return [
        {"ops": effect.text, "part": effect.part, "total": effect.total}
        for effect in effects
        if isinstance(effect, Welcome)
    ]


def spread(effects):
    """What everybody is told."""
    return [
        op for effect in effects if isinstance(effect, SpreadOperations) for op in effect.operations
    ]


def tell(effects, *nodes):
    """Let nodes hear what another one signed."""
    for one in nodes:
        one.on_operations(tuple(spread(effects)))


def join(owner: Any, applicant: Any, number: int, now: float = 1.0) -> Any:
    link, _ = owner.invite(public(number), DAY, (), at(now))
    applicant.join(link, at(now))
    effects = owner.on_join_request(public(number), request(link), at(now))
    for body in welcome_bodies(effects):
        applicant.on_welcome(owner._me, body)
    applicant.settled()
    return effects


def test_an_invited_node_joins_and_both_agree():
    alice, bob = node(1), node(2)
    effects = join(alice, bob, 2)
    assert alice.roster is not None
    assert bob.roster is not None
    assert bob.roster.members == alice.roster.members
    assert bob.joining.state is JoinState.JOINED
    assert alice.peers == (public(2),)
    assert bob.peers == (public(1),)
    # What the welcome depends on is stored before it.
    kinds = [type(effect) for effect in effects]
    assert max(i for i, kind in enumerate(kinds) if kind is Store) < kinds.index(Welcome)


def test_joining_again_gets_the_same_answer_and_no_second_operation():
    alice, bob = node(1), node(2)
    link, _ = alice.invite(public(2), DAY, (), at(1))
    first = alice.on_join_request(public(2), request(link), at(2))
    second = alice.on_join_request(public(2), request(link), at(2 + 10 * DAY))
    assert welcome_bodies(first) == welcome_bodies(second)
    assert alice.roster.version == 2
    bob.join(link, at(1))


def test_other_members_hear_of_the_new_one():
    alice = node(1)
    join(alice, node(2), 2)
    effects = join(alice, node(3), 3)
    assert [op.id for op in spread(effects)] == list(alice.roster.heads)


@pytest.mark.parametrize(
    ("applicant", "when", "reason"),
    [(3, 2.0, "foreign"), (2, 2 * DAY, "expired")],
)
def test_a_wrong_applicant_is_told_why_and_the_inviter_sees_it(applicant, when, reason):
    alice = node(1)
    link, _ = alice.invite(public(2), DAY, (), at(1))
    effects = alice.on_join_request(public(applicant), request(link), at(when))
    assert [effect.reason for effect in effects if isinstance(effect, SendRefusal)] == [reason]
    assert public(applicant) not in alice.roster.members
    assert alice.refusals[-1][1:] == (public(applicant), reason)


def test_an_old_request_is_not_refused_again_but_still_admitted():
    alice = node(1)
    link, _ = alice.invite(public(2), DAY, (), at(1))
    with pytest.raises(PeerMisbehaved, match="long ago"):
        alice.on_join_request(public(3), request(link), at(2000), at(1).wall)
    assert not alice.refusals
    alice.on_join_request(public(2), request(link), at(2000), at(1).wall)
    assert public(2) in alice.roster.members


def test_a_one_time_link_admits_one():
    alice = node(1)
    link, _ = alice.invite(None, DAY, (), at(1))
    alice.on_join_request(public(2), request(link), at(2))
    effects = alice.on_join_request(public(3), request(link), at(3))
    assert [effect.reason for effect in effects if isinstance(effect, SendRefusal)] == ["used"]
    assert public(3) not in alice.roster.members


def test_a_removed_member_cannot_come_back_by_its_old_link():
    alice, bob = node(1), node(2)
    link, _ = alice.invite(public(2), DAY, (), at(1))
    alice.on_join_request(public(2), request(link), at(2))
    alice.remove(public(2), at(3))
    effects = alice.on_join_request(public(2), request(link), at(4))
    assert [effect.reason for effect in effects if isinstance(effect, SendRefusal)] == ["removed"]
    assert bob.roster is None


def test_a_welcome_from_before_the_removal_does_not_end_the_asking():
    alice, bob = node(1), node(2)
    (old,) = welcome_bodies(join(alice, bob, 2))
    alice.remove(public(2), at(3))
    bob.on_operations(alice.roster.log[-1:])
    link, _ = alice.invite(public(2), DAY, (), at(4))
    bob.join(link, at(4))
    with pytest.raises(PeerMisbehaved):
        bob.on_welcome(public(1), old)
    assert bob.joining.state is JoinState.ASKING
    for body in welcome_bodies(alice.on_join_request(public(2), request(link), at(5))):
        bob.on_welcome(public(1), body)
    assert bob.is_member


def test_a_guess_at_the_secret_gets_no_answer():
    alice = node(1)
    link, _ = alice.invite(None, DAY, (), at(1))
    body = request(link) | {"secret": "00" * 16}
    with pytest.raises(PeerMisbehaved):
        alice.on_join_request(public(2), body, at(2))
    with pytest.raises(PeerMisbehaved):
        node(4).on_join_request(public(2), request(link), at(2))


def test_a_removal_reaches_everybody_and_the_removed():
    alice, bob, carol = node(1), node(2), node(3)
    join(alice, bob, 2)
    tell(join(alice, carol, 3), bob)
    effects = alice.remove(public(3), at(5))
    # Everybody is told before the removed one's mailbox is forgotten.
    kinds = [type(effect) for effect in effects]
    assert kinds == [MakeKey, Store, SpreadOperations, MembersChanged]
    for member in (bob, carol):
        member.on_roster({"ops": pack_operations(spread(effects))})
    assert bob.peers == (public(1),)
    assert not carol.is_member


@pytest.mark.parametrize(
    "attempt",
    [
        lambda alice, bob: bob.invite(public(9), DAY, (), at(9)),
        lambda alice, bob: bob.remove(public(1), at(9)),
        lambda alice, bob: alice.remove(public(1), at(9)),
        lambda alice, bob: alice.remove(public(8), at(9)),
        lambda alice, bob: alice.invite(public(1), DAY, (), at(9)),
        lambda alice, bob: alice.invite(public(2), DAY, (), at(9), Terms(ephemeral=True)),
    ],
)
def test_what_a_node_may_not_do_is_refused_with_a_hint(attempt):
    alice, bob = node(1), node(2)
    join(alice, bob, 2)
    before = alice.roster, bob.roster
    with pytest.raises(UserError) as caught:
        attempt(alice, bob)
    assert caught.value.hint
    assert (alice.roster, bob.roster) == before


def test_a_link_for_another_or_too_old_is_refused_before_anything_is_sent():
    alice, bob, carol = node(1), node(2), node(3)
    link, _ = alice.invite(public(2), DAY, (), at(1))
    for joiner, when in ((carol, 2.0), (bob, 2 * DAY), (alice, 2.0)):
        with pytest.raises(UserError):
            joiner.join(link, at(when))
        assert joiner.joining is None


def test_the_applicant_asks_until_it_is_answered():
    alice, bob = node(1), node(2)
    link, _ = alice.invite(public(2), DAY, (), at(0))
    effects = bob.join(link, at(0))
    asked = [effect for effect in effects if isinstance(effect, RequestJoin)]
    assert [effect.stored for effect in asked] == [True]
    times, now = [], 0.0
    while now < 700:
        assert bob.deadline is not None
        now = bob.deadline
        times += [now] * len(bob.tick(at(now)))
    assert times[0] < 1.2  # a lost request costs a second
    assert len(times) < 16  # an absent inviter costs little
    late = at(DAY + KEEP_USED_S + 10)
    bob.hurry(late)
    assert any(isinstance(effect, MembersChanged) for effect in bob.tick(late))
    assert bob.joining.state is JoinState.EXPIRED
    assert bob.deadline is None


def test_a_refusal_ends_the_asking_but_only_the_inviters():
    alice, bob = node(1), node(2)
    link, _ = alice.invite(public(2), DAY, (), at(0))
    bob.join(link, at(0))
    invite = {"invite": parse_link(link).invite_id}
    with pytest.raises(PeerMisbehaved):
        bob.on_refused(public(3), {"reason": "used"} | invite)
    with pytest.raises(PeerMisbehaved):  # kept by a relay since he asked by another link
        bob.on_refused(public(1), {"reason": "used", "invite": "0" * 16})
    assert bob.joining.state.value == "asking"
    bob.on_refused(public(1), {"reason": "used\x00\x1b[31m"} | invite)
    assert bob.joining.state.value == "refused"
    assert bob.joining.reason == "used[31m"


def test_a_welcome_to_another_network_is_refused():
    alice, mallory, bob = node(1), node(6), node(2)
    link, _ = alice.invite(public(2), DAY, (), at(0))
    trap, _ = mallory.invite(public(2), DAY, (), at(0))
    bob.join(link, at(0))
    for body in welcome_bodies(mallory.on_join_request(public(2), request(trap), at(1))):
        for sender in (public(1), public(6)):
            with pytest.raises(PeerMisbehaved):
                bob.on_welcome(sender, body)
    assert bob.roster is None


def test_a_large_network_welcomes_in_several_messages_in_any_order():
    alice, bob = node(1), node(2)
    link, _ = alice.invite(public(2), DAY, (), at(0))
    for i in range(430):
        alice._ledger.sign("name", {"who": public(1), "name": f"n{i}"}, at(i))
    bob.join(link, at(100))
    bodies = welcome_bodies(alice.on_join_request(public(2), request(link), at(101)))
    assert len(bodies) > 1
    for body in reversed(bodies):
        bob.on_welcome(public(1), body)
    assert bob.roster.members == alice.roster.members


def test_a_node_that_lags_behind_is_sent_what_it_lacks():
    alice, bob = node(1), node(2)
    join(alice, bob, 2)
    join(alice, node(3), 3)
    [effect] = alice.on_sample(public(2), list(bob.roster.sample()))
    assert isinstance(effect, SendRoster)
    bob.on_operations(effect.operations)
    assert bob.roster == alice.roster
    assert alice.on_sample(public(2), list(bob.roster.sample())) == []
    for sample in (None, ["x"], [5], ["0" * 64] * 33):
        with pytest.raises(PeerMisbehaved):
            alice.on_sample(public(2), sample)


def test_everything_survives_a_restart():
    alice, bob = node(1), node(2)
    records: dict[str, dict[str, object]] = {}

    def keep(effects):
        for effect in effects:
            if isinstance(effect, Store):
                records.setdefault(effect.space, {})[effect.key] = effect.value
                if effect.value is None:
                    del records[effect.space][effect.key]

    link, effects = alice.invite(None, DAY, ("wss://r",), at(1))
    keep(effects)
    keep(alice.on_join_request(public(2), request(link), at(2)))
    again = node(1)
    assert again.restore(records) == []
    assert again.roster.members == alice.roster.members
    assert again.invites == alice.invites
    records.clear()
    keep(bob.join(link, at(1)))
    waiting = node(2)
    assert waiting.restore(records) == []
    assert waiting.joining.link == parse_link(link)


def test_damaged_records_are_named_and_left_out():
    alice = node(1)
    damaged = alice.restore(
        {
            "network": {"log": [{"id": "x"}]},
            "invite": {"a": {"secret": "zz"}, "b": 5, "c": {}},
            "join": {"link": "nostrvpn://x"},
        }
    )
    assert len(damaged) == 5
    assert alice.roster is None
    assert not alice.invites


def test_the_number_of_open_invites_is_bounded():
    (alice, _) = mesh(2)
    for i in range(MAX_INVITES - 1):
        alice.invite(None, DAY, (), at(i))
    before = alice.roster
    for refused in (
        lambda: alice.invite(None, DAY, (), at(200)),
        lambda: alice.replace(public(2), public(3), DAY, (), at(200)),
    ):
        with pytest.raises(UserError, match="open already"):
            refused()
    # What was refused has signed nothing that then nobody stores or hears of.
    assert alice.roster is before
    assert len(alice.invites) == MAX_INVITES
    alice.invite(None, DAY, (), at(DAY + KEEP_USED_S + 500))  # old ones made room


@pytest.mark.parametrize(
    "terms", [Terms(Role.OWNER), Terms(Role.ADMIN, lasts_s=60)], ids=["owner", "admin for a time"]
)
def test_an_invite_that_is_refused_founds_no_network(terms):
    alice = node(1)
    with pytest.raises(UserError):
        alice.invite(None, DAY, (), at(1), terms)
    assert alice.roster is None
    assert not alice.invites


def test_whoever_asks_itself_admits_nobody_to_the_network_it_is_about_to_leave():
    alice, bob = node(1), node(2)
    old, _ = bob.invite(public(3), DAY, (), at(1))
    link, _ = alice.invite(public(2), DAY, (), at(1))
    bob.join(link, at(2))
    with pytest.raises(PeerMisbehaved, match="asks itself"):
        bob.on_join_request(public(3), request(old), at(3))
    assert bob.peers == ()
    for body in welcome_bodies(alice.on_join_request(public(2), request(link), at(4))):
        bob.on_welcome(public(1), body)
    assert bob.roster == alice.roster


def test_an_invite_whose_admission_had_no_effect_admits_when_it_is_asked_again():
    alice, bob, carol = mesh(2, 3)
    tell(alice.set_role(public(2), Role.ADMIN, None, at(20)), bob, carol)
    link, _ = bob.invite(public(4), DAY, (), at(21))
    # Not heard by the owner, who takes bob's standing meanwhile, and gives it back.
    lost = bob.on_join_request(public(4), request(link), at(22))
    tell(alice.set_role(public(2), Role.MEMBER, None, at(23)), bob)
    tell(lost, alice)
    tell(alice.set_role(public(2), Role.ADMIN, None, at(24)), bob)
    assert public(4) not in bob.roster.members
    again = bob.on_join_request(public(4), request(link), at(60))
    assert not [effect for effect in again if isinstance(effect, SendRefusal)]
    assert public(4) in bob.roster.members
    tell(again, alice)
    assert public(4) in alice.roster.members


# -- until the network's key is certain -----------------------------------------------------


def test_a_member_that_lost_the_key_asks_by_a_link_and_is_welcomed_again():
    alice, bob = node(1), node(2)
    join(alice, bob, 2)
    version = alice.roster.version
    link, _ = alice.invite(public(2), DAY, (), at(50))
    assert bob.join(link, at(50), has_key=True) == [MembersChanged()]
    asked = bob.join(link, at(51), has_key=False)
    assert [effect.stored for effect in asked if isinstance(effect, RequestJoin)] == [True]
    assert bob.joining.state.value == "asking"
    bodies = welcome_bodies(alice.on_join_request(public(2), request(link), at(52)))
    for body in bodies:
        bob.on_welcome(public(1), body)
    assert bodies
    assert bob.joining.state is JoinState.JOINED
    assert bob.joining.welcomed_by == public(1)
    assert alice.roster.version == version, "it is what it was"


def welcomed_by_a_token():
    alice, bob = mesh(2)
    text, effects = alice.make_token(1, DAY, {"role": "member"}, (), at(30))
    tell(effects, bob)
    joiner = node(9)
    joiner.join(text, at(31))
    asked, now, answers = joiner.join_request(b"a" * 32), 31.0, []
    answers += bob.on_join_request(public(9), asked, at(now))
    while not welcome_bodies(answers):
        now += 1
        answers += bob.tick(at(now))
    for body in welcome_bodies(answers):
        joiner.on_welcome(public(2), body)
    tell(answers, alice)
    return alice, bob, joiner, asked, now


def requests_of(one, since, until):
    """When it asks (seconds since ``since``)."""
    times, now = [], since
    while now < until:
        now = max(now, one.deadline)
        times += [now - since] * any(isinstance(e, RequestJoin) for e in one.tick(at(now)))
        now += 0.5
    return times


def test_who_was_welcomed_asks_ever_more_rarely_until_it_has_the_key_for_certain():
    *_, joiner, _, now = welcomed_by_a_token()
    assert joiner.joining.state is JoinState.JOINED
    times = requests_of(joiner, now, now + DAY / 2)
    assert 13 < times[0] < 17
    assert 5 <= len(times) <= 8
    assert joiner.settled() == [Store("join", "link", None), MembersChanged()]
    assert joiner.deadline is None
    assert joiner.settled() == []


@pytest.mark.parametrize("end", ["removed", "expired"])
def test_who_was_welcomed_stops_asking_when_that_has_no_use(end):
    alice, _, joiner, _, now = welcomed_by_a_token()
    if end == "removed":
        tell(alice.remove(public(9), at(now)), joiner)
    else:
        now += DAY + KEEP_USED_S
    assert Store("join", "link", None) in joiner.tick(at(now + 1))
    assert joiner.joining.state is JoinState.JOINED
    assert joiner.deadline is None


def test_a_token_that_is_used_up_still_answers_whom_it_admitted():
    alice, _, joiner, asked, now = welcomed_by_a_token()
    [token] = alice.roster.tokens.values()
    assert token.used == token.uses
    assert alice.token_mailboxes(at(now).wall) == (token.mailbox,)
    assert alice.token_mailboxes(at(now + 2 * DAY).wall) == ()
    answers = alice.on_join_request(public(9), asked, at(now + 20))
    answers += alice.tick(at(now + 120))
    bodies = welcome_bodies(answers)
    assert bodies
    for body in bodies:
        joiner.on_welcome(public(1), body)
    assert joiner.joining.welcomed_by == public(1)


def test_begun_welcomes_in_made_up_names_do_not_keep_the_real_one_out():
    alice, bob, joiner = node(1), node(2), node(9)
    for i in range(430):
        alice.create("home", at(0)) if alice.roster is None else alice._ledger.sign(
            "name", {"who": public(1), "name": f"n{i}"}, at(i)
        )
    join(alice, bob, 2)
    text, _ = alice.make_token(1, DAY, {"role": "member"}, (), at(500))
    joiner.join(text, at(501))
    answers = alice.on_join_request(public(9), joiner.join_request(b"a" * 32), at(501))
    answers += alice.tick(at(600))
    first, *rest = welcome_bodies(answers)
    assert rest
    for number in range(20, 20 + 2 * MAX_WELCOMERS):
        joiner.on_welcome(public(number), first)
    for body in (first, *rest):
        joiner.on_welcome(public(1), body)
    assert joiner.is_member


def test_a_welcome_by_nobody_of_the_network_is_refused():
    alice, joiner = node(1), node(9)
    alice.create("home", at(0))
    text, _ = alice.make_token(1, DAY, {"role": "member"}, (), at(1))
    joiner.join(text, at(2))
    answers = alice.on_join_request(public(9), joiner.join_request(b"a" * 32), at(2))
    [body] = welcome_bodies(answers + alice.tick(at(100)))
    with pytest.raises(PeerMisbehaved, match="no member"):
        joiner.on_welcome(public(8), body)
    assert joiner.joining.state is JoinState.ASKING


def test_a_node_with_peers_does_not_join_another_network():
    alice, bob, carol = node(1), node(2), node(3)
    join(alice, bob, 2)
    link, _ = carol.invite(public(2), DAY, (), at(5))
    with pytest.raises(UserError):
        bob.join(link, at(6))


def test_texts_from_outside_are_cleaned():
    assert clean_text("a\x1b[31mb\n") == "a[31mb"
    assert clean_text(5) == ""
    assert len(clean_text("x" * 500)) == 64


def tell_others(effects, teller, nodes):
    if spread(effects):
        tell(effects, *(one for one in nodes if one is not teller))


def mesh(*numbers):
    """The owner (1) and members that all know of each other."""
    nodes = [node(1)]
    for number in numbers:
        one = node(number)
        tell(join(nodes[0], one, number, float(number)), *nodes[1:])
        nodes.append(one)
    return nodes


def test_an_admin_invites_and_removes_and_everybody_follows():
    alice, bob, carol = mesh(2, 3)
    tell(alice.set_role(public(2), Role.ADMIN, None, at(20)), bob, carol)
    dave = node(4)
    tell(join(bob, dave, 4, 21.0), alice, carol)
    assert dave.roster == alice.roster == carol.roster
    tell(bob.remove(public(3), at(22)), alice, carol, dave)
    assert not carol.is_member
    assert public(3) not in alice.roster.members
    with pytest.raises(UserError, match="only the owner"):
        bob.set_role(public(4), Role.ADMIN, None, at(23))
    tell(alice.set_role(public(4), Role.ADMIN, None, at(23)), bob, dave)
    with pytest.raises(UserError, match="only the owner"):
        bob.remove(public(4), at(24))


def test_an_invite_says_as_what_its_user_is_admitted():
    alice, bob = node(1), node(2)
    terms = Terms(Role.GUEST, ("web",), own=True, lasts_s=3600, ephemeral=True)
    link, effects = alice.invite(None, DAY, (), at(1), terms)
    [stored] = [e.value for e in effects if isinstance(e, Store) and e.space == "invite"]
    assert isinstance(stored, dict)
    assert Invite.from_json(stored) == alice.invites[parse_link(link).invite_id]
    bob.join(link, at(1))
    for body in welcome_bodies(alice.on_join_request(public(2), request(link), at(2))):
        bob.on_welcome(public(1), body)
    member = bob.roster.members[public(2)]
    assert (member.role, member.tags, member.owner) == (Role.GUEST, {"web"}, public(1))
    assert (member.expires, member.ephemeral) == (1_800_003_602, True)


def test_by_a_token_one_member_admits_and_the_others_let_it():
    nodes = mesh(2, 3, 4)
    alice, joiner = nodes[0], node(9)
    text, effects = alice.make_token(1, DAY, {"role": "member"}, ("wss://r",), at(30))
    tell(effects, *nodes[1:])
    assert len({one.token_mailboxes(at(30).wall) for one in nodes}) == 1
    joiner.join(text, at(31))
    asked = joiner.join_request(b"a" * 32)
    # Each hears the request before it hears of anybody's answer.
    answers, now = [(one, one.on_join_request(public(9), asked, at(31))) for one in nodes], 31.0
    for one, effects in answers:
        tell_others(effects, one, nodes)
    while now < 60:
        now += 1.0
        for one in nodes:
            effects = one.tick(at(now))
            answers.append((one, effects))
            tell_others(effects, one, nodes)
    welcomed = [(one, body) for one, effects in answers for body in welcome_bodies(effects)]
    assert len(welcomed) == 1
    [(welcomer, body)] = welcomed
    joiner.on_welcome(welcomer._me, body)
    assert joiner.is_member
    assert joiner.joining.state is JoinState.JOINED
    assert len({one.roster.digest for one in (*nodes, joiner)}) == 1
    assert parse_token_link(text).token_id in alice.roster.tokens
    late = node(8)
    late.join(text, at(70))
    with pytest.raises(PeerMisbehaved, match="used"):
        alice.on_join_request(public(8), late.join_request(b"a" * 32), at(70))


def test_who_comes_back_catches_up_before_it_answers_by_a_token_unless_it_is_alone():
    alone, (first, second) = node(1), mesh(2)
    alone.create("home", at(0))
    for one in (alone, first):
        text, effects = one.make_token(1, DAY, {"role": "member"}, (), at(30))
        if one is first:
            tell(effects, second)
        joiner = node(9)
        joiner.join(text, at(31))
        asked = joiner.join_request(b"a" * 32)
        one.hurry(at(31))
        answers = one.on_join_request(public(9), asked, at(31.1))
        assert bool(welcome_bodies(answers)) == (one is alone)
        answers += one.tick(at(31 + CATCH_UP_S - 0.1))
        assert bool(welcome_bodies(answers)) == (one is alone)
        answers += one.tick(at(31 + CATCH_UP_S + 2 * TURN_S))
        assert welcome_bodies(answers)


def test_nobody_joins_by_a_token_with_somebody_elses_proof():
    alice, bob = mesh(2)
    text, effects = alice.make_token(5, DAY, {}, (), at(30))
    tell(effects, bob)
    joiner = node(9)
    joiner.join(text, at(31))
    asked = joiner.join_request(b"a" * 32)
    for member in (alice, bob):
        with pytest.raises(PeerMisbehaved, match="unknown"):
            member.on_join_request(public(8), asked, at(32))


def test_who_has_expired_is_removed_by_an_admin():
    alice, bob = mesh(2)
    tell(alice.set_role(public(2), Role.GUEST, int(at(100).wall), at(20)), bob)
    alice.tick(at(21))
    assert 99 <= alice.deadline <= 101
    assert bob.deadline is None
    assert alice.tick(at(99)) == []
    effects = alice.tick(at(alice.deadline))
    assert any(isinstance(effect, MakeKey) for effect in effects)
    assert public(2) not in alice.roster.members


def test_who_is_ephemeral_is_removed_when_unheard():
    alice, bob = node(1), node(2)
    link, _ = alice.invite(None, DAY, (), at(1), Terms(ephemeral=True))
    bob.join(link, at(1))
    alice.on_join_request(public(2), request(link), at(2))
    alice.unheard(public(2), 10.0)
    alice.tick(at(20))
    alice.unheard(public(2), 1000.0)
    assert alice.tick(at(10 + UNHEARD_S + 1)) == []
    effects = alice.tick(at(1000 + UNHEARD_S + 1))
    assert [op.content.count('"remove"') for op in spread(effects)] == [1]


def test_after_somebody_left_one_admin_makes_a_new_key():
    alice, bob, carol = mesh(2, 3)
    tell(alice.set_role(public(2), Role.ADMIN, None, at(20)), bob, carol)
    tell(carol.leave(at(21)), alice, bob)
    assert alice.roster.needs_rekey
    with pytest.raises(UserError):
        alice.leave(at(22))
    keys, now = [], 22.0
    while now < 120:
        now += 1
        for one, other in ((alice, bob), (bob, alice)):
            effects = one.tick(at(now))
            keys += [effect for effect in effects if isinstance(effect, MakeKey)]
            if spread(effects):
                tell(effects, other)
    assert [key.key_id for key in keys] == [alice.roster.key_id]
    assert alice.roster == bob.roster
    assert not alice.roster.needs_rekey


def test_names_are_unique_at_once():
    alice, bob, carol = mesh(2, 3)
    names = [member.name for member in alice.roster.members.values()]
    assert names == ["node1", "bob", "bob-2"]
    with pytest.raises(UserError, match="taken"):
        alice.rename(public(3), "Bob", at(20))
    tell(carol.rename(public(3), "Carol's phone", at(20)), alice, bob)
    assert alice.roster.members[public(3)].name == "carols-phone"
    with pytest.raises(UserError):
        carol.rename(public(2), "x", at(21))


def test_a_link_names_its_relays():
    text, _ = node(1).invite(None, DAY, ("wss://a", "wss://b"), at(1))
    link = parse_link(text)
    assert isinstance(link, Link)
    assert render_link(link) == text
    assert link.relays == ("wss://a", "wss://b")
