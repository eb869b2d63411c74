"""A plain WireGuard provider, set up by ``wg`` and ``ip`` alone, and its one customer's file."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.lab.topology import Host, Lab

__all__ = ["CUSTOMER", "PORT", "PROVIDER", "Provider"]

PORT = 51820
# What the provider calls itself and its customer.
PROVIDER, CUSTOMER = ("10.200.0.1", "fd20::1"), ("10.200.0.2", "fd20::2")


class Provider:
    """A provider on ``host``; ``file`` is what it gave to its customer.

    ``link``: its WireGuard interface; userspace WireGuard's control sockets are shared by all labs, so
    the name must be one that the sweep knows. ``kernel``: whose WireGuard it runs on.
    """

    def __init__(self, lab: Lab, host: Host, link: str, *, kernel: bool = False) -> None:
        self.host, self.link = host, link
        keys = {}
        for name in ("provider", "customer"):
            private = _wg("genkey")
            keys[name] = private, _wg("pubkey", given=private)
        # Whom the customer shall not be reached by, and whose file it is.
        self.customer_key = keys["customer"][0]
        if kernel:
            host.namespace.ip(f"link add {link} type wireguard")
        else:
            self._start_userspace(lab)
        self._configure(lab.directory / "provider.key", keys["provider"][0], keys["customer"][1])
        self.file = lab.directory / "provider.conf"
        self.file.write_text(
            f"[Interface]\nPrivateKey = {keys['customer'][0]}\nAddress = {CUSTOMER[0]}/32\n"
            f"Address = {CUSTOMER[1]}/128  # both\nMTU = 1380\nDNS = {PROVIDER[0]}\n\n"
            f"[Peer]\nPublicKey = {keys['provider'][1]}\nAllowedIPs = 0.0.0.0/0, ::/0\n"
            f"Endpoint = {host.address}:{PORT}\nPersistentKeepalive = 5\n"
        )
        self.file.chmod(0o600)

    @property
    def outside(self) -> set[str]:
        """What the internet sees its customer as."""
        return {str(self.host.address), str(self.host.address6)}

    def leave(self) -> None:
        """Answer no more, until ``come_back``."""
        self.host.namespace.ip(f"link set {self.link} down")

    def come_back(self) -> None:
        # IPv6 addresses go with a link that goes down.
        again = f"addr replace {PROVIDER[1]}/64 dev {self.link} nodad"
        self.host.namespace.ip(f"link set {self.link} up", again)

    def _start_userspace(self, lab: Lab) -> None:
        namespace, log = self.host.namespace, lab.directory / "provider.log"
        process = Process(namespace, ("wireguard-go", "-f", self.link), log=log)
        lab.stack.callback(process.kill)
        wait_until(
            lambda: namespace.run("ip", "link", "show", self.link, check=False).returncode == 0,
            "the provider's link",
            timeout=30.0,
        )

    def _configure(self, secret: Path, private: str, customer: str) -> None:
        namespace, link = self.host.namespace, self.link
        secret.write_text(private)
        allowed = ",".join(f"{ip}/{32 if '.' in ip else 128}" for ip in CUSTOMER)
        namespace.run("wg", "set", link, "listen-port", str(PORT), "private-key", str(secret))
        namespace.run("wg", "set", link, "peer", customer, "allowed-ips", allowed)
        namespace.ip(
            f"addr add {PROVIDER[0]}/24 dev {link}",
            f"link set {link} up",
            f"addr add {PROVIDER[1]}/64 dev {link} nodad",
        )
        namespace.sysctl({"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})
        namespace.nft(
            "table inet provider {\nchain out {\ntype nat hook postrouting priority 100;\n"
            'oifname "eth0" masquerade\n}\n}\n'
        )


def _wg(*arguments: str, given: str = "") -> str:
    done = subprocess.run(
        ["wg", *arguments], input=given, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
