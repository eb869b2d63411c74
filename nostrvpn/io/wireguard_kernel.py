"""WireGuard in the kernel, over generic netlink by pyroute2.

pyroute2 is slow to import, so it is imported on first use.
"""

from __future__ import annotations

import errno
import socket
import struct
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Literal, assert_never

from nostrvpn.endpoint import Endpoint
from nostrvpn.host.state import ALIAS_MARK
from nostrvpn.io.netlink import create_link, delete_link, find_link, set_link
from nostrvpn.io.rtnetlink import refused
from nostrvpn.io.wireguard_claim import require_free_port, require_ours
from nostrvpn.io.wireguard_redirects import group_for_new_link, restore_redirects
from nostrvpn.wireguard.device import (
    KEY_BYTES,
    Device,
    ObservedDevice,
    ObservedPeer,
    SecretKey,
    key_bytes,
)
from nostrvpn.wireguard.diff import Op, PresharedKey, RemovePeer, SetDevice, SetPeer

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import WireGuard

__all__ = ["KernelBackend"]

_KIND = "wireguard"
_NO_KEY = bytes(KEY_BYTES)

# Spec: linux/netlink.h and linux/genetlink.h.
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NETLINK_GENERIC = 16
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_NAME = 2

# Ours: the kernel answers once it has tried to load the module, which takes a slow disk a while.
_LOAD_TIMEOUT_S = 10.0


class KernelBackend:
    """Devices of the kernel's ``wireguard`` module."""

    @property
    def name(self) -> Literal["kernel"]:
        """Which of the two backends this is."""
        return "kernel"

    def unavailable(self) -> str:
        """Return why the kernel has no WireGuard, or an empty string (asking loads the module)."""
        return "" if _has_family(_KIND) else "the kernel has no wireguard module"

    def create(self, interface: str, mtu: int) -> None:
        """Make the device exist, marked as ours, with this MTU; adopt one of ours."""
        link = find_link(interface)
        if link is not None:
            require_ours(link, self.observe(interface))
            if link.kind == _KIND:
                set_link(interface, mtu=mtu, alias=None if link.is_ours else ALIAS_MARK)
                return
            self.delete(interface)
        create_link(interface, _KIND, mtu, group=group_for_new_link())

    def observe(self, interface: str) -> ObservedDevice | None:
        """Return the device as it is, or None if there is no WireGuard device of this name."""
        with _generic_netlink(f"reading {interface}") as wireguard:
            from nostrvpn.io.pyroute import NetlinkError

            try:
                messages = list(wireguard.info(interface))
            except NetlinkError as exc:
                # EOPNOTSUPP: a link of this name that is no WireGuard device.
                if exc.code in (errno.ENODEV, errno.EOPNOTSUPP):
                    return None
                raise
        return _parse_device(messages)

    def apply(self, interface: str, ops: Iterable[Op], device: Device) -> None:
        """Apply operations in order; ``device`` is the desired one, which holds the keys."""
        ops = list(ops)
        if not ops:
            return
        observed = self.observe(interface)
        require_ours(find_link(interface), observed)
        require_free_port(ops, observed)
        for op in ops:
            with _generic_netlink(str(op)) as wireguard:
                _apply(wireguard, interface, op, device)

    def delete(self, interface: str) -> None:
        """Remove the device; gone is fine, not ours is SystemRefused."""
        link = find_link(interface)
        if link is None:
            return
        if link.kind != _KIND:
            # Ours, but of the other backend: a process stands behind it.
            from nostrvpn.io.wireguard_userspace import UserspaceBackend

            UserspaceBackend().delete(interface)
            return
        require_ours(link, self.observe(interface))
        delete_link(interface)
        restore_redirects(link)


