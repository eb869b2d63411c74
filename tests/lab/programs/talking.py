"""A program that sends all it can, everywhere: ``talking.py UID INTERFACE TARGET...``.

Prints as JSON what answered: for each kind of packet the targets, with what a site said of us.
"""

import json
import os
import select
import socket
import sys
import time
from contextlib import suppress

TCP_PORTS = (53, 80, 443, 853, 22)
UDP_PORTS = (53, 443, 853, 123, 5353)
WAIT_S = 0.5
QUESTION = bytes.fromhex("12340100000100000000000007696e76616c69640000010001")
ECHO = b"\x08\x00\x00\x00\x00\x01\x00\x01talking!"


def family_of(target: str) -> int:
    return socket.AF_INET6 if ":" in target else socket.AF_INET


def sockets(target: str, interface: str):
    """Yield (what, socket): each already sent or began to connect."""
    family = family_of(target)
    for bound in ("", interface):
        kinds = [("tcp", socket.SOCK_STREAM, port) for port in TCP_PORTS]
        kinds += [("udp", socket.SOCK_DGRAM, port) for port in UDP_PORTS]
        kinds += [("icmp", socket.SOCK_DGRAM, 0)]
        for name, kind, port in kinds:
            protocol = 0
            if name == "icmp":
                protocol = (
                    socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
                )
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:
                continue
            sock.setblocking(False)
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            try:
                if bound:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bound.encode())
                sock.connect_ex((target, port))
                if name == "udp":
                    sock.send(QUESTION)
                elif name == "icmp":
                    sock.send(ECHO if family == socket.AF_INET else b"\x80" + ECHO[1:])
            except OSError:
                sock.close()
                continue
            yield f"{name}/{port}" + (f"@{bound}" if bound else ""), sock


def main(uid: int, interface: str, targets: list[str]) -> None:
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    open_now = {}
    for target in targets:
        for what, sock in sockets(target, interface):
            open_now[sock.fileno()] = (what, target, sock)
    answered: dict[str, list[str]] = {}
    ends = time.monotonic() + WAIT_S
    while open_now and (left := ends - time.monotonic()) > 0:
        ready, _, _ = select.select(list(open_now), [], [], left)
        for number in ready:
            what, target, sock = open_now.pop(number)
            with suppress(OSError):
                said = sock.recv(200)
                words = "" if what.startswith("icmp") else said.decode(errors="replace").strip()
                answered.setdefault(what, []).append(f"{target} {words}".strip())
            sock.close()
    sys.stdout.write(json.dumps(answered))


main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
