"""Which of a host's other firewalls drop what the tunnel brings, from nft's own listing."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.io import forward_policy
from nostrvpn.io.forward_policy import Obstacle, forward_obstacle, input_obstacle

Listed = list[dict[str, Any]]


def chain(
    table: str, name: str, *, family: str = "inet", hook: str = "", policy: str = "accept"
) -> Any:
    base = {"hook": hook, "policy": policy} if hook else {}
    return {"chain": {"family": family, "table": table, "name": name, **base}}


def rule(table: str, name: str, *expr: Any, family: str = "inet") -> Any:
    return {"rule": {"family": family, "table": table, "chain": name, "expr": list(expr)}}


def iifname(right: object, op: str = "==") -> Any:
    return {"match": {"op": op, "left": {"meta": {"key": "iifname"}}, "right": right}}


DROPPING = [chain("filter", "input", hook="input", policy="drop")]
UFW = [
    chain("filter", "INPUT", family="ip", hook="input", policy="drop"),
    chain("filter", "ufw-before-input", family="ip"),
]
FIREWALLD = [
    chain("firewalld", "filter_INPUT", hook="input"),
    rule("firewalld", "filter_INPUT", {"jump": {"target": "filter_INPUT_ZONES"}}),
    rule("firewalld", "filter_INPUT", {"reject": {"type": "icmpx"}}),
]


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ([], None),
        ([chain("filter", "input", hook="input")], None),
        ([chain("filter", "FORWARD", hook="forward", policy="drop")], None),
        ([chain("nostrvpn_nv0_inbound", "input", hook="input", policy="drop")], None),
        (
            DROPPING,
            Obstacle(
                "inet filter input", "sudo nft insert rule inet filter input iifname nv0 accept"
            ),
        ),
        (UFW, Obstacle("ip filter INPUT", "sudo ufw allow in on nv0")),
        (
            FIREWALLD,
            Obstacle(
                "inet firewalld filter_INPUT",
                "sudo firewall-cmd --permanent --zone=trusted --add-interface=nv0 && "
                "sudo firewall-cmd --reload",
            ),
        ),
        (
            [*UFW, rule("filter", "ufw-user-input", iifname("nv0"), {"accept": None}, family="ip")],
            None,
        ),
        ([*DROPPING, rule("filter", "input", iifname("nv*"), {"accept": None})], None),
        (
            [*DROPPING, rule("filter", "input", iifname({"set": ["lo", "nv0"]}), {"accept": None})],
            None,
        ),
    ],
)
def test_the_firewall_in_the_way_is_named_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, listed: Listed, found: Obstacle | None
) -> None:
    monkeypatch.setattr(forward_policy, "list_objects", lambda *_, **__: listed)
    assert input_obstacle("nv0") == found


@pytest.mark.parametrize(
    "other",
    [
        rule("filter", "input", iifname("eth0"), {"accept": None}),
        rule("filter", "input", iifname("nv0", "!="), {"accept": None}),
        rule("other", "input", iifname("nv0"), {"accept": None}),
    ],
)
def test_a_rule_of_another_interface_or_table_helps_nothing(
    monkeypatch: pytest.MonkeyPatch, other: Any
) -> None:
    monkeypatch.setattr(forward_policy, "list_objects", lambda *_, **__: [*DROPPING, other])
    assert input_obstacle("nv0") is not None


def test_without_nft_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Listed:
        raise SystemRefused("nftables is not installed")

    monkeypatch.setattr(forward_policy, "list_objects", missing)
    assert input_obstacle("nv0") is None


FORWARDING = [chain("filter", "FORWARD", family="ip", hook="forward", policy="drop")]
IN4 = "sudo iptables -I DOCKER-USER -i nv0 -j ACCEPT"
OUT4 = "sudo iptables -I DOCKER-USER -o nv0 -j ACCEPT"


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ([], None),
        (DROPPING, None),
        (
            [*FORWARDING, chain("filter", "DOCKER-USER", family="ip")],
            Obstacle("ip filter FORWARD", f"{IN4} && {OUT4}"),
        ),
        (
            [*FORWARDING, chain("filter", "ufw-before-forward", family="ip")],
            Obstacle(
                "ip filter FORWARD",
                "sudo ufw route allow in on nv0 && sudo ufw route allow out on nv0",
            ),
        ),
        (
            [chain("host", "fwd", hook="forward", policy="drop")],
            Obstacle(
                "inet host fwd",
                "sudo nft insert rule inet host fwd iifname nv0 accept && "
                "sudo nft insert rule inet host fwd oifname nv0 accept",
            ),
        ),
        (
            [
                *FORWARDING,
                rule("filter", "DOCKER-USER", iifname("nv0"), {"accept": None}, family="ip"),
            ],
            None,
        ),
        # Whoever thought of what comes in has not thought of what is forwarded.
        (
            [
                *FORWARDING,
                rule("filter", "ufw-user-input", iifname("nv0"), {"accept": None}, family="ip"),
            ],
            Obstacle(
                "ip filter FORWARD",
                "sudo nft insert rule ip filter FORWARD iifname nv0 accept && "
                "sudo nft insert rule ip filter FORWARD oifname nv0 accept",
            ),
        ),
    ],
)
def test_what_drops_forwarded_packets_is_found_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, listed: Listed, found: Obstacle | None
) -> None:
    monkeypatch.setattr(forward_policy, "list_objects", lambda *_what, **_more: listed)
    assert forward_obstacle("nv0", {4}) == found


@pytest.mark.parametrize("last", ["notrack", None, 7, ["drop"]])
def test_statements_in_other_forms_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, last: object
) -> None:
    odd = rule("filter", "input", {"match": {"left": {"meta": "x"}, "right": 1, "op": "=="}}, last)
    listed = [chain("filter", "input", hook="input"), odd, rule("filter", "input", last)]
    monkeypatch.setattr(forward_policy, "list_objects", lambda *_, **__: listed)
    assert input_obstacle("nv0") is None
    listed.append(chain("other", "input", hook="input", policy="drop"))
    listed.append(rule("other", "input", odd["rule"]["expr"][0], last))
    found = input_obstacle("nv0")
    assert found is not None
    assert found.where == "inet other input"


def test_a_bare_drop_at_the_end_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [chain("filter", "input", hook="input"), rule("filter", "input", "drop")]
    monkeypatch.setattr(forward_policy, "list_objects", lambda *_, **__: listed)
    assert input_obstacle("nv0") is not None
