"""Noticing a sleep, with clocks that the test moves, and the kernel's timer as far as one may."""

from __future__ import annotations

import ctypes
import os

from nostrvpn.io.clock_watch import ClockWatch, SleepMeter


def test_a_sleep_is_the_difference_of_two_clocks_and_told_once():
    clocks = {"boottime": 500.0, "monotonic": 100.0}
    meter = SleepMeter(lambda: clocks["boottime"], lambda: clocks["monotonic"])
    assert meter.slept() == 0.0
    clocks["boottime"] += 60.0
    clocks["monotonic"] += 60.0  # awake
    assert meter.slept() == 0.0
    clocks["boottime"] += 4.0  # a pause that no connection minds
    assert meter.slept() == 0.0
    clocks["boottime"] += 3600.0
    assert meter.slept() == 3604.0
    assert meter.slept() == 0.0


async def test_the_kernel_takes_the_timer_and_it_does_not_fire_by_itself():
    woken: list[bool] = []
    watch = ClockWatch(lambda: woken.append(True))
    watch.start()
    assert watch._fd is not None
    spec = ctypes.create_string_buffer(32)
    assert ctypes.CDLL(None).timerfd_gettime(watch._fd, spec) == 0
    assert any(spec.raw)  # armed
    # What the loop calls when the kernel cancelled it; without news it is harmless.
    watch._readable()
    assert woken == [True]
    watch.stop()
    watch.stop()


async def test_a_kernel_that_refuses_is_borne(monkeypatch):
    class Refusing:
        def timerfd_create(self, *_: int) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing())
    before = len(os.listdir("/proc/self/fd"))
    watch = ClockWatch(lambda: None)
    watch.start()
    watch.stop()
    assert len(os.listdir("/proc/self/fd")) == before
