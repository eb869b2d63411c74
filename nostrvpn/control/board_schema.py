"""Arguments of the commands about finding exits to buy and trusting them; ``schema`` has the table."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["MarketKey", "MarketList", "MarketOffer", "MarketRate", "MarketReport"]

_Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Price = Annotated[str, msgspec.Meta(max_length=40)]
_Label = Literal["speed", "country-mismatch", "overcharge", "blocked-ports", "no-service"]


class MarketList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``market list``: prices as ``20sat/GiB`` and ``5sat/h``; empty: any."""

    country: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=100)]],
        msgspec.Meta(max_length=32),
    ] = []
    max_price: _Price = ""
    max_price_time: _Price = ""
    mint: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]],
        msgspec.Meta(max_length=8),
    ] = []
    ip_version: Literal[4, 6] | None = None
    sort: Literal["trust", "price", "latency", "country"] = "trust"
    refresh: bool = False


class MarketOffer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``market why``."""

    offer: _Reference


class MarketRate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``market rate``: of an offer, or of a lease that was bought."""

    target: _Reference
    score: Annotated[int, msgspec.Meta(ge=-100, le=100)]
    labels: Annotated[list[_Label], msgspec.Meta(max_length=5)] = []
    as_me: bool = False


class MarketReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``market report`` (NIP-56)."""

    target: _Reference
    type: Literal["nudity", "malware", "profanity", "illegal", "spam", "impersonation", "other"] = (
        "other"
    )
    as_me: bool = False


class MarketKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``market deny`` and ``market allow``: an npub, or an offer whose seller is meant."""

    seller: _Reference
    remove: bool = False
