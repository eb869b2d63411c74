"""An interpreter that has imported the agent already: a lab's daemons and commands are forked from it.

To import the agent takes half a second of CPU, under emulation ten times that, and a lab starts some
hundred of them. What is forked runs the same entry point with its own arguments, environment, output
and namespace; it differs from a new process in what it had imported before. Labs that are to show what
a user sees start real programs.

    a lab ──socket: arguments, environment, namespace, three files──▶ this ──fork──▶ the program
          ◀──a pipe for each program: its pid, and in the end its exit code──
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from nostrvpn.errors import SystemRefused

__all__ = ["WarmChild", "WarmPython"]

_MAX_REQUEST = 128 * 1024
_NUMBER = struct.Struct("=i")
_START_TIMEOUT_S = 60.0
# From linux/sched.h and linux/mount.h.
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_SLAVE, _MNT_DETACH = 0x1000, 0x4000, 1 << 19, 2


class WarmChild:
    """What ``WarmPython.popen`` started: the little of ``subprocess.Popen`` that labs use."""

    def __init__(self, status: int, argv: tuple[str, ...]) -> None:
        self.args = argv
        self.returncode: int | None = None
        self._status = status
        told = self._read(_START_TIMEOUT_S)
        if told is None:
            os.close(status)
            raise SystemRefused("the interpreter that labs fork from has gone")
        self.pid = told

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it ended; ``subprocess.TimeoutExpired`` if it does not."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            code = self._read(timeout)
            # Its parent was killed, which a lab never does: how it ended nobody knows.
            self.returncode = -signal.SIGKILL if code is None else code
            os.close(self._status)
        return self.returncode

    def _read(self, timeout: float | None) -> int | None:
        if not select.select([self._status], [], [], timeout)[0]:
            return None
        data = os.read(self._status, _NUMBER.size)
        return int(_NUMBER.unpack(data)[0]) if len(data) == _NUMBER.size else None


class WarmPython:
    """The interpreter, as whoever asks it sees it. Close it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, "-m", __spec__.name, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd=Path(__file__).parents[1],
                start_new_session=True,
            )
        self._socket = ours

    @staticmethod
    def runs(argv: tuple[str, ...]) -> bool:
        """Whether this command line is one of the agent's own."""
        return argv[:3] == (sys.executable, "-m", "nostrvpn")

    def popen(
        self,
        argv: tuple[str, ...],
        *,
        netns: Path,
        files: tuple[int, int, int],
        environment: Mapping[str, str],
    ) -> WarmChild:
        """Start ``argv`` in a network namespace, as ``ip netns exec`` would; ``files``: 0, 1, 2."""
        request = {"argv": argv[3:], "netns": str(netns), "environment": dict(environment)}
        request["directory"] = os.getcwd()
        status, write = os.pipe()
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [*files, write])
        except OSError as exc:
            os.close(status)
            raise SystemRefused(f"the interpreter that labs fork from: {exc.strerror}") from exc
        finally:
            os.close(write)
        return WarmChild(status, argv)

    def run(
        self, argv: tuple[str, ...], *, netns: Path, stdin: str | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` to its end; ``subprocess.TimeoutExpired`` if it takes longer (seconds)."""
        with (
            tempfile.TemporaryFile() as said,
            tempfile.TemporaryFile() as complained,
            tempfile.TemporaryFile() as given,
        ):
            given.write((stdin or "").encode())
            given.seek(0)
            files = (given.fileno(), said.fileno(), complained.fileno())
            child = self.popen(argv, netns=netns, files=files, environment=os.environ)
            try:
                code = child.wait(timeout)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
                child.wait()
                raise
            return subprocess.CompletedProcess(argv, code, _all_of(said), _all_of(complained))

    def close(self) -> None:
        """End it; what it started and is still running goes on."""
        self._socket.close()
        self._process.wait()


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


# The other end.


def _serve(control: socket.socket) -> int:
    """Fork what is asked for until nobody asks any more; returns once, and once in each child."""
    _import_agent()
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _tell_ended(running)
        if control not in ready:
            continue
        request, files, _, _ = socket.recv_fds(control, _MAX_REQUEST, 4)
        if not request:
            return 0
        pid = os.fork()
        if pid == 0:
            for end in (control, woken, wake):
                end.close()
            for other in (*running.values(), files[3]):
                os.close(other)
            return _become(json.loads(request), files[:3])
        running[pid] = files[3]
        os.write(files[3], _NUMBER.pack(pid))
        for file in files[:3]:
            os.close(file)


def _import_agent() -> None:
    import nostrvpn.cli.entry
    import nostrvpn.daemon.main
    import nostrvpn.io.pyroute  # noqa: F401

    if threading.active_count() != 1:
        raise SystemRefused("a thread was started by an import: it would be missing after a fork")
    gc.collect()
    gc.freeze()


def _tell_ended(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        end = running.pop(pid)
        with suppress(BrokenPipeError):
            os.write(end, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os.close(end)


def _become(request: dict[str, object], files: list[int]) -> int:
    """Be the program that was asked for; return its exit code."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    match request:
        case {
            "argv": list(argv),
            "netns": str(netns),
            "environment": dict(environment),
            "directory": str(directory),
        }:
            os.chdir(directory)
            os.environ.clear()
            os.environ.update(environment)
            _enter(Path(netns))
        case _:
            raise SystemRefused("not a request")
    sys.argv = ["nostrvpn", *argv]
    # What a daemon that starts itself anew becomes is a real one.
    sys.orig_argv[:] = [sys.executable, "-m", "nostrvpn", *argv]
    if "PYTHONUNBUFFERED" in os.environ:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    from nostrvpn.cli import main

    return main()


def _enter(netns: Path) -> None:
    """Move into a namespace with its own /sys and files of /etc (ip-netns(8), exec)."""
    inside = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    _call("setns", inside, _CLONE_NEWNET)
    os.close(inside)
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"", b"/", b"none", _MS_SLAVE | _MS_REC, None)
    with suppress(SystemRefused):  # nothing was mounted there
        _call("umount2", b"/sys", _MNT_DETACH)
    _call("mount", netns.name.encode(), b"/sys", b"sysfs", 0, None)
    own = Path("/etc/netns", netns.name)
    for file in own.iterdir() if own.is_dir() else ():
        target = Path("/etc", file.name)
        with suppress(SystemRefused):  # as ip does, with a word to nobody
            _call("mount", os.fsencode(file), os.fsencode(target), b"none", _MS_BIND, None)


_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int | bytes | None) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise SystemRefused(f"{name}: {os.strerror(number)}", "The lab needs root.")


if __name__ == "__main__":
    code = 1
    try:
        code = _serve(socket.socket(fileno=int(sys.argv[1])))
    except Exception:
        traceback.print_exc()
    sys.exit(code)
