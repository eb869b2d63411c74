"""How a buyer pays by channels: one is funded, each payment signs a larger balance, the rest comes home.

All of a channel is set aside; only the balance that was signed last is spent. A channel is used for half
of its time at most, as the seller closes it then, and the next one is larger. What the seller did not
take comes home once it has closed, or by the refund key after the locktime.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from nostrvpn.cashu.amounts import fee, swap_fee
from nostrvpn.cashu.channel import Channel, sign_update
from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.token import Token, render_token
from nostrvpn.machine import Moment
from nostrvpn.market.billing import ramp
from nostrvpn.market.bought_lease import BoughtLease, Money, Parcel, Slice
from nostrvpn.market.channel_effects import (
    ChannelClosed,
    FundChannel,
    SettleChannel,
)
from nostrvpn.market.messages import Fund, TopUp

if TYPE_CHECKING:
    from nostrvpn.market.paying import Pocket

__all__ = [
    "channel_came",
    "come_home",
    "fund",
    "measure",
    "message_of_update",
    "plan_channel",
    "settle_again_s",
    "show_update",
]

# For how long a channel's money is locked, besides what the seller asks for; how much earlier than at
# the half of it, when the seller closes it, it is left: clocks differ (seconds).
LIFE_S, EARLIER_S = 1860, 300
# How often the mint is asked whether the seller closed: while that is to be expected, and later.
SOON_S, SOON_AGAIN_S, AGAIN_S = 180, 10, 300
_SEED = b"nostrvpn/channel/seed/1/"
# Stands where else a token does.
_UPDATE = "update"


def plan_channel(lease: BoughtLease, pocket: Pocket, face: int, moment: Moment) -> Money | None:
    """Return the next channel, funded by ``face`` sat (a power of two); None if it could pay nothing."""
    assert lease.quote is not None
    ppk = pocket.fee_ppk(lease.mint)
    capacity = max(0, face - fee(ppk, 1))
    if min(capacity, _most(lease, pocket)) <= fee(ppk, capacity.bit_length()):
        return None
    ref = f"{lease.key}/m{len(lease.money)}"
    seed = hmac.digest(pocket.root.lease_key(lease.number), _SEED + ref.encode(), "sha256")
    until = int(moment.wall) + lease.quote.lock_s + LIFE_S
    return Money(ref, [(face,)], until, seed=seed.hex())


def fund(lease: BoughtLease, money: Money) -> FundChannel:
    """Return the request to the wallet for a channel's money."""
    assert lease.quote is not None
    amounts = tuple(amount for part in money.plan for amount in part)
    receiver = f"02{lease.quote.receiver[2:]}"
    return FundChannel(money.ref, lease.mint, amounts, lease.refund, receiver, money.locktime)


def measure(money: Money, pocket: Pocket, mint: str) -> None:
    """Say what a channel's funding can pay, once it is there."""
    funding = money.slices[0]
    keysets = pocket.keysets(mint)
    money.capacity = money.sat - swap_fee(funding, keysets)
    channel = _channel(money, funding)
    money.margin_sat = channel.margin_sat(keysets[funding[0].keyset_id].fee_ppk)


def show_update(lease: BoughtLease, pocket: Pocket, moment: Moment) -> bool:
    """Sign the next balance; False if the channel is used up, or near the half of its time."""
    money = lease.purse
    if money is None or not money.is_there or not money.slices or lease.pending is not None:
        return False
    if pocket.wish is None:
        return False
    assert lease.quote is not None
    half = (lease.quote.lock_s + LIFE_S) // 2
    if moment.wall > money.locktime - half - EARLIER_S:
        return False
    before, most = money.shown_sat, _most(lease, pocket)
    wanted = ramp(len(lease.slices), lease.quote.price, most)
    # The first pays for bringing the seller's part home, too.
    extra = 0 if before else money.margin_sat
    amount = min(wanted + extra, most, money.capacity - before)
    if amount <= extra:
        return False
    balance, funding = before + amount, money.slices[0]
    secret = pocket.root.lease_key(lease.number)
    update = sign_update(_channel(money, funding), balance, secret)
    token = _UPDATE if before else render_token(Token(lease.mint, funding))
    worth = 1000 * (amount - extra)
    paid = Slice(lease.seq, amount, worth, money.ref, token, (), int(moment.wall))
    paid.balance, paid.signature = balance, update.signature
    lease.slices.append(paid)
    lease.seq += 1
    money.shown_sat = balance
    pocket.spending.show(money.ref, balance + money.fee_sat, moment)
    return True


def message_of_update(lease: BoughtLease, pending: Slice) -> Fund | TopUp:
    """Return the message that carries the last update."""
    kind = Fund if len(lease.slices) == 1 else TopUp
    is_first = pending.token != _UPDATE
    money = next(money for money in lease.money if money.ref == pending.ref)
    return kind(
        lease_id=lease.lease_id,
        seq=pending.seq,
        token=pending.token if is_first else "",
        balance=pending.balance,
        signature=pending.signature,
        seed=money.seed if is_first else "",
    )


def come_home(lease: BoughtLease, parcel: Parcel) -> SettleChannel:
    """Return the request for what is left of a channel."""
    ref = parcel.ref.removesuffix("/home")
    money = next(money for money in lease.money if money.ref == ref)
    balances = tuple(one.balance for one in reversed(lease.slices) if one.ref == ref)
    channel = _channel(money, parcel.proofs)
    return SettleChannel(parcel.ref, lease.mint, channel, balances, parcel.not_before)


def settle_again_s(lease: BoughtLease, wall: float) -> int:
    """Return after how many seconds the mint is asked again whether the seller closed."""
    return SOON_AGAIN_S if wall < lease.ended_at + SOON_S else AGAIN_S


def channel_came(lease: BoughtLease, pocket: Pocket, moment: Moment, closed: ChannelClosed) -> None:
    """A channel is closed, and what is ours of it is home."""
    parcel = next((p for p in lease.parcels if p.ref == closed.ref and not p.is_settled), None)
    if parcel is None:
        return
    money = next(m for m in lease.money if m.ref == closed.ref.removesuffix("/home"))
    parcel.is_settled, parcel.proofs = True, ()
    parcel.came_sat, parcel.fee_sat = closed.amount_sat, closed.fee_sat
    # It was signed for, and the seller did not take it: it never saw it, or could not.
    parcel.untaken_sat = max(0, money.shown_sat - closed.balance_sat)
    pocket.sat[lease.mint] = pocket.sat.get(lease.mint, 0) + closed.amount_sat
    spent = money.shown_sat + money.fee_sat + closed.fee_sat
    pocket.spending.show(money.ref, spent, moment)


def _most(lease: BoughtLease, pocket: Pocket) -> int:
    assert lease.quote is not None
    assert pocket.wish is not None
    return min(lease.quote.max_slice_sat, pocket.wish.ceilings.slice_sat)


def _channel(money: Money, funding: tuple[Proof, ...]) -> Channel:
    return Channel.known(funding, money.capacity, bytes.fromhex(money.seed))
