"""What real daemons leave of an exit that was used or offered: nothing, however it ended.

Recorded are links, addresses, routes, rules, nftables, settings of the kernel, processes, and
resolv.conf, which ``ip netns exec`` lays over the machine's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.errors import UserError
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.abroad import NOBODY, Abroad, strays
from tests.lab.homes import join, machine, problems, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(180))]

LIMIT = 20.0
# No line break at the end: every byte has to come back.
RESOLV_CONF = "# the user's own\nsearch lan\nnameserver 127.0.0.9"

# The real nft, but for one call of it: that one is refused, or ends whoever makes it.
NFT = """#!/bin/sh
echo >> {counter}
if [ $(wc -l < {counter}) -eq {number} ]; then {fault}; fi
exec {nft} "$@"
"""
REFUSE, KILL = 'echo "out of luck" >&2; exit 1', "kill -9 $PPID; exit 1"


class Recorded(Abroad):
    """One exit; the laptop may edit its resolv.conf. ``before``: how hosts look without daemons."""

    def __init__(self) -> None:
        super().__init__(exits=1, dns={"resolv_conf": True})

    def build(self) -> None:
        super().build()
        self.resolv_conf = Path("/etc/netns") / self.laptop.namespace.name / "resolv.conf"
        self.resolv_conf.parent.mkdir(parents=True)
        self.stack.callback(shutil.rmtree, self.resolv_conf.parent)
        self.resolv_conf.write_text(RESOLV_CONF)
        self.before = {node.name: self.looks(node) for node in self.nodes}

    def looks(self, node: LabNode) -> dict[str, Any]:
        found = machine(node)
        # The order in which the kernel lists its routes is that of their making.
        for name in ("routes", "routes6"):
            found[name] = sorted(map(str, found[name]))
        if node is self.laptop:
            found["resolv.conf"] = self.resolv_conf.read_text()
        return found

    def has_nothing(self, node: LabNode) -> None:
        now, before = self.looks(node), self.before[node.name]
        assert {what for what in now if now[what] != before[what]} == set()
        assert now == before


@pytest.fixture(scope="module")
def recorded() -> Iterator[Recorded]:
    with watched(Recorded()) as lab:
        join(lab.laptop, *lab.exits)
        lab.own_port()
        lab.laptop.cli("exit", "bypass", "add", "192.0.2.0/24")
        lab.laptop.cli("exit", "bypass", "add", "uid:4000-4010")
        yield lab


@pytest.fixture
def lab(recorded: Recorded) -> Iterator[Recorded]:
    """Afterwards all daemons run, and no exit is used or offered."""
    for node in recorded.nodes:
        if not node.process.alive:
            node.start()
    offer(recorded)
    yield recorded
    if recorded.laptop.process.alive:
        recorded.laptop.cli("exit", "off", "--kill-switch", "on")


def offer(lab: Recorded) -> None:
    lab.exits[0].cli(
        *("exit", "offer", "--to", "members", "--policy", "web", "--client-rate", "50"),
        *("--bandwidth", "100", "--connections", "50", "--budget", "10"),
    )
    wait_until(lambda: lab.laptop.ask("exit_list")["exits"], "the offer", timeout=LIMIT)


def state(node: LabNode) -> str:
    return str(node.ask("exit_status")["state"])


def use(lab: Recorded, kill_switch: str = "on") -> None:
    lab.laptop.cli(
        *("exit", "use", lab.exits[0].name, "--yes", "--allow-lan"),
        *("--kill-switch", kill_switch, "--resolver", "exit"),
    )
    carries(lab)


def carries(lab: Recorded) -> None:
    wait_until(lambda: state(lab.laptop) == "connected", "an exit that carries", timeout=2 * LIMIT)
    wait_until(
        lambda: "127.0.0.9" not in uncommented(lab), "no other resolver is left", timeout=LIMIT
    )


def uncommented(lab: Recorded) -> str:
    lines = lab.resolv_conf.read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("kill_switch", ["off", "on", "lockdown"])
def test_after_exit_off_and_down_the_host_is_as_it_was(lab: Recorded, kill_switch: str) -> None:
    use(lab, kill_switch)
    lab.laptop.cli("exit", "off", "--kill-switch", "on")
    wait_until(lambda: state(lab.laptop) == "off", "the exit to be off", timeout=LIMIT)
    lab.laptop.cli("down")
    lab.has_nothing(lab.laptop)


def test_after_down_while_an_exit_is_used_the_host_is_as_it_was(lab: Recorded) -> None:
    use(lab)
    lab.laptop.cli("down")
    lab.has_nothing(lab.laptop)


@pytest.mark.parametrize("kill_switch", ["off", "on", "lockdown"])
def test_after_sigkill_and_cleanup_the_host_is_as_it_was(lab: Recorded, kill_switch: str) -> None:
    use(lab, kill_switch)
    lab.laptop.kill()
    lab.laptop.cli("cleanup")
    lab.has_nothing(lab.laptop)


@pytest.mark.parametrize("how", ["stop", "down", "kill"])
def test_after_being_an_exit_the_host_is_as_it_was(lab: Recorded, how: str) -> None:
    node = lab.exits[0]
    use(lab)
    lab.talk(uid=NOBODY)
    if how == "stop":
        node.cli("exit", "offer", "--stop")
    if how == "kill":
        node.kill()
        node.cli("cleanup")
    else:
        node.cli("down")
    lab.has_nothing(node)


@pytest.mark.parametrize("fault", [REFUSE, KILL], ids=["refused", "killed"])
def test_a_start_in_which_nft_fails_opens_nothing_and_goes_on_or_is_cleaned_up(
    lab: Recorded, fault: str
) -> None:
    use(lab)
    lab.laptop.cli("exit", "use", lab.exits[0].name, "--yes", "--no-allow-lan")
    carries(lab)
    capture = lab.watch()
    lab.laptop.kill()
    for number in (1, 2, 3, 5, 7):
        start_with(lab, number, fault)
        lab.talk()
    if fault is KILL:
        lab.laptop.start()
    carries(lab)
    lab.talk()
    capture.stop()
    found = strays(lab, capture)
    assert not found, f"{len(found)} packets strayed: {sorted(set(found))[:20]}"
    lab.laptop.kill()
    start_with(lab, 4, KILL)
    lab.laptop.cli("cleanup")
    lab.has_nothing(lab.laptop)
    forgive(lab.laptop, "out of luck")


def test_a_resolver_file_that_cannot_be_written_is_said_and_holds_up_nothing(
    lab: Recorded,
) -> None:
    lab.laptop.cli("down")
    with read_only(lab.resolv_conf):
        lab.laptop.start()
        words = ("exit", "use", lab.exits[0].name, "--yes", "--resolver", "exit")
        lab.laptop.cli(*words)
        wait_until(lambda: state(lab.laptop) == "connected", "the exit", timeout=2 * LIMIT)
        wait_until(
            lambda: "Read-only file system" in str(problems(lab.laptop.status())),
            "the word of what is wrong",
            timeout=LIMIT,
        )
        assert lab.resolv_conf.read_text() == RESOLV_CONF
        lab.laptop.cli("down")
    lab.has_nothing(lab.laptop)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Let nobody write a file meanwhile: it is a mount of its own."""
    subprocess.run(("mount", "--bind", path, path), check=True)
    try:
        subprocess.run(("mount", "-o", "remount,bind,ro", path), check=True)
        yield
    finally:
        subprocess.run(("umount", path), check=True)


