"""What ``exit buy`` says, as a wish, and what came of it in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from nostrvpn.cashu.mint_url import parse_mint_url
from nostrvpn.daemon.market_board import MarketBoard
from nostrvpn.daemon.market_parts import Parts
from nostrvpn.errors import UsageError, UserError
from nostrvpn.exits.offer import parse_country
from nostrvpn.identity.keys import RootSecret, parse_npub
from nostrvpn.market.ceilings import Ceilings
from nostrvpn.market.offer import Offer
from nostrvpn.market.terms import PayMode, Price, price_text
from nostrvpn.market.wish import AUTO, Wish
from nostrvpn.nostr.event import public_key

__all__ = ["bought_document", "named_offer", "parse_wish", "refuse_unfunded", "third_parties"]

_BUDGET = re.compile(r"([0-9]{1,9})\s*sats?/(day|hour)\Z", re.IGNORECASE)
_Json = dict[str, Any]
_WORKING = ("connected", "short", "leaving")


def parse_wish(args: Mapping[str, Any], root: RootSecret) -> Wish:
    """Return what the arguments of ``exit_buy`` ask for; UsageError."""
    base = Ceilings()
    day, hour = base.day_sat, base.hour_sat
    if args["budget"]:
        found = _BUDGET.match(args["budget"].strip())
        if found is None or not int(found[1]):
            raise UsageError(f"{args['budget']!r} is no budget", "for example: 500sat/day")
        if found[2].lower() == "day":
            day = int(found[1])
            hour = min(hour, day) if day < hour else max(hour, day // 4)
        else:
            hour = int(found[1])
            day = max(day, hour)
    ceilings = Ceilings(
        Price.parse(args["max_price"]).per_gib_msat if args["max_price"] else base.gib_msat,
        _hourly(args["max_price_time"]) if args["max_price_time"] else base.hour_msat,
        min(base.slice_sat, hour),
        hour,
        day,
    )
    modes = Wish().modes if args["pay"] is None else (PayMode(args["pay"]),)
    if modes == (PayMode.BOLT11,):  # a payment that waits for our word risks less
        modes = (PayMode.HOLD, PayMode.BOLT11)
    arbiters = third_parties(root, args["escrow"])
    if arbiters and args["pay"] is not None:
        raise UsageError("--escrow is a way to pay of its own", "leave --pay out")
    return Wish(
        args["offer"],
        ceilings,
        parse_country(args["country"]) if args["country"] else "",
        (args["ip_version"],) if args["ip_version"] else (4,),
        tuple(parse_mint_url(url) for url in args["mint"]),
        (PayMode.ESCROW,) if arbiters else modes,
        max_rtt_ms=args["max_rtt"],
        as_me=args["as_me"],
        arbiters=arbiters,
    )


async def named_offer(wish: Wish, board: MarketBoard, before: Wish | None) -> Wish:
    """Return the wish with the offer that it names, however it names it, by its ``ref``.

    UserError if there is none, or it cannot be bought so: what will not come is not waited for behind a
    kill switch. One that is wanted already (``before``) is not looked for: it may be away for a while.
    """
    if wish.choice == AUTO or (before is not None and wish.choice == before.choice):
        return wish
    await board.refresh()
    try:
        found, _ = board.find(wish.choice)
    except UserError:
        await board.refresh(force=True)  # it may have come just now
        found, _ = board.find(wish.choice)
    named = replace(wish, choice=found.ref)
    reason = board.why_not(found, by_invoice=any(mode.by_invoice for mode in wish.modes))
    if not reason and isinstance(found, Offer):
        reason = named.refuse(found) or ""
    if reason:
        raise UserError(f"{found.ref} cannot be bought so: {reason}", "see: nostrvpn market list")
    return named


def third_parties(root: RootSecret, npubs: Iterable[str]) -> tuple[str, ...]:
    """Return arbiters' keys (64 hex); UsageError for what is none, and for one of this node's own."""
    own = {root.public_key, *map(public_key, (root.market_key(), root.payment_key()))}
    own |= {public_key(root.arbiter_key()), public_key(root.rating_key())}
    keys = tuple(dict.fromkeys(parse_npub(text) for text in npubs))
    if own.intersection(keys):
        raise UsageError(
            "an arbiter is a third: that is a key of this node",
            "name somebody whom both sides trust: his nostrvpn market arbitrate list shows it",
        )
    return keys


def bought_document(found: _Json) -> _Json:
    """Return what ``exit buy`` answers: the purchase, with what helps."""
    lease, lines, hint = found["lease"], [], ""
    if lease is not None:
        where = f", {lease['country']}" if lease["country"] else ""
        price = price_text(lease["gib_msat"], lease["hour_msat"])
        lines = [
            f"through {lease['offer']}{where}",
            f"{price}, paid {lease['mode']} at {lease['mint']}",
            f"{found['spent_day_sat']} sat spent or set aside today",
        ]
    if found["state"] not in _WORKING:
        hint = "it goes on in the background: nostrvpn exit status; end it: nostrvpn exit off"
    return found | {"lines": lines, "hint": hint}


def _hourly(text: str) -> int:
    return Price.parse("0sat/GiB", text).hour_msat


def refuse_unfunded(parts: Parts) -> None:
    """Raise UserError if there is no money to buy with."""
    if not (parts.rail.sat or any(free for free, _ in parts.wallet.balance().values())):
        raise UserError(
            "the wallet is empty", "put money in: nostrvpn wallet fund 1000, or wallet receive"
        )
