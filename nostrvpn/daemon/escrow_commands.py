"""The commands about escrow: arguments as ``control.escrow_schema`` has them, JSON back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nostrvpn.daemon.arbiter_bench import Bench
from nostrvpn.daemon.market_customer import Customer
from nostrvpn.daemon.market_shop import Shop
from nostrvpn.errors import UsageError, UserError
from nostrvpn.identity.keys import npub, parse_npub
from nostrvpn.market.arbiter import Case
from nostrvpn.market.messages import Claim

__all__ = ["ESCROW_COMMANDS"]

_Args = Mapping[str, Any]
_Json = dict[str, Any]
_Command = Callable[[Bench, Shop, Customer, _Args], Awaitable[_Json]]


async def market_cases(bench: Bench, _shop: Shop, _customer: Customer, args: _Args) -> _Json:
    """List the cases, or show one in full."""
    if args["case"]:
        return _case(bench.arbiter.find(args["case"])) | {"error": bench.error or None}
    return {
        "npub": npub(bench.arbiter.pubkey),
        "state": "open" if bench.is_open else "closed",
        "only": sorted(npub(key) for key in bench.arbiter.only),
        "cases": [_case(case) for case in bench.arbiter.cases],
        "error": bench.error or None,
    }


async def market_arbitrate(bench: Bench, shop: Shop, customer: Customer, args: _Args) -> _Json:
    """Begin or end to hear claims, or decide a case."""
    if args["action"] == "start":
        bench.open([parse_npub(text) for text in args["only"]])
    elif args["action"] == "stop":
        bench.close()
    else:
        if not args["case"] or args["winner"] is None:
            raise UsageError("a decision needs a case, and for whom")
        bench.decide(args["case"], args["winner"])
        return _case(bench.arbiter.find(args["case"]))
    return await market_cases(bench, shop, customer, {"case": ""})


async def market_dispute(_bench: Bench, shop: Shop, customer: Customer, args: _Args) -> _Json:
    """Have the arbiter of a lease asked, with the user's words."""
    name = args["lease"]
    sold = [lease.id for lease in shop.leases if lease.id.startswith(name)]
    bought = [one for one in customer.leases_in_escrow if one.startswith(name)]
    if len(sold) + len(bought) != 1:
        raise UserError(
            f"{name} is no lease in escrow here, or several", "see: nostrvpn market sessions"
        )
    if sold:
        shop.dispute(sold[0], args["text"])
    else:
        customer.dispute(bought[0], args["text"])
    return {"lease": (sold or bought)[0], "side": "seller" if sold else "buyer"}


def _case(case: Case) -> _Json:
    return {
        "id": case.id,
        "lease": case.lease_id,
        "seller": npub(case.seller),
        "buyer": npub(case.buyer),
        "state": case.state,
        "opened_at": case.opened_at,
        "decided_at": case.decided_at or None,
        "ends_at": case.locktime,
        "claims": {side: _claim(claim) for side, claim in case.claims.items()},
    }


def _claim(claim: Claim) -> _Json:
    used = max(0, min(claim.credit_msat, claim.due_msat - claim.before_msat))
    return {
        "sat": claim.sat,
        "used_msat": used,
        "due_msat": claim.due_msat,
        "paid_msat": claim.paid_msat,
        "bytes": claim.billable,
        "ms": claim.ms,
        "mint": claim.mint,
        "reason": claim.reason,
        "text": claim.text,
        "quote": claim.quote,
        "receipt": claim.receipt,
    }


ESCROW_COMMANDS: dict[str, _Command] = {
    "market_cases": market_cases,
    "market_arbitrate": market_arbitrate,
    "market_dispute": market_dispute,
}
