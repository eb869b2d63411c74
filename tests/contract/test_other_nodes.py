"""Two nodes of one host and one interface name: the living one keeps what it has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.config.options import Options
from nostrvpn.errors import SystemRefused
from nostrvpn.host.firewall import Firewall
from nostrvpn.io import cleanup, relay_routing
from nostrvpn.io.cleanup import NotAllRemoved, remove_marked
from nostrvpn.io.lock import StateLock
from nostrvpn.io.nftables import apply_firewall, delete_table, own_tables
from nostrvpn.io.wireguard_claim import require_no_other_node


@pytest.fixture
def living(netns: Any, tmp_path: Path) -> Iterator[Path]:
    """The state directory of a node that lives on nv0."""
    home = tmp_path / "living"
    lock = StateLock(Options(state_dir=str(home)).lock_path)
    lock.acquire()
    mark(netns, "nv0", home)
    yield home
    lock.release()


def mark(netns: Any, name: str, home: Path) -> None:
    netns.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
    netns.ip("link", "set", name, "alias", f"nostrvpn {home}")


def test_only_its_own_home_may_touch_a_living_nodes_interface(
    netns: Any, living: Path, tmp_path: Path
) -> None:
    mark(netns, "nv1", tmp_path / "killed")
    netns.call(require_no_other_node, "nv0", str(living))
    netns.call(require_no_other_node, "nv1", None)
    for interface in ("nv0", None):
        with pytest.raises(SystemRefused, match=f"a daemon runs on nv0 .pid {os.getpid()}") as told:
            netns.call(require_no_other_node, interface, str(tmp_path / "another"))
        assert f"--state-dir {living} down" in told.value.hint


@pytest.mark.parametrize(
    "command", [("daemon",), ("down",), ("--interface", "nv0", "cleanup"), ("cleanup",)]
)
def test_no_command_takes_a_living_nodes_interface(
    netns: Any, living: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("wireguard:\n  interface: nv0\n")
    places = {"state-dir": tmp_path / "second", "runtime-dir": tmp_path / "run", "config": config}
    base = [
        sys.executable,
        "-m",
        "nostrvpn",
        *(f"--{key}={value}" for key, value in places.items()),
    ]
    if command == ("daemon",):
        subprocess.run([*base, "init"], check=True, capture_output=True, timeout=60)
    run = ["ip", "netns", "exec", netns.name, *base, *command]
    done = subprocess.run(run, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "a daemon runs on nv0" in done.stderr
    listed = netns.ip("link", "show", "dev", "nv0")
    assert f"alias nostrvpn {living}" in listed
    assert "state DOWN" in listed


def test_one_refusal_keeps_nothing_else(
    netns: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(netns, "nv0", tmp_path)
    for name in ("nv0", "nv1"):
        netns.call(apply_firewall, Firewall(clamp_forwarded=True), name)

    def refuse(name: str) -> None:
        if name == "nostrvpn_nv0":
            raise SystemRefused("nft refused: busy")
        delete_table(name)

    def hang(_link: Any) -> bool:
        raise SystemRefused("the link hangs")

    monkeypatch.setattr(cleanup, "_delete", hang)
    monkeypatch.setattr(relay_routing, "delete_table", refuse)
    with pytest.raises(NotAllRemoved, match="the link hangs; nft refused: busy") as told:
        netns.call(remove_marked)
    assert told.value.removed == ("table inet nostrvpn_nv1",)
    assert netns.call(own_tables) == ("nostrvpn_nv0",)


def test_a_kernel_that_does_not_tell_its_tables_is_not_one_without_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: object) -> Any:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("nostrvpn.io.pyroute.NFTables", refuse)
    with pytest.raises(SystemRefused, match="Operation not permitted"):
        own_tables()
