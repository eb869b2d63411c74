"""NATs behind NATs."""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint
from tests.sim.nats import ConeNat, Nat


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
