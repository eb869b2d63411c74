"""The arguments of the commands about escrow: cases that an arbiter decides, and disputes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["EscrowArbitrate", "EscrowCases", "EscrowDispute"]

_Id = Annotated[str, msgspec.Meta(max_length=100)]
_Npubs = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=100)]], msgspec.Meta(max_length=1000)
]


class EscrowCases(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``market arbitrate list`` and ``show``: of one ``case``, by its id or the begin of it."""

    case: _Id = ""


class EscrowArbitrate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``market arbitrate start``, ``stop`` and ``decide``; ``only``: sellers whose cases are taken."""

    action: Literal["start", "stop", "decide"]
    case: _Id = ""
    winner: Literal["seller", "buyer"] | None = None
    only: _Npubs = []


class EscrowDispute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``market dispute``: of a lease that was sold or bought, by its id or the begin of it."""

    lease: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    text: Annotated[str, msgspec.Meta(max_length=1024)] = ""
