"""When money on its way home is asked for: once its lock is over, and again until it is there."""

from __future__ import annotations

from collections.abc import Iterable

from nostrvpn.machine import Moment, earliest
from nostrvpn.market.bought_lease import BoughtLease
from nostrvpn.market.channel_paying import settle_again_s
from nostrvpn.market.effects import MarketEffect
from nostrvpn.market.invoice_paying import pay_again
from nostrvpn.market.patience import money_again_s
from nostrvpn.market.paying import bring_home

__all__ = ["Homing"]

PARCEL_AGAIN_S, HELD_AGAIN_S = 60, 15


class Homing:
    """All parcels of all leases, by ref."""

    def __init__(self) -> None:
        self._again: dict[str, float] = {}  # of those that were asked for
        self._next: float | None = None

    @property
    def deadline(self) -> float | None:
        """When the next one is asked for."""
        return self._next

    def step(self, leases: Iterable[BoughtLease], moment: Moment) -> list[MarketEffect]:
        """Return the requests that are due."""
        doing: list[MarketEffect] = []
        again: dict[str, float] = {}
        waiting: list[float] = []
        for lease in leases:
            for money in lease.money:
                if money.is_held:
                    # Once the lease is over, what becomes of it is decided in a moment.
                    pause: float = PARCEL_AGAIN_S
                    if not lease.is_live:
                        pause = money_again_s(lease, moment.wall, HELD_AGAIN_S)
                    at = min(self._again.get(money.ref, moment.now), moment.now + pause)
                    if at <= moment.now:
                        doing.append(pay_again(lease, money))
                        at = moment.now + pause
                    again[money.ref] = at
                    waiting.append(at)
            for parcel in lease.parcels:
                if parcel.is_settled:
                    continue
                due, pause = moment.now + max(0.0, parcel.not_before - moment.wall), PARCEL_AGAIN_S
                if parcel.kind == "channel":  # the seller closes it before that
                    due, pause = moment.now, settle_again_s(lease, moment.wall)
                at = min(max(due, self._again.get(parcel.ref, due)), due + pause)
                if at <= moment.now:
                    doing.append(bring_home(lease, parcel))
                    at = moment.now + pause
                    again[parcel.ref] = at
                elif parcel.ref in self._again:
                    again[parcel.ref] = min(self._again[parcel.ref], at)
                waiting.append(at)
        self._again, self._next = again, earliest(*waiting)
        return doing
