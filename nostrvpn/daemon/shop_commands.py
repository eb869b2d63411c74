"""The commands about selling, and about what is bought: arguments as ``market_schema`` has them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from nostrvpn.cashu.mint_url import parse_mint_url
from nostrvpn.daemon.market_customer import Customer
from nostrvpn.daemon.market_shop import Shop
from nostrvpn.daemon.market_wishes import third_parties
from nostrvpn.errors import UserError
from nostrvpn.exits.limits import ExitLimits
from nostrvpn.exits.offer import parse_country
from nostrvpn.exits.policy import ExitPolicy, parse_word
from nostrvpn.identity.keys import npub, parse_npub
from nostrvpn.market.introduction import introduced
from nostrvpn.market.opening import Quiet
from nostrvpn.market.sale import DUTIES, Sale, parse_contact, parse_place
from nostrvpn.market.statements import Session, days_in_order, earnings, sessions
from nostrvpn.market.terms import MIB, PayMode, Price, Terms

__all__ = ["SHOP_COMMANDS", "ShopCommand", "buyer_named"]

# Mbit/s and GB as providers say them: decimal.
_MBIT, _GB = 125_000, 1_000_000_000
# New connections of each buyer a second.
_CONNECTIONS = 50
_DAY_S = 86_400
_Args = Mapping[str, Any]
_Json = dict[str, Any]
ShopCommand = Callable[[Shop, Customer, _Args], Awaitable[_Json]]


async def market_sell(shop: Shop, _customer: Customer, args: _Args) -> _Json:
    """Put this node's exit on the market."""
    if not args["i_understand"] and shop.sale is None:
        raise UserError(
            "selling to strangers asks something of you: " + " ".join(DUTIES),
            "docs/providers.md says more; then say it again with --i-understand",
        )
    price = Price.parse(args["price"], args["price_time"])
    mints = tuple(dict.fromkeys(parse_mint_url(url) for url in args["mint"]))
    allow, deny = (tuple(parse_word(text) for text in args[key]) for key in ("allow", "deny"))
    given = args["connections"]
    limits = ExitLimits(
        int(args["client_rate"] * _MBIT),
        int(args["bandwidth"] * _MBIT),
        _CONNECTIONS if given is None else given,
        int(args["budget"] * _GB),
    )
    terms = Terms(price, mints, free_bytes=args["free"] * MIB)
    more = [PayMode(word) for word in dict.fromkeys(args["pay"])]
    arbiters = third_parties(shop.root, args["escrow"]) if args["escrow"] else ()
    more += [PayMode.ESCROW] if arbiters else []
    sale = Sale(
        replace(terms, pay=(*terms.pay, *more)),
        ExitPolicy(args["policy"], allow, deny),
        limits,
        parse_country(args["country"]) if args["country"] else "",
        args["ipv6"],
        args["max_sessions"],
        parse_place(args["endpoint"]) if args["endpoint"] else "",
        args["port"],
        args["pow"],
        parse_contact(args["contact"]),
        args["mirror"],
        only=tuple(map(parse_npub, args["only"])),
        never=tuple(map(parse_npub, args["never"])),
        escrow=arbiters,
        quiet=Quiet.parse(args["quiet"]) if args["quiet"] else None,
    )
    await shop.sell(sale)
    return shop.document()


async def market_sell_stop(shop: Shop, _customer: Customer, _args: _Args) -> _Json:
    """Take it off the market."""
    await shop.stop_selling()
    return shop.document()


async def market_selling(shop: Shop, _customer: Customer, _args: _Args) -> _Json:
    """Tell what is for sale, and how that stands."""
    return shop.document()


async def exit_purchase(_shop: Shop, customer: Customer, _args: _Args) -> _Json:
    """Tell how the purchase stands."""
    return customer.document()


async def market_sessions(shop: Shop, customer: Customer, args: _Args) -> _Json:
    """List the leases that were sold and bought, the newest first."""
    since = shop.now - _DAY_S * args["days"]
    sold = [asdict(one) for one in _sold(shop) if (one.ended_at or one.granted_at) >= since]
    return {"sold": sold, "bought": [one for one in customer.past() if one["at"] >= since]}


def _sold(shop: Shop) -> tuple[Session, ...]:
    return sessions(shop.leases, [row for row in shop.past if isinstance(row, Mapping)])


async def market_earnings(shop: Shop, customer: Customer, args: _Args) -> _Json:
    """Tell what selling brought by day, the oldest first, and both books."""
    rows = earnings(shop.seller.ledger, _sold(shop))
    days = [asdict(one) for one in days_in_order(rows, shop.now, args["days"])]
    books = {"sold": shop.seller.ledger, "bought": customer.buyer.ledger}
    return {
        "days": days,
        "accounts": {name: dict(sorted(book.accounts().items())) for name, book in books.items()},
        "problems": [*shop.seller.problems(), *customer.buyer.ledger.check()],
    }


def buyer_named(shop: Shop, target: str) -> str:
    """Return the npub of the buyer of a lease that was sold (its id, or six characters of it, or more).

    What is none is returned as it is.
    """
    found = [x for x in shop.leases if len(target) > 5 and x.id.startswith(target)]
    if len(found) != 1:
        return target
    lease = found[0]
    return npub(introduced(lease.request, lease.buyer, shop.seller.pubkey) or lease.buyer)


SHOP_COMMANDS: dict[str, ShopCommand] = {
    "market_sell": market_sell,
    "market_sell_stop": market_sell_stop,
    "market_selling": market_selling,
    "market_sessions": market_sessions,
    "market_earnings": market_earnings,
    "exit_purchase": exit_purchase,
}
