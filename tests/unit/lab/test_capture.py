import struct

import pytest

from nostrvpn.lab.capture import CapturedPacket, parse_pcap

HEADER = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)


def record(payload: bytes) -> bytes:
    return struct.pack("<IIII", 1000, 500_000_000, len(payload), len(payload)) + payload


def test_whole_packets_are_read_and_a_half_written_one_is_not() -> None:
    content = HEADER + record(b"first") + record(b"second") + record(b"third")[:-1]
    assert parse_pcap(content) == [
        CapturedPacket(1000.5, b"first"),
        CapturedPacket(1000.5, b"second"),
    ]


@pytest.mark.parametrize("size", range(len(HEADER)))
def test_a_file_without_a_whole_header_has_no_packets(size: int) -> None:
    assert parse_pcap(HEADER[:size]) == []


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="0xa0d0d0a"):
        parse_pcap(b"\x0a\x0d\x0d\x0a" + HEADER[4:])
