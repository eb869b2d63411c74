"""Arguments of the commands about the wallet; ``schema`` has the table. Amounts are sat."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = [
    "WalletHistory",
    "WalletMint",
    "WalletReceive",
    "WalletRestore",
    "WalletSend",
    "WalletToken",
]

_Sat = Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
_Url = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class WalletReceive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``mint_ok``: trust its mint from now on, if it is not yet."""

    token: Annotated[str, msgspec.Meta(min_length=1, max_length=500_000)]
    mint_ok: bool = False


class WalletSend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``mint``: empty: where the most is."""

    amount: _Sat
    mint: Annotated[str, msgspec.Meta(max_length=200)] = ""


class WalletToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``ref``: what ``wallet_send`` answered, and the history says."""

    ref: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class WalletHistory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``limit``: how many entries, the newest."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 50


class WalletRestore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``words``: of another wallet; None: this one's own."""

    words: Annotated[str, msgspec.Meta(min_length=1, max_length=400)] | None = None


class WalletMint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``url``: ``https://HOST…``."""

    url: _Url
