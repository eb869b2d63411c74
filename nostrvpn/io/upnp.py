"""UPnP-IGD on the wire: SSDP by UDP, description and SOAP by HTTP, with the default gateway only.

Everything a router says is bounded in size and time, and is believed only if it comes from the
gateway's own address and leads to it: any host of a LAN can answer a search. The HTTP client is
imported on first use.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.portmap.upnp import (
    CONFLICT,
    MAX_DOCUMENT,
    NO_SUCH_ENTRY,
    SEARCH_TARGETS,
    UpnpService,
    parse_description,
    parse_external_address,
    parse_fault,
    parse_location,
    parse_mapping_entry,
    render_call,
    render_search,
)

if TYPE_CHECKING:
    from aiohttp import ClientSession

__all__ = ["UpnpFailure", "UpnpRouter", "socket_on"]

SSDP = ("239.255.255.250", 1900)
# How long each of two searches is listened to: routers may wait up to MX (1 s) before they answer, and
# a datagram is lost at times.
SEARCH_WAITS = (0.5, 2.0)
# Answers looked at per search: others of the LAN answer too.
MAX_ANSWERS = 64
# One HTTP exchange; a map takes three.
HTTP_TIMEOUT = 3.0
DESCRIPTION = "nostrvpn"


class UpnpFailure(Exception):
    """A request failed: ``number`` is the router's error code, or 0; the text follows "the router"."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text)
        self.number = number


def socket_on(family: int, kind: int, interface: str, mark: int) -> socket.socket:
    """Return a non-blocking socket that stays on ``interface``, whatever policy routing says."""
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        # Needs a capability on old kernels; the route to the gateway is the same without it.
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    except BaseException:
        sock.close()
        raise
    return sock


