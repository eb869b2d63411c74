"""How a buyer pays for a lease: what is set aside, shown slice by slice, and what comes home.

Locked money (M2) is prepared once for many payments: one swap with the mint makes proofs that only the
seller can spend, and each is worth something to him only once he was shown it. Plain money (M1) is taken
out of the wallet for each payment. An invoice (BOLT11) is the seller's, paid by Lightning, and "shown"
by asking him whether it is. Channels (M3) are in ``channel_paying.py``. In any case at most one payment
is out without an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nostrvpn.cashu.amounts import swap_fee, tidy
from nostrvpn.cashu.conditions import spendable_by
from nostrvpn.cashu.proof import Keyset, MintKeys, Proof
from nostrvpn.cashu.token import Token, expand_ids, parse_token, render_token
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Moment
from nostrvpn.market.billing import credit_msat, ramp
from nostrvpn.market.bought_lease import BoughtLease, Escrowed, Money, Parcel, Slice
from nostrvpn.market.ceilings import Spending
from nostrvpn.market.channel_effects import most_capacity
from nostrvpn.market.channel_paying import come_home, fund, measure, plan_channel, show_update
from nostrvpn.market.effects import Lock, MarketEffect, PayInvoice, Reclaim, Redeem, TakeOut
from nostrvpn.market.terms import PayMode
from nostrvpn.market.wish import Wish

__all__ = [
    "Pocket",
    "accept_refund",
    "answered",
    "arrived",
    "ask_again",
    "bring_home",
    "fee_room",
    "go_home",
    "next_amounts",
    "parcel_came",
    "parcel_lost",
    "prepare",
    "settle",
    "show",
    "take_back",
    "took",
]

# What one bundle is worth: so much first, then twice as much each time (sat).
FIRST_BUNDLE, LAST_BUNDLE = 16, 256
# For how long a bundle can be used; it must then still be locked for as long as the seller asks.
BUNDLE_LIFE_S = 1800
# The clocks of a mint, a seller and a buyer differ.
CLOCKS_S = 60
# A payment waits in the Lightning network no longer: then it is released while the exit serves.
LET_GO_S = 1800


@dataclass(slots=True)
class Pocket:
    """What all leases of a buyer share: its keys, the wallet's balances, what was spent.

    ``sat``: what the wallet has free, by mint; ``mints``: what is known of them; ``relays``: where
    sellers answer to.
    """

    root: RootSecret
    spending: Spending
    sat: dict[str, int] = field(default_factory=dict)
    mints: Mapping[str, MintKeys] = field(default_factory=dict)
    wish: Wish | None = None
    relays: tuple[str, ...] = ()

    def keysets(self, mint: str) -> Mapping[str, Keyset]:
        """Return what is known of a mint's keysets."""
        found = self.mints.get(mint)
        return found.keysets if found is not None else {}

    def fee_ppk(self, mint: str) -> int:
        """Return what a mint charges for an input (thousandths of a sat), 0 if not known."""
        active = self.mints[mint].active() if mint in self.mints else ()
        return active[0].fee_ppk if active else 0

    def allowed(self, mint: str, moment: Moment) -> int:
        """Return how many sat of this mint may be set aside now."""
        if self.wish is None:
            return 0
        whole = self.spending.allowed(self.wish.ceilings, sum(self.sat.values()), moment)
        return min(whole, self.sat.get(mint, 0))

    def why_short(self, mint: str, moment: Moment) -> str:
        """Return why so little is allowed, in words."""
        if self.wish is None:
            return "nothing is wanted"
        if self.sat.get(mint, 0) <= fee_room(1):
            return f"the wallet has {self.sat.get(mint, 0)} sat at {mint}"
        return self.spending.why_not(self.wish.ceilings, sum(self.sat.values()), moment)


def fee_room(sat: int) -> int:
    """Return what may go to the mint for making so much ready (sat)."""
    return 2 + sat // 10


