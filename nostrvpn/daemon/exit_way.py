"""What may leave beside an exit, and the way to it: first of all where it closes, last where it opens.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from nostrvpn.daemon.settled import TRUSTED_S, Settled
from nostrvpn.errors import SystemRefused
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.shield import Shield, ShieldKind, shield_table
from nostrvpn.host.state import IPNetwork
from nostrvpn.io.exit_rivals import rival_that_goes_first
from nostrvpn.io.exit_routing import apply_exit_routing, remove_exit_routing
from nostrvpn.io.networks_beside import networks_beside
from nostrvpn.io.relay_routing import RoutingMemory
from nostrvpn.io.shield import apply_shield

__all__ = ["ExitWay"]

_log = logging.getLogger(__name__)


class ExitWay:
    """The kill switch's table and the routing of one interface.

    ``error`` says why one of them is not as desired; None if both are. ``rival``: the interface of
    another network of this host that uses an exit, so that nothing was done of what was asked; None if
    there is none. ``after`` is what stays of the kill switch in the end; None leaves what holds then.
    """

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._memory = RoutingMemory(shield_table(interface))
        self._shield = Settled[Shield](
            "what may leave beside the exit could not be set: %s", level=logging.ERROR
        )
        self._routing = Settled[ExitRouting]("nothing leads to the exit: %s", level=logging.ERROR)
        self._kind: ShieldKind | None = None
        self._beside: frozenset[tuple[str, IPNetwork]] = frozenset()
        self._looked_at = float("-inf")
        self.rival: str | None = None
        self._asked = ExitRouting()
        self.after: Shield | None = None

    @property
    def error(self) -> str | None:
        """Why the kernel is not as desired, in words."""
        return self._shield.error or self._routing.error

    @property
    def since(self) -> tuple[float | None, ...]:
        """When things were found as desired (monotonic seconds); None: not now."""
        # Who was refused looks again soon, whether it was told of a change or not.
        refused = None if self.rival is None else self._looked_at - TRUSTED_S
        return (self._shield.since, self._routing.since, refused)

    def distrust_table(self) -> None:
        """Look at the table the next time; somebody may have removed it."""
        self._shield.forget()

    def distrust_routing(self) -> None:
        """Look at rules and routes the next time; somebody may have removed them, or the link."""
        self._routing.forget()
        self._looked_at = float("-inf")

    def close(self, shield: Shield, routing: ExitRouting) -> None:
        """Hold back what is to be held back, if anything is; with or without the link."""
        self._asked = routing
        self._look(shield, routing)
        if self._is_refused(routing):
            return
        self._kind = shield.kind
        if shield.kind is ShieldKind.OPEN:
            return
        self._apply_shield(shield)
        self._route(shield, routing, is_final=False)

    def route(self, shield: Shield, routing: ExitRouting) -> None:
        """Lead packets to the exit, now that there is the link."""
        if not self._is_refused(routing):
            self._route(shield, routing, is_final=True)

    def open(self, shield: Shield) -> None:
        """Hold nothing back any more, if that is desired and nothing of the rest failed."""
        refused = self._routing.error is not None or self._is_refused(self._asked)
        if shield.kind is ShieldKind.OPEN and not refused:
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

    def _is_refused(self, routing: ExitRouting) -> bool:
        """Whether another network has the host's one exit. What only holds back is never refused."""
        return routing.active and self.rival is not None

    def _look(self, shield: Shield, routing: ExitRouting) -> None:
        """Look at the host's other networks, if anything here depends on them."""
        if not routing.active and self.rival is None and shield.kind is ShieldKind.OPEN:
            return
        now = time.monotonic()
        if self.rival is None and now - self._looked_at < TRUSTED_S:
            return
        try:
            self.rival = rival_that_goes_first(self._interface)
            self._beside = networks_beside(self._interface)
        except SystemRefused as exc:
            _log.warning("the host's other networks are not known: %s", exc)
        else:
            self._looked_at = now

    def _apply_shield(self, shield: Shield) -> None:
        if not shield.is_empty:
            shield = replace(shield, beside=self._beside)
        if self._shield.holds(shield):
            return
        with self._shield.making(shield):
            if apply_shield(shield, self._interface, self._memory):
                table = shield_table(self._interface)
                _log.info("[#] nft: table inet %s: %s", table, shield.summary)

    def _route(self, shield: Shield, routing: ExitRouting, *, is_final: bool) -> None:
        if self._shield.error is not None and shield.kind is not ShieldKind.OPEN:
            if not routing.active:
                # What leads nowhere now may lead out then.
                return
            routing = replace(routing, versions=frozenset(), diverts=False)
        if routing.active:
            routing = replace(routing, beside=frozenset(network for _, network in self._beside))
        if self._routing.holds(routing):
            return
        with self._routing.making(routing):
            if apply_exit_routing(routing, self._interface):
                _log.info("[#] ip rule: %s", routing.summary)
                # Another network may have taken the exit in the same moment.
                self._looked_at = float("-inf")
                self._look(shield, routing)
        if not is_final:
            self._routing.forget()
