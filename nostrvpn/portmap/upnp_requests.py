"""UPnP with one gateway: what to ask, what the result means, and the ways around what routers lack."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TypeVar

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.machine import Moment
from nostrvpn.portmap import upnp
from nostrvpn.portmap.answers import Alive, Answer, Granted, Refused
from nostrvpn.portmap.events import (
    UpnpCheck,
    UpnpDone,
    UpnpFailed,
    UpnpFind,
    UpnpMap,
    UpnpRequest,
    UpnpUnmap,
)
from nostrvpn.portmap.lease import Protocol

__all__ = ["UpnpRequests"]

# Other external ports tried at a router that has given ours away.
PORT_TRIES = 4
# Those with which routers refuse a lease because they know only permanent mappings.
NO_LEASES = (upnp.ONLY_PERMANENT, 402, 501)
SILENT = "does not answer"

Request = TypeVar("Request", bound=UpnpRequest)


class UpnpRequests:
    """The talk with one gateway about UDP ``internal``. Serials go up over all gateways."""

    def __init__(self, internal: Endpoint, gateway: IPAddress, first_serial: int) -> None:
        self._internal = internal
        self._gateway = gateway
        self._port = internal.port
        self._port_tries = 0
        self._permanent = False
        self._open: dict[int, UpnpRequest] = {}
        self.serial = first_serial
        """The last serial used."""

    def find(self) -> UpnpFind:
        """Look for the router, and try our own port and leases afresh."""
        self._port_tries, self._permanent = 0, False
        self._open.clear()
        return self._note(UpnpFind(self._next(), self._gateway, self._internal.ip))

    def map(self, wish: Endpoint | None, lease_s: int) -> UpnpMap:
        """Ask for a mapping, if possible of the external port of ``wish``."""
        self._port = wish.port if wish else self._port
        lease_s = 0 if self._permanent else lease_s
        return self._note(UpnpMap(self._next(), self._port, self._internal, lease_s))

    def check(self, external: Endpoint) -> UpnpCheck:
        """Ask whether the mapping is still there."""
        return self._note(UpnpCheck(self._next(), external.port, self._internal))

    def unmap(self, wish: Endpoint | None) -> UpnpUnmap:
        """Remove the mapping."""
        port = wish.port if wish else self._port
        return self._note(UpnpUnmap(self._next(), port, self._internal))

    def read(self, event: UpnpDone | UpnpFailed, moment: Moment) -> Answer | UpnpMap | None:
        """Return what a result means, the request to make instead, or None for an outdated one."""
        request = self._open.pop(event.serial, None)
        if request is None:
            return None
        if isinstance(event, UpnpFailed):
            return self._failed(request, event, moment)
        ip = event.external_ip or IPv4Address(0)
        match request:
            case UpnpFind():
                return Alive(Protocol.UPNP)
            case UpnpMap():
                return Granted(Protocol.UPNP, ip, request.external_port, request.lease_s or None)
            case UpnpCheck():
                return Alive(Protocol.UPNP, external_ip=ip)
            case UpnpUnmap():
                return Granted(Protocol.UPNP, ip, request.external_port, 0)

    def _failed(self, request: UpnpRequest, event: UpnpFailed, moment: Moment) -> Answer | UpnpMap:
        why = upnp.in_words(event.code) if event.code else event.reason or SILENT
        if isinstance(request, UpnpFind):
            return Refused(Protocol.UPNP, event.reason, of_map=False)
        if isinstance(request, UpnpCheck):
            gone = event.code in (upnp.NO_SUCH_ENTRY, upnp.CONFLICT)
            return Refused(Protocol.UPNP, why, gone=gone)
        if isinstance(request, UpnpMap):
            if event.code == upnp.CONFLICT and self._port_tries < PORT_TRIES:
                self._port_tries += 1
                self._port = 1024 + int(moment.entropy.fraction() * (65536 - 1024))
                return self.map(None, request.lease_s)
            if event.code in NO_LEASES and not self._permanent:
                self._permanent = True
                return self.map(None, 0)
        return Refused(Protocol.UPNP, why)

    def _next(self) -> int:
        self.serial += 1
        return self.serial

    def _note(self, request: Request) -> Request:
        self._open[request.serial] = request
        return request
