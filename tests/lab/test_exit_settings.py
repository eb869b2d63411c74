"""What a user decides beside the exit itself, with real daemons: who goes around it, where none is
used, who from the local network keeps his session; and what holds if none of it can be read any more.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from nostrvpn.io.store import Record, Store
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.abroad import NOBODY, Abroad, name_server
from tests.lab.homes import join, watched
from tests.lab.test_leaks import LIMIT, nothing_strays, outside, seen_as, state, use

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(180))]

SOMEBODY = 4005
AROUND = "around.example"
SESSION_PORT = 2222
PATIENCE_S = 1.0


class Decided(Abroad):
    """One exit; the laptop may edit its resolv.conf, which names the home's router."""

    def __init__(self) -> None:
        # A port that a lost database does not forget.
        port = {"listen_port": 20_202}
        super().__init__(exits=1, dns={"resolv_conf": True}, wireguard=port)

    def build(self) -> None:
        super().build()
        self.resolv_conf = Path("/etc/netns") / self.laptop.namespace.name / "resolv.conf"
        self.resolv_conf.parent.mkdir(parents=True)
        self.stack.callback(shutil.rmtree, self.resolv_conf.parent)
        gateway = self.host_laptop.plug.gateway
        self.resolv_conf.write_text(f"nameserver {gateway}\n")
        name_server(self, self.home.namespace, gateway, self.site, [AROUND])

    def asks(self) -> list[str]:
        """The name servers that the laptop's resolv.conf names."""
        lines = [line.split() for line in self.resolv_conf.read_text().splitlines()]
        return [words[1] for words in lines if words[:1] == ["nameserver"]]


@pytest.fixture(scope="module")
def decided() -> Iterator[Decided]:
    with watched(Decided()) as lab:
        join(lab.laptop, *lab.exits)
        lab.exits[0].cli("exit", "offer", "--to", "members")
        wait_until(lambda: lab.laptop.ask("exit_list")["exits"], "an offer", timeout=LIMIT)
        lab.own_port()
        yield lab


@pytest.fixture
def lab(decided: Decided) -> Iterator[Decided]:
    """Afterwards the daemon runs, no exit is used, and nothing else is decided."""
    yield decided
    laptop = decided.laptop
    if not laptop.process.alive:
        laptop.start()
    laptop.cli("exit", "off", "--kill-switch", "on")
    wait_until(lambda: state(laptop) == "off", "the exit to be off", timeout=LIMIT)
    for what in ("bypass", "trusted"):
        words = laptop.ask("exit_status")[what]
        if words:
            laptop.cli("exit", "trust" if what == "trusted" else what, "remove", *words)


def at_home(lab: Abroad) -> set[str]:
    """The addresses that the site sees the laptop as without an exit."""
    return {str(lab.home.address), str(lab.host_laptop.plug.addresses6[0])}


def site_sees(lab: Abroad, uid: int) -> dict[int, str]:
    """Return by IP version whom the site sees when a program of this user asks it."""
    sites = {str(lab.site.address): 4, str(lab.site.address6): 6}
    said = [one.split() for one in lab.talk(uid=uid).get("tcp/80", [])]
    return {sites[words[0]]: words[1] for words in said if words[0] in sites}


def test_what_is_named_goes_around_the_exit_and_nothing_else(lab: Decided) -> None:
    home = {4: str(lab.home.address), 6: str(lab.host_laptop.plug.addresses6[0])}
    abroad = {4: str(lab.hosts_abroad[0].address), 6: str(lab.hosts_abroad[0].address6)}
    use(lab)
    wait_until(lambda: seen_as(lab) == outside(lab, 0), "the exit", timeout=LIMIT)
    lab.laptop.cli("exit", "bypass", "add", "uid:4000-4010")
    wait_until(lambda: site_sees(lab, SOMEBODY) == home, "the user outside", timeout=LIMIT)
    assert site_sees(lab, NOBODY) == abroad
    assert site_sees(lab, 0) == abroad
    lab.laptop.cli("exit", "bypass", "add", str(lab.site.address))
    around = {4: home[4], 6: abroad[6]}
    wait_until(lambda: site_sees(lab, NOBODY) == around, "the network outside", timeout=LIMIT)
    lab.laptop.cli("exit", "bypass", "remove", str(lab.site.address), "uid:4000-4010")
    for uid in (SOMEBODY, NOBODY):
        wait_until(partial(_sees, lab, uid, abroad), "all by the exit", timeout=LIMIT)


def test_a_domain_goes_around_the_exit_by_the_addresses_that_its_name_has(lab: Decided) -> None:
    abroad, home = str(lab.hosts_abroad[0].address), str(lab.home.address)
    lab.laptop.cli("exit", "bypass", "add", AROUND)
    use(lab)
    ours = lab.laptop.status()["dns"]["server"].rpartition(":")[0]
    wait_until(lambda: lab.asks() == [ours], "our server alone", timeout=LIMIT)
    assert site_sees(lab, NOBODY)[4] == abroad
    looked_up = lab.host_laptop.run("getent", "ahostsv4", f"www.{AROUND}")
    assert str(lab.site.address) in looked_up
    # At once: the way is there before the program hears of the address.
    assert site_sees(lab, NOBODY)[4] == home


