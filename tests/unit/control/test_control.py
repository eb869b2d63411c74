"""Server and client of the control interface, on real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.control import server as server_module
from nostrvpn.control.client import CallRefused, ControlClient, DaemonNotRunning
from nostrvpn.control.schema import COMMANDS
from nostrvpn.control.server import ControlServer
from nostrvpn.errors import SystemRefused, UserError

NOBODY = 65534


class Daemon:
    """Answers every command with what it was asked; some names make it fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, object], bool]] = []
        self.failure: Exception | None = None

    async def handle(self, command: str, arguments: dict[str, object], admin: bool) -> object:
        self.asked.append((command, arguments, admin))
        if self.failure is not None:
            raise self.failure
        return {"command": command, "arguments": arguments, "admin": admin}


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
async def path(tmp_path: Path, daemon: Daemon) -> AsyncIterator[str]:
    server = ControlServer(str(tmp_path / "run" / "control.sock"), daemon.handle)
    await server.start()
    yield str(tmp_path / "run" / "control.sock")
    await server.stop()
    assert not (tmp_path / "run" / "control.sock").exists()


async def call(path: str, command: str, **arguments: object) -> Any:
    return await asyncio.to_thread(ControlClient(path).call, command, 5.0, **arguments)


def mode_of(path: str) -> int:
    return Path(path).stat().st_mode


def set_mode(path: str, mode: int) -> None:
    Path(path).chmod(mode)


def raw(path: str, data: bytes) -> bytes:
    """Send bytes as they are and return the whole answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(path)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


async def test_calls_arrive_complete_with_defaults(path: str, daemon: Daemon) -> None:
    assert await call(path, "status") == {"command": "status", "arguments": {}, "admin": True}
    await call(path, "invite", npub=None, once=True)
    assert daemon.asked[-1] == (
        "invite",
        {"npub": None, "once": True, "expires_s": 86_400}
        | {"role": "member", "tags": [], "mine": False, "name": None, "lasts_s": None}
        | {"ephemeral": False},
        True,
    )


async def test_the_socket_is_private(path: str) -> None:
    assert stat.S_IMODE(mode_of(path)) in (0o600, 0o660)
    assert stat.S_ISSOCK(mode_of(path))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("join", {}),
        ("join", {"link": "x" * 5000}),
        ("join", {"link": 3}),
        ("invite", {"expires_s": 1}),
        ("ping", {"peer": "a", "timeout_s": 1e9}),
        ("why", {}),
        ("why", {"peer": ""}),
        ("why", {"peer": "x" * 201}),
        ("why", {"peer": ["home"]}),
        ("why", {"peer": "home", "how": 1}),
        ("status", {"unknown": 1}),
    ],
)
async def test_bad_arguments_never_reach_the_daemon(
    path: str, daemon: Daemon, command: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(CallRefused, match=command) as caught:
        await call(path, command, **arguments)
    assert caught.value.exit_code == 2
    assert daemon.asked == []


async def test_unknown_commands_and_other_requests(path: str) -> None:
    with pytest.raises(CallRefused, match="knows no command"):
        await call(path, "explode")
    for request in (
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v2/status HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{[}",
        b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
        b"\x00\xff garbage\r\n\r\n",
    ):
        answer = await asyncio.to_thread(raw, path, request)
        assert not answer.startswith(b"HTTP/1.1 200"), answer
    assert (await call(path, "status"))["command"] == "status"


async def test_errors_travel_whole(path: str, daemon: Daemon) -> None:
    daemon.failure = UserError("no peer is called x", "see: nostrvpn peers")
    with pytest.raises(CallRefused, match="no peer is called x") as caught:
        await call(path, "peers")
    assert (caught.value.code, caught.value.hint) == ("user_error", "see: nostrvpn peers")
    assert caught.value.exit_code == 1


async def test_a_bug_is_logged_and_the_daemon_lives(
    path: str, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.failure = KeyError("secret detail")
    with pytest.raises(CallRefused, match="failed inside status") as caught:
        await call(path, "status")
    assert caught.value.code == "bug"
    assert "secret detail" not in str(caught.value)
    assert "control command status failed" in caplog.text
    daemon.failure = None
    assert await call(path, "status")


async def test_lookers_do_not_keep_the_admin_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members of the group that hold all their calls open leave root's alone."""
    release, arrived = asyncio.Event(), asyncio.Event()
    callers = iter([False, False, True])
    monkeypatch.setattr(server_module, "_MAX_CALLS", 1)
    monkeypatch.setattr(server_module, "_is_admin", lambda _request: next(callers))

    async def handle(_command: str, _arguments: dict[str, object], admin: bool) -> object:
        if not admin:
            arrived.set()
            await release.wait()
        return {"admin": admin}

    path = str(tmp_path / "control.sock")
    server = ControlServer(path, handle)
    await server.start()
    try:
        async with asyncio.TaskGroup() as group:
            held = group.create_task(call(path, "status"))
            await asyncio.wait_for(arrived.wait(), 10)
            with pytest.raises(CallRefused, match="too many calls"):
                await call(path, "status")
            assert await call(path, "status") == {"admin": True}
            release.set()
        assert held.result() == {"admin": False}
    finally:
        await server.stop()


