"""One request from outside, and the answer that may go back to where it came from."""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.relaying.events import RelayEffect, SendControl, SendFrom, Source
from nostrvpn.stun.binding import StunKind, StunMessage, StunMethod, parse_stun
from nostrvpn.stun.relaying import PAIR_ID, Side

__all__ = ["Request", "parse_request"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request. ``port`` is the lent port it came to, None for WireGuard's and for a WebSocket.

    ``user`` is who asks for a port (Allocate), ``side`` which end is to be bound (Bind).
    """

    message: StunMessage
    source: Source
    port: int | None
    local_ip: IPAddress | None
    pair: str
    user: str
    side: Side | None

    def answer(self, data: bytes) -> list[RelayEffect] | None:
        """Return what sends ``data`` back; None if it is longer than the request."""
        if len(data) > self.message.size:
            return None
        if self.port is not None and isinstance(self.source, Endpoint):
            return [SendFrom(self.port, data, self.source, self.local_ip)]
        return [SendControl(data, self.source)]


def parse_request(
    data: bytes, source: Source, port: int | None, local_ip: IPAddress | None
) -> Request:
    """Return the request in ``data``; PeerMisbehaved for what can be none at this port."""
    message = parse_stun(data)
    if message.kind is not StunKind.REQUEST:
        raise PeerMisbehaved("not_a_request")
    first, _, second = message.username.partition(":")
    if PAIR_ID.match(first) is None:
        raise PeerMisbehaved("unknown_username")
    if message.method is StunMethod.BINDING:
        if second not in (Side.ALLOCATOR, Side.OTHER):
            raise PeerMisbehaved("unknown_username")
        if port is None and isinstance(source, Endpoint):
            raise PeerMisbehaved("wrong_port")
        return Request(message, source, port, local_ip, first, "", Side(second))
    if PAIR_ID.match(second) is None:
        raise PeerMisbehaved("unknown_username")
    if port is not None:
        raise PeerMisbehaved("wrong_port")
    return Request(message, source, port, local_ip, second, first, None)