def test_in_a_trusted_network_no_exit_is_used_and_in_any_other_one_is(lab: Decided) -> None:
    namespace = lab.host_laptop.namespace
    use(lab)
    assert seen_as(lab) == outside(lab, 0)
    lab.laptop.cli("exit", "trust", "add")
    wait_until(lambda: seen_as(lab) == at_home(lab), "no exit at home", timeout=LIMIT)
    assert lab.laptop.ask("exit_status")["is_trusted"]
    namespace.ip("link set eth0 down")
    lab.away.plug(namespace, "eth1")
    wait_until(lambda: seen_as(lab) == outside(lab, 0), "the exit elsewhere", timeout=40)
    with nothing_strays(lab, cable="eth1"):
        assert not lab.laptop.ask("exit_status")["is_trusted"]
    namespace.ip("link del eth1")
    lab.plug_in_again()
    wait_until(lambda: seen_as(lab) == at_home(lab), "no exit at home again", timeout=40)


def test_a_session_from_the_local_network_survives_with_allow_lan_and_only_with_it(
    lab: Decided,
) -> None:
    name, laptop = lab.exits[0].name, lab.laptop
    with sessions(lab) as answer:
        assert answer()
        laptop.cli("exit", "use", name, "--yes", "--allow-lan", "--kill-switch", "on")
        wait_until(lambda: state(laptop) == "connected", "the exit", timeout=LIMIT)
        assert answer()
        lab.cut(0)
        wait_until(lambda: state(laptop) == "connecting", "the loss", timeout=LIMIT)
        assert answer()
        lab.mend(0)
        laptop.cli("exit", "use", name, "--yes", "--kill-switch", "lockdown")
        laptop.cli("exit", "off")
        wait_until(lambda: state(laptop) == "lockdown", "lockdown", timeout=LIMIT)
        assert answer()
        laptop.kill()
        assert answer()
        laptop.start()
        assert answer()
        laptop.cli("exit", "use", name, "--yes", "--no-allow-lan", "--kill-switch", "on")
        wait_until(lambda: state(laptop) == "connected", "the exit again", timeout=LIMIT)
        assert not answer()


def test_a_resolver_that_is_put_back_is_not_reached(lab: Decided) -> None:
    use(lab, "--allow-lan")
    ours = lab.laptop.status()["dns"]["server"].rpartition(":")[0]
    wait_until(lambda: lab.asks() == [ours], "our server alone", timeout=LIMIT)
    with nothing_strays(lab, lan=True) as talk:
        # As a DHCP client does; the printer answers on port 53.
        lab.resolv_conf.write_text(f"nameserver {lab.printer.address}\n")
        talk()
        for uid in ("0", str(NOBODY)):
            argv = ("setpriv", f"--reuid={uid}", "--clear-groups", "--", "timeout", "2")
            lab.host_laptop.namespace.run(*argv, "getent", "hosts", "leak.example", check=False)
        answers = lab.talk(uid=NOBODY)
        asked = {said.split()[0] for what in answers if "/53" in what for said in answers[what]}
        assert not asked & {str(address) for address in lab.strangers}
        wait_until(lambda: lab.asks() == [ours], "our server again", timeout=40)


@pytest.mark.parametrize("damage", ["the record", "the database"])
def test_what_was_decided_and_cannot_be_read_blocks_from_the_start(
    lab: Decided, damage: str
) -> None:
    laptop = lab.laptop
    use(lab)
    laptop.cli("down")
    assert seen_as(lab) == at_home(lab)
    kept = lab.directory / "kept"
    place = laptop.directory / "state"
    shutil.copytree(place, kept, ignore=shutil.ignore_patterns("*.sock", "daemon.*"))
    if damage == "the record":
        store = Store.open(str(place / "state.db"))
        store.put([Record("policy", "exit", "noise")])
        store.close()
    else:
        for file in place.glob("state.db*"):
            file.write_bytes(b"\xff" * 20_000)
    try:
        laptop.start()
        wait_until(lambda: state(laptop) == "blocked", "the block", timeout=LIMIT)
        assert laptop.ask("exit_status")["damage"]
        with nothing_strays(lab):
            wait_until(lambda: seen_as(lab) == set(), "nothing to leave", timeout=LIMIT)
        laptop.cli("exit", "off")
        wait_until(lambda: seen_as(lab) == at_home(lab), "the way out", timeout=LIMIT)
    finally:
        laptop.stop()
        laptop.cli("cleanup")
        for file in place.glob("state.db*"):
            file.unlink()
        for file in kept.glob("state.db*"):
            shutil.copy2(file, place)
        shutil.rmtree(kept)


@contextmanager
def sessions(lab: Abroad) -> Iterator[Callable[[], bool]]:
    """Connections from the printer to the laptop, of both IP versions; the value asks if all answer."""
    pairs = []
    addresses = (str(lab.host_laptop.address), "fd11:1::2")
    with ExitStack() as stack:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with lab.host_laptop.namespace.enter():
                ear = stack.enter_context(
                    socket.create_server((address, SESSION_PORT), family=family)
                )
            with lab.printer.namespace.enter():
                client = stack.enter_context(socket.socket(family))
            client.settimeout(patient(PATIENCE_S))
            client.connect((address, SESSION_PORT))
            served, _ = ear.accept()
            pairs.append((client, stack.enter_context(served)))

        def answer() -> bool:
            heard = []
            for client, served in pairs:
                served.settimeout(patient(PATIENCE_S))
                try:
                    client.sendall(b"x")
                    served.recv(1)
                    served.sendall(b"y")
                    heard.append(client.recv(1) == b"y")
                except TimeoutError:
                    heard.append(False)
            assert len(set(heard)) == 1, heard
            return heard[0]

        yield answer


def _sees(lab: Abroad, uid: int, wanted: dict[int, str]) -> bool:
    return site_sees(lab, uid) == wanted
