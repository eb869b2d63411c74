"""Rules are made, taken back, kept and explained by commands; the filter follows at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nostrvpn.errors import UserError
from nostrvpn.host.inbound import EVERYTHING, Access
from nostrvpn.node.events import Command, Persist, Reconcile, Refuse, Reply
from nostrvpn.node.policy_commands import run_policy_command
from tests.sim.nodes import Host, World

CHANNEL = (4116, 4116)
PING_ONLY = Access(ping=True, tcp=(CHANNEL,))


class Two:
    """Alice, who founded the network, and Bob."""

    def __init__(self) -> None:
        self.world = World()
        self.world.relay()
        self.alice, self.bob = self.world.host("alice"), self.world.host("bob")
        for host in (self.alice, self.bob):
            self.world.start(host)
        self.world.run(5)
        npub = self.bob.secret.npub
        link = self.world.call(self.alice, "invite", npub=npub, once=False, expires_s=86_400)[
            "link"
        ]
        self.world.ask(self.bob, "join", link=link)
        assert self.world.run(60, lambda: self.world.is_connected(self.alice, self.bob))

    def permit(self, host: Host, allow: bool, who: str, what: str = "inbound", **more: Any) -> Any:
        given = {
            "allow": allow,
            "who": who,
            "what": what,
            "at": None,
            "network": False,
            "undo": False,
        }
        return self.world.call(host, "permit", **given | more)

    def access(self, host: Host) -> Access:
        """What the only other member may send to ``host``."""
        desired = host.node.desired(self.world.moment(host).now)
        assert desired.inbound is not None
        access: Access
        [access] = set(desired.inbound.sources.values())
        return access


def verdicts(two: Two) -> list[bool]:
    """Return what Bob holds of the network's rules."""
    return [rule["allow"] for rule in two.world.call(two.bob, "rules")["network"]]


@pytest.fixture(scope="module")
def met() -> Two:
    return Two()


@pytest.fixture
def two(met: Two) -> Iterator[Two]:
    yield met
    for host in (met.alice, met.bob):
        host.node.permissions.local = type(host.node.permissions.local)()
    for rule in met.world.call(met.alice, "rules")["network"]:
        more = {"at": None if rule["at"] == "*" else rule["at"], "network": True, "undo": True}
        met.permit(met.alice, rule["allow"], rule["who"], rule["what"], **more)
    met.world.run(5)


def test_an_own_rule_is_kept_and_in_force_at_once(two: Two) -> None:
    assert two.access(two.bob) == PING_ONLY
    moment = two.world.moment(two.bob)
    args = {"allow": True, "who": "alice", "what": "inbound:tcp/22", "at": None}
    args |= {"network": False, "undo": False}
    stored, reconcile, reply = run_policy_command(two.bob.node, Command(1, "permit", args), moment)
    assert isinstance(stored, Persist)
    assert stored.value == two.bob.node.permissions.local.to_json()
    assert isinstance(reconcile, Reconcile)
    assert isinstance(reply, Reply)
    assert two.access(two.bob) == Access(ping=True, tcp=((22, 22), CHANNEL))
    two.permit(two.bob, True, "alice", "inbound:tcp/22", undo=True)
    assert two.access(two.bob) == PING_ONLY


def test_shields_up_close_everything_but_the_daemons_own_channel(two: Two) -> None:
    two.permit(two.bob, True, "all")
    assert two.access(two.bob) == EVERYTHING
    two.world.call(two.bob, "shields_up", up=True)
    assert two.access(two.bob) == Access(tcp=(CHANNEL,))
    assert "shields_up" in {item["code"] for item in two.world.call(two.bob, "status")["problems"]}
    two.world.call(two.bob, "shields_up", up=False)
    assert two.access(two.bob) == EVERYTHING


