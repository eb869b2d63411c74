"""Noticing that the machine slept, or that the wall clock was set.

asyncio's timers run on CLOCK_MONOTONIC, which stands still in suspend, so after an hour's sleep a
timer of 20 s still waits for its rest. CLOCK_BOOTTIME goes on; their difference is the time slept.
A timerfd that the kernel cancels when the wall clock is set (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET;
resuming counts) wakes us at once, for no wake-ups in between.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = ["ClockWatch", "SleepMeter"]

# Less is a machine under load, or a clock that is being adjusted.
MIN_SLEEP_S = 5.0

# Linux ABI (linux/timerfd.h, linux/time.h); Python names them from 3.13 on.
_CLOCK_REALTIME = 0
_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_ITIMERSPEC = struct.Struct("@llll")
_FAR_S = 1 << 33  # the year 2242

_log = logging.getLogger(__name__)


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SleepMeter:
    """How long the machine slept, by the two clocks given (seconds)."""

    def __init__(
        self,
        boottime: Callable[[], float] = _boottime,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._boottime = boottime
        self._monotonic = monotonic
        self._gap = boottime() - monotonic()

    def slept(self) -> float:
        """Return the seconds slept since the last time, 0.0 for less than 5."""
        gap = self._boottime() - self._monotonic()
        slept = gap - self._gap
        if slept < MIN_SLEEP_S:
            return 0.0
        self._gap = gap
        return slept


class ClockWatch:
    """Calls ``woken`` after the wall clock was set and after a sleep, on the running loop."""

    def __init__(self, woken: Callable[[], None]) -> None:
        self._woken = woken
        self._fd: int | None = None

    def start(self) -> None:
        """Begin; where the kernel refuses, a sleep is noticed with the next event instead."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.timerfd_create(_CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if fd < 0:
            _log.warning("no clock watch: %s", os.strerror(ctypes.get_errno()))
            return
        self._fd = fd
        self._arm()
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def stop(self) -> None:
        """Stop; may be called twice."""
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _arm(self) -> None:
        timer = ctypes.create_string_buffer(_ITIMERSPEC.pack(0, 0, _FAR_S, 0))
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        ctypes.CDLL(None, use_errno=True).timerfd_settime(self._fd, flags, timer, None)

    def _readable(self) -> None:
        assert self._fd is not None
        with suppress(OSError):  # ECANCELED is the news
            os.read(self._fd, 8)
        self._arm()
        self._woken()
