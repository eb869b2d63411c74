"""What is said of the market: how a sale stands, and what is added to the node's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nostrvpn.daemon.market_hours import Hours
from nostrvpn.endpoint import Endpoint
from nostrvpn.market.offer import Offer
from nostrvpn.market.opening import Standing
from nostrvpn.market.sale import Sale
from nostrvpn.market.terms import price_text
from nostrvpn.node.problems import problem

__all__ = ["NOT_SOLD", "added", "sale_document", "with_hours", "with_versions"]

_Json = dict[str, Any]
# Mbit/s and GB as providers say them: decimal.
_MBIT, _GB = 125_000, 1_000_000_000
# By the purchase's state (market/buyer_state.py); the others go on by themselves.
_PURCHASE = {"short": "purchase_short", "paused": "purchase_paused", "looking": "purchase_waits"}

NOT_SOLD: Final[_Json] = {"state": "off", "text": "nothing is sold", "lines": [], "leases": 0}


def sale_document(
    sale: Sale,
    offer: Offer,
    endpoints: Sequence[Endpoint],
    live: int,
    taken: int,
    error: str | None,
) -> _Json:
    """Return how a sale stands, for people and programs.

    ``live``: leases that run; ``taken``: relays that have the offer; ``error``: why nobody can use it.
    """
    state, text = "on", "this exit is for sale"
    if error is not None:
        state, text = "failed", error
    elif not taken:
        state, text = "waiting", "this exit is for sale once a relay has taken the offer"
    price = sale.terms.price
    lines = [
        price_text(price.per_gib_msat, price.hour_msat),
        f"tokens of {', '.join(sale.terms.mints)}",
        f"policy {sale.policy.name}" + (f", country {sale.country}" if sale.country else ""),
    ]
    if endpoints:
        lines.append(f"buyers come to {', '.join(map(str, endpoints))}")
    have = "1 relay has" if taken == 1 else f"{taken} relays have"
    lines.append(f"{live} of at most {sale.max_sessions} buyers; {have} the offer")
    return {
        "state": state,
        "text": text,
        "lines": lines,
        "leases": live,
        "offer": offer.ref,
        "seller": offer.seller,
        "relays": taken,
        "endpoints": list(map(str, endpoints)),
        "sale": sale.to_json(),
    }


def with_hours(told: _Json, sale: Sale, hours: Hours) -> _Json:
    """Return how a sale stands, with when it is open, what each gets, and what the month brought."""
    state, text = told["state"], told["text"]
    if state != "failed" and hours.standing is not Standing.OPEN:
        state = hours.standing.value
        done = "closes in a minute" if hours.standing is Standing.CLOSING else "is closed"
        text = f"this exit is for sale, and {done}: {hours.why}"
    return told | {
        "state": state,
        "text": text,
        "lines": [*told["lines"], *_limits(sale, hours)],
        "rate": hours.rate,
        "month": hours.account.month,
        "month_bytes": hours.account.used,
    }


def with_versions(told: _Json, only_ipv4: str | None) -> _Json:
    """Return how a sale stands, with why this host's IPv6 is not sold, if there is some."""
    lines = [f"without IPv6: {only_ipv4}"] if only_ipv4 is not None else []
    return told | {"lines": [*told["lines"], *lines], "only_ipv4": only_ipv4}


def _limits(sale: Sale, hours: Hours) -> list[str]:
    """Return what buyers get at most, in lines."""
    lines = [f"at most {hours.rate / _MBIT:.3g} Mbit/s for each"] if hours.rate else []
    if sale.limits.budget:
        used, budget = hours.account.used / _GB, sale.limits.budget / _GB
        lines.append(f"{used:.3g} of {budget:g} GB sold in {hours.account.month or 'this month'}")
    if sale.quiet is not None:
        lines.append(f"nobody is served {sale.quiet}, by this host's clock")
    return lines


def added(name: str, answer: _Json, purchase: _Json, sale: _Json, free_sat: int) -> _Json:
    """Return the answer to command ``name`` with what the market adds.

    ``purchase`` and ``sale``: the documents of customer and shop; ``free_sat``: what can be spent.
    """
    match name:
        case "exit_status":
            return answer | {"purchase": purchase, "sale": {k: sale[k] for k in ("state", "text")}}
        case "exit_list":
            return answer | {"wallet_sat": free_sat}
        case "status":
            known = answer["problems"]
            if purchase["state"] == "looking":
                # Nobody is asked yet who could be silent: the market knows better what is missing.
                known = [one for one in known if one["code"] != "exit_unreachable"]
            return answer | {"problems": [*known, *_problems(purchase, sale)]}
        case _:
            return answer


def _problems(purchase: _Json, sale: _Json) -> list[_Json]:
    found = []
    code = _PURCHASE.get(purchase["state"])
    if code is not None:
        found.append(problem(code, reason=purchase["reason"] or "it is only beginning to look"))
    if sale["state"] == "failed":
        found.append(problem("sale_failed", reason=sale["text"]))
    elif sale["state"] == "waiting":
        found.append(problem("sale_unlisted"))
    if sale["state"] != "failed" and sale.get("only_ipv4"):
        found.append(problem("sale_without_ipv6", reason=sale["only_ipv4"]))
    return [one.to_json() for one in found]
