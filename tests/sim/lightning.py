"""A Lightning network in virtual time: wallets with balances, and invoices that are paid once."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256

from nostrvpn.lightning.bolt11 import parse_invoice
from tests.invoices import make_invoice

__all__ = ["LightningNetwork"]


class LightningNetwork:
    """``balances``: sat by owner; ``fee_sat``: of each payment, kept by the nodes between.

    ``held``: sat on their way by payment hash; ``states``: of invoices that are held once they are paid.
    """

    def __init__(self, fee_sat: int = 1) -> None:
        self.balances: Counter[str] = Counter()
        self.fee_sat, self.fees, self.is_down = fee_sat, 0, False
        self.paid: set[str] = set()
        self.held: dict[str, int] = {}
        self.states: dict[str, str] = {}
        self._owners: dict[str, str] = {}

    def make(self, owner: str, msat: int, now: int, expiry_s: int, payment_hash: str = "") -> str:
        """Return another invoice each time it is asked; with a hash of the payer's it is held."""
        if payment_hash:
            self.states[payment_hash] = self.states.get(payment_hash, "pending")
        payment_hash = payment_hash or sha256(f"{owner}{len(self._owners)}".encode()).hexdigest()
        self._owners[payment_hash] = owner
        return make_invoice(msat, payment_hash, now, expiry_s)

    def pay(self, text: str, now: int) -> bool:
        """Credit the payee, or have it held; False if it was paid before, or is over."""
        invoice = parse_invoice(text)
        name = invoice.payment_hash
        if name in self.paid or now > invoice.expires_at:
            return False
        if self.states.get(name, "pending") != "pending":
            return False
        self.paid.add(name)
        if name in self.states:
            self.held[name], self.states[name] = invoice.amount_sat, "accepted"
        else:
            self.balances[self._owners[name]] += invoice.amount_sat
        return True

    def end(self, name: str, preimage: str) -> bool:
        """Take a payment that is held, or send it back; return whether the payee has it."""
        if preimage:
            assert sha256(bytes.fromhex(preimage)).hexdigest() == name
        if self.states[name] == "accepted" and preimage:
            self.states[name] = "settled"
            self.balances[self._owners[name]] += self.held.pop(name) - self.fee_sat
            self.fees += self.fee_sat
        elif self.states[name] in ("accepted", "pending"):
            self.states[name] = "cancelled"
        return self.states[name] == "settled"

    def is_paid(self, name: str, *, held: bool) -> bool:
        """Whether an invoice is paid for good, or at least held."""
        good = ("accepted", "settled") if held else ("settled",)
        return self.states.get(name, "settled") in good and name in self.paid
