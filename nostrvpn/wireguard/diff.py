"""The least change that makes a found WireGuard device the desired one.

Never replaces the whole peer list (that drops live sessions), clears what the desired state no
longer mentions (as ``wg syncconf`` does), and writes an endpoint only when the peer is new or the
path engine has decided anew. The operations hold no secret: appliers take keys from the desired
``Device``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from nostrvpn.endpoint import Endpoint
from nostrvpn.wireguard.device import Device, IPNetwork, ObservedDevice, ObservedPeer, Peer

__all__ = [
    "Op",
    "PresharedKey",
    "RemovePeer",
    "SetDevice",
    "SetPeer",
    "applied_generations",
    "diff",
]


# How a shell writes an empty argument.
_NOTHING = '""'


class PresharedKey(Enum):
    """What happens to a peer's preshared key."""

    KEEP = "keep"
    SET = "set"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class SetDevice:
    """Set the device's own attributes; None leaves one as it is. The key is the desired one's."""

    interface: str
    private_key: bool = False
    listen_port: int | None = None
    fwmark: int | None = None

    def __str__(self) -> str:
        words = ["wg set", self.interface]
        if self.private_key:
            words.append("private-key <redacted>")
        if self.listen_port is not None:
            words.append(f"listen-port {self.listen_port}")
        if self.fwmark is not None:
            words.append(f"fwmark {self.fwmark:#x}" if self.fwmark else "fwmark off")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """Remove one peer."""

    interface: str
    public_key: str

    def __str__(self) -> str:
        return f"wg set {self.interface} peer {self.public_key} remove"


@dataclass(frozen=True, slots=True)
class SetPeer:
    """Create a peer (``new``) or change one; None leaves an attribute as it is.

    ``allowed_ips`` replaces the list if ``replace_allowed_ips``, else it is added to it: replacing
    takes every address away for an instant, which loses packets of a live session.
    """

    interface: str
    public_key: str
    new: bool = False
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    preshared_key: PresharedKey = PresharedKey.KEEP
    allowed_ips: frozenset[IPNetwork] | None = None
    replace_allowed_ips: bool = False

    def __str__(self) -> str:
        words = [f"wg set {self.interface} peer {self.public_key}"]
        if self.preshared_key is PresharedKey.SET:
            words.append("preshared-key <redacted>")
        elif self.preshared_key is PresharedKey.CLEAR:
            words.append("preshared-key /dev/null")
        if self.endpoint is not None:
            words.append(f"endpoint {self.endpoint}")
        if self.persistent_keepalive is not None:
            words.append(f"persistent-keepalive {self.persistent_keepalive or 'off'}")
        if self.allowed_ips is not None:
            sign = "" if self.replace_allowed_ips else "+"
            listed = ",".join(f"{sign}{prefix}" for prefix in sorted(map(str, self.allowed_ips)))
            words.append(f"allowed-ips {listed or _NOTHING}")
        return " ".join(words)


Op = SetDevice | RemovePeer | SetPeer


def diff(
    observed: ObservedDevice | None,
    desired: Device,
    applied: Mapping[str, int],
    *,
    interface: str,
) -> list[Op]:
    """Return the operations that turn ``observed`` (None: a device just created) into ``desired``.

    ``applied`` maps a peer's public key to the endpoint generation written last
    (``applied_generations`` of the device applied then; empty after a start of the agent).
    Applying the result and asking again gives an empty list.
    """
    found = observed or ObservedDevice()
    ops: list[Op] = []
    device_op = _diff_device(found, desired, interface)
    if device_op is not None:
        ops.append(device_op)
    wanted = {peer.public_key for peer in desired.peers}
    # Removals come first: what a peer that goes had is free before another one takes it.
    ops += [RemovePeer(interface, p.public_key) for p in found.peers if p.public_key not in wanted]
    present = {peer.public_key: peer for peer in found.peers}
    # An address that is given to another peer leaves its old one by itself, without a moment between.
    given = {prefix for peer in desired.peers for prefix in peer.allowed_ips}
    for peer in desired.peers:
        op = _diff_peer(present.get(peer.public_key), peer, given, applied, interface)
        if op is not None:
            ops.append(op)
    return ops


def applied_generations(device: Device) -> dict[str, int]:
    """Return what to pass as ``applied`` next time, once ``device`` has been applied."""
    return {peer.public_key: peer.endpoint_generation for peer in device.peers}


def _diff_device(found: ObservedDevice, desired: Device, interface: str) -> SetDevice | None:
    # Port 0 means any: a port that was chosen for us is as desired.
    other_port = desired.listen_port not in (0, found.listen_port)
    op = SetDevice(
        interface,
        private_key=found.public_key != desired.public_key,
        listen_port=desired.listen_port if other_port else None,
        fwmark=desired.fwmark if found.fwmark != desired.fwmark else None,
    )
    return None if op == SetDevice(interface) else op


def _diff_peer(
    found: ObservedPeer | None,
    peer: Peer,
    given: set[IPNetwork],
    applied: Mapping[str, int],
    interface: str,
) -> SetPeer | None:
    new = found is None
    found = found or ObservedPeer(peer.public_key)
    preshared = PresharedKey.KEEP
    if peer.preshared_key is not None and peer.preshared_key != found.preshared_key:
        preshared = PresharedKey.SET
    elif peer.preshared_key is None and found.has_preshared_key:
        preshared = PresharedKey.CLEAR
    decided = new or applied.get(peer.public_key) != peer.endpoint_generation
    decided = decided or (peer.endpoint_held and peer.endpoint != found.endpoint)
    keepalive = peer.persistent_keepalive
    additions = peer.allowed_ips - found.allowed_ips
    replace = bool(found.allowed_ips - peer.allowed_ips - given)
    allowed = peer.allowed_ips if replace else additions or None
    op = SetPeer(
        interface,
        peer.public_key,
        new=new,
        # Also when it is the same one: writing it makes WireGuard forget the source address that it
        # remembers with the endpoint, which after a change of network can be one that is gone.
        endpoint=peer.endpoint if decided else None,
        persistent_keepalive=keepalive if keepalive != found.persistent_keepalive else None,
        preshared_key=preshared,
        allowed_ips=allowed,
        replace_allowed_ips=replace,
    )
    return None if op == SetPeer(interface, peer.public_key) else op
