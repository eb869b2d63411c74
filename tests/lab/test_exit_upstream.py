"""An exit whose guests leave by a plain WireGuard provider, set up by ``wg`` and ``ip`` alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nostrvpn.lab.capture import Capture
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.abroad import NOBODY, Abroad
from tests.lab.homes import join, watched
from tests.lab.provider import CUSTOMER, PORT, Provider

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(180))]

LIMIT = 30.0


class Provided(Abroad):
    """The first exit is a customer of a provider."""

    def __init__(self) -> None:
        super().__init__(exits=1)

    def build(self) -> None:
        super().build()
        link = self.exits[0].interface.rsplit("-", 1)[0] + "-p"
        self.provider = Provider(self, self.host("provider"), link)


@pytest.fixture
def lab() -> Iterator[Provided]:
    with watched(Provided()) as lab:
        join(lab.laptop, *lab.exits)
        yield lab


def is_connected(node: LabNode) -> bool:
    return bool(node.ask("exit_status")["state"] == "connected")


def seen_as(lab: Abroad) -> set[str]:
    answers, sites = lab.talk(uid=NOBODY), {str(lab.site.address), str(lab.site.address6)}
    said = [one.split() for what in ("tcp/80", "udp/443") for one in answers.get(what, [])]
    return {words[1] for words in said if words[0] in sites}


def to_the_site(lab: Abroad) -> Capture:
    """Record what goes between the exit's own uplink and the site."""
    sites = " or ".join(f"host {ip}" for ip in (lab.site.address, lab.site.address6) if ip)
    return lab.capture("exit-1", "eth0", sites)


def rules(node: LabNode) -> str:
    both = (node.namespace.run("ip", family, "rule", "show").stdout for family in ("-4", "-6"))
    return "".join(both)


def reaches(source: object, address: str) -> bool:
    argv = ("ping", "-n", "-c", "1", "-W", "1", address)
    return bool(source.run(*argv, check=False).returncode == 0)  # type: ignore[attr-defined]


def test_guests_leave_by_the_provider_or_not_at_all(lab: Provided) -> None:
    [exit_node] = lab.exits
    before = rules(exit_node)
    capture = to_the_site(lab)
    exit_node.cli("exit", "offer", "--to", "members", "--upstream", str(lab.provider.file))
    offered = exit_node.query("exit", "clients")["offer"]["upstream"]
    assert offered["endpoint"] == f"{lab.provider.host.address}:{PORT}"
    wait_until(lambda: lab.laptop.ask("exit_list")["exits"], "an offer", timeout=LIMIT)
    lab.laptop.cli("exit", "use", exit_node.name, "--yes")
    wait_until(partial(is_connected, lab.laptop), "the exit", timeout=LIMIT)
    outside = lab.provider.outside
    wait_until(lambda: seen_as(lab) == outside, "the way by the provider", timeout=LIMIT)
    # The host itself leaves by its own uplink, and the provider gets nothing into it.
    own = exit_node.namespace
    found = own.run("ip", "-j", "route", "get", str(lab.site.address)).stdout
    assert '"dev":"eth0"' in found
    assert not reaches(lab.provider.host.namespace, CUSTOMER[0])
    assert not reaches(lab.provider.host.namespace, CUSTOMER[1])

    # While the provider is away, nothing of theirs goes by another way: with and without the link.
    lab.provider.leave()
    assert seen_as(lab) == set()
    name = next(
        line.split(":")[1].strip()
        for line in own.run("ip", "-o", "link").stdout.splitlines()
        if f"{exit_node.interface}u" in line
    )
    own.ip(f"link del {name}")
    assert seen_as(lab) == set()
    lab.provider.come_back()
    wait_until(lambda: seen_as(lab) == outside, "the provider again", timeout=LIMIT * 2)

    # A killed daemon leaves it as it is; no key is told anywhere.
    exit_node.kill()
    seen_as(lab)
    exit_node.start()
    wait_until(lambda: seen_as(lab) == outside, "the provider after a crash", timeout=LIMIT)
    capture.stop()
    assert capture.packets() == []
    assert lab.provider.customer_key not in exit_node.process.output()
    assert lab.provider.customer_key not in exit_node.cli("exit", "clients", "--json")

    exit_node.cli("exit", "offer", "--stop")
    wait_until(lambda: rules(exit_node) == before, "the rules gone", timeout=LIMIT)
    assert f"{exit_node.interface}u" not in own.run("ip", "-o", "link").stdout
    assert "_upstream" not in own.run("nft", "list", "tables").stdout


def test_a_provider_that_dies_ends_the_offer_and_its_return_brings_it_back(lab: Provided) -> None:
    [exit_node] = lab.exits
    exit_node.cli("exit", "offer", "--to", "members", "--upstream", str(lab.provider.file))
    wait_until(lambda: lab.laptop.query("exit", "list")["exits"], "an offer", timeout=LIMIT)
    lab.laptop.cli("exit", "use", "auto", "--yes")
    outside = lab.provider.outside
    wait_until(lambda: seen_as(lab) == outside, "the way by the provider", timeout=LIMIT)

    def says_so() -> bool:
        seen_as(lab)  # guests go on sending
        return "provider does not answer" in lab.laptop.query("exit", "status")["text"]

    lab.provider.host.namespace.nft(
        "table inet gone {\nchain in {\ntype filter hook input priority 0;\n"
        f"udp dport {PORT} drop\n}}\n}}\n"
    )
    wait_until(says_so, "the laptop to be told", timeout=LIMIT * 2)
    assert [one["state"] for one in lab.laptop.query("exit", "list")["exits"]] == ["down"]
    assert exit_node.query("exit", "clients")["state"] == "no_way_out"
    lab.provider.host.namespace.nft("delete table inet gone\n")
    wait_until(lambda: seen_as(lab) == outside, "the provider again", timeout=LIMIT * 2)
    exit_node.cli("exit", "offer", "--stop")


def test_a_killed_exit_with_a_provider_leaves_nothing_after_cleanup(lab: Provided) -> None:
    [exit_node] = lab.exits
    exit_node.cli("exit", "offer", "--to", "members", "--upstream", str(lab.provider.file))
    own = exit_node.namespace
    wait_until(lambda: f"{exit_node.interface}u" in own.run("ip", "-o", "link").stdout, "the link")
    exit_node.kill()
    exit_node.cli("cleanup")
    assert exit_node.interface not in own.run("ip", "-o", "link").stdout
    assert "157" not in rules(exit_node)
    assert "nostrvpn" not in own.run("nft", "list", "tables").stdout
    exit_node.start()


def test_a_bad_file_is_refused_and_changes_nothing(lab: Provided) -> None:
    [exit_node] = lab.exits

    def refusal(path: Path) -> str:
        done = exit_node.attempt("exit", "offer", "--to", "members", "--upstream", str(path))
        assert done.returncode != 0
        assert lab.provider.customer_key not in done.stdout + done.stderr
        return str(done.stderr)

    sound = lab.provider.file.read_text()
    commanding = lab.directory / "commanding.conf"
    proof = lab.directory / "ran"
    commanding.write_text(sound.replace("[Peer]", f"PostUp = touch {proof}\n[Peer]"))
    commanding.chmod(0o600)
    assert "PostUp" in refusal(commanding)
    lab.provider.file.chmod(0o644)
    assert "chmod 600" in refusal(lab.provider.file)
    assert "cannot be read" in refusal(lab.directory / "nowhere.conf")
    assert not proof.exists()
    assert exit_node.query("exit", "clients")["state"] == "stopped"
