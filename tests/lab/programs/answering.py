"""A site: answers on each TCP and UDP port given, in both IP versions, with the asker's address."""

import asyncio
import socket
import sys
from typing import cast


class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        self.transport.sendto(str(source[0]).encode(), source)


async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(str(writer.get_extra_info("peername")[0]).encode() + b"\n")
    writer.close()


async def main(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            await asyncio.start_server(tell, address, port)
            ear = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            ear.bind((address, port))
            ear.setblocking(False)
            await loop.create_datagram_endpoint(Datagrams, sock=ear)
    sys.stdout.write("listening everywhere\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(main([int(port) for port in sys.argv[1:]]))
