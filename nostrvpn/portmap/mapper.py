"""PortMapper: keeps one UDP port of this host reachable through its default gateway.

A gateway serves one IP version. With IPv4 a mapping is a translation, with IPv6 (PCP only) a hole in
the router's firewall. How a gateway is asked is in ``gateway``; here is which gateway, and what is
told of it.
"""

from __future__ import annotations

from collections import Counter

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, Tick
from nostrvpn.portmap import pcp
from nostrvpn.portmap.events import (
    DatagramReceived,
    GatewayChanged,
    GatewayLost,
    MappedChanged,
    PortMapEffect,
    PortMapEvent,
    Stop,
    UpnpDone,
    UpnpFailed,
)
from nostrvpn.portmap.gateway import LEASE, Gateway
from nostrvpn.portmap.lease import PortMapReport, Protocol, is_public

__all__ = ["PortMapper"]

NO_GATEWAY = "there is no default gateway"


class PortMapper:
    """Pure; see ``machine``. ``lease_s`` is what routers are asked for."""

    def __init__(self, port: int, *, lease_s: int = LEASE) -> None:
        self.counters: Counter[str] = Counter()
        self.stopped = False
        """Whether a Stop has been carried out."""
        self._port = port
        self._lease_s = lease_s
        self._stopping = False
        self._gateway: Gateway | None = None
        self._why_not = NO_GATEWAY
        self._told: tuple[Endpoint, ...] = ()
        self._serial = 0

    @property
    def deadline(self) -> float | None:
        """When ``step(Tick(), ...)`` is due next."""
        return self._gateway.deadline if self._gateway else None

    def step(self, event: PortMapEvent, moment: Moment) -> list[PortMapEffect]:
        """Take one event; see ``events``. What is due at ``moment`` is done in any case."""
        if self.stopped:
            return []
        effects: list[PortMapEffect] = []
        try:
            effects += self._handle(event, moment)
        except PeerMisbehaved as exc:
            self.counters[exc.code] += 1
        gateway = self._gateway
        if gateway is not None:
            effects += gateway.due(moment)
        if self._stopping:
            self.stopped = gateway is None or gateway.stopped
        lease = gateway.lease if gateway else None
        endpoints = (lease.external,) if lease and lease.public else ()
        if endpoints != self._told:
            self._told = endpoints
            effects.append(MappedChanged(endpoints))
        return effects

    def report(self, now: float) -> PortMapReport:
        """Return the state for people; ``now`` is ``Moment.now``."""
        gateway = self._gateway
        answered = gateway.answered if gateway else set()
        lease = gateway.lease if gateway else None
        expires_at = lease.expires_at if lease else None
        return PortMapReport(
            pcp=Protocol.PCP in answered,
            nat_pmp=Protocol.NAT_PMP in answered,
            upnp=Protocol.UPNP in answered,
            protocol=lease.protocol.value if lease else None,
            external=lease.external if lease else None,
            public=lease.public if lease else False,
            expires_in_s=None if expires_at is None else max(0.0, expires_at - now),
            error=_error(gateway) if gateway else self._why_not,
        )

    def _handle(self, event: PortMapEvent, moment: Moment) -> list[PortMapEffect]:
        gateway = self._gateway
        match event:
            case GatewayChanged():
                return self._gateway_changed(event, moment)
            case GatewayLost():
                self._leave(NO_GATEWAY)
            case Stop():
                self._stopping = True
                return gateway.stop(moment) if gateway else []
            case DatagramReceived() if gateway is not None:
                return gateway.datagram(event, moment)
            case UpnpDone() | UpnpFailed() if gateway is not None:
                return gateway.upnp(event, moment)
            case DatagramReceived() | UpnpDone() | UpnpFailed() | Tick():
                pass
        return []

    def _gateway_changed(self, event: GatewayChanged, moment: Moment) -> list[PortMapEffect]:
        local = Endpoint(event.local, self._port)
        if self._stopping:
            return []
        known = self._gateway
        if known is not None and (event.gateway, local) == (known.ip, known.local):
            known.look_soon(moment.now)
            return []
        if event.gateway.version != event.local.version:
            self._leave("the gateway and our address are of different IP versions")
        elif event.local.version == 4 and is_public(event.local):
            self._leave("this host has a public address itself")
        else:
            self._leave("")
            nonce = moment.entropy.take(pcp.NONCE)
            self._gateway = Gateway(event.gateway, local, self._lease_s, nonce, self._serial)
            return self._gateway.start(moment)
        return []

    def _leave(self, why: str) -> None:
        """Forget the gateway: we do not reach it, or it knows us otherwise; what it keeps lapses."""
        if self._gateway is not None:
            self._serial = self._gateway.serial
        self._gateway, self._why_not = None, why


def _error(gateway: Gateway) -> str | None:
    """Return in words why there is no mapping, or what is wrong with it."""
    lease = gateway.lease
    if lease is not None:
        ip = lease.external.ip
        if ip.is_unspecified:
            return "the router has no external address"
        return None if lease.public else f"the router is behind a NAT itself, as {ip}"
    if gateway.errors:
        return "; ".join(f"{p.label}: the router {why}" for p, why in gateway.errors.items())
    if gateway.busy or gateway.answered:
        return None
    asked = ", ".join(protocol.label for protocol in gateway.protocols)
    return f"the router does not answer ({asked})"