def next_amounts(lease: BoughtLease, pocket: Pocket, ahead: int) -> int:
    """Return the amount (sat) of the payment that comes after ``ahead`` others from now."""
    assert lease.quote is not None
    assert pocket.wish is not None
    most = min(lease.quote.max_slice_sat, pocket.wish.ceilings.slice_sat)
    good = len(lease.slices) + ahead
    amount = tidy(ramp(good, lease.quote.price, most, pocket.fee_ppk(lease.mint)))
    return amount if amount <= most else 1 << (most.bit_length() - 1)


def prepare(lease: BoughtLease, pocket: Pocket, moment: Moment) -> list[MarketEffect] | None:
    """Set money aside for the next payments; None if the ceilings or the wallet do not allow one."""
    assert lease.quote is not None
    if pocket.wish is None:
        return None
    allowed = pocket.allowed(lease.mint, moment)
    if lease.mode is PayMode.CHANNEL:
        return _prepare_channel(lease, pocket, allowed, moment)
    locked = lease.mode.is_locked
    # In escrow for days, so no more of it than is shown.
    many = lease.mode is PayMode.LOCKED
    target = min(FIRST_BUNDLE << len(lease.money), LAST_BUNDLE) if many else 1
    plan: list[tuple[int, ...]] = []
    total = 0
    while total < target and len(plan) < 64:
        amount = next_amounts(lease, pocket, len(plan))
        if total + amount + fee_room(total + amount) > allowed:
            break
        plan.append(_powers(amount))
        total += amount
    if not plan:
        return None
    until = int(moment.wall) + lease.quote.lock_s + BUNDLE_LIFE_S + CLOCKS_S if locked else 0
    money = Money(f"{lease.key}/m{len(lease.money)}", plan, until)
    lease.money.append(money)
    pocket.spending.set_aside(money.ref, total + fee_room(total), moment)
    return [_request(lease, money)]


def _prepare_channel(
    lease: BoughtLease, pocket: Pocket, allowed: int, moment: Moment
) -> list[MarketEffect] | None:
    """Set a whole channel aside: it is spent as far as its balance is."""
    face = most_capacity(sum(money.shown_sat > 0 for money in lease.money))
    while face and face + fee_room(face) > allowed:
        face //= 2
    money = plan_channel(lease, pocket, face, moment)
    if money is None:
        return None
    lease.money.append(money)
    pocket.spending.set_aside(money.ref, money.sat + fee_room(money.sat), moment)
    return [_request(lease, money)]


def _powers(amount: int) -> tuple[int, ...]:
    return tuple(1 << bit for bit in range(amount.bit_length()) if amount >> bit & 1)


def _request(lease: BoughtLease, money: Money) -> MarketEffect:
    if not money.locktime:
        return TakeOut(money.ref, lease.mint, money.sat)
    if money.seed:
        return fund(lease, money)
    assert lease.quote is not None
    amounts = tuple(amount for part in money.plan for amount in part)
    others = (lease.refund, f"02{lease.arbiter}") if lease.arbiter else ()
    to = lease.quote.receiver
    return Lock(money.ref, lease.mint, amounts, to, money.locktime, lease.refund, others)


def took(
    lease: BoughtLease,
    pocket: Pocket,
    moment: Moment,
    got: tuple[str, tuple[Proof, ...] | str, int],
) -> None:
    """The wallet made money ready: ``got`` is its ref, its proofs (or a token), and the fee in sat."""
    ref, what, fee_sat = got
    money = next((m for m in lease.money if m.ref == ref), None)
    if money is None or money.is_there or money.is_over:
        return
    if isinstance(what, str):
        what = expand_ids(parse_token(what), pocket.keysets(lease.mint)).proofs
    proofs = what
    left = list(proofs)
    parts = []
    for amounts in money.plan if money.locktime else [tuple(p.amount for p in proofs)]:
        part = []
        for amount in amounts:
            found = next((proof for proof in left if proof.amount == amount), None)
            if found is not None:
                left.remove(found)
                part.append(found)
        parts.append(tuple(part))
    money.slices = parts
    if money.seed:
        measure(money, pocket, lease.mint)
    arrived(lease, pocket, moment, (money, fee_sat))


