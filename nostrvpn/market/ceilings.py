"""What may be spent: for a slice, an hour, a day, and what stays in the wallet.

Money counts from the moment it is set aside. It ages only once it was shown to a seller, so a bundle
that was locked an hour ago and is shown now is spent now. What was set aside and came back (proofs that
nobody saw) is free again.

Time is measured by a clock of our own, so no ceiling is passed by setting the computer's: it goes on
with the clock that never jumps. Only where that began anew (the machine was started) it goes
forward to Unix time, if that is ahead. So one thing can release early what was spent, once: a
date that is wrong while the machine starts. The clock is then ahead itself, or no longer behind,
and does not gain it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nostrvpn.machine import Moment
from nostrvpn.market.terms import Price, sat_text

__all__ = ["DAY", "HOUR", "Ceilings", "Spending"]

HOUR, DAY = 3600, 86_400  # seconds
# What was spent within this many seconds is one line; it counts until its end is a day old.
BUCKET = 60


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the user allows. Prices in msat, sums in sat; ``reserve_sat`` stays in the wallet.

    The defaults of the prices are several times what others ask (TollGate about 49 sat/GiB).
    """

    gib_msat: int = 100_000
    hour_msat: int = 200_000
    slice_sat: int = 100
    hour_sat: int = 500
    day_sat: int = 2000
    reserve_sat: int = 0

    def refuse_price(self, price: Price) -> str | None:
        """Return why a price is too high, None if it is not."""
        # A thousandth more, as a step is a whole number of bytes: 100 sat/GiB is 100.001 in truth.
        if 1000 * price.per_gib_msat > 1001 * self.gib_msat:
            return (
                f"{sat_text(price.per_gib_msat)} sat/GiB is above {sat_text(self.gib_msat)} sat/GiB"
            )
        if price.hour_msat > self.hour_msat:
            return f"{sat_text(price.hour_msat)} sat/h is above {sat_text(self.hour_msat)} sat/h"
        return None


class Spending:
    """What was spent and set aside; one for the whole wallet, whatever is bought.

    Each sum has a ``ref``: the same ref asked again changes nothing. The owner stores ``record()``
    before what it allowed leaves, and gives it back as ``record`` after a restart. ``boot`` is a
    word that each start of the machine has anew (Linux: ``/proc/sys/kernel/random/boot_id``).
    """

    def __init__(
        self, moment: Moment, boot: str, record: Mapping[str, object] | None = None
    ) -> None:
        self._boot = boot
        self._now = moment.now
        self._clock = int(moment.wall)
        self._spent: dict[int, int] = {}  # by the end of its minute, by our clock
        self._aside: dict[str, tuple[int, int]] = {}  # set aside, and shown of it
        if record is not None:
            self._restore(record, moment)

    def clock(self, moment: Moment) -> int:
        """Return the time by our own clock (s)."""
        return self._clock + max(0, int(moment.now - self._now))

    def allowed(self, ceilings: Ceilings, wallet_sat: int, moment: Moment) -> int:
        """Return how many sat may be set aside now, at most; of that a slice is a part."""
        clock = self.clock(moment)
        aside = self._all_aside()
        return max(
            0,
            min(
                ceilings.hour_sat - aside - self._since(clock - HOUR),
                ceilings.day_sat - aside - self._since(clock - DAY),
                wallet_sat - ceilings.reserve_sat,
            ),
        )

    def why_not(self, ceilings: Ceilings, wallet_sat: int, moment: Moment) -> str:
        """Return which ceiling is nearest, in words."""
        clock, aside = self.clock(moment), self._all_aside()
        day, hour = aside + self._since(clock - DAY), aside + self._since(clock - HOUR)
        left = {
            f"the wallet has {wallet_sat} sat, of which {ceilings.reserve_sat} stay": (
                wallet_sat - ceilings.reserve_sat
            ),
            f"{day} of {ceilings.day_sat} sat for a day are spent": ceilings.day_sat - day,
            f"{hour} of {ceilings.hour_sat} sat for an hour are spent": ceilings.hour_sat - hour,
        }
        return min(left, key=lambda text: left[text])

    def set_aside(self, ref: str, sat: int, moment: Moment) -> None:
        """Set aside what ``allowed`` allowed; a ref that is set aside already changes nothing."""
        self._go_on(moment)
        self._aside.setdefault(ref, (sat, 0))

    def show(self, ref: str, total: int, moment: Moment) -> None:
        """Of what was set aside, ``total`` (sat, all in all) is spent: sellers have it, or the mint."""
        self._go_on(moment)
        sat, shown = self._aside.get(ref, (0, 0))
        more = min(sat, total) - shown
        if more > 0:
            self._aside[ref] = (sat, shown + more)
            end = (self._clock // BUCKET + 1) * BUCKET
            self._spent[end] = self._spent.get(end, 0) + more

    def put_back(self, ref: str, moment: Moment) -> None:
        """Free what of ``ref`` was never shown: it is in the wallet again, or never left it."""
        self._go_on(moment)
        self._aside.pop(ref, None)

    def lower(self, ref: str, sat: int, moment: Moment) -> None:
        """Free what was set aside under ``ref`` beyond ``sat`` in all: it was not needed."""
        self._go_on(moment)
        before, shown = self._aside.get(ref, (0, 0))
        if before > sat:
            self._aside[ref] = (max(sat, shown), shown)

    def spent(self, seconds: int, moment: Moment) -> int:
        """Return what was spent and set aside in the last so many seconds (sat)."""
        return self._all_aside() + self._since(self.clock(moment) - seconds)

    def refs(self) -> tuple[str, ...]:
        """Return under which refs anything is set aside."""
        return tuple(self._aside)

    def record(self, moment: Moment) -> dict[str, object]:
        """Return what to store, of plain JSON values."""
        self._go_on(moment)
        return {
            "clock": self._clock,
            "now": self._now,
            "boot": self._boot,
            "spent": [[end, sat] for end, sat in sorted(self._spent.items())],
            "aside": {ref: list(pair) for ref, pair in self._aside.items()},
        }

    def _all_aside(self) -> int:
        return sum(sat - shown for sat, shown in self._aside.values())

    def _since(self, start: int) -> int:
        return sum(sat for end, sat in self._spent.items() if end > start)

    def _go_on(self, moment: Moment) -> None:
        clock = self.clock(moment)
        # The fraction of a second that the clock leaves out is not forgotten with ``_now``.
        self._now += clock - self._clock
        self._clock = clock
        for end in [end for end in self._spent if end <= clock - DAY]:
            del self._spent[end]

    def _restore(self, record: Mapping[str, object], moment: Moment) -> None:
        clock, before = record["clock"], record["now"]
        spent, aside = record["spent"], record["aside"]
        assert isinstance(clock, int)
        assert isinstance(before, int | float)
        assert isinstance(spent, list)
        assert isinstance(aside, dict)
        if self._boot == record["boot"]:
            self._clock = clock + max(0, int(moment.now - before))
        else:
            self._clock = max(clock + int(moment.now), int(moment.wall))
        self._spent = {int(end): int(sat) for end, sat in spent}
        self._aside = {str(ref): (int(sat), int(shown)) for ref, (sat, shown) in aside.items()}
