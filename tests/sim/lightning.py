"""A Lightning network in virtual time: wallets with balances, and invoices that are paid once."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256

from nostrvpn.lightning.bolt11 import parse_invoice
from tests.invoices import make_invoice

__all__ = ["LightningNetwork"]


class LightningNetwork:
    """``balances``: sat by owner; ``fee_sat``: of each payment, kept by the nodes between."""

    def __init__(self, fee_sat: int = 1) -> None:
        self.balances: Counter[str] = Counter()
        self.fee_sat, self.fees, self.is_down = fee_sat, 0, False
        self.paid: set[str] = set()
        self._owners: dict[str, str] = {}

    def make(self, owner: str, msat: int, now: int, expiry_s: int) -> str:
        """Return another invoice each time it is asked."""
        payment_hash = sha256(f"{owner}{len(self._owners)}".encode()).hexdigest()
        self._owners[payment_hash] = owner
        return make_invoice(msat, payment_hash, now, expiry_s)

    def pay(self, text: str, now: int) -> bool:
        """Credit the payee; False if it was paid before, or is over."""
        invoice = parse_invoice(text)
        if invoice.payment_hash in self.paid or now > invoice.expires_at:
            return False
        self.paid.add(invoice.payment_hash)
        self.balances[self._owners[invoice.payment_hash]] += invoice.amount_sat
        return True
