"""``netcheck``: what this network lets through, as far as this node knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from nostrvpn.cli.output import console, count, dash, json_option, shown_as_json, size
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient

__all__ = ["netcheck_command"]

_MAPPINGS = {
    "independent": "easy: one port for every destination, direct paths work",
    "predictable": "hard: another port for each destination, in steps that can be guessed",
    "random": "hard: another, random port for each destination; direct only to easy NATs",
    "dependent": "hard: another port for each destination, direct paths are rare",
    "none": "no NAT",
}


@click.command("netcheck")
@json_option
@click.pass_obj
def netcheck_command(options: Options, as_json: bool) -> None:
    """Show the NAT, UDP, the router's help, relays and TURN servers."""
    report = ControlClient(options.control_socket).call("netcheck", timeout=60.0)
    if shown_as_json(report, as_json):
        return
    for label, text in _lines(report):
        click.echo(f"{label:<16}{text}")
    from nostrvpn.cli.status import relay_table

    console().print(relay_table(report["relays"]))


def _lines(report: Any) -> Iterator[tuple[str, str]]:
    nat = report["nat"]
    meaning = _MAPPINGS.get(nat["mapping"])
    step = f", step {nat['step']}" if nat.get("step") is not None else ""
    yield "NAT mapping", f"{nat['mapping']}{step}" + (f" ({meaning})" if meaning else "")
    yield "NAT filtering", dash(nat.get("filtering"))
    yield "NAT hairpin", _yes(nat.get("hairpin"))
    yield "IPv4 outside", dash(nat.get("reflexive_v4"))
    yield "IPv6 outside", dash(nat.get("reflexive_v6"))
    yield "UDP", f"IPv4 {_yes(report.get('udp_v4'))}, IPv6 {_yes(report.get('udp_v6'))}"
    if not report["udp"]:
        yield "", "No STUN server answered: UDP may be blocked here."
    yield "Port mapping", _port_mapping(report.get("port_mapping"))
    yield "MTU", _mtu(report.get("mtu") or {})
    for server in report["stun"]:
        yield "STUN", f"{server['server']}: {dash(server.get('rtt_ms'), '{:.0f} ms')}"
    for relay in report.get("mesh_relays") or []:
        yield "Mesh relay", _mesh_relay(relay)
    for server in report.get("turn") or []:
        yield "TURN", f"{server['server']}: {server['state']}"
    yield "Own relay", _service(report.get("relay_service"))


def _yes(value: object) -> str:
    """Return a flag, or a word, as people say it; None is not known."""
    known = {True: "yes", False: "no", None: "unknown"}
    return known[value] if value is None or isinstance(value, bool) else str(value)


def _port_mapping(found: Any) -> str:
    if not found:
        return "unknown"
    names = (("pcp", "PCP"), ("nat_pmp", "NAT-PMP"), ("upnp", "UPnP"))
    said = [f"{name} {_yes(found.get(key))}" for key, name in names]
    if found.get("external"):
        inner = " (behind another NAT)" if found.get("public") is False else ""
        said.append(f"outside {found['external']}{inner}")
    if found.get("error"):
        said.append(str(found["error"]))
    return ", ".join(said)


def _mtu(mtu: Any) -> str:
    largest = mtu.get("largest")
    path = f", largest packet known to pass {largest}" if largest is not None else ""
    return f"{dash(mtu.get('interface'))} in the tunnel{path}"


def _mesh_relay(relay: Any) -> str:
    entrance = ", websocket too" if relay.get("websocket") else ""
    carries = f", carries {', '.join(relay['carries'])}" if relay.get("carries") else ""
    return f"{relay['name']}: {dash(relay.get('rtt_ms'), '{:.0f} ms')}{entrance}{carries}"


def _service(snapshot: Any) -> str:
    if not snapshot:
        return "off"
    limits = snapshot.get("limits") or {}
    pairs = f"{dash(snapshot.get('pairs'))} of {dash(limits.get('pairs'))} pairs"
    cap = f" of {size(limits['bytes'])}" if limits.get("bytes") else ""
    carried = f"{size(snapshot.get('bytes'))}{cap} in {snapshot.get('month') or 'this month'}"
    over = ", which is all for this month" if snapshot.get("exhausted") else ""
    left = snapshot.get("forward_dropped")
    were = f"{count(left, 'pair')} {'was' if left == 1 else 'were'}" if left else ""
    slow = f"; {were} kept from the kernel by another firewall" if left else ""
    return f"{pairs}, {carried}{over}{slow}"
