"""What a lease is of: the little that the machinery of leases knows about a service.

A service is a value that a lease changes and the shell makes true (desired state, then reconcile).
Nothing here waits: :meth:`Service.activate` says what the customer needs to know, and the shell brings
it about. All but ``activate`` may be called again without harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from nostrvpn.endpoint import IPAddress
from nostrvpn.machine import Entropy
from nostrvpn.market.effects import Counted, Counters

__all__ = ["Access", "Allowance", "Service"]

# How a customer reaches the service: JSON of words, numbers and lists of words, as a grant has it.
Access = Mapping[str, str | int | list[str]]


@dataclass(frozen=True, slots=True)
class Allowance:
    """How far a lease may be served without being asked about again; what enforces it outlives us.

    ``quota_bytes``: what may still be moved from now on, both directions together; ``seconds_left``:
    the same of time, or None where time is not charged.
    """

    quota_bytes: int
    seconds_left: float | None = None


class Service(Protocol):
    """One kind of service on sale; ``key``: the customer's WireGuard key, which a lease is bound to."""

    kind: str

    def admit(self, key: str) -> str | None:
        """Return None if one more customer could be served, else the code of a notice."""

    def activate(
        self, lease_id: str, key: str, allowance: Allowance, entropy: Entropy
    ) -> Access | None:
        """Begin to serve; return how it is reached, or None if that is not possible now.

        Asked again for the same lease it returns the same.
        """

    def restore(self, lease_id: str, key: str, access: Access) -> None:
        """Know a lease of an earlier run, suspended until :meth:`resume`; PeerMisbehaved if damaged."""

    def meter(self, lease_id: str, counted: Counted) -> Counters | None:
        """Return this lease's counters, None if they are not there."""

    def address(self, lease_id: str) -> IPAddress | None:
        """Return where the customer is reached through the service itself, if anywhere."""

    def owns(self, lease_id: str, address: IPAddress) -> bool:
        """Whether what comes from this address inside comes from this lease's customer."""

    def suspend(self, lease_id: str) -> bool:
        """Serve no more, but keep counters and control; return whether that changes anything."""

    def resume(self, lease_id: str, allowance: Allowance) -> bool:
        """Serve, as far as this allowance; return whether that changes anything."""

    def teardown(self, lease_id: str) -> bool:
        """Forget the lease; return whether that changes anything."""
