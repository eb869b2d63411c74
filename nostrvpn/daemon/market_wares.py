"""What is for sale: as it is stored, as it is offered, and the terms that leases are sold by."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from nostrvpn.cashu.conditions import lock_key
from nostrvpn.cashu.proof import MintKeys
from nostrvpn.daemon.market_keysets import Keysets
from nostrvpn.daemon.market_parts import Parts
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.io.store import Record
from nostrvpn.market.offer import Offer
from nostrvpn.market.sale import Sale
from nostrvpn.market.seller import Seller, SellerSettings, settings_of
from nostrvpn.market.terms import PayMode, Price, Terms
from nostrvpn.nostr.event import public_key

__all__ = ["SALE_SPACE", "Wares"]

SALE_SPACE: Final = "sale"
_PORTS: Final = (20_000, 32_000)
_NOTHING: Final = Terms(Price(1, 0), ())

_log = logging.getLogger("nostrvpn.market")


class Wares:
    """``sale``: what the user decided, None: nothing is sold. ``look``: a mint answered late."""

    def __init__(self, parts: Parts, look: Callable[[], None]) -> None:
        self._parts, self._root = parts, parts.host.root
        self.keysets = Keysets(parts.wallet, look)
        self.sale = self._restored()
        self._offer_id = str(self._stored("offer_id") or "")
        if not self._offer_id:
            self._offer_id = os.urandom(4).hex()
            self._keep("offer_id", self._offer_id)

    def choose(self, sale: Sale | None) -> None:
        """Keep what the user decided."""
        self._keep("sale", None if sale is None else sale.to_json())
        self.sale = sale

    def port(self) -> int:
        """Return where strangers' WireGuard listens: drawn once, then kept."""
        port = self._stored("port")
        if isinstance(port, int) and 0 < port < 65536:
            return port
        low, high = _PORTS
        drawn = low + int.from_bytes(os.urandom(4), "big") % (high - low)
        self._keep("port", drawn)
        return drawn

    def settings(self) -> SellerSettings:
        """Return what the seller's machine goes by."""
        receiver = lock_key(self._root.payment_key())
        if self.sale is None:
            return SellerSettings(self._offer_id, _NOTHING, receiver)
        sale = self.sale
        lists = self._parts.board.opinions.denied, self._parts.board.events
        made = settings_of(sale, self._terms(sale), self._offer_id, receiver, lists)
        return replace(made, relays=self._parts.relays[:4])

    def offer(self, sale: Sale, *, has_ipv6: bool) -> Offer:
        """Return the offer of a sale, as it is published."""
        return Offer(
            public_key(self._root.market_key()),
            self._offer_id,
            self._terms(sale),
            lock_key(self._root.payment_key()),
            self._parts.relays[:4],
            sale.country,
            (4, 6) if has_ipv6 else (4,),
            (sale.policy.name,),
            sale.pow_bits,
            sale.max_sessions,
            contact=sale.contact,
            escrow=sale.escrow,
        )

    async def mints(self, seller: Seller) -> Mapping[str, MintKeys]:
        """Return the keysets of the mints whose tokens are taken, or are in hand yet."""
        wanted = set() if self.sale is None else set(self.sale.terms.mints)
        wanted |= set(seller.mints) if seller.leases else set()
        wanted |= seller.unreleased_sat().keys()
        found = {**seller.mints, **await self.keysets.of(wanted, seller.stale_mints)}
        return {mint: keys for mint, keys in found.items() if mint in wanted}

    def _terms(self, sale: Sale) -> Terms:
        """Invoices are taken while a wallet that makes them is connected, held ones if it can hold."""
        rail, pay = self._parts.rail, sale.terms.pay
        can = {PayMode.HOLD: rail.can_hold, PayMode.BOLT11: rail.can_sell}
        return replace(sale.terms, pay=(*pay, *(m for m in can if can[m] and m not in pay)))

    def _restored(self) -> Sale | None:
        stored = self._stored("sale")
        try:
            return None if stored is None else Sale.from_json(stored)
        except PeerMisbehaved as exc:
            _log.error("what was for sale is lost: %s", exc)
            return None

    def _stored(self, key: str) -> object | None:
        return self._parts.store.get(SALE_SPACE, key)

    def _keep(self, key: str, value: object) -> None:
        self._parts.store.put([Record(SALE_SPACE, key, value)])
