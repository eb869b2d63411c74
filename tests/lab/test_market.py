"""Buying an exit from strangers, with real daemons and a real mint, whatever fails meanwhile."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.lab.links import connect
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from tests.lab.abroad import PROGRAMS, name_server
from tests.lab.homes import watched
from tests.lab.strangers import LIMIT, PRICE, SAT_BYTES, Strangers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

NAME = "good.example"
METADATA, INSIDE = "169.254.169.254", "192.168.77.10"
# Beyond what was paid: the free bytes, the grace, and what programs do not see of a packet.
SLACK_BYTES = 3_000_000


class Village(Strangers):
    """The first seller has a resolver, a service of its own, and a private network behind it."""

    def __init__(self) -> None:
        super().__init__(sellers=2, fee_ppk=100)

    def build(self) -> None:
        super().build()
        vps = self.hosts[0].namespace
        inside = self.namespace("inside")
        connect((inside, "lan"), (vps, "lan"))
        vps.ip("addr add 192.168.77.1/24 dev lan", f"route add {METADATA}/32 via {INSIDE}")
        inside.ip(f"addr add {INSIDE}/24 dev lan", f"addr add {METADATA}/32 dev lan")
        inside.ip("route add default via 192.168.77.1")
        for namespace in (vps, inside, self.site.namespace):
            self.answer(namespace, 8080)
        directory = Path("/etc/netns") / vps.name
        directory.mkdir(parents=True)
        self.stack.callback(shutil.rmtree, directory)
        (directory / "resolv.conf").write_text(f"nameserver {self.site.address}\n")
        name_server(self, self.site.namespace, self.site.address, self.site, [NAME])

    def answer(self, namespace: Namespace, port: int) -> None:
        """Have a program there answer on a port, with the asker's address."""
        argv = (sys.executable, str(PROGRAMS / "answering.py"), str(port))
        process = Process(namespace, argv, log=self.directory / f"{namespace.label}-{port}.log")
        self.stack.callback(process.kill)
        process.wait_for_text("listening everywhere")

    def asked(self, address: str) -> str:
        """Return what a server says of who asks from the laptop; empty if nobody answers."""
        return asked(self.host_laptop.namespace, address)


def asked(namespace: Namespace, address: str, port: int = 8080) -> str:
    """Return what a server says of who asks from a namespace; empty if nobody answers."""
    with namespace.enter():
        sock = socket.socket(socket.AF_INET)
    with sock, suppress(OSError):
        sock.settimeout(patient(1.0))
        sock.connect((address, port))
        return sock.recv(100).decode().strip()
    return ""


@pytest.fixture(scope="module")
def village() -> Iterator[Village]:
    with watched(Village()) as lab:
        lab.open_up()
        yield lab


@pytest.fixture
def lab(village: Village) -> Iterator[Village]:
    yield village
    village.settle()


def test_the_site_sees_the_seller_and_names_are_answered_through_it(lab: Village) -> None:
    before = lab.snapshot()
    began = time.monotonic()
    lab.buy(lab.refs["vps"])
    assert lab.seen() == str(lab.hosts[0].address)
    assert time.monotonic() - began < patient(10)
    resolver = lab.laptop.ask("exit_status")["resolvers"][-1]
    answer = lab.host_laptop.run("dig", "+short", "+time=3", "+tries=1", NAME, f"@{resolver}")
    assert answer.split() == [str(lab.site.address)]
    size = 3 * SAT_BYTES
    assert lab.received(lab.download(size)) == size
    books = lab.settle()
    row = books.bought[0]
    assert size < row["bytes"] < 1.3 * size + SLACK_BYTES
    assert row["outcome"] == "served"
    assert row["due_msat"] > 1000
    assert lab.snapshot().added_since(before) == []
    assert lab.seen() == str(lab.home.address)


