"""Asks sites who they see: ``asking.py once|forever TARGET...``, by TCP port 80 and UDP port 443.

A line for each round, in which all are asked at once: what each target said over TCP and over UDP, or
``-`` for nothing. ``dns`` as the only target asks each resolver of /etc/resolv.conf instead, and
``dns:TARGET`` that one.
"""

import socket
import sys
import threading
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
    questions = []
    for target in targets:
        if target.startswith("dns:"):
            questions.append((target.removeprefix("dns:"), socket.SOCK_DGRAM, 53, QUESTION))
            continue
        questions.append((target, socket.SOCK_STREAM, 80, b""))
        questions.append((target, socket.SOCK_DGRAM, 443, b"?"))
    said = ["-"] * len(questions)

    def put(number: int) -> None:
        said[number] = ask(*questions[number])

    threads = [threading.Thread(target=put, args=(number,)) for number in range(len(said))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return " ".join(said)


while True:
    sys.stdout.write(one_round(sys.argv[2:]) + "\n")
    sys.stdout.flush()
    if sys.argv[1] == "once":
        break
    time.sleep(EVERY_S)
