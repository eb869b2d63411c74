"""What only a WireGuard in user space can do: die, hang, outlive its agent, be somewhere else."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.netlink import find_link
from nostrvpn.io.wireguard import select_backend
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.wireguard.device import Device, SecretKey

KEY = SecretKey(bytes(range(32)))
SOCKETS = Path("/var/run/wireguard")


def eventually(is_so: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def userspace(make_node: Callable[..., Any], netns: Any, interface: str) -> Any:
    return make_node(netns, UserspaceBackend(), interface)


def end(pid: int, number: int = signal.SIGKILL) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, number)
        assert select.select([descriptor], [], [], 10)[0]
    finally:
        os.close(descriptor)


def test_a_killed_process_is_noticed_and_replaced(userspace: Any) -> None:
    userspace.create()
    userspace.settle(Device(KEY, 51886))
    (pid,) = userspace.pids()
    end(pid)
    eventually(lambda: userspace.observe() is None)
    assert (SOCKETS / f"{userspace.interface}.sock").exists()
    userspace.create()
    assert userspace.observe().is_bare
    assert userspace.pids() != (pid,)
    end(*userspace.pids())
    userspace.delete()
    assert not (SOCKETS / f"{userspace.interface}.sock").exists()


def test_cleanup_takes_the_socket_of_a_killed_process(userspace: Any) -> None:
    userspace.create()
    end(*userspace.pids())
    path = SOCKETS / f"{userspace.interface}.sock"
    eventually(lambda: userspace.interface not in userspace.netns.ip("link"))
    assert path.exists()
    userspace.netns.call(remove_marked, userspace.interface)
    assert not path.exists()


def test_a_hung_process_is_replaced(userspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ANSWER_TIMEOUT_S", "_EXIT_TIMEOUT_S"):
        monkeypatch.setattr(f"nostrvpn.io.wireguard_userspace.{name}", 0.5)
    userspace.create()
    (pid,) = userspace.pids()
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SystemRefused):
        userspace.observe()
    userspace.create()
    assert userspace.observe().is_bare
    assert userspace.pids() != (pid,)
    assert not Path(f"/proc/{pid}/ns/net").exists()
    userspace.delete()


def test_the_process_outlives_the_agent_that_started_it(userspace: Any) -> None:
    code = (
        "import os, signal; from nostrvpn.io.wireguard_userspace import UserspaceBackend;"
        f"UserspaceBackend().create({userspace.interface!r}, 1280);"
        "os.killpg(0, signal.SIGKILL)"
    )
    agent = subprocess.Popen(
        ["ip", "netns", "exec", userspace.netns.name, sys.executable, "-c", code],
        start_new_session=True,
    )
    assert agent.wait(30) == -signal.SIGKILL
    pids = userspace.pids()
    assert pids
    userspace.create()
    assert userspace.pids() == pids
    userspace.delete()


def test_a_name_in_use_in_another_namespace_is_refused(
    userspace: Any, make_netns: Callable[[], Any], make_node: Callable[..., Any]
) -> None:
    userspace.create()
    elsewhere = make_node(make_netns(), UserspaceBackend(), userspace.interface)
    assert elsewhere.observe() is None
    with pytest.raises(SystemRefused, match="another network namespace"):
        elsewhere.create()
    elsewhere.delete()
    assert userspace.observe().is_bare
    userspace.delete()


def test_an_implementation_that_fails_is_reported(
    make_node: Callable[..., Any], netns: Any, interface: str
) -> None:
    node = make_node(netns, UserspaceBackend("no-such-program"), interface)
    assert "not installed" in node.backend.unavailable()
    with pytest.raises(SystemRefused, match="not installed"):
        node.create()
    node = make_node(netns, UserspaceBackend("false"), interface)
    with pytest.raises(SystemRefused, match="did not bring up"):
        node.create()


def test_an_implementation_that_stays_in_the_foreground(
    make_node: Callable[..., Any], netns: Any, interface: str, tmp_path: Path
) -> None:
    program = tmp_path / "foreground"
    program.write_text('#!/bin/sh\nexec wireguard-go -f "$1"\n')
    program.chmod(0o755)
    node = make_node(netns, UserspaceBackend(str(program)), interface)
    node.create()
    assert node.observe().is_bare
    node.delete()
    assert node.observe() is None


# Answers late, and gives the link its own MTU before: so does the process that wireguard-go leaves
# behind, on a busy machine.
_LATE = """#!/usr/bin/env python3
import fcntl, os, socket, struct, subprocess, sys, time
name, path = sys.argv[1], f"/var/run/wireguard/{sys.argv[1]}.sock"
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
time.sleep(1.5)
subprocess.run(["ip", "link", "set", name, "mtu", "1420"], check=True)
while True:
    one, _ = server.accept()
    with one:
        if one.recv(100):
            one.sendall(b"listen_port=0\\nerrno=0\\n\\n")
"""


def test_a_process_that_answers_late_does_not_change_the_mtu_afterwards(
    make_node: Callable[..., Any], netns: Any, interface: str, tmp_path: Path
) -> None:
    program = tmp_path / "late"
    program.write_text(_LATE)
    program.chmod(0o755)
    node = make_node(netns, UserspaceBackend(str(program)), interface)
    node.create(mtu=1300)
    eventually(lambda: node.observe() is not None)
    link = netns.call(find_link, interface)
    assert link.mtu == 1300
    end(*node.pids())
    node.delete()


def test_an_interface_name_cannot_leave_the_socket_directory(netns: Any) -> None:
    with pytest.raises(SystemRefused, match="not an interface name"):
        netns.call(UserspaceBackend().create, "../x", 1280)


def test_selection(netns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert netns.call(select_backend, "userspace").name == "userspace"
    kernel_works = not KernelBackend().unavailable()
    auto = netns.call(select_backend, "auto")
    assert auto.name == ("kernel" if kernel_works else "userspace")
    monkeypatch.setenv("WG_QUICK_USERSPACE_IMPLEMENTATION", "no-such-program")
    with pytest.raises(SystemRefused, match="no-such-program") as caught:
        netns.call(select_backend, "userspace")
    assert "wireguard-go" in caught.value.hint
    if not kernel_works:
        with pytest.raises(SystemRefused, match="kernel"):
            netns.call(select_backend, "kernel")
    monkeypatch.setattr("nostrvpn.io.wireguard.has_net_admin", lambda: False)
    with pytest.raises(SystemRefused, match="not permitted"):
        netns.call(select_backend, "auto")
