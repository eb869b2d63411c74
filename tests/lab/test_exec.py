"""One command through an exit, in a network of its own, while its host keeps its own way."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nostrvpn.host.booth import BOOTH_NETWORKS
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from tests.lab.abroad import NOBODY, Abroad
from tests.lab.asking import (
    LIMIT,
    NOTHING,
    PROGRAM,
    asking,
    asking_on,
    hears,
    links,
    nothing_of_it_outside,
    outside,
    sites,
    traces,
)
from tests.lab.homes import join, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

# A network namespace ends when the kernel gets to it: one after the other, of all that the machine has.
DISMANTLED_S = 60.0


@pytest.fixture(scope="module")
def abroad() -> Iterator[Abroad]:
    """The laptop owns a network; both exits offer themselves to it."""
    with watched(Abroad()) as lab:
        join(lab.laptop, *lab.exits)
        for exit_node in lab.exits:
            exit_node.cli("exit", "offer", "--to", "members")
        wait_until(
            lambda: len(lab.laptop.ask("exit_list")["exits"]) == 2,
            "two offers",
            timeout=LIMIT,
        )
        yield lab


@pytest.fixture
def lab(abroad: Abroad) -> Iterator[Abroad]:
    """Afterwards the daemon runs, no exit is used, and no command has a link."""
    yield abroad
    abroad.mend(0)
    if not abroad.laptop.process.alive:
        abroad.laptop.start()
    abroad.laptop.cli("exit", "off", "--kill-switch", "on")
    wait_until(lambda: not links(abroad), "all commands to be gone", timeout=LIMIT)


def said(lab: Abroad, *command: str) -> str:
    """Run a command through the first exit to its end; return what it said."""
    return lab.laptop.cli("exec", "--exit", lab.exits[0].name, "--", *command)


def run(lab: Abroad, *command: str) -> list[str]:
    return said(lab, *command).split()


def addresses(node: LabNode) -> list[str]:
    """A node's addresses in the mesh."""
    return [text.partition("/")[0] for text in node.status()["addresses"]]


def test_the_site_sees_the_exit_for_the_command_and_the_host_for_the_host(lab: Abroad) -> None:
    before = traces(lab)
    home = [str(lab.home.address), str(lab.home.address)]
    with asking_on(lab) as command:
        # At the same time, of the same host.
        heard = lab.host_laptop.run(*asking("once", *sites(lab))).split()
        assert heard[:2] == home
        assert not set(heard) & set(outside(lab, 0))
        hears(command, outside(lab, 0))
        assert lab.laptop.query("exit", "status")["state"] == "off"
    wait_until(lambda: traces(lab) == before, "no trace of it", timeout=LIMIT)


def test_names_are_asked_of_the_exit_and_of_nobody_else(lab: Abroad) -> None:
    with nothing_of_it_outside(lab):
        assert run(lab, *asking("once", "dns")) == ["answered", "answered"]
        others = [f"dns:{target}" for target in (*sites(lab), lab.printer.address)]
        assert run(lab, *asking("once", *others)) == ["-", "-", "-"]
        shown = said(lab, "cat", "/etc/resolv.conf")
        assert "hosts: files dns" in said(lab, "cat", "/etc/nsswitch.conf").splitlines()
    servers = [line.split()[1] for line in shown.splitlines() if line.startswith("nameserver")]
    assert sorted(servers) == sorted(addresses(lab.exits[0]))


def test_a_command_reaches_the_internet_and_nothing_else(lab: Abroad) -> None:
    """No member, no local network, and no service of the host; nobody comes in."""
    targets = [*addresses(lab.laptop), *addresses(lab.exits[1]), *addresses(lab.exits[0])]
    targets += [str(lab.printer.address), str(lab.host_laptop.address)]
    targets += [str(network[0]) for network in BOOTH_NETWORKS]
    listener = (sys.executable, str(PROGRAM.with_name("answering.py")), "80", "443")
    log = lab.directory / "everywhere.log"
    served = [lab.host_laptop.namespace, lab.exits[0].namespace, lab.exits[1].namespace]
    processes = [Process(one, listener, log=log.with_suffix(f".{one.label}")) for one in served]
    try:
        for process in processes:
            process.wait_for_text("listening everywhere")
        # Else the test would say nothing.
        own, other = addresses(lab.laptop)[0], addresses(lab.exits[1])[0]
        assert "-" not in lab.host_laptop.run(*asking("once", own, other)).split()
        with nothing_of_it_outside(lab):
            assert set(run(lab, *asking("once", *targets))) == {"-"}
    finally:
        for process in processes:
            process.kill()


