"""The nft table of what strangers pay for, and the forwarding that it takes. Blocking.

What is in the table is remembered here, so that a change of one lease is one small transaction.
"""

from __future__ import annotations

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.host.sold import ALIVE_S, Sold, render_sold, sold_marks, sold_table
from nostrvpn.host.sold_leases import Held, alive_lines, lease_lines
from nostrvpn.io.nftables import apply_ruleset, has_marks
from nostrvpn.io.relay_routing import (
    RoutingBefore,
    RoutingMemory,
    is_routing,
    turn_on_routing,
    uplinks,
)

__all__ = ["SoldTable"]

# Often enough that one run that fails or comes late closes nothing.
_RENEW_S = ALIVE_S / 4


class SoldTable:
    """The table of one interface. ``now`` is seconds of any clock that only goes on."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._memory = RoutingMemory(sold_table(interface))
        self._held: dict[IPAddress, Held] | None = None
        self._known: dict[IPAddress, Held] = {}
        self._alive_at = float("-inf")
        self._looked = False

    def distrust(self) -> None:
        """Look the next time whether the table is still as it was made."""
        self._looked = False

    def close(self, sold: Sold, now: float) -> bool:
        """Judge what comes out of the link, with or without it; return whether that took a change.

        Leases are as ``sold`` has them afterwards, and live for another ``ALIVE_S``. SystemRefused: what
        was in force before still is, for so long.
        """
        held = self._held
        if held is not None and not self._looked:
            marks = sold_marks(sold, self._interface)
            held = held if has_marks(sold_table(self._interface), marks) else None
        if held is None:
            self._make(sold, self._memory.recall(), now)
            return True
        self._looked = True
        lines, after = lease_lines(sold, held, self._interface, now)
        is_due = bool(lines) or now - self._alive_at >= _RENEW_S
        if not is_due:
            return False
        try:
            apply_ruleset("\n".join([*lines, *alive_lines(sold, self._interface)]) + "\n")
        except SystemRefused:
            # Somebody else may have changed it: the next time all of it is made anew.
            self._held = None
            raise
        self._held, self._known, self._alive_at = after, after, now
        return bool(lines)

    def forward(self, sold: Sold, now: float) -> bool:
        """Let packets pass between the link, which is there, and the uplinks; SystemRefused.

        Return whether that took a change.
        """
        interfaces = tuple(dict.fromkeys((sold.link, *uplinks())))
        if all(is_routing(one, version) for one in interfaces for version in sold.versions):
            return False
        turn_on_routing(
            interfaces, self._memory, lambda before: self._make(sold, before, now), sold.versions
        )
        return True

    def remove(self) -> None:
        """Put the host's settings back and remove the table, present or not; SystemRefused."""
        if self._memory.is_needed:
            self._memory.put_back()
        self._held, self._known = None, {}

    def _make(self, sold: Sold, before: RoutingBefore, now: float) -> None:
        sets = (before.routed4, before.routed6, before.advertised)
        text = render_sold(sold, self._interface, sets)
        lines, held = lease_lines(sold, {}, self._interface, now, self._known)
        lines += alive_lines(sold, self._interface)
        self._held = None
        apply_ruleset(text + "\n".join(lines) + "\n")
        self._held, self._known = held, held
        self._alive_at, self._looked = now, True
