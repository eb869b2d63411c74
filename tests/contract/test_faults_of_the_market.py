"""Each request is refused once, or is the last before a SIGKILL: while leases are sold, and bought.

Who sells serves nobody who was not to be served, and who buys sends nothing elsewhere, before each of
the requests and after; the next run reaches what is desired, and cleanup finds what was left.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from nostrvpn.daemon.sold_way import SoldWay
from nostrvpn.endpoint import parse_endpoint
from nostrvpn.errors import SystemRefused
from nostrvpn.exits.policy import ExitPolicy
from nostrvpn.host.bought import Bought, bought_interface
from nostrvpn.host.sold import Sold, SoldLease, sold_interface, sold_table
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.own_tables import delete_own_tables
from nostrvpn.lab.patience import patient
from nostrvpn.node.desired import Desired
from tests.contract.cable import CABLE, OVERLAY, PUBLIC, TUNNEL, Host
from tests.contract.cables import Cables
from tests.contract.fault_room import (
    BOTH,
    LAST,
    ROUTED,
    TUNNELLED,
    Room,
    Watch,
    Wish,
    connecting,
    injections,
    looks,
    reached,
    suffer,
    wanted,
)
from tests.contract.faults import KILLED, Faults, Killed
from tests.contract.market_room import FIRST, INSIDE, PORT, PSK, SELLERS_KEY, key, lease

pytestmark = pytest.mark.timeout(patient(120))

# Where there are many injections, so many of them are taken: each takes half a second.
EVERY = 3
# Whose packets are put into the sold link: of leases 0 to 4, of which 3 is nobody's.
EVERYBODY = range(5)
FIRST_PORT = 1000
FEW = (lease(0), lease(1, mbit=5, seconds_left=300.0), lease(2, serves=False))
# One is suspended, one goes, one is resumed, one is new.
OTHERS = (lease(0, serves=False), lease(2), lease(4))
SERVED, SERVED_THEN = {0, 1}, {2, 4}


class Stall:
    """A host that sells to whoever is at the far end of its cables, and forwards for others already."""

    def __init__(self, make_netns: Callable[[], Any], interface: str, faults: Faults) -> None:
        self.host = Host(make_netns)
        self.netns, self.faults, self.interface = self.host.netns, faults, interface
        self.netns.ip("link", "del", TUNNEL)
        # So a link without its table would be a way out, and IPv6 has something to be put back.
        self.host.sysctl("net.ipv4.ip_forward=1", f"net.ipv6.conf.{CABLE}.accept_ra=1")
        self.cables = Cables(make_netns(), faults)
        self.restart()

    def restart(self) -> None:
        """What was a process is another one, which knows nothing."""
        self.way = SoldWay(self.cables, self.interface)

    def close(self) -> None:
        self.netns.call(remove_marked, self.interface)
        self.cables.close()
        self.host.close()

    def sold(self, leases: tuple[SoldLease, ...]) -> Sold:
        inside = frozenset({ip_interface(f"{INSIDE[4]}/16"), ip_interface(f"{INSIDE[6]}/64")})
        rules = ExitPolicy("open").compile(OVERLAY, [])
        link = sold_interface(self.interface)
        return Sold(link, PORT, SELLERS_KEY, inside, 1280, rules, BOTH, leases, rate=10**7)

    def settle(self, leases: tuple[SoldLease, ...]) -> None:
        self.way.distrust()
        self.netns.call(self.way.settle, self.sold(leases) if leases else None)

    def suffer(self, work: Callable[[], object], number: int, kind: str) -> str | None:
        """Do it with a fault; return what is told of that."""
        try:
            self.faults.run(work, number, kind)
        except Killed:
            self.restart()
            return "killed"
        return self.way.error

    def served(self) -> set[int]:
        """Whose packets leave by the cable now."""
        link = sold_interface(self.interface)
        for number in EVERYBODY:
            self.cables.put_in(link, lease(number).ipv4, PUBLIC[4], FIRST_PORT + number)
        with self.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"end", (PUBLIC[4], LAST))
        found = self.host.cable.until(lambda packet: packet.port == LAST)
        return {p.port - FIRST_PORT for p in found if p.destination == PUBLIC[4]}

    def looks(self) -> dict[str, list[str]]:
        """As ever, but for how often a lease was given another quota, and what was counted."""
        found = looks(self.netns, "-t")
        found["nft"] = [re.sub(r"\b(q|up|down)\d+\b", r"\1", text) for text in found["nft"]]
        return found

    def watched(self, *allowed: set[int]) -> Callable[[str], None]:
        """Look before each request whether nobody is served beyond one of these."""

        def look(what: str) -> None:
            found = self.served()
            assert any(found <= most for most in allowed), f"before {what}: {found}"

        self.faults.before_each = look
        return look


@pytest.fixture
def stall(
    make_netns: Callable[[], Any], interface: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stall]:
    made = Stall(make_netns, interface[:12], Faults(monkeypatch))
    yield made
    made.close()


def test_a_fault_while_selling_begins_serves_nobody_else(stall: Stall) -> None:
    before = stall.looks()
    asked = stall.faults.run(lambda: stall.settle(FEW))
    assert stall.served() == SERVED
    there = stall.looks()
    stall.settle(())
    assert stall.looks() == before
    for turn, (number, kind) in enumerate(injections(asked)[::EVERY]):
        watch = stall.watched(SERVED)
        told = stall.suffer(lambda: stall.settle(FEW), number, kind)
        watch("the end")
        assert told or stall.served() == SERVED, (asked[number], kind)
        if kind == KILLED and turn % 2:
            stall.netns.call(remove_marked, stall.interface)
            stall.restart()
        else:
            stall.settle(FEW)
            assert stall.served() == SERVED, (asked[number], kind)
            assert stall.looks() == there, (asked[number], kind)
            stall.settle(())
        assert stall.looks() == before, (asked[number], kind)


def test_a_fault_while_leases_change_serves_nobody_else(stall: Stall) -> None:
    stall.settle(OTHERS)
    there = stall.looks()
    stall.settle(FEW)
    asked = stall.faults.run(lambda: stall.settle(OTHERS))
    for number, kind in injections(asked):
        stall.settle(FEW)
        assert stall.served() == SERVED
        watch = stall.watched(SERVED, SERVED_THEN)
        told = stall.suffer(lambda: stall.settle(OTHERS), number, kind)
        watch("the end")
        assert told or stall.served() == SERVED_THEN, (asked[number], kind)
        stall.settle(OTHERS)
        assert stall.served() == SERVED_THEN, (asked[number], kind)
        assert stall.looks() == there, (asked[number], kind)


@pytest.mark.parametrize("by", ["nothing sold", "end", "cleanup"])
def test_a_fault_while_selling_ends_leaves_nothing_in_the_end(stall: Stall, by: str) -> None:
    ways: dict[str, Callable[[], object]] = {
        "nothing sold": lambda: stall.settle(()),
        "end": lambda: stall.netns.call(stall.way.end, ""),
        "cleanup": lambda: stall.netns.call(remove_marked, stall.interface),
    }
    before = stall.looks()
    stall.settle(FEW)
    asked = stall.faults.run(ways[by])
    assert stall.looks() == before
    for number, kind in injections(asked)[:: EVERY if by == "cleanup" else 1]:
        stall.restart()
        stall.settle(FEW)
        watch = stall.watched(SERVED)
        with suppress(SystemRefused):
            stall.suffer(ways[by], number, kind)
        watch("the end")
        ways["cleanup" if by == "cleanup" else "nothing sold"]()
        assert stall.looks() == before, (asked[number], kind)


def test_what_judges_a_link_stays_as_long_as_the_link(stall: Stall) -> None:
    """Where the link could not be removed, and the tables are next."""
    before = stall.looks()
    stall.settle(FEW)
    assert stall.netns.call(delete_own_tables, stall.interface) == ()
    assert stall.served() == SERVED
    stall.netns.call(stall.cables.delete, sold_interface(stall.interface))
    assert stall.netns.call(delete_own_tables, stall.interface) == (sold_table(stall.interface),)
    assert stall.looks() == before


class Buyer(Room):
    """A whole node that buys."""

    def __init__(self, make_netns: Callable[[], Any], interface: str, faults: Faults) -> None:
        self.cables = Cables(make_netns(), faults)
        super().__init__(make_netns, interface, faults, self.cables)

    def close(self) -> None:
        super().close()
        self.cables.close()

    def injections(self, wish: Wish) -> list[tuple[int, str]]:
        """Those at what is asked for the bought links, until packets are led into them."""
        at: list[int] = []
        bought, settle = self.reconciler.bought, self.reconciler.bought.settle

        def noted(desired: tuple[Bought, ...]) -> bool:
            at.append(len(self.faults.asked))
            is_new = settle(desired)
            at.append(len(self.faults.asked))
            return is_new

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bought, "settle", noted)
            asked = self.faults.run(lambda: self.settle(wish(self.interface)))
        return [one for one in injections(asked) if at[0] <= one[0] <= at[1]]


@pytest.fixture
def buyer(
    make_netns: Callable[[], Any], interface: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Buyer]:
    made = Buyer(make_netns, interface[:12], Faults(monkeypatch))
    yield made
    made.close()


def bought(interface: str, place: int, *, used: bool = True) -> Bought:
    addresses = frozenset(
        ip_interface(f"{one}/{one.max_prefixlen}") for one in map(ip_address, FIRST.values())
    )
    return Bought(
        bought_interface(interface, place),
        key(place),
        SELLERS_KEY.public_key,
        PSK,
        parse_endpoint(f"192.0.2.7:{PORT}"),
        addresses,
        1280,
        BOTH,
        frozenset(map(ip_address, INSIDE.values())),
        used=used,
    )


def tried(interface: str) -> Desired:
    """Nothing may leave yet, and one is being tried."""
    return replace(connecting(interface), bought=(bought(interface, 0, used=False),))


def used(interface: str, place: int = 0) -> Desired:
    one = bought(interface, place)
    asked = frozenset({ip_address(INSIDE[4])})
    shield = replace(TUNNELLED, link=one.link, resolvers=asked)
    desired = wanted(interface, shield, replace(ROUTED, link=one.link))
    return replace(desired, bought=(one,))


def another(interface: str) -> Desired:
    return used(interface, 1)


@pytest.mark.parametrize(("start", "end"), [(tried, used), (used, another), (used, connecting)])
def test_a_fault_while_an_exit_is_bought_or_left_lets_nothing_out(
    buyer: Buyer, start: Wish, end: Wish
) -> None:
    there = reached(buyer, end)
    buyer.settle(start(buyer.interface))
    for number, kind in buyer.injections(end)[::EVERY]:
        buyer.settle(start(buyer.interface))
        watch = Watch(buyer, set())
        suffer(buyer, end, number, kind)
        watch.look(f"the end, {number} {kind}")
        buyer.faults.run(lambda: buyer.settle(end(buyer.interface)))
        watch.look(f"the next run was over, {number} {kind}")
        assert buyer.looks() == there, (number, kind)


def test_cleanup_finds_what_a_killed_buyer_left(buyer: Buyer) -> None:
    before = buyer.looks()
    chosen = [one for one in buyer.injections(used) if one[1] == KILLED][::EVERY]
    buyer.cleanup()
    for number, kind in chosen:
        buyer.restart()
        with suppress(Killed):
            buyer.faults.run(lambda: buyer.settle(used(buyer.interface)), number, kind)
        buyer.cleanup()
        assert buyer.looks() == before, number
