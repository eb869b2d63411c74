"""The messages, byte for byte as the RFCs draw them, and against noise."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.portmap import natpmp, pcp, upnp
from nostrvpn.portmap.epoch import NatPmpEpoch, PcpEpoch

LOCAL = IPv4Address("192.168.1.2")
GATEWAY = IPv4Address("192.168.1.1")
NONCE = bytes(range(12))
MAPPED = "00000000000000000000ffff"


def test_pcp_requests_are_laid_out_as_in_rfc_6887():
    # Figures 2 and 9: version, opcode, reserved, lifetime, client; nonce, protocol, ports, address.
    assert pcp.render_announce(LOCAL).hex() == "02000000" + "00000000" + MAPPED + "c0a80102"
    wish = (IPv4Address("11.0.1.2"), 40001)
    assert pcp.render_map(LOCAL, 40000, NONCE, wish, 7200).hex() == (
        "02010000" + "00001c20" + MAPPED + "c0a80102"
        + NONCE.hex() + "11000000" + "9c40" + "9c41" + MAPPED + "0b000102"
    )  # fmt: skip
    v6 = pcp.render_map(IPv6Address("2d00::2"), 1, NONCE, (IPv6Address(0), 1), 0)
    assert v6.hex() == (
        "02010000" + "00000000" + "2d00" + "00" * 13 + "02"
        + NONCE.hex() + "11000000" + "0001" + "0001" + "00" * 16
    )  # fmt: skip


def pcp_response(result=0, lifetime=120, epoch=77, ip=MAPPED + "0b000102", opcode="81"):
    head = f"02{opcode}00{result:02x}{lifetime:08x}{epoch:08x}" + "00" * 12
    return bytes.fromhex(head + NONCE.hex() + "11000000" + "9c40" + "9c41" + ip)


def test_pcp_responses_are_read_as_in_rfc_6887():
    mapped = pcp.PcpMapped(NONCE, True, 40000, IPv4Address("11.0.1.2"), 40001)
    assert pcp.parse_pcp(pcp_response()) == pcp.PcpResponse(0, 120, 77, mapped)
    in_v6 = pcp.parse_pcp(pcp_response(ip="2d00" + "00" * 13 + "02"))
    assert in_v6.mapped is not None
    assert in_v6.mapped.external_ip == IPv6Address("2d00::2")
    announce = pcp_response(opcode="80")[:24]
    assert pcp.parse_pcp(announce) == pcp.PcpResponse(0, 120, 77, None)
    options = pcp_response() + bytes.fromhex("8000000400000000")
    assert pcp.parse_pcp(options).mapped == mapped


def test_a_pcp_server_of_another_version_is_told_apart():
    old = b"\x01" + pcp_response(result=1)[1:]
    assert pcp.parse_pcp(old) == pcp.PcpResponse(pcp.UNSUPPORTED_VERSION, 0, 0, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pcp_response()[:23],
        pcp_response()[:24],
        pcp_response() + b"\0",
        pcp_response() + bytes(1100),
        pcp_response(opcode="01"),
        pcp_response(opcode="82"),
    ],
)
def test_malformed_pcp_is_refused(data):
    with pytest.raises(PeerMisbehaved, match=r"."):
        pcp.parse_pcp(data)


def test_nat_pmp_is_laid_out_as_in_rfc_6886():
    assert natpmp.render_address().hex() == "0000"
    assert natpmp.render_map(40000, 40001, 7200).hex() == "00010000" + "9c40" + "9c41" + "00001c20"
    address = bytes.fromhex("0080" + "0000" + "0000004d" + "0b000102")
    assert natpmp.parse_natpmp(address) == natpmp.NatPmpAddress(77, IPv4Address("11.0.1.2"))
    mapped = bytes.fromhex("0081" + "0000" + "0000004d" + "9c40" + "9c41" + "00001c20")
    assert natpmp.parse_natpmp(mapped) == natpmp.NatPmpMapped(77, 40000, 40001, 7200)
    refused = bytes.fromhex("0081" + "0002" + "0000004d" + "9c40" + "0000" + "00000000")
    assert natpmp.parse_natpmp(refused) == natpmp.NatPmpRefused(True, 2, 77)
    assert natpmp.parse_natpmp(bytes.fromhex("00800001")) == natpmp.NatPmpRefused(False, 1, None)


@pytest.mark.parametrize("data", ["", "00", "0000", "00010000", "0080000000", "0280000000000000"])
def test_malformed_nat_pmp_is_refused(data):
    with pytest.raises(PeerMisbehaved):
        natpmp.parse_natpmp(bytes.fromhex(data))


MALFORMED = {"malformed_pcp", "malformed_nat_pmp", "malformed_ssdp", "malformed_upnp"}
CODES = {"accepted", "foreign_upnp"} | MALFORMED


def outcome(read, data):
    try:
        read(data)
    except PeerMisbehaved as exc:
        return exc.code
    return "accepted"


@given(st.binary(max_size=80))
def test_noise_is_refused_and_nothing_else(noise):
    readers = (
        lambda d: pcp.parse_pcp(b"\x02" + d),
        lambda d: natpmp.parse_natpmp(b"\x00" + d),
        lambda d: upnp.parse_location(b"HTTP/1.1 200 OK\r\n" + d, GATEWAY),
        lambda d: upnp.parse_description(d, "http://192.168.1.1/d.xml", GATEWAY),
        upnp.parse_external_address,
        upnp.parse_mapping_entry,
    )
    for read in readers:
        assert outcome(read, noise) in CODES
    assert 100 <= upnp.parse_fault(noise) < 1000


@given(st.binary(min_size=1, max_size=12), st.integers(0, 2000))
def test_a_damaged_description_is_refused_and_nothing_else(noise, at):
    text = DESCRIPTION.encode()
    damaged = text[:at] + noise + text[at:]
    assert outcome(lambda d: upnp.parse_description(d, LOCATION, GATEWAY), damaged) in CODES


LOCATION = "http://192.168.1.1:5000/rootDesc.xml"
DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceList><device><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType>
<controlURL>/ctl/CmnIfCfg</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<controlURL>/ctl/IPConn</controlURL></service></serviceList></device></deviceList></device></root>
"""


