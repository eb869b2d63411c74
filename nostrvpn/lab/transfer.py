"""A TCP transfer between two namespaces, checked and timed."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.patience import patient

__all__ = ["Transfer", "transfer"]

CHUNK = 1 << 16
STEP_TIMEOUT = 20.0
"""Seconds without any progress after which a transfer has failed."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What arrived: ``size`` in bytes, ``seconds`` from connecting to the last byte, SHA-256."""

    size: int
    seconds: float
    sent_sha256: str
    received_sha256: str

    @property
    def intact(self) -> bool:
        return self.sent_sha256 == self.received_sha256

    @property
    def mbit_per_second(self) -> float:
        return self.size * 8 / self.seconds / 1e6


def transfer(
    source: Namespace,
    target: Namespace,
    address: IPv4Address | IPv6Address,
    *,
    size: int = 10_000_000,
    seed: int = 0,
    patience: float = STEP_TIMEOUT,
) -> Transfer:
    """Send ``size`` pseudo-random bytes from ``source`` to ``address``, which ``target`` owns.

    SystemRefused after ``patience`` seconds without any progress.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    payload = random.Random(seed).randbytes(size)
    with target.enter():
        listener = socket.socket(family, socket.SOCK_STREAM)
    with source.enter():
        client = socket.socket(family, socket.SOCK_STREAM)
    received = hashlib.sha256()
    finished: list[float] = []

    def receive() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # nobody got through: the sender says why
        with connection:
            connection.settimeout(patient(patience))
            while chunk := connection.recv(CHUNK):
                received.update(chunk)
            finished.append(time.monotonic())
            connection.sendall(b"k")

    with listener, client:
        listener.settimeout(patient(patience))
        client.settimeout(patient(patience))
        listener.bind((str(address), 0))
        listener.listen(1)
        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        started = time.monotonic()
        try:
            client.connect((str(address), listener.getsockname()[1]))
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
        except OSError as exc:
            raise SystemRefused(
                f"the transfer from {source.label} to {address} failed: {exc}"
            ) from exc
        receiver.join(patient(patience))
    if not finished:
        raise SystemRefused(f"the transfer from {source.label} to {address} was cut off")
    sent = hashlib.sha256(payload).hexdigest()
    return Transfer(size, finished[0] - started, sent, received.hexdigest())
