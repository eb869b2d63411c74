"""The cross-platform userspace API: how wireguard-go and its kin are configured and read.

Source: the "Cross-platform Userspace Implementation" page of wireguard.com. A request and a
response are lines of ``key=value`` that end in an empty line; keys are lowercase hexadecimal.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network
from typing import assert_never

from nostrvpn.endpoint import Endpoint
from nostrvpn.wireguard.device import (
    KEY_BYTES,
    Device,
    IPNetwork,
    ObservedDevice,
    ObservedPeer,
    SecretKey,
    key_bytes,
)
from nostrvpn.wireguard.diff import Op, PresharedKey, RemovePeer, SetDevice, SetPeer

__all__ = ["GET_REQUEST", "parse_get", "render_set", "response_errno"]

GET_REQUEST = "get=1\n\n"

_NO_KEY = bytes(KEY_BYTES)


def render_set(ops: Iterable[Op], device: Device) -> str:
    """Return the ``set`` request for operations; it holds secrets, taken from ``device``."""
    # Device attributes must stand before the first peer: after it they would be the peer's.
    ordered = sorted(ops, key=lambda op: not isinstance(op, SetDevice))
    lines = ["set=1"]
    for op in ordered:
        match op:
            case SetDevice():
                lines += _device_lines(op, device)
            case RemovePeer():
                lines += [f"public_key={key_bytes(op.public_key).hex()}", "remove=true"]
            case SetPeer():
                lines += _peer_lines(op, device)
            case _:
                assert_never(op)
    return "\n".join(lines) + "\n\n"


def response_errno(text: str) -> int:
    """Return the ``errno`` of a response, 0 for success; raise ValueError if it has none."""
    for line in reversed(text.strip().splitlines()):
        if line.startswith("errno="):
            return int(line.removeprefix("errno="))
    raise ValueError("a UAPI response without errno")


def parse_get(text: str) -> ObservedDevice:
    """Return the device that a successful ``get`` response describes; ValueError if garbled.

    Keys that are not known are skipped: the protocol says that new ones may come.
    """
    device = _Section()
    peers: list[_Section] = []
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if not line:
            continue
        if not separator:
            raise ValueError(f"not a UAPI line: {line[:40]!r}")
        if key == "public_key":
            peers.append(_Section())
        section = peers[-1] if peers else device
        if key == "allowed_ip":
            section.allowed_ips.append(ip_network(value))
        else:
            section.values[key] = value
    private_key = _secret(device.values.get("private_key"))
    return ObservedDevice(
        public_key=private_key.public_key if private_key else None,
        listen_port=int(device.values.get("listen_port", "0")),
        # wireguard-go writes decimal; the specification also allows 0x.
        fwmark=int(device.values.get("fwmark", "0"), 0),
        peers=tuple(_parse_peer(peer) for peer in peers),
    )


@dataclass(slots=True)
class _Section:
    """The lines of the device, or of one peer."""

    values: dict[str, str] = field(default_factory=dict)
    allowed_ips: list[IPNetwork] = field(default_factory=list)


def _device_lines(op: SetDevice, device: Device) -> list[str]:
    lines = []
    if op.private_key:
        lines.append(f"private_key={device.private_key.raw.hex()}")
    if op.listen_port is not None:
        lines.append(f"listen_port={op.listen_port}")
    if op.fwmark is not None:
        lines.append(f"fwmark={op.fwmark}")
    return lines


def _peer_lines(op: SetPeer, device: Device) -> list[str]:
    lines = [f"public_key={key_bytes(op.public_key).hex()}"]
    if not op.new:
        # A peer that vanished meanwhile must not come back half configured.
        lines.append("update_only=true")
    if op.preshared_key is not PresharedKey.KEEP:
        raw = _NO_KEY
        if op.preshared_key is PresharedKey.SET:
            raw = device.preshared_key_of(op.public_key).raw
        lines.append(f"preshared_key={raw.hex()}")
    if op.endpoint is not None:
        lines.append(f"endpoint={op.endpoint}")
    # After the endpoint: turning keepalive on sends a packet at once, which needs one.
    if op.persistent_keepalive is not None:
        lines.append(f"persistent_keepalive_interval={op.persistent_keepalive}")
    if op.allowed_ips is not None:
        if op.replace_allowed_ips:
            lines.append("replace_allowed_ips=true")
        lines += [f"allowed_ip={prefix}" for prefix in sorted(map(str, op.allowed_ips))]
    return lines


def _secret(text: str | None) -> SecretKey | None:
    raw = bytes.fromhex(text) if text else _NO_KEY
    return SecretKey(raw) if any(raw) else None


def _parse_peer(section: _Section) -> ObservedPeer:
    values = section.values
    seconds = int(values.get("last_handshake_time_sec", "0"))
    nanoseconds = int(values.get("last_handshake_time_nsec", "0"))
    public_key = bytes.fromhex(values["public_key"])
    if len(public_key) != KEY_BYTES:
        raise ValueError("a peer's key is not 32 bytes")
    return ObservedPeer(
        public_key=b64encode(public_key).decode("ascii"),
        allowed_ips=frozenset(section.allowed_ips),
        persistent_keepalive=int(values.get("persistent_keepalive_interval", "0")),
        endpoint=_parse_endpoint(values.get("endpoint")),
        last_handshake_wall=seconds + nanoseconds / 1e9 if seconds or nanoseconds else None,
        rx_bytes=int(values.get("rx_bytes", "0")),
        tx_bytes=int(values.get("tx_bytes", "0")),
        preshared_key=_secret(values.get("preshared_key")),
    )


def _parse_endpoint(text: str | None) -> Endpoint | None:
    """Parse an endpoint as it is printed: a zone is dropped, a mapped address unmapped."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    ip = ip_address(host.strip("[]").partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return Endpoint(ip, int(port))
