"""The networks of a big mesh: which kinds there are, and NATs behind NATs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import IPv4Address

from nostrvpn.endpoint import Endpoint
from tests.sim.nats import ConeNat, Firewall, HardNat, LinuxNat, Nat, SymmetricNat

# Of each hundred nodes. "one-to-one" is a cloud's: every port is passed on.
MIXTURE = {
    "open": 6,
    "one-to-one": 8,
    "address-restricted": 12,
    "port-restricted": 22,
    "linux": 14,
    "symmetric": 8,
    "counting": 8,
    "double": 8,
    "firewall": 4,
    "v6-only": 4,
    "no-udp": 6,
}
# NATs with a mapping for each destination, and those that let in only whom they sent to.
DEPENDENT = {"symmetric", "counting"}
STRICT = DEPENDENT | {"port-restricted", "linux", "double", "firewall"}


@dataclass
class NatChain(Nat):
    """A router behind the provider's NAT: ``near`` is the home's, ``far`` the provider's."""

    near: ConeNat | None = None
    far: ConeNat | None = None

    def outbound(self, inner: Endpoint, to: Endpoint, now: float) -> Endpoint | None:
        assert self.near is not None
        assert self.far is not None
        return self.far.outbound(self.near.outbound(inner, to, now), to, now)

    def inbound(self, port: int, source: Endpoint, now: float) -> Endpoint | None:
        assert self.near is not None
        assert self.far is not None
        middle = self.far.inbound(port, source, now)
        return None if middle is None else self.near.inbound(middle.port, source, now)


def nat_of(kind: str, ip: IPv4Address, rng: random.Random) -> Nat | None:
    """Return a new NAT of one of the ``MIXTURE``; None: there is none."""
    if kind in ("address-restricted", "port-restricted", "one-to-one", "no-udp"):
        filtering = {"a": "address", "p": "port"}.get(kind[0], "none")
        return ConeNat(ip, rng, filtering=filtering)
    if kind == "symmetric":
        return SymmetricNat(ip, rng)
    if kind == "counting":
        return HardNat(ip, rng, step=rng.choice((1, 2)), noise=0.05)
    if kind == "double":
        near = ConeNat(IPv4Address("100.64.0.2"), rng, filtering="port")
        return NatChain(ip, rng, near=near, far=ConeNat(ip, rng))
    if kind == "linux":
        return LinuxNat(ip, rng, accept_input=rng.random() < 0.5)
    return Firewall(ip, rng) if kind == "firewall" else None


def forget(nat: Nat, rng: random.Random) -> None:
    """Let a NAT forget its mappings, as a router that restarts."""
    match nat:
        case NatChain(near=ConeNat() as near, far=ConeNat() as far):
            forget(near, rng)
            forget(far, rng)
        case ConeNat():
            nat.opened.clear()
            inner = list(nat.ports)
            nat.ports.clear()
            nat.inner.clear()
            for endpoint in inner:
                port = rng.randrange(1024, 65536)
                nat.ports[endpoint], nat.inner[port] = port, endpoint
        case SymmetricNat():
            nat.flows.clear()
            nat.back.clear()
        case LinuxNat():
            nat.flows.clear()
            nat.entries.clear()
        case Firewall():
            nat.opened.clear()


def spoils(nat: Nat | None) -> bool:
    """Say whether packets that come unasked stand in the way of its own hosts' packets."""
    return isinstance(nat, LinuxNat) and nat.accept_input
