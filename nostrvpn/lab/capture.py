"""tcpdump on one interface of a namespace, and questions about what it saw."""

from __future__ import annotations

import re
import signal
import struct
from dataclasses import dataclass
from pathlib import Path

from nostrvpn.lab.namespaces import Namespace, run_command
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process

__all__ = ["Capture", "CapturedPacket", "parse_pcap"]

PCAP_HEADER = struct.Struct("<IHHiIII")
PCAP_RECORD = struct.Struct("<IIII")
PCAP_MAGIC_NANOSECONDS = 0xA1B23C4D
"""draft-ietf-opsawg-pcap: little-endian, nanosecond timestamps (what tcpdump writes for us)."""

READ_TIMEOUT = 30.0
DRAIN_TIMEOUT = 20.0
DRAIN_POLL = 0.05

# Each slot of the kernel's ring is as long as the longest packet, which segmentation offload makes
# longer than the MTU: so 512 of them. By itself tcpdump has 8, and loses most of a burst.
LONGEST = 65_300
RING_KIB = 32_768

# What tcpdump says when it ends, and when asked by a signal.
_COUNTS = re.compile(
    r"(\d+) packets? captured[,\n]\s*(\d+) packets? received by filter"
    r"[,\n]\s*(\d+) packets? dropped by kernel"
)


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """One frame as it was on the wire; ``wall`` is Unix time in seconds."""

    wall: float
    data: bytes


def parse_pcap(content: bytes) -> list[CapturedPacket]:
    """Return the whole packets of a pcap file; a half-written last one is left out."""
    if len(content) < PCAP_HEADER.size:
        return []
    magic = PCAP_HEADER.unpack_from(content)[0]
    if magic != PCAP_MAGIC_NANOSECONDS:
        raise ValueError(f"not a little-endian nanosecond pcap file: {magic:#x}")
    packets = []
    offset = PCAP_HEADER.size
    while offset + PCAP_RECORD.size <= len(content):
        seconds, nanoseconds, size, _ = PCAP_RECORD.unpack_from(content, offset)
        start, offset = offset + PCAP_RECORD.size, offset + PCAP_RECORD.size + size
        if offset <= len(content):
            packets.append(CapturedPacket(seconds + nanoseconds / 1e9, content[start:offset]))
    return packets


class Capture:
    """A running (then stopped) capture; the file stays readable with Wireshark."""

    def __init__(
        self, namespace: Namespace, interface: str, *, file: Path, expression: str = ""
    ) -> None:
        self.file = file
        argv = ["tcpdump", "-i", interface, "-w", str(file), "-n", "-U", "--immediate-mode"]
        argv += ["--nano", "-Z", "root", "-s", str(LONGEST), "-B", str(RING_KIB)]
        argv += expression.split()
        self._process = Process(namespace, tuple(argv), log=file.with_suffix(".log"))
        self._process.wait_for_text("listening on")

    def packets(self) -> list[CapturedPacket]:
        """Return what was captured so far."""
        return parse_pcap(self.file.read_bytes()) if self.file.exists() else []

    def count(self, expression: str = "") -> int:
        """Return how many captured packets match a pcap filter (all, when it is empty)."""
        if not expression:
            return len(self.packets())
        argv = ("tcpdump", "-n", "-t", "-r", str(self.file), *expression.split())
        return len(run_command(argv, timeout=READ_TIMEOUT).stdout.splitlines())

    def search(self, needle: bytes) -> list[CapturedPacket]:
        """Return the captured packets that contain ``needle``."""
        return [packet for packet in self.packets() if needle in packet.data]

    def wait_for(self, needle: bytes, *, timeout: float = 5.0) -> list[CapturedPacket]:
        """Return the packets with ``needle`` as soon as there is one: tcpdump lags a little."""
        return wait_until(
            lambda: self.search(needle), f"{needle!r} in {self.file}", timeout=timeout
        )

    def stop(self) -> None:
        """End the capture when all that passed so far is in the file, which is complete afterwards."""
        if self._process.alive:
            wait_until(
                self._is_drained,
                f"{self.file} to be written",
                timeout=DRAIN_TIMEOUT,
                poll=DRAIN_POLL,
            )
            self._process.signal(signal.SIGINT)
        self._process.stop()

    @property
    def lost(self) -> int:
        """How many packets passed that are not in the file of an ended capture.

        All had been taken or dropped when it ended; what came while it did so is neither.
        """
        return self._counts()[-1][2]

    def _counts(self) -> list[tuple[int, ...]]:
        return [tuple(map(int, said)) for said in _COUNTS.findall(self._process.output())]

    def _is_drained(self) -> bool:
        said = len(self._counts())
        self._process.signal(signal.SIGUSR1)
        wait_until(lambda: len(self._counts()) > said, "tcpdump's counts", poll=DRAIN_POLL)
        captured, passed, dropped = self._counts()[-1]
        return captured + dropped >= passed
