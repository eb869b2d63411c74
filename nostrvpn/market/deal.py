"""Whether a quote keeps what the offer said, and at which mint and how an offer could be paid."""

from __future__ import annotations

from collections.abc import Mapping

from nostrvpn.machine import Moment
from nostrvpn.market.bought_lease import BoughtLease
from nostrvpn.market.messages import Quote
from nostrvpn.market.offer import Offer
from nostrvpn.market.terms import LIGHTNING, PayMode, least_invoice_sat
from nostrvpn.market.wish import Wish

__all__ = ["MAX_WORK_BITS", "arbiter_of", "check_quote", "least_sat", "way_to_pay"]

# What a laptop does in a third of a second.
MAX_WORK_BITS = 18
# Money is out of reach for so long at most, should the seller vanish (seconds).
LONGEST_LOCK_S = 7200
# In escrow, until an arbiter had time (seconds).
LONGEST_LEASE_ESCROW_S = 5 * 86_400


def check_quote(quote: Quote, lease: BoughtLease, moment: Moment) -> str | None:
    """Return why a quote is refused: what is dearer or other than the offer; None if it is good."""
    offered, price = lease.offer.terms.price, quote.price
    # Compared by what they come to, so a step may be written in another way.
    if price.step_msat * offered.step_bytes > offered.step_msat * price.step_bytes:
        return "the quote is dearer than the offer"
    if price.hour_msat > offered.hour_msat:
        return "an hour is dearer than in the offer"
    in_escrow = lease.mode is PayMode.ESCROW
    receiver = lease.seller if in_escrow else lease.offer.receiver_pubkey[2:]
    if quote.receiver[2:] != receiver:
        return "the money would go to another key than the offer's"
    by_invoice = lease.mode.by_invoice
    if quote.mode is not lease.mode or not (by_invoice or lease.mint in quote.mints):
        return "it wants to be paid in another way than was asked"
    if quote.lock_s > (LONGEST_LEASE_ESCROW_S if in_escrow else LONGEST_LOCK_S):
        return "it wants money locked for too long"
    if quote.expires_at <= moment.wall or quote.max_slice_sat < 1:
        return "the quote is over already"
    return None


def way_to_pay(offer: Offer, wish: Wish, sat: Mapping[str, int]) -> tuple[PayMode, str] | None:
    """Return how and at which mint an offer is paid: where most money is; None if nowhere.

    An invoice is paid by the connected wallet (LIGHTNING) if there is one, else from any mint.
    """
    if offer.pow_bits > MAX_WORK_BITS:
        return None
    for mode in wish.modes:
        sources = sat if mode is PayMode.BOLT11 else offer.terms.mints
        if mode is PayMode.HOLD:  # a mint would be asked for days whether it melted
            sources = (LIGHTNING,)
        mints = [
            mint
            for mint in sources
            if sat.get(mint, 0) > 0 and (not wish.mints or mint in wish.mints)
        ]
        if mode is PayMode.ESCROW and not arbiter_of(offer, wish):
            continue
        if mode in offer.terms.pay and mints:
            return mode, max(mints, key=lambda mint: (mint == LIGHTNING, sat[mint]))
    return None


def arbiter_of(offer: Offer, wish: Wish) -> str:
    """Return the arbiter that both sides name (64 hex), a third; "" if there is none."""
    two = (offer.seller, offer.receiver_pubkey[2:])
    agreed = (key for key in wish.arbiters if key in offer.escrow and key not in two)
    return next(agreed, "")


def least_sat(offer: Offer, mode: PayMode) -> int:
    """Return the least that a payment can be (sat)."""
    return least_invoice_sat(offer.terms.price) if mode.by_invoice else 1