def test_an_offer_has_several_names_and_one_that_is_none_cuts_nothing_off(lab: Village) -> None:
    for words, said in (
        (("nobodys/exit",), "no offer is called 'nobodys/exit'"),
        ((lab.refs["vps"], "--max-price", "5sat/GiB"), "1000 sat/GiB is above 5 sat/GiB"),
        (("auto", "--budget", "0sat/day"), "'0sat/day' is no budget"),
        (("auto", "--country", "Germany"), "'Germany' is no country's code"),
    ):
        refused = lab.laptop.attempt("exit", "buy", *words, timeout=60)
        assert (refused.returncode != 0, said in refused.stderr) == (True, True), refused.stderr
        assert lab.purchase()["state"] == "off"
        assert lab.seen() == str(lab.home.address)
    found = lab.laptop.query("market", "why", lab.refs["vps"])
    lab.buy(found["seller"])
    assert lab.lease()["offer"] == lab.refs["vps"]
    assert lab.seen() == str(lab.hosts[0].address)


def test_names_are_asked_of_whom_the_buyer_chose_through_the_seller(lab: Village) -> None:
    site = str(lab.site.address)
    refused = lab.laptop.attempt("exit", "buy", "--resolver", "nobody", timeout=60)
    assert "'nobody' is no IP address" in refused.stderr
    assert (refused.returncode, lab.purchase()["state"]) == (1, "off")
    lab.buy(lab.refs["vps"], "--resolver", site)
    assert lab.laptop.ask("exit_status")["resolvers"] == [site]
    words = ("+short", "+time=3", "+tries=1", NAME)
    assert lab.host_laptop.run("dig", *words, f"@{site}").split() == [site]
    # The seller's is held back here, so it answers nothing, true or forged.
    denied = lab.host_laptop.namespace.run("dig", *words, "@198.18.0.1", check=False)
    assert denied.returncode != 0
    lab.settle()
    lab.buy(lab.refs["vps"], "--resolver", "exit")
    assert "198.18.0.1" in lab.laptop.ask("exit_status")["resolvers"]


def test_a_stranger_reaches_the_internet_and_nothing_of_the_seller(lab: Village) -> None:
    lab.buy(lab.refs["vps"])
    vps = str(lab.hosts[0].address)
    assert lab.asked(str(lab.site.address)) == vps
    for address in (INSIDE, METADATA, "192.168.77.1", "198.18.0.1", vps):
        assert lab.asked(address) == "", address
    own = lab.hosts[0].namespace
    assert all(asked(own, address) for address in (INSIDE, METADATA, vps)), "they do answer"


def test_what_is_not_paid_is_not_served_while_the_sellers_daemon_hangs(lab: Village) -> None:
    lab.buy(lab.refs["vps"])
    lab.sellers[0].process.signal(signal.SIGSTOP)
    try:
        received = lab.received(lab.download(80_000_000, seconds=6))
        shown = lab.bought()[0]["paid_msat"]
    finally:
        lab.sellers[0].process.signal(signal.SIGCONT)
    # What it took in before it hung is served, what came after is not.
    assert received < shown // 1000 * SAT_BYTES + SLACK_BYTES
    assert received < 20_000_000
    wait_until(
        lambda: lab.purchase()["state"] == "connected" and lab.seen(), "service", timeout=LIMIT
    )


def test_a_buyer_that_was_killed_goes_on_with_its_lease_and_pays_nothing_twice(
    lab: Village,
) -> None:
    lab.buy(lab.refs["vps"])
    name = lab.bought()[0]["lease_id"]
    download = lab.download(12_000_000)
    wait_until(lambda: lab.lease()["paid_msat"] > 3000, "a few payments", timeout=LIMIT)
    lab.laptop.kill()
    lab.laptop.start()
    assert lab.received(download) == 12_000_000
    wait_until(lambda: lab.purchase()["state"] == "connected", "the lease again", timeout=LIMIT)
    assert lab.bought()[0]["lease_id"] == name
    assert [row["state"] for row in lab.bought()].count("served") == 1
    # Both books agree then: each payment, of before and after, was credited once, and to one lease.
    assert lab.settle().bought[0]["lease_id"] == name