async def test_arguments_that_do_not_come_are_not_waited_for(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_BODY_TIMEOUT", 0.05)

    def half() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.sendall(b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            return connection.recv(4096)

    answer = await asyncio.to_thread(half)
    assert b"400" in answer.splitlines()[0]


async def test_too_many_calls_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, both = asyncio.Event(), asyncio.Event()
    arrived: list[None] = []
    monkeypatch.setattr(server_module, "_MAX_CALLS", 2)

    async def slow(_command: str, _arguments: dict[str, object], _admin: bool) -> object:
        arrived.append(None)
        if len(arrived) == 2:
            both.set()
        await release.wait()
        return {}

    server = ControlServer(str(tmp_path / "control.sock"), slow)
    await server.start()
    try:
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(call(str(tmp_path / "control.sock"), "status")) for _ in range(2)
            ]
            await both.wait()
            with pytest.raises(CallRefused, match="too many calls"):
                await call(str(tmp_path / "control.sock"), "status")
            release.set()
        assert [task.result() for task in calls] == [{}, {}]
    finally:
        await server.stop()


def as_user(path: str, command: str, uid: int, groups: list[int]) -> dict[str, Any]:
    """Call from a process of another user; the socket's own mode is opened to get that far."""
    code = (
        "import json, os, sys\n"
        "from nostrvpn.control.client import ControlClient\n"
        "from nostrvpn.errors import NostrvpnError\n"
        "path, command, uid, groups = sys.argv[1:]\n"
        "os.chdir(os.path.dirname(path))\n"
        "os.setgroups(json.loads(groups)); os.setgid(int(uid)); os.setuid(int(uid))\n"
        "try:\n"
        "    print(json.dumps(ControlClient('control.sock').call(command)))\n"
        "except NostrvpnError as error:\n"
        "    print(json.dumps({'code': error.code, 'text': str(error), 'hint': error.hint}))\n"
    )
    line = [sys.executable, "-c", code, path, command, str(uid), json.dumps(groups)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_the_kernel_says_who_calls(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_mode(path, 0o666)
    monkeypatch.setattr(server_module, "_group", lambda: 47_110)
    stranger = await asyncio.to_thread(as_user, path, "status", NOBODY, [])
    assert stranger["code"] == "permission_denied"
    assert "usermod" in stranger["hint"]
    reader = await asyncio.to_thread(as_user, path, "status", NOBODY, [47_110])
    assert reader == {"command": "status", "arguments": {}, "admin": False}
    for command in [name for name, known in COMMANDS.items() if known.admin]:
        refused = await asyncio.to_thread(as_user, path, command, NOBODY, [47_110])
        assert refused["code"] == "permission_denied", command


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_a_closed_socket_is_explained(path: str) -> None:
    set_mode(path, 0o600)
    answer = await asyncio.to_thread(as_user, path, "status", NOBODY, [])
    assert answer["code"] == "system_refused"
    assert "you may not open" in answer["text"]


async def test_a_second_server_is_refused_and_a_dead_ones_socket_replaced(
    path: str, tmp_path: Path, daemon: Daemon
) -> None:
    with pytest.raises(SystemRefused, match="another daemon answers"):
        await ControlServer(path, daemon.handle).start()
    assert await call(path, "status")
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    server = ControlServer(str(dead), daemon.handle)
    await server.start()
    assert await call(str(dead), "status")
    await server.stop()
    dead.write_text("a file")
    with pytest.raises(SystemRefused, match="in the way"):
        await server.start()


async def test_stopping_leaves_a_successors_socket(tmp_path: Path, daemon: Daemon) -> None:
    path = tmp_path / "control.sock"
    first, second = ControlServer(str(path), daemon.handle), ControlServer(str(path), daemon.handle)
    await first.start()
    path.unlink()
    await second.start()
    await first.stop()
    assert await call(str(path), "status")
    await second.stop()


async def test_a_path_that_is_too_long(tmp_path: Path, daemon: Daemon) -> None:
    with pytest.raises(UserError, match="too long"):
        await ControlServer(str(tmp_path / ("x" * 100) / "control.sock"), daemon.handle).start()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DaemonNotRunning, match="not running") as caught:
        ControlClient(str(tmp_path / "control.sock")).call("status")
    assert "nostrvpn up" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (b"", DaemonNotRunning, "stopped during the call"),
        (b"garbage\r\n\r\n", DaemonNotRunning, "stopped during the call"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<x>", SystemRefused, "no JSON"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n[]", CallRefused, "refused"),
        (None, SystemRefused, "did not answer status within 0.2 s"),
    ],
)
def test_strange_daemons(
    tmp_path: Path, answer: bytes | None, error: type[Exception], said: str
) -> None:
    path = str(tmp_path / "control.sock")
    released = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while not asked.endswith(b"{}"):  # head and body may come one by one
                    asked += connection.recv(65536)
                if answer is None:
                    released.wait(5)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(error, match=said):
                ControlClient(path).call("status", timeout=0.2)
        finally:
            released.set()
            thread.join(5)
