"""What a policy lets guests reach, asked packet by packet."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from nostrvpn.errors import PeerMisbehaved, UsageError
from nostrvpn.exits.policy import MAX_WORDS, POLICIES, ExitPolicy, ExitRule, is_public, parse_word

OVERLAY = (ip_network("10.64.0.0/16"), ip_network("fd64::/48"))
AROUND = (ip_network("203.0.113.0/24"),)
PUBLIC, PUBLIC6 = "198.51.100.1", "2001:db8::1"


def allows(policy: ExitPolicy, address: str, protocol: str = "tcp", port: int = 443) -> bool:
    """Ask as the packet filter does: the first rule that fits."""
    for rule in policy.compile(OVERLAY, AROUND):
        if fits(rule, address, protocol, port):
            return rule.allow
    return False


def fits(rule: ExitRule, address: str, protocol: str, port: int) -> bool:
    ip = ip_address(address)
    if rule.networks and not any(ip in network for network in rule.networks):
        return False
    if protocol == "icmp":
        return rule.ping
    if protocol == "other":
        return rule.other
    ports = rule.tcp if protocol == "tcp" else rule.udp
    return any(first <= port <= last for first, last in ports)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    "address",
    [
        *("10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "127.0.0.1"),
        *("0.0.0.1", "224.0.0.251", "255.255.255.255", "203.0.113.7", "10.64.3.4"),
        *("fd00:ec2::254", "fc00::1", "fe80::1", "ff02::1", "::1", "::ffff:10.0.0.1", "fd64::5"),
        *("64:ff9b::a00:1", "2002:a00:1::1"),
    ],
)
def test_no_policy_lets_guests_into_what_is_private_around_or_nowhere(
    name: str, address: str
) -> None:
    assert not allows(ExitPolicy(name), address)
    assert allows(ExitPolicy(name), PUBLIC)
    assert allows(ExitPolicy(name), PUBLIC6)


def test_the_lan_is_opened_without_members_metadata_and_what_is_nowhere() -> None:
    policy = ExitPolicy("open", lan=True)
    for address in ("10.1.2.3", "192.168.1.1", "fc00::1", "203.0.113.7"):
        assert allows(policy, address)
    for address in ("10.64.3.4", "fd64::5", "169.254.169.254", "fd00:ec2::254", "127.0.0.1"):
        assert not allows(policy, address)


def test_a_deny_beats_an_allow_and_members_beat_both() -> None:
    policy = ExitPolicy(
        "web",
        (parse_word("192.168.5.0/24,tcp/22"), parse_word("8080"), parse_word("10.64.0.0/16")),
        (parse_word("192.168.5.9/32"), parse_word("tcp/80")),
    )
    assert allows(policy, "192.168.5.4", "tcp", 22)
    assert not allows(policy, "192.168.5.4", "tcp", 23)
    assert not allows(policy, "192.168.5.9", "tcp", 22)
    assert allows(policy, PUBLIC, "udp", 8080)
    assert not allows(policy, "192.168.9.9", "tcp", 8080)
    assert not allows(policy, PUBLIC, "tcp", 80)
    assert not allows(policy, "10.64.0.9", "tcp", 22)


def test_policies_say_what_tor_says() -> None:
    """Tor's lists (src/core/or/policies.c), sampled at their edges."""
    for port, allowed in ((24, 1), (25, 0), (26, 1), (135, 0), (139, 0), (140, 1), (6881, 0)):
        assert allows(ExitPolicy("tor-default"), PUBLIC, "tcp", port) == bool(allowed)
        assert allows(ExitPolicy("tor-default"), PUBLIC, "udp", port) == bool(allowed)
    for port, allowed in ((20, 1), (23, 1), (25, 0), (464, 1), (465, 1), (10000, 1), (10001, 0)):
        assert allows(ExitPolicy("reduced"), PUBLIC, "tcp", port) == bool(allowed)
    assert not allows(ExitPolicy("tor-default"), PUBLIC, "other")
    assert allows(ExitPolicy("open"), PUBLIC, "other")
    assert all(allows(ExitPolicy(name), PUBLIC, "icmp") for name in POLICIES)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ",",
            "0",
            "65536",
            "90-80",
            "tcp/",
            "sctp/5",
            "1.2.3.4/33",
            "10.0.0.1/8",
            "0.0.0.0/0",
        ),
        *("::/0", "tcp/80,10.0.0.0/8", "a" * 400, "tcp80", "80;drop", "80 }\n}", "1-2-3"),
    ],
)
def test_what_is_no_word_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_word(text)


def test_a_policy_survives_being_stored_and_damage_is_found() -> None:
    policy = ExitPolicy(
        "reduced", (parse_word("1.2.3.0/24, TCP/5-6"),), (parse_word("icmp"),), True
    )
    stored = policy.to_json()
    assert ExitPolicy.from_json(stored) == policy
    damaged: list[object] = [None, {}, stored | {"name": "all"}, stored | {"lan": 1}]
    damaged += [stored | {"allow": ["nonsense"]}, stored | {"deny": ["80"] * (MAX_WORDS + 1)}]
    for one in damaged:
        with pytest.raises(PeerMisbehaved):
            ExitPolicy.from_json(one)


@pytest.mark.parametrize(
    "text",
    [
        *("10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254"),
        *("0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "::1", "fe80::1", "fd00:ec2::254"),
        *("ff02::1", "::ffff:192.168.1.1", "64:ff9b::c0a8:101", "2002:c0a8:101::1"),
        *(
            "192.0.0.1",
            "198.18.0.1",
            "240.0.0.1",
            "fec0::1",
            "2001::1",
            "64:ff9b:1::1",
            "::8.8.8.8",
        ),
    ],
)
def test_addresses_that_are_not_the_internets_are_known(text):
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"]
)
def test_addresses_of_the_internet_are_public(text):
    assert is_public(ip_address(text))
