"""What a buyer's state is called, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.machine import Moment
from nostrvpn.market.bought_lease import Phase
from nostrvpn.market.buying import Buying
from nostrvpn.market.ceilings import DAY, HOUR

if TYPE_CHECKING:
    from nostrvpn.market.buyer import Buyer

__all__ = ["document"]

_TEXTS = {
    "off": "no exit is bought",
    "looking": "looking for an offer",
    "asking": "sellers are asked for their price",
    "trying": "the tunnel is tried",
    "paying": "the first slice is being paid",
    "connected": "traffic goes through a bought exit",
    "short": "connected, and the next slice cannot be paid",
    "paused": "the seller waits for money",
    "leaving": "connected, and another seller is looked for",
}
_PHASES = {
    Phase.ASKING: "asking",
    Phase.QUOTED: "asking",
    Phase.TRYING: "trying",
    Phase.PROBING: "trying",
    Phase.PAYING: "paying",
}


def document(buyer: Buyer, moment: Moment) -> dict[str, object]:
    """Return the state in a word, in a sentence, with its reason, and what it costs."""
    using = buyer.using
    others = [d for d in buyer.deals if d is not using and d.lease.phase in _PHASES]
    reason = ""
    if buyer.wish is None:
        state = "off"
    elif using is not None:
        reason = using.is_short or using.wants_out
        state = _in_use(using)
    elif others:
        furthest = max(others, key=lambda d: list(_PHASES).index(d.lease.phase))
        state, reason = _PHASES[furthest.lease.phase], furthest.is_short
    else:
        state, reason = "looking", buyer.why
    spending = buyer.pocket.spending
    coming = sum(p.sat for d in buyer.deals for p in d.lease.parcels if not p.is_settled)
    return {
        "state": state,
        "text": f"{_TEXTS[state]}: {reason}" if reason else _TEXTS[state],
        "reason": reason,
        "budget_hour_sat": buyer.wish.ceilings.hour_sat if buyer.wish is not None else 0,
        "budget_day_sat": buyer.wish.ceilings.day_sat if buyer.wish is not None else 0,
        "spent_hour_sat": spending.spent(HOUR, moment),
        "spent_day_sat": spending.spent(DAY, moment),
        "coming_home_sat": coming,
        "lease": _lease(using) if using is not None else None,
    }


def _in_use(using: Buying) -> str:
    if using.told.is_suspended:
        return "paused"
    if using.is_short:
        return "short"
    return "leaving" if using.wants_out else "connected"


def _lease(using: Buying) -> dict[str, object]:
    lease, bill = using.lease, using.count.bill
    return {
        "offer": lease.offer.ref,
        "seller": lease.seller,
        "country": using.tries.country or lease.offer.country,
        "is_country_seen": bool(using.tries.country),
        "mode": lease.mode.value,
        "mint": lease.mint,
        "gib_msat": bill.price.per_gib_msat,
        "hour_msat": bill.price.hour_msat,
        "bytes": using.count.used,
        "ms": lease.ms,
        "due_msat": bill.due_msat,
        "paid_msat": lease.paid_msat,
        "rtt_ms": using.tries.rtt_ms,
        "since": lease.started_at,
    }
