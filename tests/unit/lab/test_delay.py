import struct

import pytest

from nostrvpn.lab.delay import age_packet


def checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4_packet(ttl: int, identification: int = 0) -> bytearray:
    header = struct.pack("!BBHHHBBH8s", 0x45, 0, 20, identification, 0, ttl, 17, 0, bytes(8))
    return bytearray(header[:10] + struct.pack("!H", checksum(header)) + header[12:])


def ipv6_packet(hop_limit: int) -> bytearray:
    return bytearray(struct.pack("!IHBB32s", 6 << 28, 0, 59, hop_limit, bytes(32)))


@pytest.mark.parametrize("identification", range(0, 65536, 1111))
@pytest.mark.parametrize("hops", [0, 1, 6, 63])
def test_an_aged_ipv4_packet_has_a_valid_checksum(identification: int, hops: int) -> None:
    packet = ipv4_packet(64, identification)
    assert age_packet(packet, hops)
    assert packet[8] == 64 - hops
    assert checksum(bytes(packet)) == 0


def test_an_aged_ipv6_packet_loses_hops() -> None:
    packet = ipv6_packet(64)
    assert age_packet(packet, 6)
    assert packet[7] == 58


@pytest.mark.parametrize("packet", [ipv4_packet(6), ipv6_packet(6)])
def test_a_packet_that_would_reach_zero_expires(packet: bytearray) -> None:
    assert not age_packet(packet, 6)
    assert age_packet(packet, 5)


@pytest.mark.parametrize("packet", [b"", b"\x45", b"\x60" * 10, bytes(40), b"\xff" * 40])
def test_what_is_no_ip_packet_is_dropped(packet: bytes) -> None:
    assert not age_packet(bytearray(packet), 1)
