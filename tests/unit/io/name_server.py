"""A name server for tests that answers as it is told, over UDP and TCP on one port of loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any

import dns.message
import dns.rcode
import dns.rrset

from nostrvpn.endpoint import Endpoint

__all__ = ["Told", "name_server", "reply", "sent_by"]

Told = Callable[[bytes, bool], list[bytes]]


def reply(query: bytes, *addresses: str, rcode: int = 0, ttl: int = 300) -> bytes:
    """Return an answer to a query, with these addresses."""
    message = dns.message.from_wire(query)
    made = dns.message.make_response(message)
    made.set_rcode(dns.rcode.Rcode(rcode))
    name = message.question[0].name
    for address in addresses:
        kind = "A" if "." in address else "AAAA"
        made.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, address))
    return made.to_wire(max_size=65_535)


@asynccontextmanager
async def name_server(told: Told, host: str = "127.0.0.1") -> AsyncIterator[Endpoint]:
    """Answer each query with all that ``told(query, by_tcp)`` returns."""
    loop = asyncio.get_running_loop()

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            for wire in told(data, False):
                self.transport.sendto(wire, addr)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                for wire in told(await reader.readexactly(length), True):
                    writer.write(len(wire).to_bytes(2, "big") + wire)
                await writer.drain()
        writer.close()

    transport, _ = await loop.create_datagram_endpoint(Datagrams, (host, 0))
    port = transport.get_extra_info("sockname")[1]
    server = await asyncio.start_server(serve, host, port)
    try:
        yield Endpoint(ip_address(host), port)
    finally:
        transport.close()
        server.close()
        await asyncio.sleep(0)


def sent_by(host: str, to: tuple[str, int], wire: bytes) -> None:
    """Send a datagram from another address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.sendto(wire, to)
