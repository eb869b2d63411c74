"""Whether a quote keeps what the offer said, and at which mint and how an offer could be paid."""

from __future__ import annotations

from collections.abc import Mapping

from nostrvpn.machine import Moment
from nostrvpn.market.bought_lease import BoughtLease
from nostrvpn.market.messages import Quote
from nostrvpn.market.offer import Offer
from nostrvpn.market.terms import PayMode
from nostrvpn.market.wish import Wish

__all__ = ["MAX_WORK_BITS", "check_quote", "way_to_pay"]

# What a laptop does in a third of a second.
MAX_WORK_BITS = 18
# Money is out of reach for so long at most, should the seller vanish (seconds).
LONGEST_LOCK_S = 7200


def check_quote(quote: Quote, lease: BoughtLease, moment: Moment) -> str | None:
    """Return why a quote is refused: what is dearer or other than the offer; None if it is good."""
    offered, price = lease.offer.terms.price, quote.price
    # Compared by what they come to, so a step may be written in another way.
    if price.step_msat * offered.step_bytes > offered.step_msat * price.step_bytes:
        return "the quote is dearer than the offer"
    if price.hour_msat > offered.hour_msat:
        return "an hour is dearer than in the offer"
    if quote.receiver[2:] != lease.offer.receiver_pubkey[2:]:
        return "the money would go to another key than the offer's"
    if quote.mode is not lease.mode or lease.mint not in quote.mints:
        return "it wants to be paid in another way than was asked"
    if quote.lock_s > LONGEST_LOCK_S:
        return "it wants money locked for too long"
    if quote.expires_at <= moment.wall or quote.max_slice_sat < 1:
        return "the quote is over already"
    return None


def way_to_pay(offer: Offer, wish: Wish, sat: Mapping[str, int]) -> tuple[PayMode, str] | None:
    """Return how and at which mint an offer is paid: where most money is; None if nowhere."""
    modes = [mode for mode in wish.modes if mode in offer.terms.pay]
    mints = [
        mint
        for mint in offer.terms.mints
        if sat.get(mint, 0) > 0 and (not wish.mints or mint in wish.mints)
    ]
    if not modes or not mints or offer.pow_bits > MAX_WORK_BITS:
        return None
    return modes[0], max(mints, key=lambda mint: sat[mint])
