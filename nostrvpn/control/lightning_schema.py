"""Arguments of the commands that move money by Lightning; ``schema`` has the table. Amounts are sat."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = [
    "WalletConnect",
    "WalletFund",
    "WalletFunded",
    "WalletKeysend",
    "WalletPayout",
    "WalletWithdraw",
]

_Sat = Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
_Url = Annotated[str, msgspec.Meta(max_length=200)]


class WalletFund(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``mint``: empty where only one is trusted; ``by_wallet``: a connected one pays, None: if any."""

    amount: _Sat
    mint: _Url = ""
    by_wallet: bool | None = None


class WalletFunded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``ref``: what ``wallet_fund`` answered."""

    ref: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class WalletWithdraw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``amount``: None is all; ``to``: an invoice, an address, or empty: the connected wallet."""

    amount: _Sat | None = None
    to: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    mint: _Url = ""


class WalletConnect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``link``: ``nostr+walletconnect://…``, or None: no wallet any more."""

    link: Annotated[str, msgspec.Meta(max_length=2000)] | None


class WalletKeysend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``payee``: a Lightning node's public key."""

    payee: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    amount: _Sat
    note: Annotated[str, msgspec.Meta(max_length=200)] = ""


class WalletPayout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``threshold``: None is no more; ``to``: an address, or empty: the connected wallet."""

    threshold: _Sat | None
    to: Annotated[str, msgspec.Meta(max_length=320)] = ""
