"""One connection to a TURN server over UDP, TCP or TLS, with aioice's client on top.

aioice makes its own sockets, without a fwmark; so the socket is made here and its protocol object is
driven from here. What it raises ends here too: everything becomes ``TurnFailed``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, Literal

from nostrvpn.config import addresses
from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import NostrvpnError, UserError, one_line
from nostrvpn.io.resolver import look_up
from nostrvpn.io.tcp_carrier import is_congested, prepare_carrier
from nostrvpn.paths.candidates import refusal
from nostrvpn.paths.settings import PathSettings

__all__ = ["TurnFailed", "TurnServer", "TurnWire", "connect_turn", "parse_turn_url"]

CONNECT_SECONDS: Final = 10.0
# Twice as long as it takes until we refresh; a server that lends for less would have us refresh all day.
MIN_LIFETIME: Final = 30
# Spec: REQUESTED-TRANSPORT (RFC 8656 section 18.7): UDP.
_UDP: Final = 17 << 24


class TurnFailed(NostrvpnError):
    """A TURN server cannot be used, or not any more; the text says why."""

    code = "turn_failed"


@dataclass(frozen=True, slots=True)
class TurnServer:
    """A TURN server as configured. ``name`` is its URL; it never holds the password."""

    host: str
    port: int
    transport: Literal["udp", "tcp", "tls"]
    username: str
    password: str = field(repr=False)

    @property
    def name(self) -> str:
        """The URL in full (RFC 7065)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.transport == "tls":
            return f"turns:{host}:{self.port}?transport=tcp"
        return f"turn:{host}:{self.port}?transport={self.transport}"


def parse_turn_url(url: str, username: str, password: str) -> TurnServer:
    """Parse ``turn:HOST[:PORT][?transport=udp|tcp]`` or ``turns:…``; UserError if it is not one.

    ``turns:`` is TLS over TCP; DTLS is not supported.
    """
    try:
        place = addresses.parse_turn_url(url)
    except ValueError as exc:
        raise UserError(
            f"not the URL of a TURN server: {exc}",
            "Write turn:HOST:PORT?transport=udp, turn:HOST:PORT?transport=tcp or turns:HOST:PORT.",
        ) from exc
    transport: Literal["udp", "tcp", "tls"] = "tcp" if place.transport == "tcp" else "udp"
    return TurnServer(place.host, place.port, "tls" if place.tls else transport, username, password)