def _has_family(name: str) -> bool:
    """Whether the kernel knows a generic netlink family; asking makes it load the module.

    By hand, because pyroute2 leaks a socket and an event loop when the answer is no.
    """
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(name) + 1, _CTRL_ATTR_FAMILY_NAME)
    payload = _GENERIC.pack(_CTRL_CMD_GETFAMILY, 1, 0) + attribute + name.encode() + b"\0"
    payload += bytes(-len(payload) % 4)
    header = _HEADER.pack(_HEADER.size + len(payload), _GENL_ID_CTRL, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as control:
            control.settimeout(_LOAD_TIMEOUT_S)
            control.send(header + payload)
            answer = control.recv(65536)
    except OSError:
        return False
    return int(_HEADER.unpack_from(answer)[1]) != _NLMSG_ERROR


@contextmanager
def _generic_netlink(action: str) -> Iterator[WireGuard]:
    from nostrvpn.io.pyroute import NetlinkError, WireGuard

    try:
        with WireGuard() as wireguard:
            yield wireguard
    except NetlinkError as exc:
        raise refused(action, exc.code) from exc
    except OSError as exc:
        raise refused(action, exc.errno or errno.EIO) from exc


def _apply(wireguard: WireGuard, interface: str, op: Op, device: Device) -> None:
    match op:
        case SetDevice():
            wireguard.set(
                interface,
                private_key=device.private_key.base64 if op.private_key else None,
                listen_port=op.listen_port,
                fwmark=op.fwmark,
            )
        case RemovePeer():
            wireguard.set(interface, peer={"public_key": op.public_key, "remove": True})
        case SetPeer():
            wireguard.set(interface, peer=_peer(op, device))
        case _:
            assert_never(op)


def _peer(op: SetPeer, device: Device) -> dict[str, Any]:
    key_bytes(op.public_key)
    # A peer that vanished meanwhile must not come back half configured, hence update_only.
    peer: dict[str, Any] = {"public_key": op.public_key, "update_only": not op.new}
    if op.preshared_key is not PresharedKey.KEEP:
        raw = _NO_KEY
        if op.preshared_key is PresharedKey.SET:
            raw = device.preshared_key_of(op.public_key).raw
        peer["preshared_key"] = b64encode(raw).decode("ascii")
    if op.endpoint is not None:
        peer["endpoint_addr"] = str(op.endpoint.ip)
        peer["endpoint_port"] = op.endpoint.port
    if op.persistent_keepalive is not None:
        peer["persistent_keepalive"] = op.persistent_keepalive
    if op.allowed_ips is not None:
        peer["replace_allowed_ips"] = op.replace_allowed_ips
        peer["allowed_ips"] = sorted(map(str, op.allowed_ips))
    return peer


def _parse_device(messages: list[Any]) -> ObservedDevice:
    """Return the device of a dump: many peers come in several messages, one peer may span two."""
    peers: dict[str, ObservedPeer] = {}
    for message in messages:
        for attributes in message.get_attr("WGDEVICE_A_PEERS") or ():
            peer = _parse_peer(attributes)
            earlier = peers.get(peer.public_key)
            if earlier is None:
                peers[peer.public_key] = peer
            else:
                # Spec (linux/wireguard.h): a continuation repeats the key and has only addresses.
                allowed = earlier.allowed_ips | peer.allowed_ips
                peers[peer.public_key] = replace(earlier, allowed_ips=allowed)
    first = messages[0]
    private_key = _secret(first.get_attr("WGDEVICE_A_PRIVATE_KEY"))
    return ObservedDevice(
        public_key=private_key.public_key if private_key else None,
        listen_port=first.get_attr("WGDEVICE_A_LISTEN_PORT") or 0,
        fwmark=first.get_attr("WGDEVICE_A_FWMARK") or 0,
        peers=tuple(peers.values()),
    )


def _parse_peer(attributes: Any) -> ObservedPeer:
    handshake = attributes.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
    seconds = handshake["tv_sec"] + handshake["tv_nsec"] / 1e9 if handshake else 0
    endpoint = attributes.get_attr("WGPEER_A_ENDPOINT")
    return ObservedPeer(
        public_key=attributes.get_attr("WGPEER_A_PUBLIC_KEY").decode("ascii"),
        allowed_ips=frozenset(
            ip_network(allowed["addr"])
            for allowed in attributes.get_attr("WGPEER_A_ALLOWEDIPS") or ()
        ),
        persistent_keepalive=attributes.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
        endpoint=_parse_endpoint(endpoint),
        last_handshake_wall=seconds or None,
        rx_bytes=attributes.get_attr("WGPEER_A_RX_BYTES") or 0,
        tx_bytes=attributes.get_attr("WGPEER_A_TX_BYTES") or 0,
        preshared_key=_secret(attributes.get_attr("WGPEER_A_PRESHARED_KEY")),
    )


def _parse_endpoint(endpoint: Any) -> Endpoint | None:
    if not endpoint or not endpoint["port"]:
        return None
    ip = ip_address(endpoint["addr"])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return Endpoint(ip, endpoint["port"])


def _secret(encoded: bytes | None) -> SecretKey | None:
    raw = key_bytes(encoded.decode("ascii")) if encoded else _NO_KEY
    return SecretKey(raw) if any(raw) else None
