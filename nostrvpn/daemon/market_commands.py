"""The commands about offers and sellers: arguments as ``control.board_schema`` has them, JSON back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from nostrvpn.cashu.mint_url import parse_mint_url
from nostrvpn.daemon.market_board import MarketBoard
from nostrvpn.errors import UserError
from nostrvpn.exits.offer import parse_country
from nostrvpn.identity.keys import npub, parse_npub
from nostrvpn.market.book import AnyOffer
from nostrvpn.market.foreign import ForeignOffer
from nostrvpn.market.listing import Asked, Row
from nostrvpn.market.offer import Offer
from nostrvpn.market.ratings import Rating
from nostrvpn.market.terms import Price
from nostrvpn.market.trust import explain

__all__ = ["BOARD_COMMANDS"]

# Of rows that cannot be bought: a flood of them would bury the answer.
_MAX_GREY: Final = 200

_Args = Mapping[str, Any]


async def market_list(board: MarketBoard, args: _Args) -> dict[str, object]:
    """Fetch what is offered and return it: ``offers[]``, those that can be bought first."""
    asked = Asked(
        countries=frozenset(map(parse_country, args["country"])),
        mints=frozenset(parse_mint_url(url) for url in args["mint"]),
        max_gib_msat=Price.parse(args["max_price"]).per_gib_msat if args["max_price"] else None,
        max_hour_msat=_hour(args["max_price_time"]),
        version=args["ip_version"],
        sort=args["sort"],
    )
    await board.refresh(force=args["refresh"])
    found = board.rows(asked)
    usable = [row for row in found if row.is_usable]
    grey = found[len(usable) :]
    return {
        "offers": [_row(row) for row in (*usable, *grey[:_MAX_GREY])],
        "left_out": max(0, len(grey) - _MAX_GREY),
        **board.summary(),
    }


def _hour(text: str) -> int | None:
    return Price.parse("0sat/GiB", text).hour_msat if text else None


async def market_why(board: MarketBoard, args: _Args) -> dict[str, object]:
    """Return an offer in full, why it cannot be bought, and its trust line by line."""
    await board.refresh()
    offer, trust = board.find(args["offer"])
    row = next((row for row in board.rows(Asked()) if row.offer.address == offer.address), None)
    parts = [
        {"name": part.name, "weight": part.weight, "value": part.value, "text": part.text}
        for part in trust.parts
    ]
    shown = _row(row) if row is not None else _offer(offer) | {"trust": round(trust.score, 3)}
    return {**shown, "parts": parts, "lines": list(explain(trust))}


async def market_rate(board: MarketBoard, args: _Args) -> dict[str, object]:
    """Publish a rating of a lease (with its receipt's hash) or of an offer."""
    seller, address, receipt = await _bought_or_offered(board, args["target"])
    score, labels = args["score"], tuple(dict.fromkeys(args["labels"]))
    rating = Rating("", seller, address, score, receipt, labels)
    accepted = await board.rate(rating, as_main=args["as_me"])
    return {"seller": npub(seller), "score": score, "receipt": receipt or None} | _told(accepted)


async def market_report(board: MarketBoard, args: _Args) -> dict[str, object]:
    """Publish a report of abuse."""
    seller = await _seller(board, args["target"])
    accepted = await board.report(seller, args["type"], as_main=args["as_me"])
    return {"seller": npub(seller), "type": args["type"]} | _told(accepted)


async def market_deny(board: MarketBoard, args: _Args) -> dict[str, object]:
    """Buy nothing of a seller any more."""
    return await _listed(board, "denied", args)


async def market_allow(board: MarketBoard, args: _Args) -> dict[str, object]:
    """Buy of a seller whatever mutes, lists and reports say."""
    return await _listed(board, "allowed", args)


async def _listed(board: MarketBoard, name: str, args: _Args) -> dict[str, object]:
    seller = await _seller(board, args["seller"])
    board.opinions.set_list(name, seller, remove=args["remove"])
    lists = {"denied": board.opinions.denied, "allowed": board.opinions.allowed}
    return {"seller": npub(seller)} | {
        key: sorted(npub(one) for one in keys) for key, keys in lists.items()
    }


async def _bought_or_offered(board: MarketBoard, target: str) -> tuple[str, str, str]:
    """Return seller, address of the offer and hash of the receipt ("": none)."""
    lease = board.lease(target)
    if lease is not None and lease.offer:
        return lease.seller, lease.offer, lease.receipt
    await board.refresh()
    offer, _ = board.find(target)
    if not isinstance(offer, Offer):
        raise UserError("offers of another format are not rated here", "see: nostrvpn market list")
    return offer.seller, offer.address, ""


async def _seller(board: MarketBoard, target: str) -> str:
    """Return the seller (64 hex) that an npub, a lease or an offer means."""
    if target.strip().startswith("npub1"):
        return parse_npub(target)
    lease = board.lease(target)
    if lease is not None:
        return lease.seller
    await board.refresh()
    return board.find(target)[0].seller


def _told(accepted: int) -> dict[str, object]:
    return {"accepted": accepted}


def _row(row: Row) -> dict[str, object]:
    return _offer(row.offer) | {
        "gib_msat": row.gib_msat,
        "hour_msat": row.hour_msat,
        "trust": round(row.trust.score, 3),
        "rtt_ms": row.probe.rtt_ms,
        "quote_ms": row.probe.quote_ms,
        "country_seen": row.probe.country or None,
        "usable": row.is_usable,
        "why_not": [{"code": code, "text": text} for code, text in row.why_not],
    }


def _offer(offer: AnyOffer) -> dict[str, object]:
    shown: dict[str, object] = {
        "ref": offer.ref,
        "address": offer.address,
        "seller": npub(offer.seller),
        "country": offer.country or None,
        "ip_versions": list(offer.versions),
        "expires_at": offer.expires_at,
    }
    if isinstance(offer, ForeignOffer):
        return shown | {
            "market": offer.market,
            "title": offer.title,
            "price": offer.price,
            "mints": list(offer.mints),
        }
    terms = offer.terms
    return shown | {
        "market": "nostrvpn",
        "mints": list(terms.mints),
        "pay": [mode.value for mode in terms.pay],
        "escrow": [npub(key) for key in offer.escrow],
        "step_bytes": terms.price.step_bytes,
        "step_msat": terms.price.step_msat,
        "free_bytes": terms.free_bytes,
        "grace_bytes": terms.grace_bytes,
        "max_slice_sat": terms.max_slice_sat,
        "policies": list(offer.policies),
        "network_class": offer.network_class or None,
        "asn": offer.asn or None,
        "down_bps": offer.down_bps or None,
        "up_bps": offer.up_bps or None,
        "contact": offer.contact or None,
    }


BOARD_COMMANDS: Final = cast(
    Mapping[str, Callable[[MarketBoard, _Args], Awaitable[dict[str, object]]]],
    {
        "market_list": market_list,
        "market_why": market_why,
        "market_rate": market_rate,
        "market_report": market_report,
        "market_deny": market_deny,
        "market_allow": market_allow,
    },
)
