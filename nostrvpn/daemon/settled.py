"""One thing of the kernel that is to be as desired: how long that is believed, and why it is not so.

Used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from nostrvpn.errors import SystemRefused

__all__ = ["TRUSTED_S", "Settled"]

TRUSTED_S = 20.0
"""Less than the reconciler's ``LOOK_AGAIN_S``, so that one run looks at everything. In between, what was
found as desired is not read again: routes and addresses take six dumps, a table of the packet filter a
process, and while a mesh starts there are several runs a second."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Settled(Generic[_T]):
    """``error`` says why the kernel is not as desired, None if it is. ``complaint``: what is logged when
    that begins, with ``%s`` for why; ``refusals``: the exceptions by which the system says no."""

    def __init__(
        self,
        complaint: str = "%s",
        *,
        level: int = logging.WARNING,
        refusals: tuple[type[Exception], ...] = (SystemRefused,),
    ) -> None:
        self._complaint, self._level, self._refusals = complaint, level, refusals
        self._found: tuple[_T, float] | None = None
        self.error: str | None = None

    @property
    def value(self) -> _T | None:
        """What was found as desired or made so, however long ago; None: that is not known."""
        return None if self._found is None else self._found[0]

    @property
    def since(self) -> float | None:
        """When that was (monotonic seconds)."""
        return None if self._found is None else self._found[1]

    def holds(self, desired: _T) -> bool:
        """Whether ``desired`` was found or made so a moment ago."""
        found = self._found
        return found is not None and found[0] == desired and time.monotonic() - found[1] < TRUSTED_S

    def found(self, desired: _T) -> None:
        """It is so, without anything being done."""
        self._found = desired, time.monotonic()

    def end(self) -> None:
        """Nothing is desired any more, so nothing is wrong."""
        self._found = self.error = None

    def forget(self) -> None:
        """Look at it the next time: somebody may have changed it."""
        self._found = None

    @contextmanager
    def making(self, desired: _T) -> Iterator[None]:
        """Take note of how the block ends; a refusal ends it and is told in ``error``."""
        self._found = None
        try:
            yield
        except self._refusals as exc:
            if self.error is None:
                _log.log(self._level, self._complaint, exc)
            self.error = str(exc)
        else:
            self.error = None
            self.found(desired)
