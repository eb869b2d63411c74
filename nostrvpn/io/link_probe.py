"""Does a link lead to the internet: connections and a question for names through it alone.

On the event loop. The sockets are bound to the link and carry our mark, so they take it before any route
leads there, whatever the kill switch holds back, and nothing else: without the link they fail.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.host.state import FWMARK
from nostrvpn.io.resolver import StunResolver

__all__ = ["TIMEOUT_S", "ProbeResult", "probe", "public_places"]

TIMEOUT_S = 6.0
"""A probe takes so long at most: a handshake may be lost once (WireGuard tries again after 5 s)."""
_MAX_TARGETS = 8
_DNS_PORT = 53
# Spec: RFC 1035 section 4.1, without the id: recursion desired, one question: the root's servers.
_QUESTION = bytes.fromhex("01000001000000000000") + b"\0" + bytes.fromhex("00020001")
_MAX_ANSWER = 4096
_PORTS = {"wss": 443, "ws": 80, "https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """``ok``: some target was reached, and names are answered if a resolver was named. ``rtt_ms``: of
    the fastest connection; ``versions``: of IP, by which targets were reached; ``dns``: None if nobody
    was asked. ``reason``: what failed, in words, or empty."""

    ok: bool
    rtt_ms: int | None = None
    versions: frozenset[int] = frozenset()
    dns: bool | None = None
    reason: str = ""


async def probe(
    link: str, targets: Iterable[Endpoint], resolver: IPAddress | None = None
) -> ProbeResult:
    """Connect to ``targets`` (TCP) and ask ``resolver`` for names, through ``link`` and nothing else."""
    tried = list(targets)[:_MAX_TARGETS]
    asked = [] if resolver is None else [_timed(partial(_ask, link, resolver))]
    connections = [_timed(partial(_connect, link, target)) for target in tried]
    found = await asyncio.gather(*connections, *asked)
    reached = [(t, ms) for t, ms in zip(tried, found, strict=False) if ms is not None]
    answered = None if resolver is None else found[-1] is not None
    reason = ""
    if not reached:
        reason = "nothing was reached through the link"
    elif answered is False:
        reason = f"{resolver} answers no questions for names"
    rtt = round(min(ms for _, ms in reached)) if reached else None
    versions = frozenset(target.ip.version for target, _ in reached)
    return ProbeResult(not reason, rtt, versions, answered, reason)


async def public_places(urls: Iterable[str], versions: Collection[int]) -> list[Endpoint]:
    """Return where URLs lead that are on the internet, by these versions of IP; resolves names."""
    places = []
    for url in urls:
        parts = urlsplit(url)
        if parts.hostname:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            places.append(f"{host}:{parts.port or _PORTS.get(parts.scheme, 443)}")
    found, _ = await StunResolver().resolve(tuple(dict.fromkeys(places)))
    return [e for e in found if e.ip.is_global and e.ip.version in versions]


async def _timed(work: Callable[[], Awaitable[None]]) -> float | None:
    """Return how many milliseconds it took; None if it failed, or was not done in time."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await work()
    except (OSError, TimeoutError):
        return None
    return (time.monotonic() - began) * 1000


async def _connect(link: str, target: Endpoint) -> None:
    with _socket(link, target.ip, socket.SOCK_STREAM) as sock:
        where = (str(target.ip), target.port)
        await asyncio.get_running_loop().sock_connect(sock, where)


async def _ask(link: str, resolver: IPAddress) -> None:
    """Ask by TCP: whoever answers falsely has to be there."""
    question = secrets.token_bytes(2) + _QUESTION
    with _socket(link, resolver, socket.SOCK_STREAM) as sock:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (str(resolver), _DNS_PORT))
        await loop.sock_sendall(sock, len(question).to_bytes(2, "big") + question)
        answer = b""
        # Spec: RFC 1035 section 4.2.2: two bytes of length go before.
        while len(answer) < 4:
            data = await loop.sock_recv(sock, _MAX_ANSWER)
            if not data:
                raise ConnectionResetError("no answer")
            answer += data
        if answer[2:4] != question[:2]:
            raise ConnectionResetError("an answer to another question")


def _socket(link: str, ip: IPAddress, kind: int) -> socket.socket:
    made = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, kind)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
    except OSError:
        made.close()
        raise
    return made
