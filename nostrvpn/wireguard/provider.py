"""A plain WireGuard provider, from the wg-quick file that it hands out.

Only what leads packets there is taken from the file. Commands in it are refused, and never run.
"""

from __future__ import annotations

import io
from base64 import b64decode
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from typing import Any

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import PeerMisbehaved, UsageError, one_line
from nostrvpn.wireguard.device import IPNetwork, Peer, SecretKey

__all__ = ["MAX_FILE_BYTES", "Provider", "parse_provider"]

MAX_FILE_BYTES = 65536
# What wg-quick takes for a path of 1500 bytes, and the most that WireGuard's links can say.
_MTU, _LEAST_MTU, _MOST_MTU = 1420, 1280, 9000
_TAKEN = {"privatekey", "address", "dns", "mtu", "listenport", "fwmark", "table"}
_TAKEN |= {"publickey", "presharedkey", "allowedips", "endpoint", "persistentkeepalive"}
_COMMANDS = {"preup", "postup", "predown", "postdown"}
_MOST = 16
_EVERYTHING = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_HALVES = {
    4: {ip_network("0.0.0.0/1"), ip_network("128.0.0.0/1")},
    6: {ip_network("::/1"), ip_network("8000::/1")},
}


@dataclass(frozen=True, slots=True)
class Provider:
    """``peer``: the provider, with its endpoint; ``addresses``: what it calls this host. ``dns``: whom
    to ask for names, maybe nobody. ``mtu``: the largest packet, in bytes."""

    private_key: SecretKey
    peer: Peer
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    dns: tuple[IPAddress, ...] = ()
    mtu: int = _MTU

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions of which it carries everything, and for which there is an address."""
        allowed = self.peer.allowed_ips
        return frozenset(
            version
            for version in {address.version for address in self.addresses}
            if _EVERYTHING[version] in allowed or _HALVES[version] <= allowed
        )

    def to_json(self) -> dict[str, object]:
        """Return what is stored; it holds the keys."""
        peer = self.peer
        assert peer.endpoint is not None
        return {
            "private_key": self.private_key.base64,
            "public_key": peer.public_key,
            "preshared_key": peer.preshared_key.base64 if peer.preshared_key else None,
            "endpoint": [str(peer.endpoint.ip), peer.endpoint.port],
            "keepalive": peer.persistent_keepalive,
            "allowed": sorted(map(str, peer.allowed_ips)),
            "addresses": [str(address) for address in self.addresses],
            "dns": [str(ip) for ip in self.dns],
            "mtu": self.mtu,
        }

    @classmethod
    def from_json(cls, stored: object) -> Provider:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if that is damaged."""
        try:
            made = _provider(stored)
            if not made.versions:
                raise ValueError("it carries nothing")
            return made
        except (KeyError, TypeError, ValueError, AssertionError) as exc:
            raise PeerMisbehaved("bad_record", "not a WireGuard provider") from exc


def parse_provider(text: str) -> tuple[Provider, str]:
    """Return a file's provider and the host of its endpoint, still to be looked up if it is a name.

    The provider's endpoint is that host where it is an address, else the unspecified one. UsageError
    says what the file lacks, or has too much; no key is in its text.
    """
    from wireguard_tools import WireguardConfig

    lines = _known_lines(text)
    try:
        config = WireguardConfig.from_wgconfig(io.StringIO("\n".join(lines) + "\n"))
        peers = list(config.peers.values())
    except Exception as exc:  # whatever the library trips over; its text might show a key
        raise UsageError("this is no wg-quick file") from exc
    if config.private_key is None or not config.addresses:
        raise UsageError("the file's [Interface] needs a PrivateKey and an Address")
    if (config.table or "auto").lower() not in ("auto", "off"):
        raise UsageError(
            "the file names a routing Table; ours is chosen here", "take that line out"
        )
    if len(peers) != 1:
        raise UsageError(f"one [Peer] is needed, the file has {len(peers)}")
    [peer] = peers
    if peer.endpoint_host is None or not peer.endpoint_port:
        raise UsageError("the file's [Peer] needs an Endpoint")
    host = str(peer.endpoint_host)
    try:
        ip: IPAddress = ip_address(host)
    except ValueError:
        ip = ip_address("0.0.0.0")
    try:
        made = Provider(
            SecretKey(bytes(config.private_key.keydata)),
            Peer(
                str(peer.public_key),
                frozenset(one.network for one in peer.allowed_ips),
                peer.persistent_keepalive or 0,
                Endpoint(ip, peer.endpoint_port),
                preshared_key=SecretKey(bytes(peer.preshared_key.keydata))
                if peer.preshared_key
                else None,
            ),
            tuple(config.addresses),
            tuple(config.dns_servers),
            _MTU if config.mtu is None else config.mtu,
        )
        made = _provider(made.to_json())
    except (ValueError, AssertionError) as exc:
        raise UsageError("the file has a value that WireGuard does not take") from exc
    if not made.versions:
        raise UsageError(
            "the provider of this file does not carry everything",
            "its AllowedIPs have to be 0.0.0.0/0 or ::/0, or both, each with an Address",
        )
    return made, host


def _known_lines(text: str) -> list[str]:
    """Return a file's lines without comments; UsageError if one is not for us."""
    lines = [line.split("#", 1)[0].strip() for line in text.splitlines()]
    for line in lines:
        name = line.partition("=")[0].strip().lower()
        if name in _COMMANDS:
            raise UsageError(
                "the file has commands (PreUp, PostUp, PreDown, PostDown), which are never run here",
                "take these lines out of a copy of it, if it works without them",
            )
        if line and not line.startswith("[") and name not in _TAKEN:
            raise UsageError(f"the file has a line that is not known here: {one_line(name)!r}")
    return lines


def _provider(stored: Any) -> Provider:
    ip, port = stored["endpoint"]
    preshared, mtu, keepalive = stored["preshared_key"], stored["mtu"], stored["keepalive"]
    if type(mtu) is not int or not _LEAST_MTU <= mtu <= _MOST_MTU or type(keepalive) is not int:
        raise ValueError("out of range")
    if type(port) is not int or not 0 < port < 65536:
        raise ValueError("no port")
    allowed: frozenset[IPNetwork] = frozenset(map(ip_network, stored["allowed"]))
    addresses, dns = stored["addresses"], stored["dns"]
    if not 0 < len(addresses) <= _MOST or len(dns) > _MOST:
        raise ValueError("too many")
    return Provider(
        SecretKey(b64decode(stored["private_key"], validate=True)),
        Peer(
            str(stored["public_key"]),
            allowed,
            keepalive,
            Endpoint(ip_address(ip), port),
            preshared_key=SecretKey(b64decode(preshared, validate=True)) if preshared else None,
        ),
        tuple(map(ip_interface, addresses)),
        tuple(map(ip_address, dns)),
        mtu,
    )
