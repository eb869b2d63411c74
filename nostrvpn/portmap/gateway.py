"""One gateway: from the first question to a mapping that is kept, and given back.

::

    probe: PCP, NAT-PMP and UPnP at once, by questions that change nothing
        an answer of PCP, or 250 ms: map by the best that answered; refused: by the next
        nobody: probe again, ever more seldom
    mapped: renew at half-life; every five minutes ask whether the router restarted or moved
        no answer: probe again; the mapping counts until it expires
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, earliest
from nostrvpn.portmap.answers import Alive, Answer, Granted, Refused
from nostrvpn.portmap.datagrams import Datagrams
from nostrvpn.portmap.events import (
    DatagramReceived,
    PortMapEffect,
    UpnpDone,
    UpnpFailed,
    UpnpMap,
)
from nostrvpn.portmap.lease import Lease, Protocol
from nostrvpn.portmap.upnp_requests import SILENT, UpnpRequests

__all__ = ["LEASE", "Gateway"]

LEASE = 7200
"""Seconds asked for (RFC 6886 section 3.3 recommends two hours)."""

# How long an answer to a probe is waited for before a lesser protocol is used: Tailscale's value,
# a hundred times what a router on the LAN needs.
PROBE_WAIT = 0.25
# Pauses between probes while there is no mapping: a lost datagram first, then a router that starts.
PROBE_AGAIN = (2.0, 10.0, 60.0, 300.0, 900.0)
# Gaps between the sends of one request; then the protocol has failed.
RETRANSMIT = (0.25, 0.5, 1.0, 2.0)
# The goodbye has less time: whoever stops the agent is waiting.
RETRANSMIT_LAST = (0.2, 0.3)
# A UPnP request is several exchanges over TCP with a slow device.
UPNP_WAIT = 12.0
# Mapped: how often to look whether the router restarted or has another address.
CHECK = 300.0
# Not more often than this, whatever the network or an impostor makes us believe.
MIN_PAUSE = 4.0
# A shorter lease would be all renewing; a longer one ends after a day (RFC 6887 section 15).
MIN_LEASE = 4
MAX_LEASE = 86400


class _Purpose(Enum):
    MAP = auto()
    CHECK = auto()
    UNMAP = auto()


@dataclass(slots=True)
class _Request:
    """The one request under way. ``effect`` is sent again at ``retry_at`` (UPnP: given up)."""

    protocol: Protocol
    purpose: _Purpose
    effect: PortMapEffect
    retry_at: float
    tries: int = 1


class Gateway:
    """The gateway ``ip``, which knows us as ``local``. A new network gets a new one.

    ``nonce`` marks our PCP mapping; the serials of UPnP requests go on after ``serial``.
    """

    def __init__(
        self, ip: IPAddress, local: Endpoint, lease_s: int, nonce: bytes, serial: int
    ) -> None:
        self.ip = ip
        self.local = local
        self.answered: set[Protocol] = set()
        self.errors: dict[Protocol, str] = {}
        self.lease: Lease | None = None
        self.stopped = False
        """Whether the mapping was given back, as far as can be known."""
        self.protocols = tuple(Protocol) if ip.version == 4 else (Protocol.PCP,)
        self._lease_s = lease_s
        self._datagrams = Datagrams(local.port, ip, local.ip, nonce)
        self._upnp = UpnpRequests(local, ip, serial)
        self._wanted = True
        self._stopping = False
        self._failures = 0
        self._asked_at = 0.0
        self._request: _Request | None = None
        self._decide_at: float | None = None
        self._probe_at: float | None = None
        self._check_at: float | None = None

    @property
    def serial(self) -> int:
        """The last serial of a UPnP request."""
        return self._upnp.serial

    @property
    def busy(self) -> bool:
        """Whether something is under way that may yet give a mapping."""
        return self._request is not None or self._decide_at is not None

    @property
    def deadline(self) -> float | None:
        """When ``due`` is to be called."""
        if self.stopped:
            return None
        expires_at = self.lease.expires_at if self.lease else None
        if self._request is not None:
            return earliest(expires_at, self._request.retry_at)
        if self._decide_at is not None:
            return earliest(expires_at, self._decide_at)
        renew_at = self.lease.renew_at if self.lease else None
        return earliest(expires_at, renew_at, self._probe_at, self._check_at)

    def start(self, moment: Moment) -> list[PortMapEffect]:
        """Begin to ask."""
        return self._probe(moment)

    def look_soon(self, now: float) -> None:
        """Something moved in the network: do not wait long before the next question."""
        soon = max(now, self._asked_at + MIN_PAUSE)
        if self.lease is not None and self._check_at is not None:
            self._check_at = min(self._check_at, soon)
        elif self._probe_at is not None:
            self._failures = 0
            self._probe_at = min(self._probe_at, soon)

    def stop(self, moment: Moment) -> list[PortMapEffect]:
        """Give the mapping back; ``stopped`` tells when that is done."""
        asked, lease, self._stopping = self._request, self.lease, True
        # A mapping that was asked for may exist by now, though the answer is not here.
        maybe = asked.protocol if asked and asked.purpose is _Purpose.MAP else None
        protocol = lease.protocol if lease else maybe
        wish = lease.external if lease else None
        self.lease = self._decide_at = self._probe_at = self._check_at = None
        if protocol is None:
            self.stopped = True
            return []
        effect: PortMapEffect
        if protocol is Protocol.UPNP:
            effect = self._upnp.unmap(wish)
        else:
            effect = self._datagrams.map(protocol, wish, 0)
        return self._ask(protocol, _Purpose.UNMAP, effect, moment)

    def datagram(self, event: DatagramReceived, moment: Moment) -> list[PortMapEffect]:
        """Take a datagram; raises PeerMisbehaved for one that is no answer."""
        answer = self._datagrams.read(event.data, event.source, moment.now)
        if event.announced:
            # Sent after a restart and when the address changes; nobody asked, so it is no answer.
            if isinstance(answer, Alive) and not self._stopping:
                self._restarted(moment.now)
            return []
        return self._answer(answer, moment) if answer else []

    def upnp(self, event: UpnpDone | UpnpFailed, moment: Moment) -> list[PortMapEffect]:
        """Take the result of a UPnP request; an outdated one means nothing."""
        said = self._upnp.read(event, moment)
        if isinstance(said, UpnpMap):
            # Refused, but the router may agree to this instead.
            if not self._close(Protocol.UPNP, _Purpose.MAP):
                return []
            return self._ask(Protocol.UPNP, _Purpose.MAP, said, moment)
        return self._answer(said, moment) if said else []

    def due(self, moment: Moment) -> list[PortMapEffect]:
        """Do what is due."""
        now, lease, request = moment.now, self.lease, self._request
        if lease is not None and lease.expires_at is not None and lease.expires_at <= now:
            self.lease = lease = None
            if self._probe_at is None and not self.busy:
                self._probe_at = now
        if self.stopped:
            return []
        if request is not None:
            return self._retry(request, moment) if request.retry_at <= now else []
        if self._decide_at is not None:
            return self._choose(moment) if self._decide_at <= now else []
        if self._probe_at is not None and self._probe_at <= now:
            return self._probe(moment)
        if lease is not None and lease.renew_at is not None and lease.renew_at <= now:
            return self._map(lease.protocol, moment)
        if lease is not None and self._check_at is not None and self._check_at <= now:
            return self._check(lease, moment)
        return []

    def _answer(self, answer: Answer, moment: Moment) -> list[PortMapEffect]:
        if self._stopping:
            removed = isinstance(answer, Refused) or (
                isinstance(answer, Granted) and answer.lease_s == 0
            )
            self.stopped = removed and self._close(answer.protocol, _Purpose.UNMAP)
            return []
        match answer:
            case Alive():
                return self._alive(answer, moment)
            case Granted():
                asked = self._close(answer.protocol, _Purpose.MAP)
                renewed = self.lease is not None and self.lease.protocol is Protocol.PCP
                # A PCP server may tell of a changed mapping by itself (RFC 6887 section 14.2).
                if not asked and not (renewed and answer.protocol is Protocol.PCP):
                    raise PeerMisbehaved("unasked", "a mapping that was not asked for")
                return self._granted(answer, moment)
            case Refused():
                return self._refused(answer, moment)

    def _alive(self, answer: Alive, moment: Moment) -> list[PortMapEffect]:
        protocol, lease = answer.protocol, self.lease
        self.answered.add(protocol)
        self._close(protocol, _Purpose.CHECK)
        ip = answer.external_ip
        if lease is not None and lease.protocol is protocol and ip is not None:
            lease.external = Endpoint(ip, lease.external.port)
        if answer.lost:
            self._restarted(moment.now)
        decided = self._decide_at is None or protocol is Protocol.PCP
        if self._wanted and decided and self._request is None:
            return self._choose(moment)
        return []

    def _restarted(self, now: float) -> None:
        """Map again soon: the router may have lost our mapping, by whichever protocol it was made."""
        lease = self.lease
        if lease is None:
            self.look_soon(now)
        elif lease.renew_at is not None:
            lease.renew_at = min(lease.renew_at, max(now, lease.made_at + MIN_PAUSE))

    def _granted(self, granted: Granted, moment: Moment) -> list[PortMapEffect]:
        ip, port, lease_s, now = granted.ip, granted.port, granted.lease_s, moment.now
        why = None
        if ip.version != self.ip.version or ip.is_unspecified or not port:
            why = "gives no external address"
        elif lease_s is not None and lease_s < MIN_LEASE:
            why = f"gives a mapping for {lease_s} s only"
        if why:
            self.lease = None
            return self._failed(granted.protocol, why, moment)
        given = None if lease_s is None else min(lease_s, MAX_LEASE)
        self.lease = Lease(
            granted.protocol,
            Endpoint(ip, port),
            made_at=now,
            expires_at=None if given is None else now + given,
            renew_at=now + (given or self._lease_s) / 2,
        )
        self._wanted, self._failures = False, 0
        self._probe_at, self._check_at = None, now + CHECK
        return []

    def _refused(self, refused: Refused, moment: Moment) -> list[PortMapEffect]:
        protocol = refused.protocol
        if not refused.of_map:
            if refused.why and protocol not in self.answered:
                self.errors[protocol] = refused.why
        elif self._close(protocol, _Purpose.CHECK):
            return self._map(protocol, moment) if refused.gone else self._probe(moment)
        elif self._close(protocol, _Purpose.MAP):
            return self._failed(protocol, refused.why, moment, refused.hold_s)
        return []

    def _failed(
        self, protocol: Protocol, why: str, moment: Moment, hold_s: int = 0
    ) -> list[PortMapEffect]:
        """Note that ``protocol`` gives us nothing; go on with the next, or later again."""
        self.errors[protocol] = why
        self._wanted, self._check_at = True, None
        if self.lease is not None:
            self.lease.renew_at = None
        effects = self._choose(moment)
        if self._probe_at is not None and hold_s:
            held_until = moment.now + min(hold_s, PROBE_AGAIN[-1])
            self._probe_at = max(self._probe_at, held_until)
        return effects

    def _probe(self, moment: Moment) -> list[PortMapEffect]:
        """Ask anew who answers. A mapping that we have stays until it expires or is replaced."""
        self.answered.clear()
        self.errors.clear()
        self._wanted, self._probe_at, self._check_at = True, None, None
        self._asked_at, self._decide_at = moment.now, moment.now + PROBE_WAIT
        if self.lease is not None:
            self.lease.renew_at = None
        return [
            self._upnp.find() if protocol is Protocol.UPNP else self._datagrams.look(protocol)
            for protocol in self.protocols
        ]

    def _choose(self, moment: Moment) -> list[PortMapEffect]:
        self._decide_at = None
        for protocol in self.protocols:
            if protocol in self.answered and protocol not in self.errors:
                return self._map(protocol, moment)
        if self._probe_at is None:
            pause = PROBE_AGAIN[min(self._failures, len(PROBE_AGAIN) - 1)]
            self._failures += 1
            self._probe_at = moment.now + pause
        return []

    def _map(self, protocol: Protocol, moment: Moment) -> list[PortMapEffect]:
        self._decide_at = self._probe_at = None
        wish = self.lease.external if self.lease else None
        effect: PortMapEffect
        if protocol is Protocol.UPNP:
            effect = self._upnp.map(wish, self._lease_s)
        else:
            effect = self._datagrams.map(protocol, wish, self._lease_s)
        return self._ask(protocol, _Purpose.MAP, effect, moment)

    def _check(self, lease: Lease, moment: Moment) -> list[PortMapEffect]:
        self._asked_at, self._check_at = moment.now, moment.now + CHECK
        effect: PortMapEffect
        if lease.protocol is Protocol.UPNP:
            effect = self._upnp.check(lease.external)
        else:
            effect = self._datagrams.look(lease.protocol)
        return self._ask(lease.protocol, _Purpose.CHECK, effect, moment)

    def _ask(
        self, protocol: Protocol, purpose: _Purpose, effect: PortMapEffect, moment: Moment
    ) -> list[PortMapEffect]:
        first = UPNP_WAIT if protocol is Protocol.UPNP else _gaps(purpose)[0]
        self._request = _Request(protocol, purpose, effect, moment.now + first)
        return [effect]

    def _retry(self, request: _Request, moment: Moment) -> list[PortMapEffect]:
        gaps = _gaps(request.purpose)
        if request.protocol is not Protocol.UPNP and request.tries < len(gaps):
            request.retry_at = moment.now + gaps[request.tries]
            request.tries += 1
            return [request.effect]
        self._request = None
        if request.purpose is _Purpose.UNMAP:
            self.stopped = True
            return []
        if request.purpose is _Purpose.CHECK:
            return self._probe(moment)
        return self._failed(request.protocol, SILENT, moment)

    def _close(self, protocol: Protocol, purpose: _Purpose) -> bool:
        """End the request of this kind that is under way; say whether there was one."""
        request = self._request
        if request is None or (request.protocol, request.purpose) != (protocol, purpose):
            return False
        self._request = None
        return True


def _gaps(purpose: _Purpose) -> tuple[float, ...]:
    return RETRANSMIT_LAST if purpose is _Purpose.UNMAP else RETRANSMIT