def arrived(lease: BoughtLease, pocket: Pocket, moment: Moment, made: tuple[Money, int]) -> None:
    """Money is ready to be shown: ``made`` is it, and the fee in sat."""
    money, fee_sat = made
    money.is_there, money.fee_sat = True, fee_sat
    pocket.spending.show(money.ref, fee_sat, moment)
    pocket.spending.lower(money.ref, money.sat + fee_sat, moment)
    pocket.sat[lease.mint] = pocket.sat.get(lease.mint, 0) - money.sat - fee_sat


def show(lease: BoughtLease, pocket: Pocket, moment: Moment) -> bool:
    """Make the next payment ready to be sent; False if none is there (or no longer good)."""
    if lease.mode is PayMode.CHANNEL:
        return show_update(lease, pocket, moment)
    money = lease.purse
    if money is None or not money.is_there or not money.slices or lease.pending is not None:
        return False
    assert lease.quote is not None
    if money.locktime and moment.wall > money.locktime - lease.quote.lock_s - CLOCKS_S:
        return False
    proofs, *money.slices = money.slices
    sat = sum(proof.amount for proof in proofs)
    keysets = pocket.keysets(lease.mint)
    plain = 1000 * (sat - swap_fee(proofs, keysets))
    worth = credit_msat(proofs, keysets) if money.locktime else plain
    token = render_token(Token(lease.mint, proofs)) if proofs else "paid"
    if money.invoice:
        sat, worth = money.sat, 1000 * money.sat
    if lease.arbiter or money.hash:
        until = money.locktime or int(moment.wall) + LET_GO_S
        before = sum(payment.credit_msat for payment in lease.slices)
        lease.escrow.append(Escrowed(lease.seq, proofs, until, before, worth))
    shown_at = int(moment.wall)
    lease.slices.append(Slice(lease.seq, sat, worth, money.ref, token, proofs, shown_at))
    lease.seq += 1
    money.shown_sat += sat
    pocket.spending.show(money.ref, money.shown_sat + money.fee_sat, moment)
    return True


def answered(lease: BoughtLease, paid_msat: int) -> bool:
    """The seller answered for the last payment, having credited so much in all; False if too little."""
    pending = lease.slices[-1]
    pending.token, pending.proofs = "", ()
    lease.paid_msat = min(paid_msat, 1000 * lease.shown_sat)
    return paid_msat >= sum(payment.credit_msat for payment in lease.slices)


def go_home(lease: BoughtLease, money: Money) -> None:
    """Nothing more of this money will be shown: what was not, is to come home."""
    money.is_over = True
    if money.invoice and money.slices:  # the seller has it, whether he was told or not
        lease.slices.append(Slice(lease.seq, money.sat, 1000 * money.sat, money.ref))
        money.shown_sat = money.sat
    proofs = tuple(proof for part in money.slices for proof in part)
    money.slices = []
    if proofs:
        # A second is enough by the mint's clock; ours may be behind it.
        until = money.locktime + CLOCKS_S if money.locktime else 0
        kind = "channel" if money.seed else "reclaim"
        parcel = Parcel(f"{money.ref}/home", kind, proofs, until)
        parcel.shown_sat = money.shown_sat if money.seed else 0
        lease.parcels.append(parcel)


