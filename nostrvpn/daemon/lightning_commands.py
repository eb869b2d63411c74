"""The commands that move money by Lightning: arguments as ``control.lightning_schema`` has them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nostrvpn.cashu.mint_url import parse_mint_url
from nostrvpn.daemon.lightning_service import LightningService, Payout
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.errors import UsageError, UserError, one_line
from nostrvpn.lightning.lnurl import address_url

__all__ = ["LIGHTNING_COMMANDS", "LightningCommand"]

_NODE = re.compile(r"0[23][0-9a-f]{64}\Z")
_Args = Mapping[str, Any]
LightningCommand = Callable[[LightningService, Wallet, _Args], Awaitable[dict[str, Any]]]


async def wallet_fund(lightning: LightningService, wallet: Wallet, args: _Args) -> dict[str, Any]:
    """Return an invoice; the money comes by itself once it is paid."""
    asked = args["by_wallet"]
    by_wallet = lightning.is_connected if asked is None else bool(asked)
    return await lightning.fund(_mint(wallet, args["mint"]), args["amount"], by_wallet=by_wallet)


async def wallet_funded(
    lightning: LightningService, _wallet: Wallet, args: _Args
) -> dict[str, Any]:
    """Tell whether the money of an invoice is here."""
    return await lightning.funded(args["ref"])


async def wallet_withdraw(
    lightning: LightningService, wallet: Wallet, args: _Args
) -> dict[str, Any]:
    """Pay an invoice or an address, or the connected wallet."""
    return await lightning.withdraw(_richest(wallet, args["mint"]), args["amount"], args["to"])


async def wallet_connect(
    lightning: LightningService, _wallet: Wallet, args: _Args
) -> dict[str, Any]:
    """Use a Lightning wallet, or none any more."""
    link = args["link"]
    return await (lightning.disconnect() if link is None else lightning.connect(link))


async def wallet_keysend(
    lightning: LightningService, _wallet: Wallet, args: _Args
) -> dict[str, Any]:
    """Pay a Lightning node from the connected wallet."""
    if not _NODE.match(args["payee"]):
        raise UsageError(
            f"{one_line(args['payee'])!r} is no Lightning node's key", "66 hex digits, 02… or 03…"
        )
    return await lightning.keysend(args["payee"], args["amount"], args["note"])


async def wallet_payout(
    lightning: LightningService, _wallet: Wallet, args: _Args
) -> dict[str, Any]:
    """Withdraw by itself above a threshold."""
    if args["threshold"] is None:
        return lightning.set_payout(None)
    if args["to"]:
        address_url(args["to"])
    return lightning.set_payout(Payout(args["threshold"], args["to"].strip()))


def _mint(wallet: Wallet, given: str) -> str:
    """Return the mint that is meant: the one named, or the only one."""
    if given:
        return parse_mint_url(given)
    known = list(wallet.balance())
    if len(known) != 1:
        many = f"there are {len(known)}" if known else "there is none"
        raise UserError(
            f"which mint? {many}",
            "name one: --mint URL" if known else "trust one first: nostrvpn wallet mints add URL",
        )
    return known[0]


def _richest(wallet: Wallet, given: str) -> str:
    """Return the mint that is meant: the one named, or the one with the most."""
    balance = wallet.balance()
    if given or not balance:
        return _mint(wallet, given)
    return max(balance, key=lambda mint: balance[mint][0])


LIGHTNING_COMMANDS: dict[str, LightningCommand] = {
    "wallet_fund": wallet_fund,
    "wallet_funded": wallet_funded,
    "wallet_withdraw": wallet_withdraw,
    "wallet_connect": wallet_connect,
    "wallet_keysend": wallet_keysend,
    "wallet_payout": wallet_payout,
}
