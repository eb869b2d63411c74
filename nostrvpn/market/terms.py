"""What is asked for a service: prices, and how they are paid. Integers only.

A price is so many millisatoshi for a step of bytes, as TollGate has it: no doubt about GB and GiB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from nostrvpn.errors import UsageError

__all__ = [
    "GIB",
    "HOUR_MS",
    "LIGHTNING",
    "MAX_MSAT",
    "MIB",
    "PayMode",
    "Price",
    "Terms",
    "least_invoice_sat",
    "price_text",
    "sat_text",
]

MIB, GIB = 1 << 20, 1 << 30
HOUR_MS = 3_600_000
# All bitcoin there will be, in msat: nobody's sum is larger.
MAX_MSAT = 21_000_000 * 100_000_000 * 1000
# Stands where else the URL of a mint does: a connected Lightning wallet.
LIGHTNING = "lightning"
# An invoice costs seconds and a routing fee: none is made over less than this, or ten minutes.
_LEAST_INVOICE_SAT, _LEAST_INVOICE_MS = 10, 600_000

_MSAT = {"sat": 1000, "sats": 1000, "msat": 1}
_BYTES = {"gib": GIB, "mib": MIB, "gb": 10**9, "mb": 10**6}
_TRAFFIC = re.compile(r"([0-9]{1,12})\s*(sats?|msat)/(gib|mib|gb|mb)\Z", re.IGNORECASE)
_TIME = re.compile(r"([0-9]{1,12})\s*(sats?|msat)/h(?:our)?\Z", re.IGNORECASE)


class PayMode(Enum):
    """How a slice is paid: a token that the seller swaps first (``PLAIN``), proofs locked to the seller
    and shown one after the other (``LOCKED``), the same but locked to two of seller, buyer and an
    arbiter (``ESCROW``), a Spilman channel (``CHANNEL``), an invoice (``BOLT11``), or one whose payment
    waits in the network for the buyer's word (``HOLD``)."""

    PLAIN = "plain"
    LOCKED = "locked"
    CHANNEL = "channel"
    BOLT11 = "bolt11"
    ESCROW = "escrow"
    HOLD = "hold"

    @property
    def is_locked(self) -> bool:
        """Whether it is credited by what its lock says, before the mint is asked."""
        return self in (PayMode.LOCKED, PayMode.ESCROW)

    @property
    def by_invoice(self) -> bool:
        """Whether it is paid by Lightning."""
        return self in (PayMode.BOLT11, PayMode.HOLD)

    @property
    def account(self) -> str:
        """What the seller has of a payment that is credited: proofs not redeemed, a channel, money."""
        is_kept = self.is_locked or self is PayMode.HOLD
        return "locked" if is_kept else "channel" if self is PayMode.CHANNEL else "wallet"


def sat_text(msat: int) -> str:
    """Return a price in sat, as prices are shown: "20", "0.25".

    A step is a whole number of bytes, so 20 sat/GiB are 20.001 in truth.
    """
    return f"{round(msat / 1000, 2):.10g}"


def price_text(gib_msat: int, hour_msat: int) -> str:
    """Return a price in words: "20 sat/GiB", "20 sat/GiB and 1 sat/h"."""
    text = f"{sat_text(gib_msat)} sat/GiB"
    return text + f" and {hour_msat / 1000:g} sat/h" if hour_msat else text


@dataclass(frozen=True, slots=True)
class Price:
    """``step_msat`` for each ``step_bytes``, both directions together, and ``hour_msat`` an hour."""

    step_bytes: int
    step_msat: int
    hour_msat: int = 0

    def due(self, billable: int, ms: int) -> int:
        """Return what is owed (msat) for so many bytes and milliseconds, each rounded up."""
        traffic = -(-billable * self.step_msat // self.step_bytes)
        return traffic - (-ms * self.hour_msat // HOUR_MS)

    def bytes_for(self, msat: int) -> int:
        """Return how many bytes a sum pays for at most, if no time is charged."""
        return msat * self.step_bytes // self.step_msat if self.step_msat else 1 << 62

    @property
    def per_gib_msat(self) -> int:
        """Return the price of a GiB, rounded up."""
        return -(-GIB * self.step_msat // self.step_bytes)

    @classmethod
    def parse(cls, traffic: str, time: str = "0sat/h") -> Price:
        """Read ``20sat/GiB`` and ``5sat/h`` (also msat, MiB, GB, MB); UsageError.

        The step is what one sat buys, so that the smallest payment is one step.
        """
        found, hourly = _TRAFFIC.match(traffic.strip()), _TIME.match(time.strip())
        if found is None:
            raise UsageError(f"{traffic!r} is no price of traffic", "for example: 20sat/GiB")
        if hourly is None:
            raise UsageError(f"{time!r} is no price of time", "for example: 5sat/h")
        msat = int(found[1]) * _MSAT[found[2].lower()]
        hour = int(hourly[1]) * _MSAT[hourly[2].lower()]
        size = _BYTES[found[3].lower()]
        if msat > MAX_MSAT or hour > MAX_MSAT:
            raise UsageError(f"{traffic!r}: there is not that much bitcoin")
        if msat == 0:
            return cls(size, 0, hour)
        if msat > 1000 * size:
            raise UsageError(f"{traffic!r} is more than a sat a byte")
        return cls(size * 1000 // msat, 1000, hour)


@dataclass(frozen=True, slots=True)
class Terms:
    """What an offer and a quote share.

    ``mints``: URLs whose tokens are taken; ``pay``: the best mode first; ``free_bytes``: to try;
    ``grace_bytes``: served beyond what was paid; ``max_slice_sat``: the most taken at once.
    """

    price: Price
    mints: tuple[str, ...]
    pay: tuple[PayMode, ...] = (PayMode.LOCKED, PayMode.PLAIN)
    free_bytes: int = MIB
    grace_bytes: int = 256 * 1024
    max_slice_sat: int = 1000


def least_invoice_sat(price: Price) -> int:
    """Return the least that an invoice is made over (sat): ten, or ten minutes if they cost more."""
    return max(_LEAST_INVOICE_SAT, -(-price.due(0, _LEAST_INVOICE_MS) // 1000))
