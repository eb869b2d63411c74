"""What a buyer does with a receipt: compares it with its own count, and takes in what is given back."""

from __future__ import annotations

from nostrvpn.machine import Moment
from nostrvpn.market.bill_check import OwnCount
from nostrvpn.market.messages import Receipt
from nostrvpn.market.paying import Pocket, accept_refund
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
    lease.receipt = receipt
    if receipt.token:
        accept_refund(lease, pocket, receipt.token, moment)
