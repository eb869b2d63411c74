"""What a buyer has to say in each phase: made from the record, so in the same words each time."""

from __future__ import annotations

from ipaddress import ip_address

from nostrvpn.market import patience
from nostrvpn.market.bought_lease import BoughtLease, Phase
from nostrvpn.market.channel_paying import message_of_update
from nostrvpn.market.effects import MarketEffect, Tell
from nostrvpn.market.messages import (
    Close,
    Fund,
    InvoiceRequest,
    LeaseMessage,
    QuoteRequest,
    TopUp,
    render_message,
)

__all__ = ["Voice", "message_of", "request_of", "tell"]


class Voice:
    """What a lease has to say, and how often it was said. ``due``: when it is said again, if at all."""

    def __init__(self) -> None:
        self.due: float | None = None
        self._times = 0

    def begin(self) -> None:
        """Something else is to be said from now on."""
        self._times, self.due = 0, None

    def say(self, lease: BoughtLease, relays: tuple[str, ...], now: float) -> list[MarketEffect]:
        """Say what is to be said in this phase, and again later."""
        said = tell(lease, relays, self._times)
        if said is None:
            self.due = None
            return []
        self.due = now + patience.AGAIN_S[min(self._times, len(patience.AGAIN_S) - 1)]
        self._times += 1
        return [said]


def tell(lease: BoughtLease, relays: tuple[str, ...], times: int) -> Tell | None:
    """Return what is to be sent, said ``times`` already; None if there is nothing to say.

    Through the tunnel first; every other time by the relays, in case it is the tunnel that is dead.
    """
    message = message_of(lease, relays)
    if message is None:
        return None
    access = lease.exit_access
    through = access is not None and lease.phase in (Phase.PAYING, Phase.SERVED)
    via = ip_address(access.control[0]) if access and through and times % 2 == 0 else None
    is_money = isinstance(message, Fund | TopUp | InvoiceRequest | Close)
    text = render_message(message)
    return Tell(lease.seller, text, lease.key, via, is_money, lease.offer.relays)


def message_of(lease: BoughtLease, relays: tuple[str, ...]) -> LeaseMessage | None:
    """Return the message that waits for an answer, if any."""
    pending = lease.pending
    match lease.phase:
        case Phase.ASKING:
            return request_of(lease, relays)
        case Phase.TRYING:
            return Fund(lease_id=lease.lease_id, seq=0)
        case Phase.PAYING | Phase.SERVED if lease.mode.by_invoice:
            if pending is None and not (lease.is_asking or lease.is_holding):
                return None
            seq = lease.seq if pending is None else pending.seq
            money = lease.money[-1]
            return InvoiceRequest(lease_id=lease.lease_id, seq=seq, sat=money.sat, hash=money.hash)
        case Phase.PAYING | Phase.SERVED if pending is not None and pending.signature:
            return message_of_update(lease, pending)
        case Phase.PAYING | Phase.SERVED if pending is not None:
            kind = Fund if len(lease.slices) == 1 else TopUp
            return kind(lease_id=lease.lease_id, seq=pending.seq, token=pending.token)
        case Phase.CLOSING:
            return Close(lease_id=lease.lease_id)
    return None


def request_of(lease: BoughtLease, relays: tuple[str, ...]) -> QuoteRequest:
    """Return what is asked of the seller; ``relays``: where it may answer."""
    return QuoteRequest(
        key=lease.key,
        offer_id=lease.offer.offer_id,
        offer_event=lease.offer.event_id,
        wg_pub=lease.wg_pub,
        refund=lease.refund,
        mode=lease.mode,
        mints=() if lease.mode.by_invoice else (lease.mint,),
        relays=relays,
        nonce=lease.nonce,
        who=lease.who,
        who_sig=lease.who_sig,
        arbiter=lease.arbiter,
    )
