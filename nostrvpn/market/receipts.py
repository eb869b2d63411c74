"""What a buyer does with a receipt: compares it with its own count, and takes in what is given back."""

from __future__ import annotations

from nostrvpn.machine import Moment
from nostrvpn.market.bill_check import OwnCount
from nostrvpn.market.billing import refund_fee_sat
from nostrvpn.market.bought_lease import BoughtLease
from nostrvpn.market.messages import Receipt
from nostrvpn.market.paying import Pocket, accept_refund
from nostrvpn.market.terms import PayMode
from nostrvpn.market.trust import Outcome

__all__ = ["take_receipt"]

_UNREAD_S = 5


def take_receipt(count: OwnCount, pocket: Pocket, receipt: Receipt, moment: Moment) -> None:
    """Keep a signed receipt; PeerMisbehaved "bad_refund" if what it gives is not ours."""
    lease = count.lease
    # The tunnel is gone, so what was last served is not read any more.
    why = count.refuse(receipt, _UNREAD_S)
    if why is not None and lease.outcome is not Outcome.NO_SERVICE:
        lease.label, lease.outcome = f"overcharge: {why}", Outcome.OVERCHARGED
    is_first, lease.receipt = lease.receipt is None, receipt
    try:
        if receipt.token:
            accept_refund(lease, pocket, receipt.token, moment)
    finally:
        if is_first and lease.outcome is Outcome.SERVED and _is_kept(lease, pocket, receipt):
            lease.label, lease.outcome = "it kept what was not used", Outcome.BROKE_OFF


def _is_kept(lease: BoughtLease, pocket: Pocket, receipt: Receipt) -> bool:
    """Whether a seller kept what was not used, whoever ended the lease.

    Of an invoice it may, and of a channel there is little: both know.
    """
    if lease.mode not in (PayMode.LOCKED, PayMode.PLAIN):
        return False
    given = sum(parcel.sat for parcel in lease.parcels if parcel.kind == "refund")
    back = min(receipt.refund_sat, given) + receipt.owed_sat
    kept = receipt.paid_msat - receipt.due_msat - 1000 * back
    # The mint's fee for the refund, or all of it where our own swap would eat it; and less than a sat.
    return kept > 2000 * (1 + refund_fee_sat(pocket.fee_ppk(lease.mint)))
