"""What a buyer has to say in each phase: made from the record, so in the same words each time."""

from __future__ import annotations

from ipaddress import ip_address

from nostrvpn.market.bought_lease import BoughtLease, Phase
from nostrvpn.market.effects import Tell
from nostrvpn.market.messages import (
    Close,
    Fund,
    LeaseMessage,
    QuoteRequest,
    TopUp,
    render_message,
)

__all__ = ["message_of", "request_of", "tell"]


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
    is_money = isinstance(message, Fund | TopUp | Close)
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
        mints=(lease.mint,),
        relays=relays,
        nonce=lease.nonce,
    )
