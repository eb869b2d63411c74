"""A market in the lab: a seller on a VPS, a buyer behind a NAT, a real mint, a site that sees who comes.

::

    laptop --- home (NAT) --- core --- vps, vps-2 …
                               |
             server (relay, STUN), mint, site (HTTP)

The mint has an address of a private network, as no certificate is at hand: only there a wallet takes
``http://``.
"""

from __future__ import annotations

from nostrvpn.lab.core import Internet
from nostrvpn.lab.mint import Mint, MintSettings
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.processes import Process, python_module
from nostrvpn.lab.topology import Host, Lab, Router, Server

__all__ = ["Market"]

MINT_ADDRESS = "10.44.0.1"
MINT_PORT = 3338


class Market(Lab):
    """``laptop`` and ``sellers`` are nodes, each with a network of its own; not yet started."""

    server: Server
    relay: Process
    home: Router
    site: Host
    mint: Mint

    def __init__(
        self,
        *,
        sellers: int = 1,
        fee_ppk: int = 0,
        internet: Internet | None = None,
        **settings: object,
    ) -> None:
        super().__init__(internet)
        self._count, self._fee_ppk, self._settings = sellers, fee_ppk, settings
        self.sellers: list[LabNode] = []
        self.hosts: list[Host] = []

    @property
    def site_url(self) -> str:
        """The site: ``/`` says who asks, ``/bytes/N`` gives N bytes."""
        return f"http://{self.site.address}"

    def build(self) -> None:
        self.server = self.server_host(relay=False)
        self.relay = self.start_relay(self.server)
        self.home = self.router("home", NatKind.PORT_RESTRICTED)
        self.host_laptop = self.host("laptop", self.home)
        self.site = self.host("site")
        log = self.directory / "website.log"
        listen = f"--listen={self.site.address}:80"
        site = Process(self.site.namespace, python_module("nostrvpn.lab.website", listen), log=log)
        self.stack.callback(site.kill)
        self.mint = self._place_mint()
        site.wait_for_text("ready")
        self.laptop = self.node(self.host_laptop, self.server, **self._settings)
        for number in range(1, self._count + 1):
            host = self.host("vps" if number == 1 else f"vps-{number}")
            self.hosts.append(host)
            self.sellers.append(self.node(host, self.server, **self._settings))

    def _place_mint(self) -> Mint:
        place = self.host("mint")
        place.namespace.ip(f"addr add {MINT_ADDRESS}/32 dev lo")
        self.core.namespace.ip(f"route add {MINT_ADDRESS}/32 via {place.address}")
        mint = Mint(
            self.directory / "mint",
            namespace=place.namespace,
            host=MINT_ADDRESS,
            port=MINT_PORT,
            settings=MintSettings(fee_ppk=self._fee_ppk),
        )
        self.stack.callback(mint.kill)
        mint.start()
        return mint