def test_exit_code_signals_user_and_terminal_are_those_of_the_command(lab: Abroad) -> None:
    def end(*command: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
        who = ("exec", "--exit", lab.exits[0].name, *options, "--")
        done = lab.laptop.attempt(*who, *command)
        return done.returncode, done.stdout.strip()

    assert end("sh", "-c", "exit 7") == (7, "")
    assert end("sh", "-c", "kill -TERM $$") == (-signal.SIGTERM, "")
    assert end("/is/not/there")[0] == 127
    assert end("/etc/passwd")[0] == 126
    assert end("id", "-u", options=("--user", "nobody")) == (0, str(NOBODY))
    assert end("sh", "-c", "echo $HOME", options=("--user", "nobody"))[1] == "/nonexistent"
    # What Python ignores would stay ignored in the command; what was ignored before is not ours.
    ignored = int(end("grep", "SigIgn", "/proc/self/status")[1].split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)
    effective = ("grep", "-E", "^(Uid|Groups|CapEff)", "/proc/self/status")
    uids, groups, capabilities = end(*effective, options=("--user", "nobody"))[1].splitlines()
    assert uids.split()[1:] == [str(NOBODY)] * 4
    assert groups.split()[1:] == [str(NOBODY)]
    assert int(capabilities.split()[1], 16) == 0
    with asking_on(lab) as command:
        # No process of ours in between: what is signalled is the command.
        assert PROGRAM.name in Path(f"/proc/{command.pid}/cmdline").read_text()


def test_when_the_exit_dies_the_packets_of_the_command_go_nowhere(lab: Abroad) -> None:
    with nothing_of_it_outside(lab), asking_on(lab) as command:
        lab.cut(0)
        hears(command, NOTHING)
        lab.mend(0)
        hears(command, outside(lab, 0))


def test_when_the_exit_is_offered_no_more_the_command_has_no_network(lab: Abroad) -> None:
    with nothing_of_it_outside(lab), asking_on(lab) as command:
        lab.exits[0].cli("exit", "offer", "--stop")
        hears(command, NOTHING)
        wait_until(lambda: not links(lab), "its link to be gone", timeout=LIMIT)
        lab.exits[0].cli("exit", "offer", "--to", "members")
        hears(command, NOTHING)
    wait_until(lambda: len(lab.laptop.ask("exit_list")["exits"]) == 2, "two offers")


def test_a_killed_daemon_lets_nothing_of_the_command_out(lab: Abroad) -> None:
    """The exit goes on as the kernel has it; the next daemon takes the command's network away."""
    with nothing_of_it_outside(lab), asking_on(lab) as command:
        lab.laptop.process.signal(signal.SIGKILL)
        wait_until(lambda: not lab.laptop.process.alive, "the daemon to be gone")
        hears(command, outside(lab, 0))
        lab.laptop.start()
        hears(command, NOTHING)
        assert not links(lab)
    assert not traces(lab)


def test_a_killed_command_and_a_killed_daemon_leave_nothing_that_cleanup_does_not_remove(
    lab: Abroad,
) -> None:
    with nothing_of_it_outside(lab), asking_on(lab) as command:
        lab.laptop.process.signal(signal.SIGKILL)
        wait_until(lambda: not lab.laptop.process.alive, "the daemon to be gone")
        assert traces(lab)
        removed = lab.laptop.cli("cleanup")
        assert "nvxec" in removed
        assert not traces(lab)
        hears(command, NOTHING)
    lab.laptop.start()


def test_a_killed_command_leaves_nothing(lab: Abroad) -> None:
    with asking_on(lab) as command:
        command.signal(signal.SIGKILL)
        wait_until(lambda: not traces(lab), "no trace of it", timeout=DISMANTLED_S)


def test_two_commands_at_once_go_through_the_same_exit(lab: Abroad) -> None:
    with asking_on(lab) as one, asking_on(lab) as other:
        assert len(links(lab)) == 2
        one.kill()
        wait_until(lambda: len(links(lab)) == 1, "one link to be gone", timeout=DISMANTLED_S)
        hears(other, outside(lab, 0))


def test_a_second_exit_is_refused(lab: Abroad) -> None:
    laptop, (one, other) = lab.laptop, lab.exits
    with asking_on(lab) as command:
        refused = laptop.attempt("exec", "--exit", other.name, "--", "true")
        assert refused.returncode == 1
        assert "one exit at a time" in refused.stderr
        refused = laptop.attempt("exit", "use", other.name, "--yes")
        assert refused.returncode == 1
        assert "one exit at a time" in refused.stderr
        # The same one for the whole host is fine, and the command goes on, also with the kill switch.
        laptop.cli("exit", "use", one.name, "--yes", "--no-allow-lan", "--kill-switch", "on")
        wait_until(
            lambda: laptop.ask("exit_status")["state"] == "connected",
            "an exit that carries",
            timeout=LIMIT,
        )
        hears(command, outside(lab, 0))
        assert run(lab, *asking("once", *sites(lab))) == outside(lab, 0)
        refused = laptop.attempt("exec", "--exit", other.name, "--", "true")
        assert "one exit at a time" in refused.stderr
        with nothing_of_it_outside(lab):
            lab.cut(0)
            hears(command, NOTHING)
        lab.mend(0)
    laptop.cli("exit", "off", "--kill-switch", "lockdown")
    refused = laptop.attempt("exec", "--exit", one.name, "--", "true")
    assert "lockdown" in refused.stderr


def test_a_flushed_ruleset_and_deleted_rules_let_nothing_of_the_command_out(lab: Abroad) -> None:
    with nothing_of_it_outside(lab), asking_on(lab) as command:
        before = traces(lab)
        for family in ("-4", "-6"):
            lab.host_laptop.run("ip", family, "rule", "del", "priority", "4620")
        wait_until(lambda: traces(lab) == before, "the rules to be back", timeout=LIMIT)
        lab.host_laptop.run("nft", "flush", "ruleset")
        wait_until(lambda: traces(lab) == before, "the table to be back", timeout=LIMIT)
        hears(command, outside(lab, 0))


def test_a_strict_reverse_path_filter_lets_the_answers_in(lab: Abroad) -> None:
    name = "net.ipv4.conf.all.rp_filter"
    before = lab.host_laptop.run("sysctl", "-n", name).strip()
    lab.host_laptop.run("sysctl", "-q", "-w", f"{name}=1")
    try:
        assert run(lab, *asking("once", *sites(lab))) == outside(lab, 0)
    finally:
        lab.host_laptop.run("sysctl", "-q", "-w", f"{name}={before}")


def test_down_takes_the_network_of_a_command(lab: Abroad) -> None:
    with nothing_of_it_outside(lab), asking_on(lab) as command:
        lab.laptop.process.stop()
        hears(command, NOTHING)
        assert not traces(lab)
    lab.laptop.start()
