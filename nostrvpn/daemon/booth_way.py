"""The booths of one tunnel, brought to what is desired: a link goes first, and comes last.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging

from nostrvpn.daemon.settled import Settled
from nostrvpn.errors import SystemRefused
from nostrvpn.host.booth import BoothWay, booth_table
from nostrvpn.io.booth_way import apply_booths, booth_links, delete_booths

__all__ = ["Booths"]

_log = logging.getLogger(__name__)


class Booths:
    """``error`` says why the way out of booths is not as desired, None if it is; ``present`` which
    booths there are (their links), None while that is not known."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._way = Settled[BoothWay](
            "commands have no way through the exit: %s", level=logging.ERROR
        )
        self._has_looked = False
        self.present: frozenset[str] | None = None

    @property
    def error(self) -> str | None:
        """Why the way is not as desired, in words."""
        return self._way.error

    @property
    def since(self) -> float | None:
        """When it was found as desired (monotonic seconds); None: not now, or there is no way."""
        return None if self._is_known_empty else self._way.since

    @property
    def _is_known_empty(self) -> bool:
        return self._way.value is not None and self._way.value.is_empty

    def distrust(self) -> None:
        """Look at everything the next time; somebody may have removed something."""
        if not self._is_known_empty:
            self._way.forget()
        if self.present:
            self._has_looked = False

    def close(self, way: BoothWay) -> None:
        """Take the network from whoever should have none any more, before anything opens."""
        if way.is_empty and self._has_looked and not self.present:
            return
        try:
            for name in delete_booths(self._interface, way.links):
                _log.info("[#] ip link del %s", name)
            self.present = booth_links(self._interface)
            self._has_looked = True
        except SystemRefused as exc:
            self.present, self._has_looked = None, False
            self._way.forget()
            self._way.error = str(exc)

    def open(self, way: BoothWay) -> None:
        """Lead into the tunnel what comes out of booths, now that there is the tunnel."""
        if not self._has_looked or (way.is_empty and self.present):
            # What holds a booth back stays until the booth has gone.
            return
        if self._way.holds(way) or (way.is_empty and self._is_known_empty):
            return
        with self._way.making(way):
            if apply_booths(way, self._interface):
                words = ", ".join(sorted(way.links)) or "removed"
                _log.info("[#] nft: table inet %s: %s", booth_table(self._interface), words)

    def end(self, interface: str) -> None:
        """Remove all of it, the links first; SystemRefused by the kernel."""
        delete_booths(interface)
        apply_booths(BoothWay(), interface)