def test_a_mint_or_a_relay_that_is_gone_does_not_end_service(lab: Village) -> None:
    lab.buy(lab.refs["vps"])
    paid = lab.lease()["paid_msat"]
    lab.mint.stop()
    lab.relay.signal(signal.SIGSTOP)
    try:
        assert lab.received(lab.download(6_000_000)) == 6_000_000
        # Of what was locked before, through the tunnel.
        wait_until(lambda: lab.lease()["paid_msat"] > paid, "payments", timeout=LIMIT)
        wait_until(lambda: lab.purchase()["state"] == "connected", "service", timeout=LIMIT)
    finally:
        lab.relay.signal(signal.SIGCONT)
        lab.mint.start()


def test_plain_money_that_was_not_used_comes_back(lab: Village) -> None:
    def counted(size: int) -> bool:
        return bool(lab.lease()["bytes"] >= size)

    before = lab.laptop.ask("wallet_balance")["free"]
    lab.buy(lab.refs["vps"], "--pay", "plain")
    size = 8 * SAT_BYTES
    for number in range(1, 6):
        assert lab.received(lab.download(size)) == size
        wait_until(partial(counted, number * size), "all to be counted", timeout=LIMIT)
        if lab.lease()["paid_msat"] - lab.lease()["due_msat"] > 5000:
            break
    row = lab.settle().bought[0]
    assert row["refund_sat"] > 0
    assert row["coming_sat"] == 0
    spent = before - lab.laptop.ask("wallet_balance")["free"]
    assert 1000 * spent >= row["due_msat"]  # mints round the fee of each swap up


def test_down_leaves_nothing_of_a_purchase(lab: Village) -> None:
    lab.laptop.stop()
    before = lab.snapshot()
    lab.laptop.start()
    lab.buy(lab.refs["vps"])
    lab.laptop.cli("down")
    assert lab.laptop.stop() == 0
    left = lab.snapshot().added_since(before)
    lab.laptop.start()
    assert left == []


def test_the_next_seller_takes_over_and_nothing_leaves_outside_meanwhile(lab: Village) -> None:
    lab.laptop.restart()  # sellers of before that failed are not left alone any more
    lab.buy("auto", "--budget", "2000sat/day")
    first = lab.lease()["offer"]
    seller = next(one for one in lab.sellers if lab.refs[one.name] == first)
    cable = lab.capture("laptop", "eth0", f"host {lab.site.address}")
    download = lab.download(40_000_000, seconds=30)
    wait_until(lambda: lab.lease()["paid_msat"] > 3000, "a few payments", timeout=LIMIT)
    seller.kill()
    wait_until(
        lambda: lab.purchase()["state"] == "connected" and lab.lease()["offer"] != first,
        "another seller",
        timeout=60,
        evidence=lambda: str(lab.purchase()),
    )
    wait_until(lab.seen, "the way through it", timeout=LIMIT)
    other = lab.hosts[1 - lab.sellers.index(seller)].address
    assert lab.seen() == str(other)
    assert lab.purchase()["spent_day_sat"] <= 2000
    download.kill()  # its connection was the first seller's
    assert cable.count() == 0
    lab.laptop.cli("exit", "off")
    assert lab.seen() == str(lab.home.address)
    wait_until(cable.count, "the capture to see what leaves", timeout=LIMIT)
    seller.start()
    wait_until(lambda: lab.refs[seller.name] in lab.listed(), "its offer", timeout=LIMIT)


def test_a_seller_that_goes_down_gives_back_first_and_broke_no_word(lab: Village) -> None:
    seller = lab.sellers[0]
    lab.buy(lab.refs["vps"])
    wait_until(lambda: lab.lease()["paid_msat"] > 1000, "a payment", timeout=LIMIT)
    name = lab.bought()[0]["lease_id"]
    began = time.monotonic()
    seller.cli("down")
    took = time.monotonic() - began

    def row() -> Any:
        return next(one for one in lab.bought() if one["lease_id"] == name)

    wait_until(lambda: row()["receipt"], "a receipt", timeout=LIMIT)
    lab.laptop.cli("exit", "off")
    seller.start()
    assert took < patient(8)
    assert (row()["outcome"], row()["label"]) == ("served", "it ended the lease: stopped")
    assert row()["credited_msat"] - row()["due_msat"] - 1000 * row()["refund_sat"] <= 3000
    wait_until(lambda: lab.refs["vps"] in lab.listed(), "its offer", timeout=LIMIT)


