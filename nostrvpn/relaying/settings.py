"""The knobs of a relay."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RelaySettings"]


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """What a relay lends. Times are seconds; ``ports`` are the UDP ports that may be lent.

    ``monthly_bytes`` is the sum of what all pairs may carry in one calendar month (UTC), None for no
    limit. ``mbit_per_s`` holds per pair and direction. ``pairs_per_source`` holds only for users of
    whom we were not told, which ``for_anyone`` lets in: for each IPv4 address or IPv6 /64.
    """

    ports: range = range(33000, 34000)
    # A mesh of 20 in which nobody reaches anybody has 190 pairs.
    max_pairs: int = 256
    # One peer, towards each other of a mesh of 30, with one pair to spare for changing over.
    pairs_per_user: int = 32
    for_anyone: bool = False
    pairs_per_source: int = 4
    mbit_per_s: int = 100
    monthly_bytes: int | None = None
    # Both peers know the ticket a second after it was made, or the other one sleeps.
    unbound_s: float = 30.0
    # WireGuard's keepalives and the checks come at least each 25 s while anybody wants the pair.
    idle_s: float = 300.0
    max_channels: int = 512