def test_an_admins_rule_holds_at_everybodys_node(two: Two) -> None:
    two.permit(two.alice, True, "alice", "inbound:udp/53", at="bob", network=True)
    assert two.world.run(60, lambda: two.access(two.bob).udp == ((53, 53),))
    assert two.access(two.alice) == PING_ONLY
    [rule] = two.world.call(two.bob, "rules")["network"]
    assert rule["text"] == "allow alice inbound:udp/53 at bob"
    two.permit(two.alice, False, "alice", "inbound:udp/53", at="bob", network=True)
    assert two.world.run(60, lambda: verdicts(two) == [False])
    assert two.access(two.bob).udp == ()
    two.permit(two.bob, True, "alice", "inbound:udp/53")
    assert two.access(two.bob).udp == ((53, 53),)


def test_who_is_no_admin_makes_no_rule_for_others(two: Two) -> None:
    args = {
        "allow": True,
        "who": "bob",
        "what": "inbound",
        "at": None,
        "network": True,
        "undo": False,
    }
    refused = two.world.ask(two.bob, "permit", **args)
    assert isinstance(refused, Refuse)
    assert two.access(two.alice) == PING_ONLY


def test_what_was_signed_before_a_refusal_is_stored_and_told(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule: dict[str, Any] = {"allow": True, "who": "bob", "what": "inbound:tcp/22", "at": None}
    two.permit(two.alice, **rule, network=True)
    membership = two.alice.node.membership
    real = membership.permit

    def full(asked: Any, withdraw: bool, moment: Any) -> Any:
        if not withdraw:
            raise UserError("the log is full", "ask an admin")
        return real(asked, withdraw, moment)

    monkeypatch.setattr(membership, "permit", full)
    args = rule | {"allow": False, "network": True, "undo": False}
    moment = two.world.moment(two.alice)
    effects = two.alice.node.step(Command(5, "permit", args), moment)
    answers = [effect for effect in effects if isinstance(effect, Refuse | Reply)]
    assert [str(answer.text) for answer in answers if isinstance(answer, Refuse)] == [
        "the log is full"
    ]
    assert len(answers) == 1
    newest = membership.roster.heads[0]
    stored = [e.key for e in effects if isinstance(e, Persist) and e.space == "network"]
    assert stored == [newest]
    two.world._perform(two.alice, effects)
    two.world.run(10)
    assert verdicts(two) == []


def test_questions_name_the_rule_that_decides(two: Two) -> None:
    two.permit(two.bob, False, "all", "inbound:icmp")
    ask = {"source": "alice", "target": "me", "what": "ping"}
    told = two.world.call(two.bob, "policy_test", **ask)
    assert (told["allowed"], told["layer"], told["note"]) == (False, "local", None)
    assert told["text"] == "a rule of this node decides: deny * inbound:icmp"
    assert told["what"] == "inbound:icmp"
    told = two.world.call(two.alice, "policy_test", **ask | {"source": "me", "target": "bob"})
    assert (told["allowed"], told["layer"]) == (True, "default")
    assert told["note"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("permit", {"who": "nobody"}),
        ("permit", {"who": "tag:"}),
        ("permit", {"what": "inbound:tcp/0"}),
        ("permit", {"undo": True}),
        ("permit", {"network": True, "undo": True}),
        ("permit", {"at": "alice"}),
        ("permit", {"who": "me"}),
        ("policy_test", {"source": "me", "target": "bob", "what": "tcp/1-2"}),
        ("policy_test", {"source": "me", "target": "bob", "what": "nonsense"}),
        ("policy_test", {"source": "me", "target": "x" * 200, "what": "ping"}),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(
    two: Two, name: str, args: dict[str, Any]
) -> None:
    given: dict[str, Any] = args
    if name == "permit":
        given = {
            "allow": True,
            "who": "bob",
            "what": "lan",
            "at": None,
            "network": False,
            "undo": False,
        }
        given |= args
    refused = two.world.ask(two.alice, name, **given)
    assert isinstance(refused, Refuse)
    assert refused.hint
    assert two.world.call(two.alice, "rules")["local"] == []


def test_a_restored_policy_is_the_one_that_was_stored(two: Two) -> None:
    two.permit(two.bob, False, "alice", "inbound:icmp")
    local = two.bob.node.permissions.local
    assert local.restored(local.to_json()) == local
    assert "not_enforced" not in {p["code"] for p in two.world.call(two.bob, "status")["problems"]}