def ssdp(location=LOCATION, target=upnp.SEARCH_TARGETS[0], head="HTTP/1.1 200 OK"):
    return f"{head}\r\nST: {target}\r\nLocation:{location}\r\n\r\n".encode()


def test_a_search_finds_the_gateway_only():
    assert upnp.parse_location(ssdp(), GATEWAY) == LOCATION
    for wrong, code in (
        (ssdp(head="NOTIFY * HTTP/1.1"), "malformed_ssdp"),
        (ssdp(target="upnp:rootdevice"), "malformed_ssdp"),
        (ssdp(location=""), "malformed_ssdp"),
        (ssdp("http://192.168.1.7:5000/d.xml"), "foreign_upnp"),
        (ssdp("https://192.168.1.1/d.xml"), "foreign_upnp"),
        (ssdp("http://192.168.1.1@evil.example/d.xml"), "foreign_upnp"),
        (ssdp("file:///etc/passwd"), "foreign_upnp"),
        (ssdp("http://192.168.1.1:99999/"), "malformed_upnp"),
    ):
        with pytest.raises(PeerMisbehaved) as caught:
            upnp.parse_location(wrong, GATEWAY)
        assert caught.value.code == code


def test_a_description_names_the_connection_and_stays_on_the_gateway():
    (service,) = upnp.parse_description(DESCRIPTION.encode(), LOCATION, GATEWAY)
    assert service.control_url == "http://192.168.1.1:5000/ctl/IPConn"
    assert service.kind.endswith("WANIPConnection:1")
    based = DESCRIPTION.replace("<device>", "<URLBase>http://192.168.1.1:80</URLBase><device>", 1)
    (service,) = upnp.parse_description(based.encode(), LOCATION, GATEWAY)
    assert service.control_url == "http://192.168.1.1:80/ctl/IPConn"
    foreign = DESCRIPTION.replace("/ctl/IPConn", "http://192.168.1.9/x")
    with pytest.raises(PeerMisbehaved) as caught:
        upnp.parse_description(foreign.encode(), LOCATION, GATEWAY)
    assert caught.value.code == "foreign_upnp"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_and_entities_are_refused_in_any_encoding(encoding):
    bomb = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE r [<!ENTITY a "11.0.1.2">]>'
    bomb += "<r><NewExternalIPAddress>&a;</NewExternalIPAddress></r>"
    with pytest.raises(PeerMisbehaved) as caught:
        upnp.parse_external_address(bomb.encode(encoding))
    assert caught.value.code == "malformed_upnp"


def test_an_answer_too_long_is_refused():
    padded = b"<r><NewExternalIPAddress>11.0.1.2</NewExternalIPAddress>%s</r>"
    assert upnp.parse_external_address(padded % b"") == IPv4Address("11.0.1.2")
    with pytest.raises(PeerMisbehaved):
        upnp.parse_external_address(padded % (b" " * upnp.MAX_DOCUMENT))


def test_calls_and_their_answers():
    service = upnp.UpnpService("urn:s:1", "http://192.168.1.1/c")
    call = upnp.render_call(service, "Do", {"A": "<&>", "B": 7}).decode()
    assert '<u:Do xmlns:u="urn:s:1"><A>&lt;&amp;&gt;</A><B>7</B></u:Do>' in call
    entry = (
        b"<e><NewInternalPort>40000</NewInternalPort>"
        b"<NewInternalClient>192.168.1.2</NewInternalClient></e>"
    )
    assert upnp.parse_mapping_entry(entry) == Endpoint(LOCAL, 40000)
    fault = (
        b"<s:F xmlns:s='x'><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:F>"
    )
    assert upnp.parse_fault(fault) == upnp.CONFLICT
    assert upnp.parse_fault(b"<h1>oops") == 501


@pytest.mark.parametrize(
    ("seconds", "epoch", "pcp_lost", "natpmp_lost"),
    [
        (100, 1100, False, False),
        (100, 1095, False, False),
        (160, 1152, False, False),  # clocks that differ by one part in sixteen
        (100, 1108, False, False),
        (100, 999, True, True),  # counts from the start again
        (3600, 1060, True, True),
        (100, 1300, True, False),  # only PCP minds a clock that jumps ahead
        (100, 1084, True, True),
        (100, 1088, True, False),
        (0, 999, False, False),  # answers out of order
    ],
)
def test_epochs_tell_a_restart(seconds, epoch, pcp_lost, natpmp_lost):
    for kind, lost in ((PcpEpoch, pcp_lost), (NatPmpEpoch, natpmp_lost)):
        seen = kind()
        assert not seen.lost_state(1000, 50.0)
        assert seen.lost_state(epoch, 50.0 + seconds) == lost, kind
