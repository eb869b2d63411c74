"""How a buyer pays by Lightning: the seller's invoice, paid for good or held in the network.

A payment that is held (mode HOLD) waits for a preimage that only the buyer has: it follows from the
lease's key. The seller's grant says that it is held; the wallet's own answer comes when it is over.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret
from nostrvpn.lightning.bolt11 import parse_invoice
from nostrvpn.machine import Moment
from nostrvpn.market.bought_lease import BoughtLease, Money, Parcel, Phase
from nostrvpn.market.effects import MarketEffect, PayInvoice, PaymentFailed
from nostrvpn.market.messages import Invoice, Receipt
from nostrvpn.market.paying import CLOCKS_S, Pocket, arrived, fee_room, go_home, next_amounts, show
from nostrvpn.market.terms import PayMode, least_invoice_sat

__all__ = [
    "came_back",
    "can_be_paid",
    "hold",
    "hold_at_end",
    "invoice_paid",
    "is_open",
    "pay_again",
    "preimage_of",
    "prepare_invoice",
    "take_invoice",
]

_LABEL = b"nostrvpn/hold/v1/"
# So long after the end of its invoice (seconds) nothing of a payment is on its way any more: nodes lock
# nothing for more than 2016 blocks (LND's max-cltv-expiry, Core Lightning's maxdelay); and a day for
# blocks that are slow.
_LOCKED_S = 15 * 86_400


def preimage_of(lease: BoughtLease, root: RootSecret, seq: int) -> bytes:
    """Return what a held payment is released by (32 bytes): HMAC-SHA256 by the key of the lease."""
    secret = root.lease_key(lease.number)
    name = _LABEL + lease.key.encode() + seq.to_bytes(8, "big")
    return hmac.digest(secret, name, "sha256")


def prepare_invoice(
    lease: BoughtLease, pocket: Pocket, moment: Moment
) -> list[MarketEffect] | None:
    """Set aside what an invoice will be over; the seller is asked for it by the record.

    None if the ceilings or the wallet do not allow one.
    """
    if pocket.wish is None:
        return None
    assert lease.quote is not None
    most = min(lease.quote.max_slice_sat, pocket.wish.ceilings.slice_sat)
    most = min(most, max(0, pocket.allowed(lease.mint, moment) - 2) * 10 // 11)
    least = least_invoice_sat(lease.quote.price)
    if least > most:
        return None
    amount = min(most, max(least, next_amounts(lease, pocket, 0)))
    money = Money(f"{lease.key}/m{len(lease.money)}", [(amount,)])
    lease.money.append(money)
    # A number of its own: what became of an invoice that was not paid is the seller's to say.
    lease.seq = len(lease.money)
    if lease.mode is PayMode.HOLD:
        money.hash = sha256(preimage_of(lease, pocket.root, lease.seq)).hexdigest()
    pocket.spending.set_aside(money.ref, amount + fee_room(amount), moment)
    return []


def take_invoice(lease: BoughtLease, told: Invoice, moment: Moment) -> list[MarketEffect]:
    """Have the seller's invoice paid; PeerMisbehaved "bad_invoice" if it is not what was asked for."""
    money = lease.purse
    if money is None or not lease.is_asking or told.seq != lease.seq:
        return []
    invoice = parse_invoice(told.invoice)
    is_known = any(other.invoice == invoice.text for other in lease.money)
    if invoice.amount_msat != 1000 * money.sat or is_known:
        raise PeerMisbehaved("bad_invoice", "an invoice over another amount, or one of before")
    if money.hash and invoice.payment_hash != money.hash:
        raise PeerMisbehaved("bad_invoice", "an invoice that is not to be held")
    if invoice.expires_at < moment.wall + CLOCKS_S:
        raise PeerMisbehaved("bad_invoice", "an invoice that expires at once")
    money.invoice = invoice.text
    return [PayInvoice(money.ref, lease.mint, money.invoice, fee_room(money.sat))]


def hold(lease: BoughtLease, pocket: Pocket, moment: Moment, seq: int) -> bool:
    """The seller says that a payment is held: it is shown from now on. Tell whether that was new."""
    money = lease.purse
    if money is None or not lease.is_holding or seq != lease.seq:
        return False
    money.slices, money.is_held = [()], True
    arrived(lease, pocket, moment, (money, 0))
    show(lease, pocket, moment)
    if lease.phase == Phase.CLOSING:
        go_home(lease, money)
    return True


