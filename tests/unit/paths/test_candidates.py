# mypy: allow-untyped-calls
from ipaddress import IPv4Network, ip_address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.candidates import (
    MAX_CANDIDATES,
    CandidateKind,
    LocalAddress,
    candidate_priority,
    needs_opener,
    refusal,
    survey,
)
from nostrvpn.paths.settings import PathSettings

SETTINGS = PathSettings(overlay=(IPv4Network("10.64.0.0/10"),))


def local(text, interface="eth0", prefixlen=24):
    return LocalAddress(ip_address(text), interface, prefixlen)


def at(text, port=5):
    return Endpoint(ip_address(text), port)


def look(*addresses, reflexive=()):
    elsewhere = {CandidateKind.REFLEXIVE: reflexive}
    return survey(addresses, 5, elsewhere, SETTINGS, reflexive_pending=False)


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1",
     "0.1.2.3", "169.254.1.1", "fe80::1", "10.64.0.9", "::ffff:192.0.2.1"],
)  # fmt: skip
def test_targets_that_nobody_may_name(text):
    assert refusal(at(text), SETTINGS) is not None
    assert look(local(text)).candidates == ()


def test_ports_out_of_range_and_loopback_by_permission():
    assert refusal(at("192.0.2.1", 0), SETTINGS)
    assert refusal(at("192.0.2.1", 65536), SETTINGS)
    assert refusal(at("127.0.0.1"), PathSettings(allow_loopback=True)) is None
    assert refusal(at("192.0.2.1"), SETTINGS) is None


def test_addresses_of_tunnels_and_containers_are_not_offered():
    found = look(
        local("192.168.1.2", "docker0"), local("192.168.1.3", "nvpn0"), local("192.168.1.4")
    )
    assert [c.endpoint for c in found.candidates] == [at("192.168.1.4")]


def test_order_is_host_v6_host_v4_reflexive_and_does_not_depend_on_the_kernels_order():
    addresses = [local("192.168.1.2"), local("2d00::2", prefixlen=64), local("11.0.0.9", "eth1")]
    reflexive = [at("11.0.1.2", 77), at("192.168.1.2")]
    found = look(*addresses, reflexive=reflexive)
    kinds = [(c.kind, c.endpoint.ip.version) for c in found.candidates]
    host, srflx = CandidateKind.HOST, CandidateKind.REFLEXIVE
    assert kinds == [(host, 6), (host, 4), (host, 4), (srflx, 4)]
    assert look(*reversed(addresses), reflexive=reflexive) == found
    assert found.versions == {4, 6}
    assert len(found.hosts) == 3


def test_a_host_with_very_many_addresses_offers_a_bounded_list():
    found = look(*(local(f"11.0.{n}.1") for n in range(200)), reflexive=[at("11.9.9.9")])
    assert len(found.candidates) <= MAX_CANDIDATES
    assert found.candidates[-1].kind is CandidateKind.REFLEXIVE


def test_priorities_follow_the_rfc():
    assert candidate_priority(CandidateKind.HOST, 6) > candidate_priority(CandidateKind.HOST, 4)
    assert candidate_priority(CandidateKind.HOST, 4) > candidate_priority(
        CandidateKind.REFLEXIVE, 6
    )
    assert candidate_priority(CandidateKind.HOST, 4) >> 24 == 126


@pytest.mark.parametrize(
    ("text", "needed"),
    [("11.0.0.1", True), ("192.168.1.1", False), ("10.0.0.1", False), ("2d00::1", False)],
)
def test_openers_go_where_a_nat_may_be(text, needed):
    assert needs_opener(at(text)) is needed