def take_back(lease: BoughtLease) -> None:
    """Nobody answered for the last payment: have it back, if the seller did not take it."""
    payment = lease.pending
    if payment is None:
        return
    if not payment.proofs or lease.arbiter:  # an invoice that was paid; in escrow it is ours yet
        payment.token, payment.proofs = "", ()
        payment.is_unanswered = bool(payment.signature)
        return
    money = next(m for m in lease.money if m.ref == payment.ref)
    until = money.locktime + CLOCKS_S if money.locktime else 0
    ref = f"{lease.key}/unpaid/{payment.seq}"
    lease.parcels.append(Parcel(ref, "unpaid", payment.proofs, until))
    payment.token, payment.proofs = "", ()


def accept_refund(lease: BoughtLease, pocket: Pocket, token: str, moment: Moment) -> None:
    """Take in what the seller gives back; PeerMisbehaved if it is no money of ours."""
    ref = f"{lease.key}/refund"
    if any(parcel.ref == ref for parcel in lease.parcels):
        return
    found = expand_ids(parse_token(token), pocket.keysets(lease.mint))
    if found.mint != lease.mint:
        raise PeerMisbehaved("bad_refund", "a refund of another mint")
    ours = (lease.refund,)
    if not all(spendable_by(proof.secret, ours, moment.wall) for proof in found.proofs):
        raise PeerMisbehaved("bad_refund", "a refund that is not ours to spend")
    lease.parcels.append(Parcel(ref, "refund", found.proofs, 0, token))


def parcel_came(
    lease: BoughtLease, pocket: Pocket, moment: Moment, came: tuple[str, int, int]
) -> None:
    """A parcel is settled: ``came`` is its ref, how many sat arrived, and the fee."""
    ref, sat, fee = came
    parcel = next((p for p in lease.parcels if p.ref == ref and not p.is_settled), None)
    if parcel is None:
        return
    parcel.is_settled, parcel.came_sat, parcel.fee_sat = True, sat, fee
    parcel.proofs, parcel.token = (), ""
    pocket.sat[lease.mint] = pocket.sat.get(lease.mint, 0) + sat
    if parcel.kind == "reclaim":
        money = next(m for m in lease.money if m.ref == ref.removesuffix("/home"))
        pocket.spending.show(money.ref, money.shown_sat + money.fee_sat + fee, moment)


def parcel_lost(lease: BoughtLease, pocket: Pocket, moment: Moment, ref: str) -> None:
    """The mint or the wallet refuses a parcel for good: what its own fee would eat, the mint has."""
    parcel = next(p for p in lease.parcels if p.ref == ref)
    eaten = parcel.proofs and parcel.sat <= swap_fee(parcel.proofs, pocket.keysets(lease.mint))
    fee_sat = parcel.sat if eaten and parcel.kind == "refund" else 0
    parcel_came(lease, pocket, moment, (ref, 0, fee_sat))


def settle(lease: BoughtLease, pocket: Pocket, moment: Moment) -> None:
    """Free what was set aside for money that is used up, or home again."""
    coming = {parcel.ref for parcel in lease.parcels if not parcel.is_settled}
    for money in lease.money:
        if money.is_there and not money.slices and money is not lease.purse:
            money.is_over = True
        if money.is_over and f"{money.ref}/home" not in coming:
            pocket.spending.put_back(money.ref, moment)


def bring_home(lease: BoughtLease, parcel: Parcel) -> MarketEffect:
    """Return the request for a parcel that is due."""
    if parcel.kind == "channel":
        return come_home(lease, parcel)
    if parcel.kind == "refund" or not parcel.not_before:
        return Redeem(parcel.ref, lease.mint, parcel.proofs)
    return Reclaim(parcel.ref, lease.mint, parcel.proofs, parcel.not_before)


def ask_again(lease: BoughtLease) -> list[MarketEffect]:
    """Return the request for money that was asked for and did not come."""
    money = lease.purse
    if money is None or money.is_there or lease.is_asking:
        return []
    if money.invoice:
        return [PayInvoice(money.ref, lease.mint, money.invoice, fee_room(money.sat), True)]
    return [_request(lease, money)]
