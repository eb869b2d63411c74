"""A command in a network of its own that asks a site whom it sees, on and on; what it leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from nostrvpn.host.booth import BOOTH_NETWORKS
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process
from tests.lab.abroad import Abroad, frames_of

__all__ = [
    "LIMIT",
    "NOTHING",
    "PROGRAM",
    "asking",
    "asking_on",
    "hears",
    "links",
    "nothing_of_it_outside",
    "outside",
    "sites",
    "traces",
]

LIMIT = 20.0
NOTHING = ["-"] * 4
PROGRAM = Path(__file__).parent / "programs" / "asking.py"


def links(lab: Abroad) -> list[str]:
    """The links of commands that there are on the laptop."""
    listed = json.loads(lab.host_laptop.run("ip", "-j", "link"))
    return [one["ifname"] for one in listed if one["ifname"].startswith("nvxec")]


def traces(lab: Abroad) -> str:
    """All that a command may leave on the laptop."""
    run = lab.host_laptop.run
    tables = [t for t in run("nft", "list", "tables").splitlines() if t.endswith("_exec")]
    rules = [
        line
        for family in ("-4", "-6")
        for line in run("ip", family, "rule").splitlines()
        if line.startswith(("4618:", "4619:", "4620:"))
    ]
    return "\n".join([*links(lab), *tables, *rules])


def outside(lab: Abroad, number: int) -> list[str]:
    """What the site sees an exit as, by TCP and UDP, of both IP versions."""
    host = lab.hosts_abroad[number]
    return [str(host.address)] * 2 + [str(host.address6)] * 2


def sites(lab: Abroad) -> tuple[str, str]:
    return str(lab.site.address), str(lab.site.address6)


def asking(how: str, *targets: str) -> tuple[str, ...]:
    return (sys.executable, str(PROGRAM), how, *targets)


@contextmanager
def asking_on(lab: Abroad, *options: str) -> Iterator[Process]:
    """A command that asks the site through the first exit, on and on."""
    arguments = ("exec", "--exit", lab.exits[0].name, *options, "--")
    log = lab.directory / f"asking-{uuid4().hex}.log"
    argv = (*lab.laptop.command, *arguments, *asking("forever", *sites(lab)))
    words = " ".join(outside(lab, 0))

    def begun() -> Process | None:
        """An emulated machine may refuse: what the daemon waits for the kernel is too short there."""
        process = Process(lab.host_laptop.namespace, argv, log=log)
        wait_until(
            lambda: not process.alive or words in process.output(),
            "a command that hears the site",
            timeout=LIMIT,
            evidence=process.tail,
        )
        return process if process.alive else None

    process = wait_until(begun, "a command", timeout=LIMIT, evidence=log.read_text)
    try:
        yield process
    finally:
        process.kill()


def hears(process: Process, words: list[str]) -> None:
    """Wait until a command that asks on and on hears this, in a round that begins from now on."""
    rounds = len(process.output().splitlines())
    text = " ".join(words)
    wait_until(
        # The one under way may still be the last of before.
        lambda: text in process.output().splitlines()[rounds + 1 :],
        f"a command that hears {text!r}",
        timeout=LIMIT,
        evidence=process.tail,
    )


@contextmanager
def nothing_of_it_outside(lab: Abroad) -> Iterator[None]:
    """Nothing on the laptop's cable comes from a command, or is for the site."""
    capture = lab.watch()
    yield
    capture.stop()
    found = [
        str(frame)
        for frame in frames_of(capture.packets(), lab.mac())
        if frame.target in lab.strangers
        or any(
            frame.source is not None and frame.source in network
            for network in BOOTH_NETWORKS
            if frame.source is not None and frame.source.version == network.version
        )
    ]
    assert not found, f"{len(found)} packets: {sorted(set(found))[:20]}"
