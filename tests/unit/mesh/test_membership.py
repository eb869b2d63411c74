"""The membership machine, both sides of it, without any network between them."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Entropy, Moment
from nostrvpn.mesh.effects import (
    JoinState,
    MembersChanged,
    RequestJoin,
    SendRefusal,
    SendRoster,
    Store,
    Welcome,
)
from nostrvpn.mesh.invites import Link, parse_link, render_link
from nostrvpn.mesh.membership import KEEP_USED_S, MAX_INVITES, ROSTER_CHUNK, Membership, clean_name
from nostrvpn.nostr.event import event_json

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
        {"ops": [event_json(op) for op in effect.operations], "start": effect.start}
        for effect in effects
        if isinstance(effect, Welcome)
    ]


def join(owner: Any, applicant: Any, number: int, now: float = 1.0) -> Any:
    link, _ = owner.invite(public(number), DAY, (), at(now))
    applicant.join(link, at(now))
    effects = owner.on_join_request(public(number), request(link), at(now))
    for body in welcome_bodies(effects):
        applicant.on_welcome(owner._secret.public_key, body)
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
    told = [effect.recipient for effect in effects if isinstance(effect, SendRoster)]
    assert told == [public(2)]


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
    bob.on_roster({"ops": [event_json(alice.roster.log[-1])]})
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
    for effect in join(alice, carol, 3):
        if isinstance(effect, SendRoster):
            bob.on_roster({"ops": [event_json(op) for op in effect.operations]})
    effects = alice.remove(public(3), at(5))
    sends = {e.recipient: e.operations for e in effects if isinstance(e, SendRoster)}
    assert set(sends) == {public(2), public(3)}
    for member, key in ((bob, 2), (carol, 3)):
        member.on_roster({"ops": [event_json(op) for op in sends[public(key)]]})
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
        lambda alice, bob: alice.invite(public(2), DAY, (), at(9)),
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
    for i in range(2 * ROSTER_CHUNK):
        secret = RootSecret((1000 + i).to_bytes(32, "big"))
        link, _ = alice.invite(secret.public_key, DAY, (), at(i))
        alice.on_join_request(secret.public_key, request(link), at(i))
    link, _ = alice.invite(public(2), DAY, (), at(100))
    bob.join(link, at(100))
    bodies = welcome_bodies(alice.on_join_request(public(2), request(link), at(101)))
    assert len(bodies) == 3
    for body in reversed(bodies):
        bob.on_welcome(public(1), body)
    assert bob.roster.members == alice.roster.members


def test_a_node_that_lags_behind_is_sent_what_it_lacks():
    alice, bob = node(1), node(2)
    join(alice, bob, 2)
    join(alice, node(3), 3)
    [effect] = alice.on_version_heard(public(2), bob.roster.version)
    assert isinstance(effect, SendRoster)
    bob.on_roster({"ops": [event_json(op) for op in effect.operations]})
    assert bob.roster.version == alice.roster.version
    assert alice.on_version_heard(public(2), bob.roster.version) == []


def test_everything_survives_a_restart():
    alice, bob = node(1), node(2)
    records: dict[str, dict[str, object]] = {}

    def keep(effects):
        for effect in effects:
            if isinstance(effect, Store):
                records.setdefault(effect.space, {})[effect.key] = effect.value

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
    alice = node(1)
    for i in range(MAX_INVITES):
        alice.invite(None, DAY, (), at(i))
    with pytest.raises(UserError):
        alice.invite(None, DAY, (), at(200))
    alice.invite(None, DAY, (), at(DAY + KEEP_USED_S + 500))  # old ones made room


def test_a_node_with_peers_does_not_join_another_network():
    alice, bob, carol = node(1), node(2), node(3)
    join(alice, bob, 2)
    link, _ = carol.invite(public(2), DAY, (), at(5))
    with pytest.raises(UserError):
        bob.join(link, at(6))


def test_names_from_outside_are_cleaned():
    assert clean_name("a\x1b[31mb\n") == "a[31mb"
    assert clean_name(5) == ""
    assert len(clean_name("x" * 500)) == 64


def test_a_link_names_its_relays():
    text, _ = node(1).invite(None, DAY, ("wss://a", "wss://b"), at(1))
    link = parse_link(text)
    assert isinstance(link, Link)
    assert render_link(link) == text
    assert link.relays == ("wss://a", "wss://b")
