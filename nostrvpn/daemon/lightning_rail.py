"""Leases paid by Lightning: what the market's machines ask of the connected wallet (NIP-47).

No answer of a wallet is taken for "not paid": what may have been paid is looked up before anything else
is done about it. NOT_FOUND says nothing, as some wallets list a payment only once it is over.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.errors import NostrvpnError, SystemRefused, UserError
from nostrvpn.lightning.bolt11 import Invoice, parse_invoice
from nostrvpn.lightning.nwc import WalletError
from nostrvpn.market.effects import PaymentFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nostrvpn.daemon.lightning_service import LightningService

__all__ = ["LightningRail"]

# Refusals of now: the same may be asked again.
_LATER: Final = frozenset({"RATE_LIMITED", "INTERNAL", "OTHER"})
# For how long after its end (seconds) an invoice that a wallet does not know of is paid once more.
_CLOCKS_S: Final = 120
_SELLS: Final = frozenset({"make_invoice", "lookup_invoice"})
_HOLDS: Final = frozenset(
    {"make_hold_invoice", "settle_hold_invoice", "cancel_hold_invoice", "lookup_invoice"}
)
# What wallets call an invoice whose payment was sent back.
_RETURNED: Final = frozenset({"failed", "expired", "canceled", "cancelled"})
_BUYS: Final = frozenset({"pay_invoice", "lookup_invoice", "get_balance"})

_log = logging.getLogger("nostrvpn.market")


class LightningRail:
    """``sat``: what the connected wallet had when it was last asked, less what was paid since."""

    def __init__(self, lightning: LightningService) -> None:
        self._lightning = lightning
        self.sat = 0

    @property
    def can_sell(self) -> bool:
        """Whether the connected wallet makes invoices and knows what became of them."""
        return self._lightning.methods >= _SELLS

    @property
    def can_hold(self) -> bool:
        """Whether the connected wallet can have a payment wait (NIP-47, hold invoices)."""
        return self._lightning.methods >= _HOLDS

    async def look(self) -> None:
        """Ask for the balance; a wallet that refuses to tell it is not paid from."""
        if not self._lightning.methods >= _BUYS:
            self.sat = 0
            return
        try:
            self.sat = await self._lightning.connected().balance() // 1000
        except UserError:
            self.sat = 0
        except NostrvpnError as exc:  # what was known stands: a lease is not left for this
            _log.info("the Lightning wallet's balance: %s", exc)

    async def make(self, msat: int, expiry_s: int) -> str:
        """Return an invoice over ``msat``; asked twice if the connection was lost."""
        client = self._lightning.connected
        try:
            return (await client().make_invoice(msat, "nostrvpn", expiry_s)).text
        except SystemRefused:
            return (await client().make_invoice(msat, "nostrvpn", expiry_s)).text

    async def make_held(self, msat: int, expiry_s: int, payment_hash: str) -> str:
        """Return an invoice whose payment waits; the same one if the wallet made it before."""
        client = self._lightning.connected()
        try:
            made = await client.make_hold_invoice(msat, payment_hash, expiry_s)
        except NostrvpnError as exc:
            known = (await client.lookup_invoice(payment_hash)).get("invoice")
            if not isinstance(known, str) or not known:
                raise exc
            return known
        return made.text

    async def is_paid(self, payment_hash: str, *, held: bool = False) -> bool:
        """Tell whether an invoice of the connected wallet is paid, for good or (``held``) waits."""
        found = await self._lightning.connected().lookup_invoice(payment_hash)
        return _is_settled(found) or (held and found.get("state") == "accepted")

    async def end_hold(self, payment_hash: str, preimage: str) -> bool:
        """Take a payment that waits, or without ``preimage`` send it back; tell whether it is ours.

        WalletFailed with ``may_retry`` if the wallet does not tell.
        """
        client, why = self._lightning.connected(), "the Lightning wallet does not tell"
        try:
            if preimage:
                await client.settle_hold_invoice(preimage)
            else:
                await client.cancel_hold_invoice(payment_hash)
        except NostrvpnError as exc:  # perhaps it was done before: it says so below
            why = str(exc)
        try:
            found = await client.lookup_invoice(payment_hash)
        except NostrvpnError as exc:
            raise WalletFailed(str(exc), may_retry=True) from exc
        if _is_settled(found):
            return True
        if found.get("state") in _RETURNED:
            return False
        raise WalletFailed(why, may_retry=True)

    async def pay(self, text: str, *, is_again: bool) -> int:
        """Pay an invoice; return the fee (sat, rounded up).

        WalletFailed: with ``may_retry`` it may be paid, or be paid yet; without, it never will be.
        """
        invoice = parse_invoice(text)
        fee = await self._paid_before(invoice) if is_again else None
        if fee is None:
            fee = await self._pay(invoice, is_again)
        self.sat = max(0, self.sat - invoice.amount_sat - fee)
        return fee

    async def look_back(self, text: str) -> int:
        """Return the fee (sat) of a payment that waited in the network and is the payee's now.

        WalletFailed: by ``word`` it is over, or the wallet does not know it; else it waits yet.
        """
        invoice = parse_invoice(text)
        fee = await self._paid_before(invoice)
        if fee is None:
            raise _unknown("the Lightning wallet knows of no such payment")
        self.sat = max(0, self.sat - invoice.amount_sat - fee)
        return fee

    async def _pay(self, invoice: Invoice, is_again: bool) -> int:
        client = self._lightning.connected()
        try:
            _, fee_msat = await client.pay_invoice(invoice)
        except UserError as exc:
            if isinstance(exc, WalletError) and exc.code in _LATER:
                raise WalletFailed(str(exc), may_retry=True) from exc
            if is_again:  # perhaps since the one before is on its way
                raise _unknown(str(exc)) from exc
            raise WalletFailed(str(exc)) from exc
        except NostrvpnError as exc:
            raise WalletFailed(str(exc), may_retry=True) from exc
        return -(-fee_msat // 1000)

    async def _paid_before(self, invoice: Invoice) -> int | None:
        """Return the fee of what was paid already, None if the wallet does not know of it yet."""
        try:
            found = await self._lightning.connected().lookup_invoice(invoice.payment_hash)
        except WalletError as exc:
            if exc.code != "NOT_FOUND":
                raise WalletFailed(str(exc), may_retry=True) from exc
            if time.time() > invoice.expires_at + _CLOCKS_S:
                raise _unknown("the Lightning wallet does not know the invoice") from exc
            return None
        except NostrvpnError as exc:  # disconnected, perhaps for ever: it may be paid all the same
            raise WalletFailed(str(exc), may_retry=True) from exc
        if _is_settled(found):
            fees = found.get("fees_paid")
            return -(-fees // 1000) if type(fees) is int and fees > 0 else 0
        if found.get("state") == "failed":
            raise WalletFailed("the Lightning wallet could not pay it", word=PaymentFailed.FAILED)
        if found.get("state") == "expired":  # so is an invoice (NIP-47), whatever its payment does
            raise _unknown("the invoice expired")
        raise WalletFailed("the Lightning wallet is paying yet", may_retry=True)


def _unknown(text: str) -> WalletFailed:
    return WalletFailed(text, may_retry=True, word=PaymentFailed.UNKNOWN)


def _is_settled(found: Mapping[str, Any]) -> bool:
    return found.get("state") == "settled" or bool(found.get("settled_at"))
