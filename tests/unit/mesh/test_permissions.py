"""Rules as text and JSON, and what they come to."""

from __future__ import annotations

import pytest

from nostrvpn.errors import PeerMisbehaved, UsageError
from nostrvpn.identity.keys import npub
from nostrvpn.mesh.permissions import (
    EVERYBODY,
    MAX_SPANS,
    PortSpan,
    Rule,
    Selector,
    What,
    parse_rule,
    parse_selector,
    parse_what,
    rule_to_json,
    what_text,
)
from nostrvpn.mesh.policy import (
    MAX_LOCAL_RULES,
    Decision,
    LocalPolicy,
    Question,
    decide,
    rule_words,
)
from tests.unit.mesh.laws import KEYS, TestLaw, member

A, B, C = KEYS[:3]
SSH = PortSpan("tcp", 22, 22)
WEB = PortSpan("tcp", 80, 90)
PING = PortSpan("icmp")


def rule(verb: str, source: str = "*", what: str = "inbound", target: str = "*") -> Rule:
    kind, ports = parse_what(what)
    return Rule(verb == "allow", parse_selector(source), parse_selector(target), kind, ports)


def ask(
    law: TestLaw,
    port: PortSpan | None = SSH,
    *,
    local: LocalPolicy | None = None,
    what: What = What.INBOUND,
    wall: float = 1000.0,
) -> Decision:
    return decide(law, local or LocalPolicy(), Question(A, B, what, port), wall)


# -- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "inbound",
        "inbound:tcp/22",
        "inbound:icmp,tcp/80-90,udp/53",
        "inbound:udp",
        "lan",
        "exit",
        "files",
    ],
)
def test_what_is_its_own_text(text: str) -> None:
    assert what_text(*parse_what(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "in", "inbound:", "inbound:22", "inbound:tcp/0", "inbound:tcp/70000", "lan:tcp/22"),
        *("inbound:tcp/90-80", "inbound:tcp/٢٢", "inbound:icmp/8", "inbound:tcp/22,", "INBOUND"),
        "inbound:" + ",".join(f"tcp/{port}" for port in range(1, MAX_SPANS + 2)),
    ],
)
def test_bad_whats_are_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError):
        parse_what(text)


def test_rules_survive_json() -> None:
    made = Rule(False, Selector("tag", "web"), Selector("member", A), What.INBOUND, (PING, SSH))
    assert parse_rule(rule_to_json(made)) == made
    assert parse_rule(rule_to_json(made) | {"to": npub(A)}) == made
    assert parse_rule(rule_to_json(made) | {"what": "inbound:tcp/22,icmp,tcp/22"}) == made


GOOD = rule_to_json(rule("allow", "tag:web", "inbound:tcp/22"))


@pytest.mark.parametrize(
    "bad",
    [
        *(None, [], "allow", {}, GOOD | {"more": 1}, {k: v for k, v in GOOD.items() if k != "to"}),
        *(GOOD | {"allow": 1}, GOOD | {"from": 7}, GOOD | {"from": "tag:"}, GOOD | {"to": "tag:A"}),
        *(GOOD | {"from": "x" * 64}, GOOD | {"from": A.upper()}, GOOD | {"what": "inbound:tcp/0"}),
        *(GOOD | {"what": "party"}, GOOD | {"from": ""}, GOOD | {"to": "tag:" + "a" * 64}),
    ],
)
def test_bad_rules_are_refused(bad: object) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        parse_rule(bad)
    assert caught.value.code == "bad_rule"


# -- decisions -------------------------------------------------------------------------------------


def test_by_default_only_ping_is_let_in() -> None:
    law = TestLaw(member(A, "laptop"), member(B, "server"))
    assert ask(law, PING).allowed
    refused = ask(law)
    assert not refused.allowed
    assert (refused.layer, refused.rule) == ("default", None)
    assert refused.text == "no rule is about it, and by default only ping is let in"
    assert not ask(law, None).allowed
    assert not ask(law, None, what=What.LAN).allowed


@pytest.mark.parametrize(
    ("inbound", "pinged", "opened"), [("none", 0, 0), ("ping", 1, 0), ("all", 1, 1)]
)
def test_the_default_is_the_networks_unless_the_node_says_otherwise(
    inbound: str, pinged: int, opened: int
) -> None:
    for law, local in (
        (TestLaw(member(A), member(B), inbound=inbound), LocalPolicy()),
        (TestLaw(member(A), member(B), inbound="all"), LocalPolicy(inbound=inbound)),
    ):
        assert ask(law, PING, local=local).allowed == pinged
        assert ask(law, SSH, local=local).allowed == opened
        assert ask(law, None, local=local).allowed == opened
        assert not ask(law, None, what=What.LAN, local=local).allowed


def test_an_unknown_default_of_a_later_version_lets_nothing_in() -> None:
    assert not ask(TestLaw(member(A), member(B), inbound="friends"), PING).allowed


def test_devices_of_one_owner_may_everything() -> None:
    law = TestLaw(member(A, owner=C), member(B, owner=C))
    for what in What:
        found = ask(law, SSH if what is What.INBOUND else None, what=what)
        assert (found.allowed, found.layer) == (True, "same-owner")
    assert not ask(law, local=LocalPolicy(same_owner=False)).allowed
    off = TestLaw(member(A, owner=C), member(B, owner=C), same_owner=False)
    assert not ask(off).allowed
    assert ask(off, local=LocalPolicy(same_owner=True)).allowed


