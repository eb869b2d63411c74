"""What may leave beside an exit, and the way to it: first of all where it closes, last where it opens.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from nostrvpn.errors import SystemRefused
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.shield import Shield, ShieldKind, shield_table
from nostrvpn.io.exit_routing import apply_exit_routing, remove_exit_routing
from nostrvpn.io.relay_routing import RoutingMemory
from nostrvpn.io.shield import apply_shield

__all__ = ["ExitWay"]

# As for everything else that the reconciler found as desired.
TRUSTED_S = 20.0

_log = logging.getLogger(__name__)


class ExitWay:
    """The kill switch's table and the routing of one interface.

    ``error`` says why one of them is not as desired; None if both are. ``after`` is what stays of the
    kill switch in the end; None leaves what holds then.
    """

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._memory = RoutingMemory(shield_table(interface))
        self._shield: tuple[Shield, float] | None = None
        self._routing: tuple[ExitRouting, float] | None = None
        self._shield_error: str | None = None
        self._routing_error: str | None = None
        self._kind: ShieldKind | None = None
        self.after: Shield | None = None

    @property
    def error(self) -> str | None:
        """Why the kernel is not as desired, in words."""
        return self._shield_error or self._routing_error

    @property
    def found(self) -> tuple[tuple[object, float] | None, ...]:
        """What was found as desired, each with when that was (monotonic seconds); None: not now."""
        return (self._shield, self._routing)

    def distrust_table(self) -> None:
        """Look at the table the next time; somebody may have removed it."""
        self._shield = None

    def distrust_routing(self) -> None:
        """Look at rules and routes the next time; somebody may have removed them, or the link."""
        self._routing = None

    def close(self, shield: Shield, routing: ExitRouting) -> None:
        """Hold back what is to be held back, if anything is; with or without the link."""
        self._kind = shield.kind
        if shield.kind is ShieldKind.OPEN:
            return
        self._apply_shield(shield)
        self._route(shield, routing, is_final=False)

    def route(self, shield: Shield, routing: ExitRouting) -> None:
        """Lead packets to the exit, now that there is the link."""
        self._route(shield, routing, is_final=True)

    def open(self, shield: Shield) -> None:
        """Hold nothing back any more, if that is desired and nothing of the rest failed."""
        if shield.kind is ShieldKind.OPEN and self._routing_error is None:
            self._apply_shield(shield)

    def end_closed(self, _interface: str) -> None:
        """Close what is to stay closed when the daemon is gone; SystemRefused by the kernel."""
        if self.after is None and self._kind is ShieldKind.OPEN:
            # Only routes led into the tunnel, and they go with the daemon.
            self.after = Shield()
        if self.after is None or self.after.is_empty:
            return
        apply_shield(self.after, self._interface, self._memory)
        remove_exit_routing(self._interface)

    def end_open(self, _interface: str) -> None:
        """Open what may be open when the daemon is gone; SystemRefused by the kernel."""
        if self.after is not None and self.after.is_empty:
            remove_exit_routing(self._interface)
            apply_shield(self.after, self._interface, self._memory)

    def _apply_shield(self, shield: Shield) -> None:
        if _holds(self._shield, shield):
            return
        self._shield = None
        try:
            if apply_shield(shield, self._interface, self._memory):
                _log.info(
                    "[#] nft: table inet %s: %s", shield_table(self._interface), shield.summary
                )
        except SystemRefused as exc:
            if self._shield_error is None:
                _log.error("what may leave beside the exit could not be set: %s", exc)
            self._shield_error = str(exc)
        else:
            self._shield_error = None
            self._shield = shield, time.monotonic()

    def _route(self, shield: Shield, routing: ExitRouting, *, is_final: bool) -> None:
        if self._shield_error is not None and shield.kind is not ShieldKind.OPEN:
            if not routing.active:
                # What leads nowhere now may lead out then.
                return
            routing = replace(routing, versions=frozenset(), diverts=False)
        if _holds(self._routing, routing):
            return
        self._routing = None
        try:
            if apply_exit_routing(routing, self._interface):
                _log.info("[#] ip rule: %s", routing.summary)
        except SystemRefused as exc:
            if self._routing_error is None:
                _log.error("nothing leads to the exit: %s", exc)
            self._routing_error = str(exc)
        else:
            self._routing_error = None
            if is_final:
                self._routing = routing, time.monotonic()


def _holds(found: tuple[object, float] | None, desired: object) -> bool:
    """Whether ``desired`` was found or made so a moment ago (monotonic seconds)."""
    return found is not None and found[0] == desired and time.monotonic() - found[1] < TRUSTED_S
