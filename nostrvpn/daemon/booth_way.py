"""The booths of one tunnel, brought to what is desired: a link goes first, and comes last.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
import time

from nostrvpn.errors import SystemRefused
from nostrvpn.host.booth import BoothWay, booth_table
from nostrvpn.io.booth_way import apply_booths, booth_links, delete_booths

__all__ = ["Booths"]

# As for everything else that the reconciler found as desired.
TRUSTED_S = 20.0

_log = logging.getLogger(__name__)


class Booths:
    """``error`` says why the way out of booths is not as desired, None if it is; ``present`` which
    booths there are (their links), None while that is not known."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._found: tuple[BoothWay, float] | None = None
        self._has_looked = False
        self.error: str | None = None
        self.present: frozenset[str] | None = None

    @property
    def found(self) -> tuple[tuple[object, float] | None, ...]:
        """What was found as desired, with when that was (monotonic seconds); None: not now."""
        return (self._found if self._found is not None and not self._found[0].is_empty else None,)

    def distrust(self) -> None:
        """Look at everything the next time; somebody may have removed something."""
        if self._found is not None and not self._found[0].is_empty:
            self._found = None
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
            self.present, self._has_looked, self._found = None, False, None
            self.error = str(exc)

    def open(self, way: BoothWay) -> None:
        """Lead into the tunnel what comes out of booths, now that there is the tunnel."""
        if not self._has_looked or (way.is_empty and self.present):
            # What holds a booth back stays until the booth has gone.
            return
        found = self._found
        fresh = found is not None and time.monotonic() - found[1] < TRUSTED_S
        if found is not None and found[0] == way and (fresh or way.is_empty):
            return
        self._found = None
        try:
            if apply_booths(way, self._interface):
                words = ", ".join(sorted(way.links)) or "removed"
                _log.info("[#] nft: table inet %s: %s", booth_table(self._interface), words)
        except SystemRefused as exc:
            if self.error is None:
                _log.error("commands have no way through the exit: %s", exc)
            self.error = str(exc)
        else:
            self.error = None
            self._found = way, time.monotonic()

    def end(self, interface: str) -> None:
        """Remove all of it, the links first; SystemRefused by the kernel."""
        delete_booths(interface)
        apply_booths(BoothWay(), interface)
