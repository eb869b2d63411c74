"""A DNS query in, the answer of a zone out (RFC 1035, 2308, 6891, 8482). Bytes to bytes.

Authoritative for the zone and for nothing else: any other name is REFUSED here, so no question leaks.
(While an exit is used, others are passed on before they come here.) dnspython is the codec.
"""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from nostrvpn.mesh.zone import Finding, Outcome, Zone

__all__ = ["MAX_QUERY", "NEGATIVE_TTL", "TTL", "answer"]

# Seconds. Short, since a name may go to another member, and the answer is a step away.
TTL = 60
# RFC 2308: how long "nobody" may be remembered. Who was just admitted should not wait.
NEGATIVE_TTL = 5
# A question is at most 271 bytes; the rest is room for EDNS options.
MAX_QUERY = 4096
# RFC 6891, and the size that needs no fragments (DNS flag day 2020).
_PLAIN_UDP = 512
_LARGEST_UDP = 1232
_LARGEST_TCP = 65_535
_HEADER = 12
_RESPONSE_BIT, _OPCODE_BITS, _DESIRED_BIT = 0x80, 0x78, 0x01


def answer(wire: bytes, zone: Zone, *, tcp: bool = False) -> bytes | None:
    """Return the response to one query; None for what deserves none (noise, or a response)."""
    if not _HEADER <= len(wire) <= MAX_QUERY or wire[2] & _RESPONSE_BIT:
        return None
    if wire[2] & _OPCODE_BITS:  # not QUERY
        return _bare(wire, dns.rcode.NOTIMP)
    try:
        query = dns.message.from_wire(wire, ignore_trailing=True)
    except Exception:
        # The codec raises more than its own errors for bytes from outside.
        return _bare(wire, dns.rcode.FORMERR)
    response = dns.message.make_response(query, our_payload=_LARGEST_UDP)
    try:
        _fill(response, query, zone)
        return response.to_wire(max_size=_limit(query, tcp=tcp), prefer_truncation=True)
    except dns.exception.DNSException:
        return _bare(wire, dns.rcode.SERVFAIL)


def _limit(query: dns.message.Message, *, tcp: bool) -> int:
    if tcp:
        return _LARGEST_TCP
    return max(_PLAIN_UDP, min(query.payload, _LARGEST_UDP)) if query.edns >= 0 else _PLAIN_UDP


def _bare(wire: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """A header alone: the query's id, opcode and wish for recursion, and what went wrong."""
    return (
        wire[:2]
        + bytes([_RESPONSE_BIT | wire[2] & (_OPCODE_BITS | _DESIRED_BIT), rcode])
        + bytes(8)
    )


def _fill(response: dns.message.Message, query: dns.message.Message, zone: Zone) -> None:
    if query.edns > 0:
        response.set_rcode(dns.rcode.BADVERS)
        return
    if len(query.question) != 1:
        response.set_rcode(dns.rcode.FORMERR)
        return
    question = query.question[0]
    labels = question.name.labels[:-1]
    finding = zone.look_up(tuple(label.decode("latin-1").lower() for label in labels))
    if question.rdclass != dns.rdataclass.IN or finding.outcome is Outcome.ELSEWHERE:
        response.set_rcode(dns.rcode.REFUSED)
        return
    response.flags |= dns.flags.AA
    records = _records(finding, question.name)
    wanted = [rrset for rrset in records if question.rdtype in (rrset.rdtype, dns.rdatatype.ANY)]
    response.answer.extend(wanted)
    if not wanted:
        response.authority.append(_authority(finding.origin))
    if finding.outcome is Outcome.NOBODY:
        response.set_rcode(dns.rcode.NXDOMAIN)


def _records(finding: Finding, name: dns.name.Name) -> list[dns.rrset.RRset]:
    by_type: dict[str, list[str]] = {}
    for address in finding.addresses:
        by_type.setdefault("A" if address.version == 4 else "AAAA", []).append(str(address))
    if finding.outcome is Outcome.POINTER:
        by_type["PTR"] = [f"{finding.name}."]
    made = [
        dns.rrset.from_text_list(name, TTL, "IN", kind, texts) for kind, texts in by_type.items()
    ]
    if finding.outcome is Outcome.EMPTY and name == dns.name.from_text(finding.origin):
        made.append(_authority(finding.origin))
    return made


def _authority(origin: str) -> dns.rrset.RRset:
    # No server but this one, on this host: the names in it are only for form.
    text = f"{origin}. nobody.invalid. 1 3600 600 86400 {NEGATIVE_TTL}"
    return dns.rrset.from_text(f"{origin}.", NEGATIVE_TTL, "IN", "SOA", text)
