"""What is forked from the lab's interpreter is what a new process would be."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.patience import LabTimeout
from nostrvpn.lab.processes import Process, python_module
from tests.warm_python import WarmChild, WarmPython

pytestmark = [pytest.mark.lab, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[WarmPython]:
    made = WarmPython()
    yield made
    made.close()


@pytest.fixture
def warm(interpreter: WarmPython, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Namespace, "forks", interpreter)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace(f"nv{os.getpid()}warm")
    made.create()
    own = Path("/etc/netns", made.name)
    own.mkdir(parents=True)
    (own / "hostname").write_text("forked\n")
    yield made
    made.delete()
    (own / "hostname").unlink()
    own.rmdir()


def _relay(namespace: Namespace, directory: Path, **environment: str) -> Process:
    argv = python_module("nostrvpn", "relay", "--listen", "127.0.0.1:7777")
    process = Process(namespace, argv, log=directory / "relay.log", environment=environment)
    process.wait_for_text("7777", timeout=20)
    return process


def test_a_command_says_what_a_new_process_says(
    namespace: Namespace, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [
        python_module("nostrvpn", *words) for words in (("version", "--json"), ("nonsense",))
    ]
    forked = [namespace.run(*argv, check=False) for argv in commands]
    monkeypatch.setattr(Namespace, "forks", None)
    started = [namespace.run(*argv, check=False) for argv in commands]
    assert json.loads(forked[0].stdout)
    assert forked[1].returncode == 2
    for one, other in zip(forked, started, strict=True):
        assert (one.returncode, one.stdout) == (other.returncode, other.stdout)
        assert one.stderr == other.stderr


def test_a_daemon_is_in_its_namespace_and_sees_its_files(
    namespace: Namespace, warm: None, tmp_path: Path
) -> None:
    process = _relay(namespace, tmp_path, SAID="this")
    proc = Path("/proc", str(process.pid))
    assert process.pid in namespace.pids()
    assert os.getsid(process.pid) == process.pid
    assert [one.name for one in (proc / "root/sys/class/net").iterdir()] == ["lo"]
    assert (proc / "root/etc/hostname").read_text() == "forked\n"
    assert (proc / "fd/0").readlink() == Path("/dev/null")
    kept = {str((proc / "fd" / one.name).readlink()) for one in (proc / "fd").iterdir()}
    assert not {one for one in kept if one.startswith("pipe:")}, kept
    # What others of this machine see is as before.
    assert Path("/etc/hostname").read_text() != "forked\n"
    assert process.alive
    assert process.stop() == 0
    assert not process.alive


def test_how_it_ended_is_told(namespace: Namespace, warm: None, tmp_path: Path) -> None:
    process = _relay(namespace, tmp_path)
    other = _relay_again(namespace, tmp_path)
    assert other != 0
    os.kill(process.pid, signal.SIGKILL)
    assert process.kill() == process.exit_code == -signal.SIGKILL


def _relay_again(namespace: Namespace, directory: Path) -> int:
    """A second one, whose port is taken."""
    argv = python_module("nostrvpn", "relay", "--listen", "127.0.0.1:7777")
    return namespace.run(*argv, check=False, timeout=20).returncode


def test_what_takes_too_long_is_killed(namespace: Namespace, warm: None) -> None:
    with pytest.raises(LabTimeout, match="took longer"):
        namespace.run(*python_module("nostrvpn", "relay", "--listen", "127.0.0.1:7778"), timeout=3)
    assert namespace.pids() == []


def test_nothing_comes_of_one_that_is_gone(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = WarmPython()
    gone.close()
    monkeypatch.setattr(Namespace, "forks", gone)
    with pytest.raises(SystemRefused, match="fork"):
        namespace.run(*python_module("nostrvpn", "version"))


def test_only_our_own_programs_are_forked(namespace: Namespace, warm: None, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as output:
        started = namespace.popen(("true",), output=output)
    assert not isinstance(started, WarmChild)
    assert started.wait(10) == 0
    assert namespace.run("echo", "as ever").stdout == "as ever\n"
