"""A full disk under the state: one clear error, nothing leaves that is not stored, nothing is lost."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress

import pytest

from nostrvpn.control.client import CallRefused, ControlClient
from nostrvpn.lab.node import LabNode, Status
from nostrvpn.lab.patience import patient
from nostrvpn.lab.topologies import Mesh

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(60))]


def codes(status: Status) -> list[str]:
    return [problem["code"] for problem in status["problems"]]


def first_refusal(node: LabNode) -> str:
    """Change something until the room that the database still had is used up; return the error."""
    client = ControlClient(f"{node.directory}/run/control.sock")
    for number in range(1000):
        try:
            client.call("network_settings", name=f"home-{number}")
        except CallRefused as refused:
            return str(refused)
    raise AssertionError("the disk does not fill up")


def test_a_full_disk_is_said_and_survived() -> None:
    with Mesh(1) as lab:
        node = lab.node(lab.hosts[0], lab.server)
        state = node.directory / "state"
        state.mkdir(mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs", str(state)]
        subprocess.run(mount, check=True, timeout=10)
        lab.stack.callback(subprocess.run, ["umount", "-l", str(state)], check=True, timeout=10)
        node.init()
        node.start()
        node.wait_for_relay()
        assert node.query("invite", "--once")["link"]
        filler = state / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        assert "could not be saved" in first_refusal(node)
        refused = node.attempt("invite", "--once", "--json")
        assert refused.returncode == 1
        error = json.loads(refused.stderr)["error"]
        assert "could not be saved" in error["text"]
        assert "disk space" in error["hint"]
        assert "not_saved" in codes(node.status())  # looking still works
        filler.unlink()
        node.wait_for(lambda status: "not_saved" not in codes(status), "the state to be saved")
        assert node.query("invite", "--once")["link"].startswith("nostrvpn://")
        node.restart()
        assert "no_network" not in codes(node.status())  # the network it made is remembered
