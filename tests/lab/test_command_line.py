"""``up`` and ``down`` as a user types them, and several nodes on one machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
import yaml

from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.homes import (
    Homes,
    homes,
    join,
    machine,
    peer_of,
    ping,
    problems,
    wait_direct,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(90))]

# Another user, who may only pass through directories: the program may lie in root's home.
_PASS = "-all,+dac_read_search"
NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--inh-caps={_PASS}", f"--ambient-caps={_PASS}"),
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Homes]:
    """Two homes whose nodes nobody has started."""
    with homes(2) as lab:
        yield lab


@pytest.fixture
def node(lab: Homes) -> Iterator[LabNode]:
    """A node with a configuration and nothing else; whatever a test starts is down afterwards."""
    node = lab.nodes[0]
    text = node.config.read_text()
    yield node
    node.config.write_text(text)
    node.cli("down")
    node.close()
    shutil.rmtree(node.directory / "state", ignore_errors=True)


def error_of(node: LabNode, *arguments: str, code: int = 1) -> str:
    """Run a command that must fail; return its one line of error and its one line of hint."""
    done = node.attempt(*arguments)
    assert done.returncode == code, done
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"]
    assert done.stdout == ""
    told = node.attempt(*arguments, "--json")
    refusal = json.loads(told.stderr)["error"]
    assert told.returncode == code
    assert set(refusal) == {"code", "text", "hint"}
    return done.stderr


def test_up_and_down_twice(node: LabNode) -> None:
    before = machine(node)
    said = node.cli("up")
    assert f"nostrvpn is up on {node.interface}" in said
    assert "Created this node's identity: npub1" in said
    assert "nostrvpn invite THEIR_NPUB" in said
    again = node.query("up")
    assert again["npub"] in said
    assert [relay["state"] for relay in again["relays"]] == ["connected"]
    assert list(problems(again)) == ["no_network"]
    assert len([name for name in machine(node)["processes"] if "daemon" in name]) == 1
    assert node.query("down") == {"was_running": True, "removed": []}
    # The lock is free and the network as before; the process itself may still be ending.
    wait_until(lambda: machine(node)["processes"] == [], "the daemon's end")
    assert machine(node) == before
    assert node.query("down") == {"was_running": False, "removed": []}
    assert node.cli("down") == "nostrvpn was not running.\n"
    assert node.query("up")["npub"] == again["npub"]


def test_no_relay_answers(node: LabNode) -> None:
    settings = yaml.safe_load(node.config.read_text())
    settings["relays"]["urls"] = ["ws://11.0.1.2:9"]
    node.config.write_text(yaml.safe_dump(settings))
    node.init()
    said = error_of(node, "up", f"--timeout={patient(8):.0f}")
    assert "no relay is connected" in said
    assert "ws://11.0.1.2:9" in said or "check the internet connection" in said
    assert "relays_down" in problems(node.status())  # it is up, and goes on trying


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [a", "config.yaml"),
        ("name: a\nrelay:\n  urls: [ws://a.example]\n", "relays"),
        ("wireguard:\n  listen_prot: 5\n", "listen_port"),
        ("wireguard:\n  mtu: big\n", "mtu"),
        ("relays:\n  urls: [http://a.example]\n", "http://a.example"),
        ("stun: ['a b']\n", "stun"),
    ],
)
def test_a_broken_configuration_is_refused(node: LabNode, text: str, told: str) -> None:
    node.config.write_text(text)
    for command in ("up", "daemon"):
        done = node.attempt(command)
        assert done.returncode == 1
        assert told in done.stderr
        assert str(node.config) in done.stderr
        assert len(done.stderr.splitlines()) <= 2
    assert not (node.directory / "state").exists()


def test_an_identity_that_others_can_read_is_refused(node: LabNode) -> None:
    node.init()
    identity = node.directory / "state/identity"
    identity.chmod(0o644)
    for command in ("up", "id"):
        assert "other users can read or change the key file" in error_of(node, command)
    identity.chmod(0o600)
    assert node.query("up")["npub"] == node.npub


def test_without_the_right_to_change_the_network(lab: Homes, node: LabNode) -> None:
    node.init()
    for directory in (lab.directory, node.directory):
        directory.chmod(0o755)
    for command in ("up", "daemon", "down"):
        done = node.namespace.run(*NOBODY, *node.command, command, check=False)
        assert done.returncode == 1
        error, hint = done.stderr.splitlines()
        assert error.startswith("error: ")
        assert "sudo" in hint
        assert "CAP_NET_ADMIN" in error or command == "down"
    assert node.query("up")["npub"] == node.npub
    outsider = node.namespace.run(*NOBODY, *node.command, "status", check=False)
    assert outsider.returncode == 1
    assert "you may not" in outsider.stderr


def test_a_damaged_state_loses_no_membership(lab: Homes, node: LabNode) -> None:
    other = lab.nodes[1]
    join(node, other)
    port = node.status()["listen_port"]
    node.stop()
    state = node.directory / "state"
    database = state / "state.db"
    database.write_bytes(b"\xff" * database.stat().st_size)
    node.start()
    status = node.status()
    assert "state_restored" in problems(status)
    assert len(status["addresses"]) == 2
    assert status["listen_port"] == port
    wait_direct(node, other)
    ping(node, other)
    # Its keys make what was recorded readable, so the damaged file goes as soon as one changes.
    node.query("peer", "remove", other.npub)
    wait_until(lambda: not list(state.glob("*damaged*")), "the damaged file to be deleted")


def test_two_nodes_on_one_machine() -> None:
    with homes(2) as lab:
        first, second = lab.nodes
        third = lab.second_node(lab.laptops[0], f"{first.interface}b")
        fourth = lab.second_node(lab.laptops[1], f"{second.interface}b")
        join(first, second)
        join(third, fourth)
        for mine, theirs in ((first, second), (third, fourth)):
            ping(mine, theirs)
            assert peer_of(mine, theirs)["path"] == "direct"
        ports = {node.status()["listen_port"] for node in (first, third)}
        assert len(ports) == 2
        assert first.query("down")["was_running"] is True
        wait_direct(third, fourth)
        ping(third, fourth)
        links = third.namespace.run("ip", "-br", "link").stdout
        assert third.interface in links
        assert f"{first.interface} " not in links
