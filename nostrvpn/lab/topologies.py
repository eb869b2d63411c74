"""Ready-made networks; each is an example of how to write the next one."""

from __future__ import annotations

from nostrvpn.lab.core import Internet
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.topology import Host, Lab, Router, Server

__all__ = ["Mesh", "Pair", "SameLan", "TwoNats"]


class Pair(Lab):
    """Any topology in which two laptops are to meet with the help of one server."""

    server: Server
    laptop_a: Host
    laptop_b: Host


class TwoNats(Pair):
    """Two laptops behind two NATs of the given kinds, and a server outside.

    ::

        laptop-a --- nat-a --- core --- nat-b --- laptop-b
                                |
                              server (STUN on two addresses, relay)
    """

    def __init__(
        self,
        kind_a: NatKind = NatKind.PORT_RESTRICTED,
        kind_b: NatKind = NatKind.PORT_RESTRICTED,
        internet: Internet | None = None,
        *,
        relay: bool = True,
        ipv6: bool = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(internet, verbose=verbose)
        self._kinds = (NatKind(kind_a), NatKind(kind_b))
        self._relay = relay
        self._ipv6 = ipv6

    nat_a: Router
    nat_b: Router

    def build(self) -> None:
        self.server = self.server_host("server", relay=self._relay)
        self.nat_a = self.router("nat-a", self._kinds[0], ipv6=self._ipv6)
        self.nat_b = self.router("nat-b", self._kinds[1], ipv6=self._ipv6)
        self.laptop_a = self.host("laptop-a", self.nat_a)
        self.laptop_b = self.host("laptop-b", self.nat_b)


class SameLan(Pair):
    """Two laptops on one LAN behind one NAT, and a server outside.

    ::

        laptop-a ---+
                    +--- nat --- core --- server
        laptop-b ---+
    """

    def __init__(
        self, internet: Internet | None = None, *, relay: bool = True, verbose: bool = False
    ) -> None:
        super().__init__(internet, verbose=verbose)
        self._relay = relay

    nat: Router

    def build(self) -> None:
        self.server = self.server_host("server", relay=self._relay)
        self.nat = self.router("nat")
        self.laptop_a = self.host("laptop-a", self.nat)
        self.laptop_b = self.host("laptop-b", self.nat)


class Mesh(Lab):
    """``size`` hosts with public addresses, straight on the core, and a server."""

    def __init__(
        self,
        size: int,
        internet: Internet | None = None,
        *,
        relay: bool = True,
        verbose: bool = False,
    ) -> None:
        super().__init__(internet, verbose=verbose)
        self._size = size
        self._relay = relay

    server: Server
    hosts: tuple[Host, ...]

    def build(self) -> None:
        self.server = self.server_host("server", relay=self._relay)
        self.hosts = tuple(self.host(f"host-{n}") for n in range(1, self._size + 1))
