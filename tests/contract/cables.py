"""Links that are cables from another namespace, in place of WireGuard's.

Nothing has to be started, and what is put in there comes out here as out of a tunnel, from any source.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, Literal

from nostrvpn.host.state import ALIAS_MARK
from nostrvpn.io.netlink import delete_link, find_link
from nostrvpn.wireguard.device import Device, ObservedDevice, ObservedPeer
from nostrvpn.wireguard.diff import Op, PresharedKey, RemovePeer, SetDevice
from tests.conftest import run
from tests.contract.faults import Faults

__all__ = ["Cables"]

_ADDRESS = "02:00:00:00:00:07"
# Spec: linux/if_ether.h.
_ETH_P_IP = 0x0800


class Cables:
    """A ``Backend``; what is asked of it is counted by ``faults``. It outlives the agent."""

    name: Literal["userspace"] = "userspace"

    def __init__(self, far: Any, faults: Faults) -> None:
        self._far, self._faults = far, faults
        self._devices: dict[str, ObservedDevice] = {}
        self._plug: socket.socket = far.call(
            socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)
        )

    def close(self) -> None:
        self._plug.close()

    def put_in(self, link: str, source: IPv4Address, target: str, port: int) -> None:
        """Put a datagram into the far end of a link; nothing happens without the link."""
        udp = struct.pack("!HHHHx", 5000, port, 9, 0)
        addresses = source.packed + IPv4Address(target).packed
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses
        total = sum(struct.unpack("!10H", header))
        header = header[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
        to = (link, _ETH_P_IP, 0, 0, bytes.fromhex(_ADDRESS.replace(":", "")))
        with suppress(OSError):
            self._plug.sendto(header + addresses + udp, to)

    def unavailable(self) -> str:
        return ""

    def create(self, interface: str, mtu: int) -> None:
        if find_link(interface) is None:
            self._faults.ask("wireguard create")
            far = ("type", "veth", "peer", "name", interface, "netns", self._far.name)
            run("ip", "link", "add", interface, "mtu", str(mtu), "address", _ADDRESS, *far)
            run("ip", "link", "set", interface, "alias", ALIAS_MARK)
            self._far.ip("link", "set", interface, "up")
            self._devices[interface] = ObservedDevice()

    def observe(self, interface: str) -> ObservedDevice | None:
        self._faults.ask("wireguard get")
        if find_link(interface) is None:
            self._devices.pop(interface, None)
        return self._devices.get(interface)

    def apply(self, interface: str, ops: Iterable[Op], device: Device) -> None:
        for op in ops:
            self._faults.ask(f"wireguard {type(op).__name__}")
            self._devices[interface] = _applied(self._devices[interface], op, device)

    def delete(self, interface: str) -> None:
        self._faults.ask("wireguard delete")
        delete_link(interface)
        self._devices.pop(interface, None)


def _applied(found: ObservedDevice, op: Op, device: Device) -> ObservedDevice:
    if isinstance(op, SetDevice):
        return replace(
            found,
            public_key=device.public_key if op.private_key else found.public_key,
            listen_port=found.listen_port if op.listen_port is None else op.listen_port,
            fwmark=found.fwmark if op.fwmark is None else op.fwmark,
        )
    others = tuple(peer for peer in found.peers if peer.public_key != op.public_key)
    if isinstance(op, RemovePeer):
        return replace(found, peers=others)
    old = next((one for one in found.peers if one not in others), ObservedPeer(op.public_key))
    psk = old.preshared_key
    if op.preshared_key is not PresharedKey.KEEP:
        is_set = op.preshared_key is PresharedKey.SET
        psk = device.preshared_key_of(op.public_key) if is_set else None
    keepalive, allowed = op.persistent_keepalive, op.allowed_ips
    if allowed is not None and not op.replace_allowed_ips:
        allowed |= old.allowed_ips
    made = replace(
        old,
        endpoint=op.endpoint or old.endpoint,
        persistent_keepalive=old.persistent_keepalive if keepalive is None else keepalive,
        allowed_ips=old.allowed_ips if allowed is None else allowed,
        preshared_key=psk,
    )
    return replace(found, peers=(*others, made))