class TurnWire(asyncio.BaseProtocol):
    """Between asyncio's transport and aioice's protocol.

    ``receive(data, (ip, port))`` takes what remotes sent. ``suspicion`` is set when something says
    that the server may be gone; ``failure`` is the reason once the connection is lost.
    """

    def __init__(self, client: Any, errors: Any) -> None:
        self._client = client
        self._errors = errors
        self._transport: Any = None
        self.receive: Callable[[bytes, tuple[str, int]], None] | None = None
        self.suspicion = asyncio.Event()
        self.failure = ""
        self._stream: Any = None
        self._bindings: set[asyncio.Future[None]] = set()
        client.receiver = _Receiver(self)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock.type == socket.SOCK_STREAM:
            self._stream = sock
            with contextlib.suppress(OSError):
                prepare_carrier(sock)
        self._client.connection_made(transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._guarded(self._client.datagram_received, data, address)

    def data_received(self, data: bytes) -> None:
        self._guarded(self._client.data_received, data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """Nothing to do: what is congested is asked before each write."""

    def resume_writing(self) -> None:
        """Nothing to do either."""

    def error_received(self, exc: OSError) -> None:
        # ICMP: nobody there. A refresh will tell whether that is so.
        self.suspicion.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection to the TURN server ended{f': {exc}' if exc else ''}")

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or one_line(reason)
        self.suspicion.set()

    def _guarded(self, take: Callable[..., None], *arguments: object) -> None:
        """aioice's parser lets some of what a broken server sends escape as other errors."""
        try:
            take(*arguments)
        except Exception as exc:
            self._fail(f"the TURN server sent what cannot be read ({type(exc).__name__})")
            self._transport.abort()

    def is_congested(self) -> bool:
        """Say whether a packet sent now would wait behind others: then it is better dropped."""
        if self._stream is not None:
            return is_congested(self._stream)
        # asyncio keeps, without a bound, what a UDP socket does not take.
        return bool(self._transport.get_write_buffer_size())

    async def allocate(self) -> Endpoint:
        """Ask for an allocation; return the endpoint that is lent to us.

        Not by aioice's own ``connect``, which would refresh as often as the server likes.
        """
        found = await self._request("ALLOCATE", **{"REQUESTED-TRANSPORT": _UDP})
        if "XOR-RELAYED-ADDRESS" not in found:
            raise TurnFailed("the TURN server lends no address")
        ip, port = found["XOR-RELAYED-ADDRESS"]
        relayed = Endpoint(ip_address(ip), port)
        if reason := refusal(relayed, PathSettings()):
            raise TurnFailed(f"the TURN server lends {relayed}: {reason}")
        return relayed

    async def refresh(self) -> None:
        """Refresh the allocation, and the mapping of our NAT with it."""
        await self._request("REFRESH")

    async def _request(self, method: str, **attributes: object) -> Any:
        """Ask for an allocation or its refresh; return the answer's attributes."""
        stun = self._errors
        kind = getattr(stun.Method, method)
        request = stun.Message(message_method=kind, message_class=stun.Class.REQUEST)
        request.attributes["LIFETIME"] = self._client.lifetime
        request.attributes.update(attributes)
        response, _ = await self._ask(self._client.request_with_retry(request))
        lifetime = response.attributes.get("LIFETIME", 0)
        if lifetime < MIN_LIFETIME:
            raise TurnFailed(f"the TURN server lends for {lifetime} s only")
        return response.attributes

    async def send(self, data: bytes, address: tuple[str, int]) -> None:
        """Send to a remote; the first time binds a channel, which takes a round trip.

        Cancelled, a binding goes on: aioice would make all later ones for this remote wait for it.
        """
        if address in self._client.peer_to_channel:
            await self._ask(self._client.send_data(data, address))
            return
        binding = asyncio.ensure_future(self._ask(self._client.send_data(data, address)))
        self._bindings.add(binding)
        binding.add_done_callback(self._bound)
        await asyncio.shield(binding)

    def _bound(self, binding: asyncio.Future[None]) -> None:
        self._bindings.discard(binding)
        if not binding.cancelled():
            binding.exception()  # nobody may be waiting for it any more

    async def close(self) -> None:
        """Give the allocation back and close."""
        for binding in set(self._bindings):
            binding.cancel()
        try:
            if not self.failure:
                with contextlib.suppress(TurnFailed):
                    await self._ask(self._client.delete())
        finally:
            if self._transport is not None:
                self._transport.abort()

    async def _ask(self, request: Any) -> Any:
        """Await aioice; all of its errors are TurnFailed."""
        try:
            return await request
        except self._errors.TransactionFailed as exc:
            raise TurnFailed(_refusal(exc.response)) from exc
        except self._errors.TransactionError as exc:
            raise TurnFailed("the TURN server does not answer") from exc
        except ConnectionError as exc:
            if "channel number" in str(exc):
                # They are used up for good: only a new allocation has new ones.
                self._fail(str(exc))
            raise TurnFailed(one_line(str(exc))) from exc


class _Receiver:
    """What aioice calls with what remotes sent."""

    def __init__(self, wire: TurnWire) -> None:
        self._wire = wire

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if self._wire.receive is not None:
            self._wire.receive(bytes(data), address)

    def connection_lost(self, exc: Exception | None) -> None:
        """The wire hears of it itself."""

    def error_received(self, exc: Exception) -> None:
        """The wire hears of it itself."""


def _refusal(response: Any) -> str:
    """Return a server's error (RFC 8656 section 19) in words."""
    code, phrase = response.attributes.get("ERROR-CODE", (0, ""))
    known = {
        401: "the TURN server refuses the user name or the password",
        403: "the TURN server forbids this remote address",
        437: "the TURN server has forgotten the allocation",
        438: "the TURN server refuses the user name or the password",
        486: "the TURN server lends no more to this user (quota reached)",
        508: "the TURN server has no capacity left",
    }
    return known.get(code) or one_line(f"the TURN server says {code} {phrase}")


async def connect_turn(
    server: TurnServer, mark: int, tls: ssl.SSLContext | None
) -> tuple[TurnWire, Endpoint]:
    """Connect and allocate within ten seconds; TurnFailed with the reason otherwise."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            sock = await _connect_socket(server, mark)
            wire = await _wrap(server, sock, tls)
            try:
                return wire, await wire.allocate()
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(_abandon(wire)))
                raise
    except TimeoutError as exc:
        raise TurnFailed(f"no answer from the TURN server within {CONNECT_SECONDS:g} s") from exc
    except ssl.SSLCertVerificationError as exc:
        text = f"the certificate of {server.host} is not valid: {exc.verify_message}"
        raise TurnFailed(one_line(text)) from exc
    except OSError as exc:
        text = f"no connection to the TURN server: {exc.strerror or exc}"
        raise TurnFailed(one_line(text)) from exc


async def _abandon(wire: TurnWire) -> None:
    wire._fail("no allocation")
    await wire.close()


async def _connect_socket(server: TurnServer, mark: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_DGRAM if server.transport == "udp" else socket.SOCK_STREAM
    failure: OSError | None = None
    for family, *_, address in await look_up(server.host, server.port, kind):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            await loop.sock_connect(sock, address)
        except OSError as exc:
            sock.close()
            failure = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure or OSError(f"unknown host name {server.host}")


async def _wrap(server: TurnServer, sock: socket.socket, tls: ssl.SSLContext | None) -> TurnWire:
    """Put aioice's client on a connected socket."""
    from aioice import stun, turn

    loop = asyncio.get_running_loop()
    make = turn.TurnClientUdpProtocol if server.transport == "udp" else turn.TurnClientTcpProtocol
    client = make(
        (server.host, server.port),
        username=server.username,
        password=server.password,
        lifetime=turn.DEFAULT_ALLOCATION_LIFETIME,
        channel_refresh_time=turn.DEFAULT_CHANNEL_REFRESH_TIME,
    )
    wire = TurnWire(client, stun)
    try:
        if server.transport == "udp":
            await loop.create_datagram_endpoint(lambda: wire, sock=sock)
        elif server.transport == "tcp":
            await loop.create_connection(lambda: wire, sock=sock)
        else:
            context = tls or ssl.create_default_context()
            await loop.create_connection(
                lambda: wire, sock=sock, ssl=context, server_hostname=server.host
            )
    except BaseException:
        sock.close()
        raise
    return wire