def hold_at_end(lease: BoughtLease, pocket: Pocket, receipt: Receipt, moment: Moment) -> None:
    """Take a signed receipt's word for a payment whose grant was lost."""
    if not lease.is_holding or receipt.paid_msat <= 1000 * lease.shown_sat:
        return
    hold(lease, pocket, moment, lease.seq)


def invoice_paid(lease: BoughtLease, pocket: Pocket, moment: Moment, got: tuple[str, int]) -> None:
    """An invoice is paid: ``got`` is the ref of its money, and the fee in sat."""
    ref, fee_sat = got
    money = next((m for m in lease.money if m.ref == ref), None)
    if money is None:
        return
    if money.is_held:
        money.is_held, money.fee_sat = False, fee_sat
        _count_fee(pocket, ref, fee_sat, moment)
        for one in lease.escrow:
            if one.seq == _seq(money):
                one.state = "freed"
        return
    if money.is_there or money.is_over:
        return
    money.slices = [()]
    # A connected wallet knows no limit of ours: it is spent all the same.
    _count_fee(pocket, ref, fee_sat - fee_room(money.sat), moment)
    arrived(lease, pocket, moment, (money, fee_sat))


def can_be_paid(lease: BoughtLease, moment: Moment) -> bool:
    """Whether the seller may yet be paid by an invoice of which we do not know: it has not expired."""
    return any(
        m.invoice and not (m.is_there or m.is_over) and not _is_late(m, moment, CLOCKS_S)
        for m in lease.money
    )


def is_open(lease: BoughtLease, failed: PaymentFailed, moment: Moment) -> bool:
    """Whether a request for money that failed may be fulfilled yet, whatever the wallet said of it."""
    money = next((m for m in lease.money if m.ref == failed.ref), None)
    if money is None or not money.invoice or failed.code != PaymentFailed.UNKNOWN:
        return failed.may_retry
    # What the seller did not say is held is never released.
    return not _is_late(money, moment, 2 * CLOCKS_S if money.hash else _LOCKED_S)


def came_back(lease: BoughtLease, pocket: Pocket, failed: PaymentFailed, moment: Moment) -> bool:
    """Take what the wallet says of a payment that is held; False if it is none such.

    It is ours again when the wallet says so. Of what the wallet does not know it is certain only once
    nothing can be on its way: then it is ours if the seller was not let have it, else his.
    """
    money = next((m for m in lease.money if m.ref == failed.ref and m.is_held), None)
    if money is None:
        return False
    one = next(e for e in lease.escrow if e.seq == _seq(money))
    is_lost = failed.code == PaymentFailed.UNKNOWN and _is_late(money, moment, _LOCKED_S)
    if failed.code != PaymentFailed.FAILED and not is_lost:
        return True
    money.is_held = False
    if is_lost and one.state in ("freeing", "freed"):
        one.state = "freed"
        return True
    one.state = "home"
    home = Parcel(
        f"{lease.key}/escrow/{one.seq}", "escrow", (), is_settled=True, came_sat=money.sat
    )
    lease.parcels.append(home)
    pocket.sat[lease.mint] = pocket.sat.get(lease.mint, 0) + money.sat
    return True


def pay_again(lease: BoughtLease, money: Money) -> MarketEffect:
    """Return the question what became of a payment that is held."""
    room = fee_room(money.sat)
    return PayInvoice(money.ref, lease.mint, money.invoice, room, is_again=True, is_held=True)


def _is_late(money: Money, moment: Moment, seconds: int) -> bool:
    return moment.wall > parse_invoice(money.invoice).expires_at + seconds


def _seq(money: Money) -> int:
    return int(money.ref.rpartition("/m")[2]) + 1


def _count_fee(pocket: Pocket, ref: str, fee_sat: int, moment: Moment) -> None:
    """Count a fee that was not set aside."""
    if fee_sat > 0:
        pocket.spending.set_aside(f"{ref}/fee", fee_sat, moment)
        pocket.spending.show(f"{ref}/fee", fee_sat, moment)
        pocket.spending.put_back(f"{ref}/fee", moment)
