"""What the packet filter is told agrees with what is decided, for every member and every packet."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.inbound import EVERYTHING, NOTHING, Inbound
from nostrvpn.machine import Entropy, Moment
from nostrvpn.mesh.addressing import overlay_address
from nostrvpn.mesh.members import Member
from nostrvpn.mesh.permissions import PortSpan, Rule, Selector, What
from nostrvpn.mesh.policy import LocalPolicy, Question, decide
from nostrvpn.node.policy import Permissions, compile_inbound
from tests.unit.mesh.laws import KEYS, NETWORK, TestLaw, member

ME = KEYS[0]
OTHERS = KEYS[1:6]
TAGS = ("web", "db")
WALL = 1_000.0

_selectors = st.one_of(
    st.just(Selector("all")),
    st.sampled_from(TAGS).map(lambda tag: Selector("tag", tag)),
    st.sampled_from((ME, *OTHERS)).map(lambda key: Selector("member", key)),
)
# Few edges, so that spans touch and overlap.
_EDGES = (1, 21, 22, 23, 4115, 4116, 4117, 65535)
_spans = st.one_of(
    st.just(PortSpan("icmp")),
    st.builds(
        lambda protocol, ends: PortSpan(protocol, min(ends), max(ends)),
        st.sampled_from(("tcp", "udp")),
        st.tuples(st.sampled_from(_EDGES), st.sampled_from(_EDGES)),
    ),
)
_rules = st.builds(
    lambda allow, source, target, what, ports: Rule(
        allow, source, target, what, tuple(sorted(ports)) if what is What.INBOUND else ()
    ),
    st.booleans(),
    _selectors,
    _selectors,
    st.sampled_from((What.INBOUND, What.INBOUND, What.INBOUND, What.LAN)),
    st.sets(_spans, max_size=3),
)
_members = st.builds(
    lambda tags, owner, expires: {"tags": " ".join(tags), "owner": owner, "expires": expires},
    st.sets(st.sampled_from(TAGS)),
    st.sampled_from(("", "a" * 64)),
    st.sampled_from((None, None, int(WALL), int(WALL) + 1)),
)
_laws = st.builds(
    lambda traits, rules, inbound, same_owner: TestLaw(
        *(member(key, **trait) for key, trait in zip((ME, *OTHERS), traits, strict=True)),
        rules=tuple(rules),
        inbound=inbound,
        same_owner=same_owner,
    ),
    st.lists(_members, min_size=6, max_size=6),
    st.lists(_rules, max_size=6),
    st.sampled_from(("none", "ping", "all")),
    st.booleans(),
)
_policies = st.builds(
    lambda up, rules, inbound, same_owner: LocalPolicy(up, tuple(rules), inbound, same_owner),
    st.sampled_from((False, False, False, True)),
    st.lists(_rules.map(lambda rule: replace(rule, target=Selector("all"))), max_size=4),
    st.sampled_from((None, "none", "ping", "all")),
    st.sampled_from((None, True, False)),
)
_packets = [
    PortSpan("icmp"),
    None,
    *(
        PortSpan(protocol, port, port)
        for protocol in ("tcp", "udp")
        for port in sorted({edge + step for edge in _EDGES for step in (-1, 0, 1)} - {65536})
    ),
]


def passes(inbound: Inbound, source: IPAddress, packet: PortSpan | None) -> bool:
    """Read the filter as the kernel does."""
    access = inbound.sources.get(source, NOTHING)
    if packet is None:
        return access.other
    if packet.protocol == "icmp":
        return access.ping
    ports = access.tcp if packet.protocol == "tcp" else access.udp
    return any(first <= packet.first <= last for first, last in ports)


@settings(max_examples=300, deadline=None)
@given(_laws, _policies)
def test_the_filter_and_the_decision_agree(law: TestLaw, local: LocalPolicy) -> None:
    share = frozenset({ip_network("192.168.7.0/24")})
    law.members[ME] = replace(law.members[ME], routes=share)
    inbound = compile_inbound(law, ME, local, WALL, advertised=share)
    for key in OTHERS:
        address = law.address(key)
        for packet in _packets:
            allowed = decide(law, local, Question(key, ME, What.INBOUND, packet), WALL).allowed
            assert passes(inbound, address.ipv6, packet) == allowed, packet
            assert passes(inbound, address.ipv4, packet) == allowed, packet
        lan = decide(law, local, Question(key, ME, What.LAN), WALL).allowed
        assert (address.ipv6 in inbound.lan_sources) == lan
    for access in inbound.sources.values():
        for ports in (access.tcp, access.udp):
            flat = [edge for span in ports for edge in span]
            assert flat == sorted(flat)


def test_who_may_everything_is_one_rule_for_the_kernel() -> None:
    law = TestLaw(member(ME), *(member(key) for key in OTHERS), inbound="all")
    assert set(compile_inbound(law, ME, LocalPolicy(), WALL).sources.values()) == {EVERYTHING}


def test_only_networks_that_user_and_admins_agree_on_are_opened() -> None:
    approved = frozenset({ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")})
    advertised = frozenset({ip_network("10.2.0.0/16"), ip_network("10.3.0.0/16")})
    law = TestLaw(member(ME, owner="a" * 64), member(OTHERS[0], owner="a" * 64))
    law.members[ME] = replace(law.members[ME], routes=approved)
    inbound = compile_inbound(law, ME, LocalPolicy(), WALL, advertised=advertised)
    assert inbound.lan_networks == {ip_network("10.2.0.0/16")}
    assert not compile_inbound(law, ME, LocalPolicy(), WALL).lan_sources


def test_without_ipv4_in_the_overlay_none_is_let_in() -> None:
    law = TestLaw(member(ME), member(OTHERS[0]))
    inbound = compile_inbound(law, ME, LocalPolicy(), WALL, ipv4=False)
    assert {ip.version for ip in (*inbound.own, *inbound.sources)} == {6}


def test_the_filter_is_made_anew_only_when_something_changed() -> None:
    law = TestLaw(member(ME), member(OTHERS[0], expires=int(WALL) + 5))
    permissions = Permissions(LocalPolicy())
    assert permissions.inbound(law, ME, WALL, ipv4=True) == Inbound()  # the time is not known yet
    permissions.tell_time(Moment(WALL, WALL, Entropy(b"")))
    first = permissions.inbound(law, ME, WALL, ipv4=True)
    assert permissions.inbound(law, ME, WALL + 4.9, ipv4=True) is first
    assert len(first.sources) == 2
    assert permissions.inbound(law, ME, WALL + 5, ipv4=True).sources == {}
    assert permissions.inbound(law, ME, WALL + 4, ipv4=True) == first
    permissions.local = LocalPolicy(shields_up=True)
    assert permissions.inbound(law, ME, WALL, ipv4=True) != first
    for nobody in (
        permissions.inbound(None, ME, WALL, ipv4=True),
        permissions.inbound(law, "f" * 64, WALL, ipv4=True),
    ):
        assert nobody == Inbound()


def test_a_thousand_members_and_hundreds_of_rules_compile_in_a_second() -> None:
    law = TestLaw(member(ME))
    for number in range(1000):
        key = f"{number:064x}"
        tags = frozenset({TAGS[number % 2]})
        law.members[key] = Member(
            key, f"m{number}", law.members[ME].role, tags, key, None, False, number, frozenset()
        )
    law.rules = tuple(
        Rule(
            n % 3 > 0,
            Selector("tag", TAGS[n % 2]),
            Selector("all"),
            What.INBOUND,
            (PortSpan("tcp", n, n),),
        )
        for n in range(1, 501)
    )
    addresses = {key: overlay_address(NETWORK, key, m.host) for key, m in law.members.items()}
    law.address = addresses.__getitem__  # type: ignore[method-assign,assignment]
    began = time.process_time()
    inbound = compile_inbound(law, ME, LocalPolicy(), WALL)
    assert time.process_time() - began < 1.0
    assert len(inbound.sources) == 2000
    assert len(set(inbound.sources.values())) == 2


def test_a_damaged_policy_lets_nothing_in() -> None:
    permissions = Permissions(LocalPolicy(inbound="all"))
    assert permissions.restore({}) is None
    assert not permissions.local.shields_up
    assert "damaged" in (permissions.restore({"local": {"rules": "x"}}) or "")
    assert permissions.local == LocalPolicy(shields_up=True, inbound="all")
