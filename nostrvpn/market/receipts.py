"""What a buyer does with a receipt: compares it with its own count, and takes in what is given back."""

from __future__ import annotations

from nostrvpn.machine import Moment
from nostrvpn.market.bill_check import OwnCount
from nostrvpn.market.bought_lease import BoughtLease
from nostrvpn.market.messages import Receipt
from nostrvpn.market.paying import Pocket, accept_refund
from nostrvpn.market.terms import PayMode
from nostrvpn.market.trust import Outcome

__all__ = ["parting", "take_receipt"]

_UNREAD_S = 5
# What a seller keeps of what is unused when it ends a lease: the mint's fee, and less than a sat. A
# tenth where a mint is dear.
_KEPT_MSAT, _KEPT_SHARE = 3000, 10


def parting(lease: BoughtLease, receipt: Receipt) -> tuple[str, Outcome]:
    """Return how a seller ended a lease by itself: with what was not used given back, or without.

    In words, and as it counts for its history.

    Of what an invoice paid nothing is given back, as both sides know.
    """
    back_msat = 1000 * (receipt.refund_sat + receipt.owed_sat)
    kept = receipt.paid_msat - receipt.due_msat - back_msat
    gives_back = lease.mode in (PayMode.LOCKED, PayMode.PLAIN)
    is_kept = gives_back and kept > max(_KEPT_MSAT, receipt.paid_msat // _KEPT_SHARE)
    words = f"it ended the lease: {receipt.reason}"
    return words, Outcome.BROKE_OFF if is_kept else Outcome.SERVED


def take_receipt(count: OwnCount, pocket: Pocket, receipt: Receipt, moment: Moment) -> None:
    """Keep a signed receipt; PeerMisbehaved "bad_refund" if what it gives is not ours."""
    lease = count.lease
    # The tunnel is gone, so what was last served is not read any more.
    why = count.refuse(receipt, _UNREAD_S)
    if why is not None and lease.outcome is not Outcome.NO_SERVICE:
        lease.label, lease.outcome = f"overcharge: {why}", Outcome.OVERCHARGED
    lease.receipt = receipt
    if receipt.token:
        accept_refund(lease, pocket, receipt.token, moment)
