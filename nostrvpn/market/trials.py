"""Budgets of what is served for nothing: per buyer's key, per network, and for all together.

Keys cost nothing, so the network a buyer comes from counts too; that is known once its tunnel is up.
A budget is of trials, not of leases: a new lease gives no new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from nostrvpn.endpoint import IPAddress
from nostrvpn.market.effects import Keep

__all__ = ["TRIALS", "TrialBudget", "Trials", "network_of"]

TRIALS = "sold_trial"
_DAY, _HOUR = 86_400, 3600


@dataclass(frozen=True, slots=True)
class TrialBudget:
    """How many trials: per key and per network (/24, /48) in a day, and of all in an hour."""

    key_day: int = 1
    network_day: int = 3
    hour: int = 60


def network_of(address: IPAddress) -> str:
    """Return the /24 or /48 of an address, as a hash: on disk nobody's address is to be read."""
    size = 24 if address.version == 4 else 48
    network = str(ip_network((address, size), strict=False))
    return hashlib.sha256(f"nostrvpn trial {network}".encode()).hexdigest()[:16]


class Trials:
    """What was tried within a day, by ``key:…`` and ``net:…``: when, for each lease.

    A lease counts once, however often that is said, so what a crash took is simply said again.
    """

    def __init__(self, budget: TrialBudget) -> None:
        self.budget = budget
        self._used: dict[str, dict[str, int]] = {}

    def may_try(self, buyer: str, wall: float) -> bool:
        """Whether this buyer may try, as far as is known before its tunnel is up."""
        recent = sum(
            len([at for at in leases.values() if at > wall - _HOUR])
            for name, leases in self._used.items()
            if name.startswith("key:")
        )
        used = self._within_day(f"key:{buyer}", wall)
        return recent < self.budget.hour and len(used) < self.budget.key_day

    def may_go_on(self, network: str, lease_id: str, wall: float) -> bool:
        """Whether a trial may go on, now that its network is seen."""
        used = self._within_day(f"net:{network}", wall)
        return lease_id in used or len(used) < self.budget.network_day

    def begin(self, buyer: str, lease_id: str, at: int) -> list[Keep]:
        """A lease's trial counts for its buyer's key."""
        return self._use(f"key:{buyer}", lease_id, at)

    def came_from(self, network: str, lease_id: str, at: int) -> list[Keep]:
        """A lease's trial counts for its network."""
        return self._use(f"net:{network}", lease_id, at)

    def restore(self, records: Mapping[str, object]) -> None:
        """Take what was kept, by name; what is damaged counts as nothing."""
        for name, leases in records.items():
            if isinstance(leases, Mapping):
                self._used[name] = {str(x): at for x, at in leases.items() if type(at) is int}

    def prune(self, wall: float) -> list[Keep]:
        """Forget what is more than a day old."""
        old = [name for name in self._used if not self._within_day(name, wall)]
        for name in old:
            del self._used[name]
        return [Keep(TRIALS, name, None) for name in old]

    def _within_day(self, name: str, wall: float) -> dict[str, int]:
        return {x: at for x, at in self._used.get(name, {}).items() if at > wall - _DAY}

    def _use(self, name: str, lease_id: str, at: int) -> list[Keep]:
        if lease_id in self._used.get(name, {}):
            return []
        self._used[name] = {**self._within_day(name, at), lease_id: at}
        return [Keep(TRIALS, name, self._used[name])]
