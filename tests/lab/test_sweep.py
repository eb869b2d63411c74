"""A lab that is ended from outside cleans up; after SIGKILL a sweep does it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nostrvpn.lab.leftovers import sweep
from nostrvpn.lab.patience import patient, wait_until

pytestmark = pytest.mark.lab

PROGRAM = """
import sys, threading
from nostrvpn.lab.core import Engine, Internet
from nostrvpn.lab.topologies import TwoNats
with TwoNats(relay=False, internet=Internet(delay=0.001, engine=Engine.TUN)) as lab:
    sys.stdout.write(str(lab.directory) + "\\n")
    sys.stdout.flush()
    threading.Event().wait()
"""


def namespaces_of(pid: int) -> list[str]:
    return [name for name in os.listdir("/run/netns") if name.startswith(f"nvl{pid}-")]


def processes_in(inodes: set[int]) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/net").stat().st_ino in inodes:
                found.append(entry.name)
        except OSError:
            continue
    return found


@pytest.fixture
def lab_process() -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            directory = Path(process.stdout.readline().decode().strip())
            assert directory.is_dir()
            yield process, directory
        finally:
            process.kill()
            process.wait(patient(10))
            sweep()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_lab_cleanly(
    lab_process: tuple[subprocess.Popen[bytes], Path], number: signal.Signals
) -> None:
    process, directory = lab_process
    inodes = {Path("/run/netns", n).stat().st_ino for n in namespaces_of(process.pid)}
    assert len(inodes) == 6

    process.send_signal(number)

    assert process.wait(patient(10)) != 0
    assert namespaces_of(process.pid) == []
    assert processes_in(inodes) == []
    assert not directory.exists()


def test_sweep_removes_what_a_killed_lab_left_and_spares_the_living(
    lab_process: tuple[subprocess.Popen[bytes], Path],
) -> None:
    process, directory = lab_process
    inodes = {Path("/run/netns", n).stat().st_ino for n in namespaces_of(process.pid)}
    assert len(processes_in(inodes)) >= 2  # STUN and the TUN router
    sweep()
    assert len(namespaces_of(process.pid)) == 6

    process.kill()
    process.wait(patient(10))
    # A lab that another process opens right now sweeps as well; whoever does it, it is done.
    sweep()
    wait_until(lambda: not namespaces_of(process.pid), "the namespaces to be gone")
    wait_until(lambda: not processes_in(inodes), "the processes to end")
    wait_until(lambda: not directory.exists(), "the directory to be gone")
