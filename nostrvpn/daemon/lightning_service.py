"""Lightning beside the wallet: money in by an invoice, out to an invoice, an address or a wallet.

A connected wallet (Nostr Wallet Connect) pays our invoices and takes what is withdrawn. A payout rule
withdraws by itself, whenever a mint holds more than a threshold.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nostrvpn.daemon.supervise import Supervisor
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.errors import NostrvpnError, PeerMisbehaved, SystemRefused, UserError
from nostrvpn.host.state import FWMARK
from nostrvpn.io.lnurl import invoice_of
from nostrvpn.io.nwc import LightningWallet, WalletSilent
from nostrvpn.io.store import Record, Store
from nostrvpn.lightning.bolt11 import Invoice, parse_invoice
from nostrvpn.lightning.nwc import WalletError, WalletLink, parse_wallet_link
from nostrvpn.machine import Moment

if TYPE_CHECKING:
    from nostrvpn.io.proxy import SocksProxy

__all__ = ["LIGHTNING_SPACE", "LightningService", "Payout"]

LIGHTNING_SPACE: Final = "lightning"
PAYOUT_EVERY_S: Final = 60.0
# A payout that failed is tried again after so long.
PAYOUT_RETRY_S: Final = 900.0
INVOICE_S: Final = 600
# What a mint keeps for routing, as mints ask today: 1 %, at least 2 sat; more if it wants more.
_LEAST_RESERVE, _TRIES = 2, 3
MAX_SAT: Final = 100_000_000

_log = logging.getLogger(__name__)
_Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Payout:
    """Above ``threshold`` sat at a mint all goes ``to`` (an address, or empty: the connected wallet)."""

    threshold: int
    to: str = ""


class LightningService:
    """On the running loop; ``store`` is the market's (its space ``lightning`` holds a secret)."""

    def __init__(
        self,
        store: Store,
        wallet: Wallet,
        moment: Callable[[], Moment],
        *,
        proxy: SocksProxy | None = None,
        mark: int = FWMARK,
        reserved: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """``reserved``: what buyers may get back yet, in sat by mint: it is not paid out."""
        self._reserved = reserved
        self._store, self._wallet, self._moment = store, wallet, moment
        self._proxy, self._mark = proxy, mark
        self._link: WalletLink | None = None
        self._client: LightningWallet | None = None
        self._tasks = Supervisor()
        self._not_before: dict[str, float] = {}
        self.payout_error: str | None = None

    def start(self) -> None:
        """Take up what was stored, and begin to pay out."""
        text = self._store.get(LIGHTNING_SPACE, "link")
        if isinstance(text, str):
            with suppress(UserError):
                self._link = parse_wallet_link(text)
        self._tasks.start("payouts", self._pay_out_forever())

    async def stop(self) -> None:
        """End; what was asked of a wallet may be done all the same."""
        await self._tasks.stop()
        await self._disconnect()

    # -- a connected wallet ---------------------------------------------------------------------

    async def connect(self, text: str) -> _Json:
        """Use the wallet behind ``nostr+walletconnect://…`` from now on, if it answers."""
        link = parse_wallet_link(text)
        client = LightningWallet(link, self._moment, proxy=self._proxy, mark=self._mark)
        try:
            methods = sorted((await client.info()).methods)
            known = Record(LIGHTNING_SPACE, "methods", methods)
            self._store.put([Record(LIGHTNING_SPACE, "link", text.strip()), known])
        except BaseException:
            await client.close()
            raise
        await self._disconnect()
        self._link, self._client = link, client
        return {"connected": True, "methods": methods, "relays": list(link.relays)}

    async def disconnect(self) -> _Json:
        """Use no wallet any more, and forget its secret."""
        self._store.put([Record(LIGHTNING_SPACE, "link", None)])
        await self._disconnect()
        self._link = None
        return {"connected": False}

    async def keysend(self, payee: str, amount: int, note: str) -> _Json:
        """Pay a node (66 hex digits) ``amount`` sat from the connected wallet."""
        preimage = await self.connected().pay_keysend(payee, amount * 1000, note)
        return {"paid": amount, "to": payee, "preimage": preimage}

    @property
    def is_connected(self) -> bool:
        """Whether there is a wallet that can be asked."""
        return self._link is not None

    @property
    def methods(self) -> frozenset[str]:
        """What the connected wallet said that it can do (NIP-47), when it was connected."""
        stored = self._store.get(LIGHTNING_SPACE, "methods") if self.is_connected else None
        return frozenset(stored) if isinstance(stored, list) else frozenset()

    # -- in ---------------------------------------------------------------------------------------

    async def fund(self, mint: str, amount: int, *, by_wallet: bool) -> _Json:
        """Ask a mint for an invoice, and let the connected wallet pay it if ``by_wallet``."""
        ref = f"fund:{os.urandom(8).hex()}"
        funding = await self._wallet.fund(ref, mint, amount)
        invoice = _over(parse_invoice(funding.invoice), amount)
        paid = False
        if by_wallet:
            await self._pay(invoice)
            paid = True
        return {
            "ref": ref,
            "mint": mint,
            "amount": amount,
            "invoice": invoice.text,
            "expires": funding.expires or invoice.expires_at,
            "paid_by_wallet": paid,
            "funded": await self._wallet.funded(ref),
        }

    async def funded(self, ref: str) -> _Json:
        """Tell whether the money of an invoice is here."""
        return {"ref": ref, "funded": await self._wallet.funded(ref)}

    # -- out --------------------------------------------------------------------------------------

    async def withdraw(self, mint: str, amount: int | None, to: str) -> _Json:
        """Pay ``amount`` sat (None: all there is) from a mint to an invoice, an address, or our wallet.

        ``to``: a bolt11 invoice, ``name@host``, or empty: the connected wallet.
        """
        if to.lower().startswith(("lnbc", "lntb", "lightning:")):
            invoice = parse_invoice(to)
            if amount is not None and invoice.amount_msat != amount * 1000:
                raise UserError("the invoice is over another amount", "leave the amount out")
            return await self._melt(mint, invoice, None)
        if amount is not None:
            return await self._melt(mint, await self._invoice(to, amount), None)
        free = self._free(mint)
        if free <= 0:
            raise UserError(f"there is nothing at {mint} that is not owed")
        reserve = max(_LEAST_RESERVE, free // 100)
        for attempt in range(_TRIES):
            amount = free - (reserve << attempt)
            if amount <= 0:
                break
            try:
                return await self._melt(mint, await self._invoice(to, amount), reserve << attempt)
            except UserError as error:
                if attempt == _TRIES - 1 or error.code != UserError.code:
                    raise
        raise UserError(f"{free} sat do not pay for their own way out")

    def set_payout(self, payout: Payout | None) -> _Json:
        """Withdraw by itself from now on, or no more."""
        value = None if payout is None else {"threshold": payout.threshold, "to": payout.to}
        if payout is not None and not payout.to and self._link is None:
            raise UserError(
                "there is no wallet to withdraw to",
                "name a lightning address, or connect one: nostrvpn wallet connect",
            )
        self._store.put([Record(LIGHTNING_SPACE, "payout", value)])
        self._not_before.clear()
        return self.document()

    def payout(self) -> Payout | None:
        """Return the rule that holds."""
        value = self._store.get(LIGHTNING_SPACE, "payout")
        if not isinstance(value, Mapping):
            return None
        threshold, to = value.get("threshold"), value.get("to")
        if type(threshold) is not int or threshold <= 0 or not isinstance(to, str):
            return None
        return Payout(threshold, to)

    def document(self) -> _Json:
        """Return what is connected and when is withdrawn."""
        payout = self.payout()
        rule = None if payout is None else {"threshold": payout.threshold, "to": payout.to}
        return {
            "connected": self.is_connected,
            "payout": rule,
            "payout_error": self.payout_error if rule else None,
        }

    # -- parts ------------------------------------------------------------------------------------

    async def _pay_out_forever(self) -> None:
        while True:
            payout = self.payout()
            if payout is not None:
                await self._pay_out(payout)
            await asyncio.sleep(PAYOUT_EVERY_S)

    async def _pay_out(self, payout: Payout) -> None:
        now = asyncio.get_running_loop().time()
        for mint in self._wallet.balance():
            if self._free(mint) < payout.threshold or now < self._not_before.get(mint, 0.0):
                continue
            try:
                done = await self.withdraw(mint, None, payout.to)
            except NostrvpnError as error:
                _log.warning("withdrawing from %s: %s", mint, error)
                self.payout_error = str(error)
                self._not_before[mint] = now + PAYOUT_RETRY_S
            else:
                _log.info("withdrew %d sat from %s", done["amount"], mint)
                self.payout_error = None

    async def _melt(self, mint: str, invoice: Invoice, max_fee: int | None) -> _Json:
        # The same invoice is paid once, whoever asks again.
        paid = await self._wallet.melt(f"melt:{invoice.payment_hash}", mint, invoice.text, max_fee)
        return {"mint": mint, "amount": paid.amount, "fee": paid.fee, "preimage": paid.preimage}

    async def _invoice(self, to: str, amount: int) -> Invoice:
        if to:
            return await invoice_of(to, amount * 1000, proxy=self._proxy, mark=self._mark)
        return await self.connected().make_invoice(amount * 1000, "nostrvpn", INVOICE_S)

    async def _pay(self, invoice: Invoice) -> None:
        client = self.connected()
        try:
            await client.pay_invoice(invoice)
        except WalletSilent:
            found = await self._looked_up(client, invoice)
            if found.get("state") != "settled" and not found.get("settled_at"):
                raise

    async def _looked_up(self, client: LightningWallet, invoice: Invoice) -> Mapping[str, Any]:
        try:
            return await client.lookup_invoice(invoice.payment_hash)
        except (WalletError, SystemRefused, PeerMisbehaved):
            return {}

    def connected(self) -> LightningWallet:
        """Return the client of the connected wallet; UserError if there is none."""
        if self._link is None:
            raise UserError(
                "no Lightning wallet is connected", "connect one: nostrvpn wallet connect"
            )
        if self._client is None:
            self._client = LightningWallet(
                self._link, self._moment, proxy=self._proxy, mark=self._mark
            )
        return self._client

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _free(self, mint: str) -> int:
        """Return what may go out of a mint by itself."""
        free, _ = self._wallet.balance().get(mint, (0, 0))
        return free - self._reserved().get(mint, 0)


def _over(invoice: Invoice, amount: int) -> Invoice:
    """Return a mint's invoice, if it asks for what was wanted and no more."""
    if invoice.amount_msat != amount * 1000:
        raise PeerMisbehaved("bad_mint_answer", "the mint's invoice is over another amount")
    return invoice
