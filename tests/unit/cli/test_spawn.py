"""``up`` and ``down`` with a detached process that holds the lock and answers, as the daemon does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nostrvpn.cli import main, spawn
from nostrvpn.config.options import Options, RelayOptions
from nostrvpn.io.lock import lock_holder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a start needs root")

# state dir, runtime dir, how to take a "stop": "obey", "ignore" (SIGTERM works), "deaf" (never).
STAND_IN = """
import asyncio, os, signal, sys
from nostrvpn.control.server import ControlServer
from nostrvpn.io.lock import StateLock
state, run, manner = sys.argv[1:]
STATUS = {"npub": "npub1x", "addresses": [], "interface": "i", "backend": "kernel", "peers": [],
          "relays": [{"url": "ws://r", "state": "connected"}], "problems": []}

async def main():
    lock, ended = StateLock(state + "/daemon.lock"), asyncio.Event()
    lock.acquire()
    async def handle(command, arguments, admin):
        if command == "stop":
            if manner == "obey":
                asyncio.get_running_loop().call_later(0.05, ended.set)
            else:
                await asyncio.sleep(60)
        return STATUS | {"session": os.getsid(0), "input": os.readlink("/proc/self/fd/0")}
    if manner == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    server = ControlServer(run + "/control.sock", handle)
    await server.start()
    print("started", flush=True)
    await ended.wait()
    await server.stop()
    lock.release()

asyncio.run(main())
"""

Place = Callable[[str], Options]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    options = Options(
        state_dir=str(tmp_path / "state"),
        runtime_dir=str(tmp_path / "run"),
        config=str(tmp_path / "config.yaml"),
    )
    monkeypatch.setenv("NOSTRVPN_STATE_DIR", options.state_dir)
    monkeypatch.setenv("NOSTRVPN_RUNTIME_DIR", options.runtime_dir)
    monkeypatch.setenv("NOSTRVPN_CONFIG", options.config)
    started: list[subprocess.Popen[bytes]] = []
    real_start = spawn.start_detached

    def start(given: Options) -> tuple[subprocess.Popen[bytes], int]:
        process, size = real_start(given)
        started.append(process)
        return process, size

    def use(manner: str) -> Options:
        line = [sys.executable, "-c", STAND_IN, options.state_dir, options.runtime_dir, manner]
        monkeypatch.setattr(spawn, "daemon_command_line", lambda _options: line)
        return options

    monkeypatch.setattr(spawn, "start_detached", start)
    yield use
    for process in started:
        process.kill()
        process.wait(timeout=10)


def test_up_detaches_and_down_ends(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    options = place("obey")
    assert main(["up", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    pid = lock_holder(options.lock_path)
    assert status["session"] == pid != os.getsid(0)
    assert status["input"] == "/dev/null"
    assert Path(options.log_path).read_text() == "started\n"
    assert Path(options.state_dir, "identity").exists()
    assert main(["down"]) == 0
    assert lock_holder(options.lock_path) is None
    assert not Path(options.control_socket).exists()


def test_down_terminates_a_daemon_that_does_not_answer(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    options = place("ignore")
    assert main(["up"]) == 0
    assert "nostrvpn invite THEIR_NPUB" in capsys.readouterr().out
    assert main(["down", "--timeout", "3"]) == 0
    assert lock_holder(options.lock_path) is None


def test_down_names_a_daemon_that_will_not_go(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    options = place("deaf")
    assert main(["up"]) == 0
    pid = lock_holder(options.lock_path)
    capsys.readouterr()
    assert main(["down", "--timeout", "0.5"]) == 1
    said = capsys.readouterr().err
    assert f"(pid {pid}) did not stop" in said
    assert "nostrvpn cleanup" in said


def test_up_after_sigkill(place: Place) -> None:
    options = place("obey")
    assert main(["up"]) == 0
    first = lock_holder(options.lock_path)
    assert first
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 5
    assert spawn.wait_until(lambda: lock_holder(options.lock_path) is None, deadline)
    assert Path(options.control_socket).exists()
    assert main(["up"]) == 0
    assert lock_holder(options.lock_path) != first
    assert main(["down"]) == 0


def test_the_command_line_of_the_daemon_names_its_places() -> None:
    options = Options("/s", "/r", "/c", "if0", name="bob", relays=("ws://a", "ws://b"))
    line = spawn.daemon_command_line(options)[1:]
    text = " ".join(line)
    assert text.startswith("-m nostrvpn --state-dir /s --runtime-dir /r --config /c")
    assert "--network default --interface if0 daemon --log-file /s/daemon.log" in text
    further = " ".join(spawn.daemon_command_line(options.of_network("work")))
    assert "--network work --interface if0 daemon --log-file /s/networks/work/daemon.log" in further
    assert "--name bob --relay ws://a --relay ws://b" in text


def test_the_daemon_is_started_with_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``up`` was told about relaying, the detached ``daemon`` is told in the same words."""
    relay = RelayOptions(
        offer="members",
        address=("203.0.113.5", "2001:db8::5"),
        websocket="[::]:443",
        pairs=8,
        mbit=20,
        gigabytes=0,
    )
    told: list[Options] = []

    def run(options: Options) -> int:
        told.append(options)
        return 0

    monkeypatch.setattr("nostrvpn.cli.running._run", run)
    for options in (Options(relay=relay), Options()):
        line = spawn.daemon_command_line(options)
        assert line[1:3] == ["-m", "nostrvpn"]
        assert main(line[3:]) == 0
        assert told[-1].relay == options.relay
    assert "--relay-for" not in line
