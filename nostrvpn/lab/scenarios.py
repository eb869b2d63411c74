"""The scenarios of ``nostrvpn lab run|shell``: which networks two nodes must cope with.

A scenario is a ``Pair`` and what must come of it. To add one, write a line below, or a class like
those in ``topologies.py`` when the network itself is new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from nostrvpn.lab.core import Internet
from nostrvpn.lab.demo import report_document, run_demo, show_peers, tell_on
from nostrvpn.lab.leftovers import leftovers
from nostrvpn.lab.meeting import Meeting, Narrator
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.shell import open_lab_shell
from nostrvpn.lab.topologies import Pair, SameLan, TwoNats

__all__ = ["SCENARIOS", "CarrierGrade", "Scenario", "open_shell", "run_demo", "run_scenario"]

INTERNET = Internet(delay=0.02)
GIVE_UP_SECONDS = 12.0
"""How long a pair without a direct path gets to claim one: more than two rounds of checks."""


class CarrierGrade(Pair):
    """Laptop-a behind its home router behind the carrier's router; laptop-b as in TwoNats."""

    def build(self) -> None:
        self.server = self.server_host("server")
        home = self.router("home-a", behind=self.router("carrier"))
        self.laptop_a = self.host("laptop-a", home)
        self.laptop_b = self.host("laptop-b", self.router("nat-b"))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A network for two nodes, and whether they must find a direct path in it; None: they may."""

    summary: str
    build: Callable[[], Pair]
    direct: bool | None = True


def _nats(kind_a: NatKind, kind_b: NatKind) -> Callable[[], Pair]:
    return lambda: TwoNats(kind_a, kind_b, INTERNET)


_K = NatKind

SCENARIOS: dict[str, Scenario] = {
    "two-nats": Scenario("two port-restricted NATs", _nats(_K.PORT_RESTRICTED, _K.PORT_RESTRICTED)),
    "same-lan": Scenario("both laptops on one LAN", lambda: SameLan(INTERNET)),
    "carrier-grade": Scenario("one laptop behind two routers", lambda: CarrierGrade(INTERNET)),
    "ipv6": Scenario(
        "NATs for IPv4, firewalled public IPv6", lambda: TwoNats(internet=INTERNET, ipv6=True)
    ),
    "full-cone": Scenario("two full-cone NATs", _nats(_K.FULL_CONE, _K.FULL_CONE)),
    "address-restricted": Scenario(
        "address-restricted and symmetric NAT", _nats(_K.ADDRESS_RESTRICTED, _K.SYMMETRIC)
    ),
    "accept-input": Scenario(
        "two routers that spoil the mapping of whoever is probed too early",
        _nats(_K.ACCEPT_INPUT, _K.ACCEPT_INPUT),
    ),
    "hard-and-easy": Scenario(
        "symmetric and port-restricted NAT: direct if the search for a port finds one",
        _nats(_K.SYMMETRIC, _K.PORT_RESTRICTED),
        direct=None,
    ),
    "two-hard": Scenario(
        "two symmetric NATs: no direct path", _nats(_K.SYMMETRIC, _K.SYMMETRIC), direct=False
    ),
    "udp-blocked": Scenario(
        "one router drops UDP: no direct path",
        _nats(_K.UDP_BLOCKED, _K.PORT_RESTRICTED),
        direct=False,
    ),
}


def run_scenario(name: str, console: Console, as_json: bool = False) -> int:
    """Let two nodes meet in a scenario; return 0 if its outcome is the expected one, else 1."""
    scenario = SCENARIOS[name]
    narrator = Narrator(tell_on(console, silent=as_json))
    if not as_json:
        console.print(f"{name}: {scenario.summary}", markup=False)
    with scenario.build() as lab:
        meeting = Meeting(lab, narrator)
        footprint = lab.footprint()
        meeting.start()
        meeting.join()
        direct = meeting.wait_direct(timeout=GIVE_UP_SECONDS if scenario.direct is False else 30.0)
        pings = meeting.ping() if direct else {}
        peers = meeting.peers()
    left = leftovers(footprint)
    expected = scenario.direct in (direct, None) and not left
    if as_json:
        document = {"scenario": name, "direct": direct, "as_expected": expected, "peers": peers}
        document |= {"direct_in_s": meeting.direct_in, "ping_ms": pings}
        console.print_json(data=document | report_document(narrator, left))
    else:
        show_peers(console, peers)
        console.print("as expected" if expected else f"NOT as expected; left behind: {left}")
    return 0 if expected else 1


def open_shell(scenario: str) -> int:
    """Open an interactive shell in a scenario with both daemons running; return its exit code."""
    with SCENARIOS[scenario].build() as lab:
        return open_lab_shell(lab, [lab.node(h, lab.server) for h in (lab.laptop_a, lab.laptop_b)])
