"""Who is called what, and the DNS answers that say it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.mesh.addressing import ipv4_prefix, ipv6_prefix, overlay_address
from nostrvpn.mesh.zone import Outcome, Resident, Zone, make_zone, network_label
from nostrvpn.mesh.zone_answers import MAX_QUERY, NEGATIVE_TTL, TTL, answer

NETWORK = "ab" * 32
PREFIXES = (ipv6_prefix(NETWORK), ipv4_prefix(NETWORK))


def resident(number: int, name: str, alias: str = "", *, ipv4: bool = True) -> Resident:
    key = RootSecret((number + 1).to_bytes(32, "big")).public_key
    address = overlay_address(NETWORK, key, number)
    return Resident(key, name, alias, (address.ipv6, address.ipv4)[: 2 if ipv4 else 1])


NAS, LAPTOP = resident(1, "nas"), resident(2, "laptop")
ZONE = make_zone("home", [NAS, LAPTOP], PREFIXES)


def ask(name: str, kind: str = "A", zone=ZONE, **options):
    query = dns.message.make_query(name, kind, **options)
    made = answer(query.to_wire(), zone)
    assert made is not None
    response = dns.message.from_wire(made)
    assert query.is_response(response)
    return response


def data(response) -> list[str]:
    return [str(item) for rrset in response.answer for item in rrset]


def holder(zone: Zone, name: str) -> str | None:
    found = zone.look_up(tuple(name.split("."))).resident
    return found.name if found is not None else None


def test_a_name_has_both_addresses_and_an_address_its_name():
    ipv6, ipv4 = map(str, NAS.addresses)
    assert data(ask("nas.home.nvpn", "A")) == [ipv4]
    assert data(ask("NAS.Home.Nvpn", "AAAA")) == [ipv6]
    assert sorted(data(ask("nas.home.nvpn", "ANY"))) == sorted([ipv4, ipv6])
    assert data(ask(f"{npub(NAS.public_key)}.nvpn", "A")) == [ipv4]
    for address in NAS.addresses:
        assert data(ask(address.reverse_pointer, "PTR")) == ["nas.home.nvpn."]
    found = ask("nas.home.nvpn", "A")
    assert found.flags & dns.flags.AA
    assert not found.flags & dns.flags.RA
    assert found.answer[0].ttl == TTL <= 60


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nas.home.nvpn", "MX"),
        ("home.nvpn", "A"),
        ("nvpn", "AAAA"),
        (NAS.addresses[1].reverse_pointer, "A"),
        (NAS.addresses[1].reverse_pointer.partition(".")[2], "PTR"),
        (NAS.addresses[0].reverse_pointer.partition(".")[2], "PTR"),
    ],
)
def test_a_name_without_this_kind_of_record_is_no_data(name, kind):
    found = ask(name, kind)
    assert found.rcode() == dns.rcode.NOERROR
    assert not found.answer
    assert [rrset.rdtype for rrset in found.authority] == [dns.rdatatype.SOA]


def test_without_ipv4_the_name_still_is():
    zone = make_zone("home", [resident(1, "nas", ipv4=False)], PREFIXES[:1])
    assert ask("nas.home.nvpn", "A", zone).rcode() == dns.rcode.NOERROR
    assert not ask("nas.home.nvpn", "A", zone).answer
    # That range belongs to another network of the host now.
    assert ask(NAS.addresses[1].reverse_pointer, "PTR", zone).rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize(
    "name",
    [
        "nobody.home.nvpn",
        "www.nas.home.nvpn",
        "nas.office.nvpn",
        "nas.nvpn",
        f"{npub('c' * 64)}.nvpn",
        "npub1zzz.nvpn",
        f"{npub(NAS.public_key)}.home.nvpn",
        "999.1." + NAS.addresses[1].reverse_pointer.split(".", 2)[2],
        r"nas\.home.nvpn",
    ],
)
def test_what_nobody_has_is_nxdomain_for_a_short_time(name):
    found = ask(name, "PTR" if name.endswith("arpa") else "A")
    assert found.rcode() == dns.rcode.NXDOMAIN
    soa = found.authority[0]
    assert min(soa.ttl, soa[0].minimum) == NEGATIVE_TTL <= 10


@pytest.mark.parametrize(
    "name",
    ["example.org", ".", "nvpn.org", "1.0.0.10.in-addr.arpa", "1.ip6.arpa", "nvpnx", "local"],
)
def test_other_names_are_refused(name):
    found = ask(name)
    assert found.rcode() == dns.rcode.REFUSED
    assert not found.answer
    assert not found.authority


def test_the_top_of_each_zone_has_an_soa():
    for origin in ZONE.origins:
        assert len(ask(origin, "SOA").answer) == 1
    assert ZONE.origins[0] == "nvpn"
    assert all(origin.endswith(".arpa") for origin in ZONE.origins[1:])


def test_an_alias_goes_before_anothers_name():
    """Nobody takes, by a name in the roster, what the local user calls somebody else."""
    thief = resident(3, "attic")
    zone = make_zone("home", [thief, resident(1, "nas", "attic")], PREFIXES)
    assert holder(zone, "attic.home.nvpn") == "nas"
    assert holder(zone, "nas.home.nvpn") == "nas"
    assert holder(zone, f"{npub(thief.public_key)}.nvpn") == "attic"
    assert data(ask(NAS.addresses[1].reverse_pointer, "PTR", zone)) == ["attic.home.nvpn."]
    # Its address has no name that would lead to somebody else.
    assert ask(thief.addresses[1].reverse_pointer, "PTR", zone).rcode() == dns.rcode.NXDOMAIN


def test_an_alias_of_two_leads_to_neither():
    third = resident(3, "box")
    zone = make_zone("home", [resident(1, "nas", "box"), resident(2, "laptop", "Box"), third], ())
    assert holder(zone, "box.home.nvpn") is None
    assert zone.shadowed == {"box"}
    assert holder(zone, "nas.home.nvpn") == "nas"


def test_names_become_labels_that_differ():
    given_ = [
        "Anna's Phone",
        "anna-s phone",
        "👍",
        "",
        "nas",
        "nas",
        npub("c" * 64),
        "x" * 90,
        "x" * 90,
    ]
    members = [resident(number, name) for number, name in enumerate(given_)]
    zone = make_zone("home", members, PREFIXES)
    names = [data(ask(m.addresses[1].reverse_pointer, "PTR", zone))[0] for m in members]
    assert len(set(names)) == len(members)
    assert all(len(name.split(".")[0]) <= 63 for name in names)
    assert not [name for name in names if name.startswith("npub1")]
    assert names[4:6] == ["nas.home.nvpn.", "nas-2.home.nvpn."]


def test_a_network_without_a_name_is_called_by_its_id():
    assert network_label("My Home", NETWORK) == "my-home"
    assert network_label("", NETWORK) == network_label("👍", NETWORK) == "abababab"


def test_small_answers_are_truncated_and_asked_again_by_tcp():
    many = tuple(ip_address(f"10.91.1.{number}") for number in range(60))
    zone = make_zone("home", [Resident("c" * 64, "many", "", many)], [ip_network("10.91.0.0/16")])
    query = dns.message.make_query("many.home.nvpn", "A").to_wire()
    short = answer(query, zone)
    assert short is not None
    assert len(short) <= 512
    assert dns.message.from_wire(short).flags & dns.flags.TC
    whole = answer(query, zone, tcp=True)
    assert whole is not None
    assert len(data(dns.message.from_wire(whole))) == 60
    wide = answer(dns.message.make_query("many.home.nvpn", "A", payload=65_535).to_wire(), zone)
    assert wide is not None
    assert 512 < len(wide) <= 1232


def test_edns_is_answered_and_of_another_version_refused():
    found = ask("nas.home.nvpn", payload=4096)
    assert found.edns == 0
    assert found.payload == 1232
    assert ask("nas.home.nvpn").edns == -1
    assert ask("nas.home.nvpn", use_edns=1).rcode() == dns.rcode.BADVERS


def test_other_questions_are_declined():
    query = dns.message.make_query("nas.home.nvpn", "A")
    query.set_opcode(dns.opcode.UPDATE)
    assert _rcode(query.to_wire()) == dns.rcode.NOTIMP
    assert ask("nas.home.nvpn", rdclass="CH").rcode() == dns.rcode.REFUSED
    none = dns.message.make_query("nas.home.nvpn", "A")
    none.question.clear()
    assert _rcode(none.to_wire()) == dns.rcode.FORMERR
    whole = dns.message.make_query("nas.home.nvpn", "A").to_wire()
    assert _rcode(whole[:-3]) == dns.rcode.FORMERR


def _rcode(wire: bytes) -> int:
    made = answer(wire, ZONE)
    assert made is not None
    assert made[:2] == wire[:2]
    return made[3] & 15


def test_what_is_no_query_gets_no_answer():
    query = dns.message.make_query("nas.home.nvpn", "A")
    assert answer(dns.message.make_response(query).to_wire(), ZONE) is None  # two servers in a loop
    assert answer(query.to_wire()[:11], ZONE) is None
    assert answer(query.to_wire() + bytes(MAX_QUERY), ZONE) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_answered_or_dropped(noise):
    _survives(noise)


@given(st.data())
def test_bent_queries_are_answered_or_dropped(drawn):
    kinds = st.sampled_from(["A", "PTR", "ANY", "OPT", "TSIG", "AXFR"])
    name = drawn.draw(st.sampled_from(["nas.home.nvpn", NAS.addresses[0].reverse_pointer, "."]))
    cookie = dns.edns.OptionType.COOKIE
    options: list[dns.edns.Option] = [
        dns.edns.GenericOption(cookie, drawn.draw(st.binary(max_size=40)))
    ]
    query = dns.message.make_query(name, drawn.draw(kinds), use_edns=0, options=options)
    wire = bytearray(query.to_wire())
    for _ in range(drawn.draw(st.integers(1, 6))):
        wire[drawn.draw(st.integers(2, len(wire) - 1))] = drawn.draw(st.integers(0, 255))
    _survives(bytes(wire))


def _survives(wire: bytes) -> None:
    made = answer(wire, ZONE)
    if made is None:
        assert len(wire) < 12 or wire[2] & 0x80
        return
    assert made[:2] == wire[:2]
    assert made[2] & 0x80
    assert len(made) <= 1232
    dns.message.from_wire(made)


def test_outcomes_are_told_apart():
    outcomes = {
        ZONE.look_up(tuple(name.split("."))).outcome
        for name in ("nas.home.nvpn", "home.nvpn", "x.home.nvpn", "example.org")
    }
    pointer = ZONE.look_up(tuple(NAS.addresses[0].reverse_pointer.split("."))).outcome
    assert outcomes | {pointer} == set(Outcome)
