"""The tunnels that are bought, as this host's kernel and node are to have them."""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from collections.abc import Collection
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Final

from nostrvpn.daemon.market_premises import is_taken
from nostrvpn.host.bought import Bought, bought_interface
from nostrvpn.host.state import FWMARK
from nostrvpn.io.source_address import source_towards
from nostrvpn.node.events import Purchase
from nostrvpn.wireguard.device import SecretKey

if TYPE_CHECKING:
    from nostrvpn.daemon.market_parts import Host
    from nostrvpn.market.bought_link import BoughtLink

__all__ = ["Links"]

# Behind a NAT the seller must be able to speak first (suspended, resumed).
KEEPALIVE: Final = 25


class Links:
    """By the keys of leases: how often a tunnel failed, and how often its other end began anew."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._failed: Counter[str] = Counter()
        self._begun: Counter[str] = Counter()

    def failed(self, key: str) -> None:
        """Nothing came through: another of the seller's endpoints is tried, with a new handshake."""
        self._failed[key] += 1

    def began_anew(self, key: str) -> None:
        """The other end knows nothing of the handshake of before: make a new one at once.

        WireGuard itself notices after 15 s without an answer.
        """
        self._begun[key] += 1

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget the others."""
        for counts in (self._failed, self._begun):
            for key in counts.keys() - set(keys):
                del counts[key]

    def is_taken(self, link: BoughtLink) -> bool:
        """Whether its addresses are of a network that this host is in."""
        return is_taken(self._host.node, (*link.addresses, *link.control))

    def name(self, link: BoughtLink) -> str:
        """Return its interface's name."""
        return bought_interface(self._host.interface, link.slot)

    def bought(self, link: BoughtLink) -> Bought:
        """Return it for the kernel."""
        failed = self._failed[link.key]
        usable = [e for e in link.endpoints if source_towards(e.ip, FWMARK)] or link.endpoints
        addresses = frozenset(ip_interface(f"{ip}/{ip.max_prefixlen}") for ip in link.addresses)
        return Bought(
            self.name(link),
            SecretKey(link.private_key),
            link.peer_key,
            SecretKey(b64decode(link.psk)),
            usable[failed % len(usable)],
            addresses,
            link.mtu,
            frozenset(ip.version for ip in link.addresses),
            frozenset(link.control),
            failed,
            KEEPALIVE,
            session=self._begun[link.key],
        )

    def purchase(self, used: BoughtLink, label: str) -> Purchase:
        """Return it for the node, as what carries; ``label``: the offer."""
        return Purchase(
            self.name(used),
            frozenset(ip.version for ip in used.addresses),
            used.dns,
            carries=True,
            possible=True,
            label=label,
        )
