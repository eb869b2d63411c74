"""Asks sites who they see: ``asking.py once|forever TARGET...``, by TCP port 80 and UDP port 443.

A line for each round: what each target said over TCP and over UDP, ``-`` for nothing. ``dns`` as the
only target asks each resolver of /etc/resolv.conf instead, and ``dns:TARGET`` that one.
"""

import socket
import sys
import time
from pathlib import Path

WAIT_S = 1.0
EVERY_S = 0.2
QUESTION = bytes.fromhex("12340100000100000000000007696e76616c69640000010001")


def ask(target: str, kind: int, port: int, question: bytes) -> str:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, kind) as sock:
            sock.settimeout(WAIT_S)
            sock.connect((target, port))
            if kind == socket.SOCK_DGRAM:
                sock.send(question)
            answer = sock.recv(512)
    except OSError:
        return "-"
    return "answered" if port == 53 else answer.decode().strip() or "-"


def one_round(targets: list[str]) -> str:
    if targets == ["dns"]:
        lines = Path("/etc/resolv.conf").read_text().splitlines()
        servers = [line.split()[1] for line in lines if line.startswith("nameserver")]
        targets = [f"dns:{server}" for server in servers]
    said = []
    for target in targets:
        if target.startswith("dns:"):
            said.append(ask(target.removeprefix("dns:"), socket.SOCK_DGRAM, 53, QUESTION))
            continue
        said.append(ask(target, socket.SOCK_STREAM, 80, b""))
        said.append(ask(target, socket.SOCK_DGRAM, 443, b"?"))
    return " ".join(said)


while True:
    sys.stdout.write(one_round(sys.argv[2:]) + "\n")
    sys.stdout.flush()
    if sys.argv[1] == "once":
        break
    time.sleep(EVERY_S)