def test_who_is_no_active_member_may_nothing() -> None:
    everything = LocalPolicy(inbound="all", rules=(rule("allow"),))
    assert ask(TestLaw(member(B)), local=everything).layer == "members"
    assert not ask(TestLaw(member(B)), local=everything).allowed
    guest = TestLaw(member(A, expires=1000), member(B), inbound="all")
    assert ask(guest, wall=999.9).allowed
    assert ask(guest, wall=1000.0).layer == "members"


def test_shields_up_beat_every_rule_and_owner() -> None:
    law = TestLaw(member(A, owner=C), member(B, owner=C), rules=(rule("allow", A),), inbound="all")
    local = LocalPolicy(shields_up=True, rules=(rule("allow", A),))
    for port in (SSH, PING, None):
        assert (ask(law, port, local=local).allowed, ask(law, port, local=local).layer) == (
            False,
            "shields-up",
        )


def test_the_daemons_own_channel_is_open_to_members_alone() -> None:
    channel = PortSpan("tcp", 4116, 4116)
    law, closed = TestLaw(member(A), member(B), inbound="none"), LocalPolicy(shields_up=True)
    assert ask(law, channel, local=closed).layer == "channel"
    assert ask(law, channel, local=closed).allowed
    assert not ask(TestLaw(member(B)), channel).allowed


def test_own_rules_beat_the_networks_and_those_the_default() -> None:
    law = TestLaw(member(A), member(B), rules=(rule("allow", A, "inbound:tcp/22"),))
    found = ask(law)
    assert (found.allowed, found.layer) == (True, "network")
    assert "allow alpha inbound:tcp/22" in found.text
    found = ask(law, local=LocalPolicy(rules=(rule("deny"),)))
    assert (found.allowed, found.layer) == (False, "local")
    assert found.text == "a rule of this node decides: deny * inbound"


def test_a_rule_about_a_member_beats_a_tag_which_beats_all() -> None:
    who = [A, "tag:web", "*"]
    for index, narrow in enumerate(who):
        for wide in who[index + 1 :]:
            for verb, other in (("allow", "deny"), ("deny", "allow")):
                rules = (rule(other, wide), rule(verb, narrow))
                law = TestLaw(member(A, tags="web"), member(B), rules=rules)
                assert ask(law).allowed == (verb == "allow"), (narrow, wide, verb)


def test_the_source_counts_before_the_target() -> None:
    rules = (rule("allow", A, target="*"), rule("deny", "tag:web", target=B))
    assert ask(TestLaw(member(A, tags="web"), member(B), rules=rules)).allowed
    rules = (rule("allow", A, target="tag:db"), rule("deny", A, target="*"))
    assert ask(TestLaw(member(A), member(B, tags="db"), rules=rules)).allowed


def test_among_equals_deny_wins() -> None:
    rules = (rule("allow", "tag:web"), rule("deny", "tag:db"), rule("allow", "tag:web"))
    assert not ask(TestLaw(member(A, tags="web db"), member(B), rules=rules)).allowed


def test_a_rule_speaks_of_its_ports_only() -> None:
    rules = (rule("deny", A, "inbound:tcp/80-90"), rule("allow", "*", "inbound:tcp"))
    law = TestLaw(member(A), member(B), rules=rules)
    assert ask(law, SSH).allowed
    assert not ask(law, PortSpan("tcp", 90, 90)).allowed
    assert ask(law, PortSpan("tcp", 91, 91)).allowed
    assert not ask(law, PortSpan("udp", 22, 22)).allowed
    assert not ask(law, None).allowed


def test_a_rule_about_others_or_another_matter_says_nothing() -> None:
    rules = (rule("allow", C), rule("allow", A, target=C), rule("allow", A, "lan"))
    law = TestLaw(member(A), member(B), rules=rules)
    assert ask(law).layer == "default"
    assert ask(law, None, what=What.LAN).allowed
    assert not ask(law, None, what=What.EXIT).allowed


def test_names_in_words_are_the_callers() -> None:
    law = TestLaw(member(A), member(B), rules=(rule("allow", A, target=B),))
    found = decide(law, LocalPolicy(), Question(A, B), 0.0, lambda key: key[:2])
    assert found.text.endswith(f"allow {A[:2]} inbound at {B[:2]}")
    assert rule_words(rule("deny", "tag:web", "lan"), str) == "deny tag:web lan"


# -- a node's own policy ---------------------------------------------------------------------------


def test_a_rule_takes_the_place_of_its_opposite() -> None:
    local = LocalPolicy().with_rule(rule("deny", A)).with_rule(rule("allow", B))
    local = local.with_rule(rule("allow", A)).with_rule(rule("allow", A))
    assert local.rules == (rule("allow", B), rule("allow", A))
    assert local.with_rule(rule("allow", A), withdraw=True).rules == (rule("allow", B),)


def test_a_policy_survives_a_restart_and_the_configuration_stays_its_own() -> None:
    local = LocalPolicy(
        True, (rule("deny", A, "inbound:icmp,tcp/22"), rule("allow", "*", "files")), "none"
    )
    assert LocalPolicy(inbound="none").restored(local.to_json()) == local


@pytest.mark.parametrize(
    "stored", [None, [], {}, {"shields_up": 1, "rules": []}, {"shields_up": False, "rules": [{}]}]
)
def test_a_damaged_policy_is_refused(stored: object) -> None:
    with pytest.raises(PeerMisbehaved):
        LocalPolicy().restored(stored)


def test_a_node_has_a_bounded_number_of_rules() -> None:
    local = LocalPolicy()
    for port in range(1, MAX_LOCAL_RULES + 1):
        local = local.with_rule(rule("allow", "*", f"inbound:tcp/{port}"))
    with pytest.raises(ValueError, match="at most"):
        local.with_rule(rule("allow", "*", "inbound"))
    assert local.rules[0].target == EVERYBODY
