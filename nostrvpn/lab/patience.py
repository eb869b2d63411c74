"""Bounded waits on conditions; the lab never sleeps a fixed time and hopes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from nostrvpn.errors import UserError

__all__ = ["LabTimeout", "patient", "wait_until"]

T = TypeVar("T")

POLL_SECONDS = 0.03
"""How often a condition is looked at: fine enough for a report, cheap enough to ignore."""


class LabTimeout(UserError):
    """Something in the lab did not happen in time; the text says what, and what was seen instead."""

    code = "lab_timeout"


def patient(seconds: float) -> float:
    """Return ``seconds`` scaled by ``NOSTRVPN_LAB_PATIENCE`` (default 1), for slow machines."""
    text = os.environ.get("NOSTRVPN_LAB_PATIENCE", "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise UserError(
            f"NOSTRVPN_LAB_PATIENCE is not a positive number: {text!r}",
            "Try 10 on an emulated CPU.",
        )
    return seconds * factor


def wait_until(
    condition: Callable[[], T | None],
    what: str,
    *,
    timeout: float = 10.0,
    evidence: Callable[[], str] | None = None,
    poll: float = POLL_SECONDS,
) -> T:
    """Return the first truthy result of ``condition``; raise LabTimeout after ``timeout`` seconds.

    ``timeout`` is scaled by ``patient``. ``evidence`` is called for the error's text only.
    """
    allowed = patient(timeout)
    deadline = time.monotonic() + allowed
    while True:
        if result := condition():
            return result
        if time.monotonic() >= deadline:
            seen = f"; {evidence()}" if evidence else ""
            raise LabTimeout(f"waited {allowed:.1f} s in vain for {what}{seen}")
        time.sleep(poll)
