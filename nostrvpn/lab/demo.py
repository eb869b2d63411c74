"""The demo: two laptops behind two NATs meet, and nothing is left behind."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nostrvpn.lab.core import Internet
from nostrvpn.lab.leftovers import Footprint, leftovers
from nostrvpn.lab.meeting import Meeting, Narrator, Step
from nostrvpn.lab.topologies import TwoNats

__all__ = ["report_document", "run_demo", "show_peers", "tell_on"]

ONE_WAY_DELAY = 0.02
"""Seconds between any two networks of the demo: about Paris to Frankfurt and half way back."""

INTERRUPTED = 130

_MAP = """\
  laptop-a --- nat-a ---+             +--- nat-b --- laptop-b
  192.168.1.2           |             |            192.168.2.2
                        core, 20 ms one way
                             |
                      server: STUN, Nostr relay
"""


def run_demo(console: Console, as_json: bool = False) -> int:
    """Run the main job once and tell it; return the exit code (0, 1 if anything was left, 130)."""
    if not as_json:
        console.print("Two laptops, two port-restricted NATs, a server outside:\n", markup=False)
        console.print(_MAP, markup=False, highlight=False)
    narrator = Narrator(tell_on(console, silent=as_json))
    document: dict[str, Any] = {}
    footprint: Footprint | None = None
    interrupted = False
    try:
        with TwoNats(internet=Internet(delay=ONE_WAY_DELAY)) as lab:
            meeting = Meeting(lab, narrator, permissions={"inbound": "network"})
            footprint = lab.footprint()
            narrator.say(f"the network stands: {len(lab.namespaces)} namespaces, STUN, relay")
            document = _meet(meeting, console, as_json)
        narrator.say("the network is taken down")
    except KeyboardInterrupt:
        interrupted = True
        narrator.say("interrupted; the network is taken down")
    left = leftovers(footprint) if footprint else []
    clean = "nothing left behind: no namespace, process, interface, rule, route or table"
    narrator.say(clean if not left else "LEFT BEHIND: " + ", ".join(left))
    if as_json:
        document |= report_document(narrator, left)
        console.print_json(data=document)
    if interrupted:
        return INTERRUPTED
    return 1 if left or not document.get("direct") else 0


def _meet(meeting: Meeting, console: Console, as_json: bool) -> dict[str, Any]:
    meeting.start()
    meeting.join()
    direct = meeting.wait_direct()
    document: dict[str, Any] = {"direct": direct, "direct_in_s": meeting.direct_in}
    if direct:
        document["ping_ms"] = meeting.ping()
        meeting.allow()
        done = meeting.transfer()
        document["transfer"] = {
            "bytes": done.size,
            "seconds": done.seconds,
            "mbit_per_second": done.mbit_per_second,
            "sha256": done.received_sha256,
        }
    else:
        for node in (meeting.a, meeting.b):
            sys.stderr.write(node.report() + "\n")
    document["peers"] = meeting.peers()
    if not as_json:
        show_peers(console, document["peers"])
    meeting.stop()
    return document


def report_document(narrator: Narrator, left: list[str]) -> dict[str, Any]:
    """Return the steps and what was left behind, for ``--json``."""
    steps = [{"at_s": s.at, "took_s": s.seconds, "text": s.text} for s in narrator.steps]
    return {"steps": steps, "left_behind": left}


def tell_on(console: Console, *, silent: bool) -> Any:
    """Return a callback that prints each step with its time (or does nothing)."""

    def tell(step: Step) -> None:
        if not silent:
            line = Text(f"{step.at:7.2f} s  ", style="cyan")
            console.print(line + Text(step.text, style="default"), soft_wrap=True)

    return tell


def show_peers(console: Console, peers: list[dict[str, Any]]) -> None:
    """Print how each node sees its peer."""
    table = Table("node", "peer", "path", "latency", "handshake age", "received", "sent")
    for peer in peers:
        table.add_row(
            peer["node"],
            peer["peer_name"],
            Text(peer["path"], style="green" if peer["path"] == "direct" else "red"),
            _number(peer["rtt_ms"], "ms", 1),
            _number(peer["last_handshake_age_s"], "s", 1),
            _number(peer["rx_bytes"], "B", 0),
            _number(peer["tx_bytes"], "B", 0),
        )
    console.print(table)


def _number(value: float | None, unit: str, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f} {unit}"
