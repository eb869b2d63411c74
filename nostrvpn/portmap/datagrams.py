"""PCP and NAT-PMP with one gateway: what to send, and what an answer means."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.portmap import natpmp, pcp
from nostrvpn.portmap.answers import Alive, Answer, Granted, Refused
from nostrvpn.portmap.epoch import NatPmpEpoch, PcpEpoch
from nostrvpn.portmap.events import SendDatagram
from nostrvpn.portmap.lease import Protocol

__all__ = ["GATEWAY_PORT", "Datagrams"]

GATEWAY_PORT = 5351
"""Of PCP and NAT-PMP servers (RFC 6887 section 19.1, RFC 6886 section 3)."""


class Datagrams:
    """The talk with one gateway about UDP ``port``. ``nonce`` marks our PCP mapping there."""

    def __init__(self, port: int, gateway: IPAddress, local: IPAddress, nonce: bytes) -> None:
        self._port = port
        self._server = Endpoint(gateway, GATEWAY_PORT)
        self._local = local
        self._nonce = nonce
        self._external_ip: IPv4Address | None = None
        self._pcp_epoch = PcpEpoch()
        self._natpmp_epoch = NatPmpEpoch()

    def look(self, protocol: Protocol) -> SendDatagram:
        """Return the question that changes nothing."""
        if protocol is Protocol.PCP:
            return self._send(pcp.render_announce(self._local))
        return self._send(natpmp.render_address())

    def map(self, protocol: Protocol, wish: Endpoint | None, lease_s: int) -> SendDatagram:
        """Ask for a mapping, if possible to ``wish``; ``lease_s`` 0 removes it."""
        if protocol is Protocol.PCP:
            anywhere = IPv4Address(0) if self._local.version == 4 else IPv6Address(0)
            external = (wish.ip, wish.port) if wish else (anywhere, self._port)
            return self._send(
                pcp.render_map(self._local, self._port, self._nonce, external, lease_s)
            )
        port = (wish.port if wish else self._port) if lease_s else 0
        return self._send(natpmp.render_map(self._port, port, lease_s))

    def read(self, data: bytes, source: Endpoint, now: float) -> Answer | None:
        """Return what a datagram means, None if nothing; PeerMisbehaved for what is no answer."""
        if source != self._server:
            raise PeerMisbehaved("not_the_gateway", f"a datagram from {source}")
        if data[:1] != bytes((natpmp.VERSION,)):
            return self._read_pcp(pcp.parse_pcp(data), now)
        if self._local.version != 4:
            raise PeerMisbehaved("malformed_nat_pmp", "NAT-PMP over IPv6")
        return self._read_natpmp(natpmp.parse_natpmp(data), now)

    def _read_pcp(self, response: pcp.PcpResponse, now: float) -> Answer | None:
        mapped = response.mapped
        if response.result == pcp.UNSUPPORTED_VERSION and mapped is None:
            return None  # an answer to our NAT-PMP, or of a version that we do not speak
        if mapped is None:
            return Alive(Protocol.PCP, self._pcp_epoch.lost_state(response.epoch, now))
        if (mapped.nonce, mapped.is_udp, mapped.internal_port) != (self._nonce, True, self._port):
            raise PeerMisbehaved("foreign_mapping", "a PCP mapping that is not ours")
        self._pcp_epoch.lost_state(response.epoch, now)  # whatever was lost, this one is fresh
        if response.result != pcp.SUCCESS:
            why = pcp.in_words(response.result)
            return Refused(Protocol.PCP, why, hold_s=response.lifetime_s)
        ip, port = mapped.external_ip, mapped.external_port
        return Granted(Protocol.PCP, ip, port, response.lifetime_s)

    def _read_natpmp(self, response: natpmp.NatPmpResponse, now: float) -> Answer | None:
        if isinstance(response, natpmp.NatPmpRefused):
            # "Unsupported version" may be the answer to our PCP (RFC 6887 appendix A).
            if response.result == 1 and not response.is_map:
                return None
            why = natpmp.in_words(response.result)
            return Refused(Protocol.NAT_PMP, why, of_map=response.is_map)
        if isinstance(response, natpmp.NatPmpAddress):
            lost = self._natpmp_epoch.lost_state(response.epoch, now)
            self._external_ip = response.ip
            return Alive(Protocol.NAT_PMP, lost, response.ip)
        if response.internal_port != self._port or self._external_ip is None:
            raise PeerMisbehaved("foreign_mapping", "a NAT-PMP mapping that is not ours")
        self._natpmp_epoch.lost_state(response.epoch, now)
        port, lease_s = response.external_port, response.lifetime_s
        return Granted(Protocol.NAT_PMP, self._external_ip, port, lease_s)

    def _send(self, data: bytes) -> SendDatagram:
        return SendDatagram(data, self._server)
