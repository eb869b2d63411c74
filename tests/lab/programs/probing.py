"""Print which probes of addresses are answered: an echo, a datagram and a connection to closed ports."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import suppress

CLOSED = 9


def answers(address: str) -> list[str]:
    """Return the kinds of probe that an address answers, within a second each."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = []
    if subprocess.run(("ping", "-c1", "-W1", address), capture_output=True).returncode == 0:
        found.append("echo")
    for name, kind in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)):
        with socket.socket(family, kind) as probe, suppress(TimeoutError):
            probe.settimeout(1)
            try:
                probe.connect((address, CLOSED))
                probe.send(b"?")
                probe.recv(1)
            except ConnectionRefusedError:
                found.append(name)
    return found


sys.stdout.write(json.dumps({address: answers(address) for address in sys.argv[1:]}))
