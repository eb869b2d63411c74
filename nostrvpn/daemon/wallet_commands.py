"""The commands about the wallet: arguments as ``control.wallet_schema`` has them, JSON back."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from nostrvpn.cashu.mint_url import parse_mint_url
from nostrvpn.cashu.purse import DONE
from nostrvpn.cashu.token import Token, parse_token, render_token
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.errors import PeerMisbehaved, UserError

__all__ = ["WALLET_COMMANDS", "WalletCommand"]

_Args = Mapping[str, Any]
WalletCommand = Callable[[Wallet, _Args], Awaitable[dict[str, Any]]]


async def wallet_balance(wallet: Wallet, _args: _Args) -> dict[str, Any]:
    """Return what is at each mint, and what is not finished yet."""
    mints = [
        {"mint": mint, "free": free, "pending": pending}
        for mint, (free, pending) in wallet.balance().items()
    ]
    unfinished = [
        {"ref": one.ref, "kind": one.kind, "mint": one.mint, "amount": one.amount, "at": one.at}
        for one in wallet.book.open.values()
    ]
    sums = {name: sum(int(str(one[name])) for one in mints) for name in ("free", "pending")}
    return {"mints": mints, "unfinished": unfinished, **sums}


async def wallet_receive(wallet: Wallet, args: _Args) -> dict[str, Any]:
    """Swap a token into the wallet."""
    try:
        parse_token(args["token"])
    except PeerMisbehaved as error:
        if error.code != "bad-token":
            raise
        words = f"this is no whole token: {error}"
        raise UserError(words, "copy all of it, from cashuA or cashuB to its end") from error
    got = await wallet.receive(args["token"], mint_ok=args["mint_ok"])
    return {"amount": got.amount, "fee": got.fee}


async def wallet_send(wallet: Wallet, args: _Args) -> dict[str, Any]:
    """Take a token out of the wallet."""
    mint = _source(wallet, args["mint"])
    ref = f"send:{os.urandom(8).hex()}"
    proofs = await wallet.take_out(ref, mint, args["amount"])
    token = render_token(Token(mint, proofs))
    return {"ref": ref, "mint": mint, "amount": args["amount"], "token": token}


async def wallet_token(wallet: Wallet, args: _Args) -> dict[str, Any]:
    """Show a token again that was sent before."""
    done = wallet.book.operation(args["ref"])
    if done is None or done.state != DONE or not done.given:
        raise UserError(
            f"no token has the name {args['ref'][:60]!r}", "see: nostrvpn wallet history"
        )
    amount = sum(proof.amount for proof in done.given)
    token = render_token(Token(done.mint, done.given))
    return {"ref": done.ref, "mint": done.mint, "amount": amount, "token": token}


async def wallet_history(wallet: Wallet, args: _Args) -> dict[str, Any]:
    """Return what was done, newest first."""
    return {"entries": wallet.history(args["limit"])}


async def wallet_backup(wallet: Wallet, _args: _Args) -> dict[str, Any]:
    """Return the words, and what they do not hold."""
    return {"words": wallet.words(), "mints": list(wallet.mints.urls())}


async def wallet_restore(wallet: Wallet, args: _Args) -> dict[str, Any]:
    """Bring money back from the mints, by words."""
    reports = [report.to_json() for report in await wallet.restore(args["words"])]
    return {"mints": reports, "found": sum(report["found"] for report in reports)}


async def wallet_check(wallet: Wallet, _args: _Args) -> dict[str, Any]:
    """Finish what was begun, and compare everything with the mints."""
    await wallet.resume()
    reports = [report.to_json() for report in await wallet.recovery.check()]
    return {"mints": reports, "unfinished": len(wallet.book.open)}


async def wallet_mints(wallet: Wallet, _args: _Args) -> dict[str, Any]:
    """Return the mints that are trusted."""
    known = wallet.mints.all_known()
    return {
        "mints": [
            {
                "mint": url,
                "fee_ppk": min((keyset.fee_ppk for keyset in keys.active()), default=None),
                "keysets": len(keys.keysets),
            }
            for url, keys in sorted(known.items())
        ]
    }


async def wallet_mint_add(wallet: Wallet, args: _Args) -> dict[str, Any]:
    """Trust a mint."""
    before = wallet.balance()
    try:
        url = await wallet.trust(args["url"])
    except WalletFailed as error:
        if parse_mint_url(args["url"]) in wallet.mints.urls():
            raise
        hint = "it is not one of yours yet: look at the URL, or try again later"
        raise UserError(str(error), hint) from error
    found = sum(wallet.balance()[url]) - sum(before.get(url, (0, 0)))
    return {"mint": url, "found": found}


async def wallet_mint_remove(wallet: Wallet, args: _Args) -> dict[str, Any]:
    """Trust a mint no longer."""
    url = parse_mint_url(args["url"])
    wallet.distrust(url)
    return {"mint": url}


def _source(wallet: Wallet, given: str) -> str:
    """Return the mint to spend from: the one named, or where the most is."""
    if given:
        return parse_mint_url(given)
    balance = wallet.balance()
    if not balance:
        raise UserError(
            "the wallet is empty, and no mint is trusted",
            "trust one: nostrvpn wallet mints add URL, or nostrvpn wallet receive --mint-ok",
        )
    return max(balance, key=lambda mint: balance[mint][0])


WALLET_COMMANDS: Final[dict[str, WalletCommand]] = {
    "wallet_balance": wallet_balance,
    "wallet_receive": wallet_receive,
    "wallet_send": wallet_send,
    "wallet_token": wallet_token,
    "wallet_history": wallet_history,
    "wallet_backup": wallet_backup,
    "wallet_restore": wallet_restore,
    "wallet_check": wallet_check,
    "wallet_mints": wallet_mints,
    "wallet_mint_add": wallet_mint_add,
    "wallet_mint_remove": wallet_mint_remove,
}
