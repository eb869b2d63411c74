"""The commands of the market, and the arguments of those about selling and buying exits."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from nostrvpn.control.board_schema import (
    MarketKey,
    MarketList,
    MarketOffer,
    MarketRate,
    MarketReport,
)
from nostrvpn.control.escrow_schema import EscrowArbitrate, EscrowCases, EscrowDispute
from nostrvpn.control.lightning_schema import (
    WalletConnect,
    WalletFund,
    WalletFunded,
    WalletKeysend,
    WalletPayout,
    WalletWithdraw,
)
from nostrvpn.control.wallet_schema import (
    WalletHistory,
    WalletMint,
    WalletReceive,
    WalletRestore,
    WalletSend,
    WalletToken,
)

__all__ = ["MARKET_COMMANDS", "ExitBuy", "ExitSell", "Period"]

# What a user types is judged where it is used, which has the words for it; here it has a length only.
_Url = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
_Country = Annotated[str, msgspec.Meta(max_length=100)]
_Urls = Annotated[list[_Url], msgspec.Meta(max_length=8)]
_Price = Annotated[str, msgspec.Meta(max_length=40)]
_Words = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=300)]], msgspec.Meta(max_length=64)
]
_Npubs = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=100)]], msgspec.Meta(max_length=1000)
]
_Arbiters = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=100)]], msgspec.Meta(max_length=8)
]
_Rate = Annotated[float, msgspec.Meta(ge=0, le=100_000)]


class ExitSell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``exit offer --public``: rates in Mbit/s, ``budget`` in GB a month, ``free`` in MiB, ``quiet`` as
    ``01:00-07:00``."""

    price: _Price
    mint: _Urls
    pay: Annotated[list[Literal["channel"]], msgspec.Meta(max_length=4)] = []
    price_time: _Price = "0sat/h"
    endpoint: Annotated[str, msgspec.Meta(max_length=260)] = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    max_sessions: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 100
    free: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 1
    pow: Annotated[int, msgspec.Meta(ge=0, le=28)] = 0
    contact: Annotated[str, msgspec.Meta(max_length=200)] = ""
    mirror: bool = False
    only: _Npubs = []
    never: _Npubs = []
    escrow: _Arbiters = []
    i_understand: bool = False
    policy: Literal["web", "reduced", "tor-default", "open"] = "tor-default"
    allow: _Words = []
    deny: _Words = []
    client_rate: _Rate = 0.0
    bandwidth: _Rate = 0.0
    connections: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    budget: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 0.0
    quiet: Annotated[str, msgspec.Meta(max_length=20)] = ""
    country: _Country = ""
    ipv6: bool = True


class ExitBuy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``exit buy``: ``offer`` is ``auto`` or what ``market list`` shows."""

    offer: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "auto"
    budget: _Price = ""
    max_price: _Price = ""
    max_price_time: _Price = ""
    country: _Country = ""
    mint: _Urls = []
    ip_version: Literal[4, 6] | None = None
    max_rtt: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 0  # ms; 0: any
    pay: Literal["locked", "plain", "bolt11", "channel"] | None = None
    kill_switch: Literal["on", "off", "lockdown"] | None = None
    allow_lan: bool | None = None
    resolver: Annotated[str, msgspec.Meta(min_length=1, max_length=50)] | None = None
    as_me: bool = False
    escrow: _Arbiters = []
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=120)] = 30.0


class Period(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``market sessions`` and ``market earnings``: of the last so many days."""

    days: Annotated[int, msgspec.Meta(ge=1, le=3660)] = 30


class Nothing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No arguments."""


# By name: arguments, and whether it changes something or shows a secret (admin).
MARKET_COMMANDS: dict[str, tuple[type[msgspec.Struct], bool]] = {
    "market_list": (MarketList, False),
    "market_why": (MarketOffer, False),
    "market_rate": (MarketRate, True),
    "market_report": (MarketReport, True),
    "market_deny": (MarketKey, True),
    "market_allow": (MarketKey, True),
    "market_sell": (ExitSell, True),
    "market_sell_stop": (Nothing, True),
    "market_selling": (Nothing, False),
    "market_sessions": (Period, False),
    "market_earnings": (Period, False),
    "market_cases": (EscrowCases, False),
    "market_arbitrate": (EscrowArbitrate, True),
    "market_dispute": (EscrowDispute, True),
    "exit_buy": (ExitBuy, True),
    "exit_purchase": (Nothing, False),
    "wallet_fund": (WalletFund, True),
    "wallet_funded": (WalletFunded, True),
    "wallet_withdraw": (WalletWithdraw, True),
    "wallet_connect": (WalletConnect, True),
    "wallet_keysend": (WalletKeysend, True),
    "wallet_payout": (WalletPayout, True),
    "wallet_balance": (Nothing, False),
    "wallet_history": (WalletHistory, False),
    "wallet_mints": (Nothing, False),
    "wallet_mint_add": (WalletMint, True),
    "wallet_mint_remove": (WalletMint, True),
    "wallet_receive": (WalletReceive, True),
    "wallet_send": (WalletSend, True),
    "wallet_token": (WalletToken, True),
    "wallet_backup": (Nothing, True),
    "wallet_restore": (WalletRestore, True),
    "wallet_check": (Nothing, True),
}