def forgive(node: LabNode, words: str) -> None:
    """Take out of a daemon's log what was made to fail."""
    for log in (node.log, node.directory / "state/daemon.log"):
        if log.exists():
            lines = log.read_text().splitlines(keepends=True)
            log.write_text("".join(line for line in lines if words not in line))


def start_with(lab: Recorded, number: int, fault: str) -> None:
    """Start the laptop's daemon with a fault in a call of nft; it runs on, or was killed by it."""
    nft = shutil.which("nft")
    place = lab.directory / f"nft-{number}-{len(list(lab.directory.glob('nft-*')))}"
    place.mkdir()
    script = place / "nft"
    counter = place / "calls"
    script.write_text(NFT.format(counter=counter, number=number, fault=fault, nft=nft))
    script.chmod(0o755)
    if lab.laptop.process.alive:
        lab.laptop.kill()
    path = f"{place}:{os.environ['PATH']}"
    with suppress(UserError) if fault is KILL else nullcontext():
        lab.laptop.start(PATH=path)
    # What was refused is tried again after 30 s at the latest.
    wait_until(
        lambda: counter.read_text().count("\n") >= number,
        f"call {number} of nft",
        timeout=3 * LIMIT,
    )
    if fault is KILL:
        wait_until(lambda: not lab.laptop.process.alive, "the daemon's end", timeout=LIMIT)
