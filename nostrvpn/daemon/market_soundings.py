"""What this host measures of sellers: how soon they answer, how fast they are, where they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import UserError
from nostrvpn.io.link_probe import ProbeResult, probe, public_places
from nostrvpn.market.bought_lease import BoughtLease, Phase
from nostrvpn.market.bought_link import BoughtLink
from nostrvpn.market.effects import Probed
from nostrvpn.market.trust import Probe

if TYPE_CHECKING:
    from nostrvpn.daemon.market_parts import Parts
    from nostrvpn.io.country_database import CountryDatabase

__all__ = ["Soundings"]

# What counts as one place: who has an address of it may have them all.
_PLACE: Final = {4: 24, 6: 48}

_log = logging.getLogger("nostrvpn.market")


class Soundings:
    """Tells the board. Countries need ``exit.country_database``; without it none is known."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._asked: dict[str, float] = {}
        self._countries = _database(parts.host.config.exit.country_database)

    def close(self) -> None:
        """Give the database back."""
        if self._countries is not None:
            self._countries.close()

    def look(self, leases: Iterable[BoughtLease]) -> None:
        """Look at what became of requests: called after each step of the machine."""
        now, there = self._parts.host.moment().now, set[str]()
        for lease in leases:
            if lease.phase == Phase.ASKING:
                there.add(lease.key)
                self._asked.setdefault(lease.key, now)
            elif lease.quote is not None and lease.key in self._asked:
                took_ms = round(1000 * (now - self._asked.pop(lease.key)))
                self._parts.board.probed(lease.seller, Probe(quote_ms=took_ms))
        for key in self._asked.keys() - there:
            del self._asked[key]

    async def try_out(
        self, link: BoughtLink, interface: str, entrance: IPAddress, lease: BoughtLease | None
    ) -> Probed:
        """Connect through a tunnel that is there; ``entrance``: where the seller's WireGuard is.

        ``lease``: of whom it is told, None: nobody is to be blamed for what fails now.
        """
        urls = [*self._parts.relays[:4], *self._parts.wallet.balance()]
        targets = await public_places(urls, {ip.version for ip in link.addresses})
        found = await probe(interface, targets, next(iter(link.dns), None))
        result = found.reason or f"{found.rtt_ms} ms"
        _log.info("tried the tunnel %s to %d places: %s", interface, len(targets), result)
        country = self._countries.country(entrance) if self._countries is not None else None
        # Without a place to go to, it is our own resolver that failed.
        if lease is not None and (targets or found.ok):
            self._parts.board.probed(lease.seller, _sounding(found, entrance, country))
        return Probed(link.key, found.ok, found.rtt_ms, country, found.reason)


def _sounding(found: ProbeResult, entrance: IPAddress, country: str | None) -> Probe:
    place = ip_network((entrance, _PLACE[entrance.version]), strict=False)
    return Probe(found.ok, found.rtt_ms, country or "", place=str(place))


def _database(path: str) -> CountryDatabase | None:
    if not path:
        return None
    from nostrvpn.io.country_database import CountryDatabase  # most nodes have none

    try:
        return CountryDatabase(path)
    except UserError as exc:
        _log.warning("%s", exc)  # a note of the node's tells the user
        return None