class UpnpRouter:
    """The gateway as a UPnP router, reached over ``interface`` with a firewall mark (0: none).

    Each request raises UpnpFailure, and none takes longer than its exchanges' timeouts.
    """

    def __init__(self, gateway: IPv4Address, local: IPv4Address, interface: str, mark: int) -> None:
        self._gateway = gateway
        self._local = local
        self._interface = interface
        self._mark = mark
        self._service: UpnpService | None = None
        self._session: ClientSession | None = None

    async def find(self) -> None:
        """Search for the router and choose its connection; the text is empty if nobody answers."""
        self._service = None
        try:
            location = await self._search()
        except OSError as exc:
            raise UpnpFailure(0) from exc
        status, body = await self._http("GET", location)
        if status != 200:
            raise UpnpFailure(0, f"answers HTTP {status} for its description")
        try:
            services = parse_description(body, location, self._gateway)
        except PeerMisbehaved as exc:
            raise UpnpFailure(0, "sends an unusable description") from exc
        for service in services:
            # A router may describe PPP and IP though one is in use: the one with an address.
            with contextlib.suppress(UpnpFailure):
                if not (await self._external_address(service)).is_unspecified:
                    self._service = service
                    return
        raise UpnpFailure(0, "has no connection to the internet itself")

    async def map(self, external_port: int, internal: Endpoint, lease_s: int) -> IPv4Address:
        """Make or renew a mapping; return the external address. 718: the port is another host's."""
        holder = await self._holder(external_port)
        if holder not in (None, internal):
            raise UpnpFailure(CONFLICT)  # some routers would overwrite it
        arguments = {
            "NewRemoteHost": "",
            "NewExternalPort": external_port,
            "NewProtocol": "UDP",
            "NewInternalPort": internal.port,
            "NewInternalClient": internal.ip,
            "NewEnabled": 1,
            "NewPortMappingDescription": DESCRIPTION,
            "NewLeaseDuration": lease_s,
        }
        await self._call("AddPortMapping", arguments)
        return await self._external_address()

    async def check(self, external_port: int, internal: Endpoint) -> IPv4Address:
        """Return the external address if the mapping is ours still; else 714 or 718."""
        holder = await self._holder(external_port)
        if holder != internal:
            raise UpnpFailure(NO_SUCH_ENTRY if holder is None else CONFLICT)
        return await self._external_address()

    async def unmap(self, external_port: int, internal: Endpoint) -> None:
        """Remove the mapping, unless it is another host's."""
        if await self._holder(external_port) in (None, internal):
            await self._call("DeletePortMapping", _entry(external_port))

    async def close(self) -> None:
        """Close the HTTP client."""
        if self._session is not None:
            await self._session.close()

    async def _search(self) -> str:
        with socket_on(socket.AF_INET, socket.SOCK_DGRAM, self._interface, self._mark) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, self._local.packed)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
            sock.bind((str(self._local), 0))
            for wait in SEARCH_WAITS:
                for target in SEARCH_TARGETS:
                    for host in (SSDP, (str(self._gateway), SSDP[1])):
                        with contextlib.suppress(OSError):
                            sock.sendto(render_search(target, f"{SSDP[0]}:{SSDP[1]}"), host)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        return await self._location(sock)
        raise UpnpFailure(0)

    async def _location(self, sock: socket.socket) -> str:
        loop = asyncio.get_running_loop()
        for _ in range(MAX_ANSWERS):
            try:
                data, source = await loop.sock_recvfrom(sock, 4096)
            except ConnectionRefusedError:
                continue  # the unicast search found the port closed
            if source[0] == str(self._gateway):
                with contextlib.suppress(PeerMisbehaved):
                    return parse_location(data, self._gateway)
        raise UpnpFailure(0)

    async def _external_address(self, service: UpnpService | None = None) -> IPv4Address:
        body = await self._call("GetExternalIPAddress", {}, service)
        try:
            return parse_external_address(body)
        except PeerMisbehaved as exc:
            raise UpnpFailure(0, "tells no external address") from exc

    async def _holder(self, external_port: int) -> Endpoint | None:
        """Return to whom the external port is mapped, None if to nobody or if it cannot be told."""
        try:
            body = await self._call("GetSpecificPortMappingEntry", _entry(external_port))
            return parse_mapping_entry(body)
        except PeerMisbehaved:
            return None
        except UpnpFailure as exc:
            if exc.number == 0:
                raise
            return None

    async def _call(
        self, action: str, arguments: Mapping[str, object], service: UpnpService | None = None
    ) -> bytes:
        service = service or self._service
        if service is None:
            raise UpnpFailure(0, "was not found")
        headers = {
            "Content-Type": 'text/xml; charset="utf-8"',
            "SOAPAction": f'"{service.kind}#{action}"',
        }
        envelope = render_call(service, action, arguments)
        status, body = await self._http("POST", service.control_url, envelope, headers)
        if status == 200:
            return body
        if status == 500:
            raise UpnpFailure(parse_fault(body))
        raise UpnpFailure(0, f"answers HTTP {status}")

    async def _http(
        self, method: str, url: str, data: bytes | None = None, headers: Any = None
    ) -> tuple[int, bytes]:
        """Return status and body of one exchange."""
        from aiohttp import ClientError
        from yarl import URL

        try:
            async with (
                asyncio.timeout(HTTP_TIMEOUT),
                self._client().request(
                    method,
                    URL(url, encoded=True),
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                ) as response,
            ):
                body = bytearray()
                async for chunk in response.content.iter_chunked(16384):
                    body += chunk
                    if len(body) > MAX_DOCUMENT:
                        raise UpnpFailure(0, "sends an answer too long")
                return response.status, bytes(body)
        except (ClientError, OSError, ValueError) as exc:  # TimeoutError is an OSError
            raise UpnpFailure(0, "does not answer by HTTP") from exc

    def _client(self) -> ClientSession:
        from aiohttp import ClientSession, DummyCookieJar, TCPConnector

        def connect_from_here(address: Any) -> socket.socket:
            sock = socket_on(address[0], address[1], self._interface, self._mark)
            sock.bind((str(self._local), 0))
            return sock

        if self._session is None:
            # One exchange per connection: routers' HTTP servers are simple.
            connector = TCPConnector(force_close=True, limit=1, socket_factory=connect_from_here)
            self._session = ClientSession(
                connector=connector, cookie_jar=DummyCookieJar(), auto_decompress=False
            )
        return self._session


def _entry(external_port: int) -> dict[str, object]:
    return {"NewRemoteHost": "", "NewExternalPort": external_port, "NewProtocol": "UDP"}
