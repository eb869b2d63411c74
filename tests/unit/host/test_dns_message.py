"""DNS messages as they are passed on: what is read of them, and what bent ones do."""

from __future__ import annotations

from ipaddress import ip_address

import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.host.dns_message import (
    answers,
    fitting,
    make_query,
    read_addresses,
    read_question,
    refusal_of,
)

QUERY = dns.message.make_query("www.Example.org", "A", use_edns=True, payload=1400).to_wire()


def answered(*records: str) -> bytes:
    made = dns.message.make_response(dns.message.from_wire(QUERY))
    for record in records:
        name, ttl, kind, text = record.split(" ", 3)
        made.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, text))
    return made.to_wire(max_size=65_535)


def test_a_question_is_read_as_dnspython_writes_it():
    asked = read_question(QUERY)
    assert asked is not None
    assert (asked.labels, asked.name) == (("www", "example", "org"), "www.example.org")
    assert asked.size == 1400
    plain = read_question(dns.message.make_query(".", "NS").to_wire())
    assert plain is not None
    assert (plain.labels, plain.size) == ((), 512)


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda b: QUERY[:13] + b))
def test_any_bytes_are_read_or_refused(wire):
    asked = read_question(wire)
    refused = refusal_of(wire, dns.rcode.SERVFAIL)
    if asked is not None:
        assert sum(len(label) + 1 for label in asked.labels) < 255
        assert wire[12 : 12 + len(asked.wire)] == asked.wire
    if refused is not None:
        assert refused[:2] == wire[:2]
        assert refused[3] & 15 == dns.rcode.SERVFAIL
        asked = read_question(QUERY)
        assert asked is not None
        assert not answers(wire, asked)  # a query is no answer


@pytest.mark.parametrize("length", [64, 192])
def test_a_label_is_short_and_never_a_pointer(length):
    wire = QUERY[:12] + bytes([length]) + b"x" * length + bytes(5)
    assert read_question(wire) is None
    assert read_question(QUERY[:12] + b"\x3f" + b"x" * 63 + bytes(5)) is not None


@pytest.mark.parametrize("name", ["www.example.org", "xn--bcher-kva.example.", "a"])
def test_a_query_of_our_own_is_what_dnspython_reads(name):
    for version, kind in ((4, "A"), (6, "AAAA")):
        message = dns.message.from_wire(make_query(name, version, 77))
        assert message.id == 77
        assert message.question[0].to_text() == f"{name.rstrip('.')}. IN {kind}"


@pytest.mark.parametrize(
    "name", ["", "a..b", "x" * 64, ".".join(["x" * 60] * 5), "b\xfccher.example"]
)
def test_what_is_no_name_is_not_asked_for(name):
    with pytest.raises(ValueError, match="not a host name"):
        make_query(name, 4, 1)


def test_all_addresses_of_an_answer_are_found_and_its_shortest_time():
    wire = answered(
        "www.example.org. 300 CNAME cdn.example.net.",
        "cdn.example.net. 20 A 198.51.100.7",
        "cdn.example.net. 7200 AAAA 2001:db8::7",
        "www.example.org. 60 HTTPS 1 . alpn=h2 ipv4hint=198.51.100.8 ipv6hint=2001:db8::8",
    )
    found, same = read_addresses(wire)
    assert same == wire
    names = ("198.51.100.7", "198.51.100.8", "2001:db8::7", "2001:db8::8")
    assert (found.ips, found.ttl) == (frozenset(map(ip_address, names)), 20)
    _, kept = read_addresses(wire, most_ttl=3600)
    assert max(rrset.ttl for rrset in dns.message.from_wire(kept).answer) == 3600


def looped(target: int) -> bytes:
    """An answer whose one record's name points to ``target``."""
    wire = bytearray(answered("www.example.org. 300 A 198.51.100.7"))
    at = wire.index(b"\xc0\x0c")
    wire[at : at + 2] = (0xC000 | (target if target >= 0 else at)).to_bytes(2, "big")
    return bytes(wire)


@pytest.mark.parametrize("target", [-1, 0x3FFF, 0x200])
def test_a_name_that_leads_into_itself_ends(target):
    with pytest.raises(ValueError, match="cannot be read"):
        read_addresses(looped(target))


@given(st.integers(12, 120), st.integers(0, 255))
def test_a_bent_answer_is_read_or_refused(at, byte):
    wire = bytearray(answered("www.example.org. 300 CNAME a.example.", "a.example. 9 A 192.0.2.1"))
    if at < len(wire):
        wire[at] = byte
    try:
        found, _ = read_addresses(bytes(wire), most_ttl=3600)
    except ValueError:
        return
    assert len(found.ips) <= 2


def test_more_addresses_than_a_name_has_are_refused():
    many = [f"www.example.org. 9 A 10.{i // 250}.{i % 250}.1" for i in range(600)]
    with pytest.raises(ValueError, match="more addresses"):
        read_addresses(answered(*many))


def test_a_large_answer_is_cut_for_udp():
    asked = read_question(QUERY)
    assert asked is not None
    small, large = answered("www.example.org. 9 A 192.0.2.1"), bytes(QUERY) + bytes(1400)
    assert fitting(small, asked, tcp=False) == small
    assert fitting(large, asked, tcp=True) == large
    cut = dns.message.from_wire(fitting(large, asked, tcp=False))
    assert cut.flags & 0x0200
    assert cut.question