def test_traffic_goes_on_soon_after_a_seller_was_restarted(lab: Village) -> None:
    vps = str(lab.hosts[0].address)
    lab.buy(lab.refs["vps"])
    assert lab.seen() == vps
    lab.sellers[0].restart()
    began = time.monotonic()

    def seen() -> bool:
        words = ("curl", "-sS", "-m", "1", f"{lab.site_url}/")
        return lab.host_laptop.run(*words, check=False, timeout=10).strip() == vps

    wait_until(seen, "traffic", timeout=LIMIT)
    # WireGuard alone notices after 15 s that the other end knows nothing of it any more.
    assert time.monotonic() - began < patient(6)
    assert lab.purchase()["state"] == "connected"


def test_a_firewall_that_drops_what_buyers_send_is_said_and_nothing_is_sold(lab: Village) -> None:
    seller, host = lab.sellers[1], lab.hosts[1]
    hook = "type filter hook forward priority 0; policy drop;"
    chain = f"add table ip other; add chain ip other FORWARD {{ {hook} }}"
    seller.stop()
    host.run("nft", chain)
    try:
        seller.start()
        wait_until(
            lambda: seller.ask("market_selling")["state"] == "failed", "the word", timeout=LIMIT
        )
        assert "ip other FORWARD drops" in seller.ask("market_selling")["text"]
        assert "ip other FORWARD drops" in seller.cli("exit", "status")
        assert lab.refs["vps-2"] not in lab.listed()
    finally:
        host.run("nft", "delete table ip other")
    wait_until(lambda: lab.refs["vps-2"] in lab.listed(), "its offer again", timeout=2 * LIMIT)


def test_quiet_hours_end_what_is_sold_in_order(lab: Village) -> None:
    seller = lab.sellers[1]
    lab.buy(lab.refs["vps-2"])
    name = lab.bought()[0]["lease_id"]
    now = time.localtime()
    begin = 60 * now.tm_hour + now.tm_min
    hours = f"{begin // 60:02}:{begin % 60:02}-{(begin + 60) // 60 % 24:02}:{(begin + 60) % 60:02}"
    words = ("--price", PRICE, "--mint", lab.mint.url, "--country", "DE", "--quiet", hours)
    seller.cli("exit", "offer", "--public", *words, timeout=60)
    wait_until(
        lambda: any(one["receipt"] for one in lab.bought() if one["lease_id"] == name),
        "a receipt",
        timeout=LIMIT,
    )
    told = seller.ask("market_selling")
    assert (told["state"], hours in told["text"]) == ("closed", True)
    wait_until(lambda: lab.refs["vps-2"] not in lab.listed(), "no offer", timeout=LIMIT)
    lab.laptop.cli("exit", "off")
    lab.offer(seller)


def test_what_was_measured_is_listed(lab: Village) -> None:
    lab.buy(lab.refs["vps"])
    found = lab.laptop.query("market", "list")["offers"]
    one = next(one for one in found if one["ref"] == lab.refs["vps"])
    assert 0 < one["rtt_ms"] < 5000
    assert 0 < one["quote_ms"] < 10_000
    lines = lab.laptop.query("market", "why", lab.refs["vps"])["lines"]
    assert any("the last try worked" in line for line in lines)


def test_a_seller_that_stops_ends_its_leases_and_gives_back(lab: Village) -> None:
    lab.buy(lab.refs["vps-2"])
    lab.sellers[1].cli("exit", "offer", "--public", "--stop", timeout=60)
    wait_until(lambda: lab.bought()[0]["receipt"], "a receipt", timeout=LIMIT)
    assert lab.sellers[1].ask("market_selling")["state"] == "off"
    assert lab.refs["vps-2"] not in lab.listed()
    lab.settle()
    assert lab.bought()[0]["label"] == "it ended the lease: stopped"
