"""``status``: what is, now or continuously."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from nostrvpn.cli.network import other_networks
from nostrvpn.cli.output import console, count, dash, json_option, show_json, size, span, table
from nostrvpn.cli.seconds import seconds_option
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

__all__ = ["peer_table", "relay_table", "status_command"]

_COLOURS = {"connected": "green", "direct": "green", "relayed": "yellow", "fit": "green"}
_SEVERITIES = {"error": "red", "warning": "yellow"}


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@seconds_option("--interval", 1.0, "Seconds between two looks.")
@json_option
@click.pass_obj
def status_command(options: Options, watch: bool, interval: float, as_json: bool) -> None:
    """Show this node, its relays, its peers, and what is wrong."""
    if interval < 0.1:
        raise UsageError("--interval must be at least 0.1 seconds", "for example: --interval 1")
    client = ControlClient(options.control_socket)
    status = client.call("status")
    if watch:
        _watch(client, status, interval, as_json=as_json)
        return
    others = other_networks(options)
    if as_json:
        show_json(status | ({"networks": others} if others else {}))
        return
    console().print(render_status(status))
    for other in others:
        click.echo(_network_line(other))


def _network_line(network: Any) -> str:
    name = network["name"]
    called = f"{network['profile']} ({name})" if name else network["profile"]
    if not network["running"]:
        return f"Network {called}: down"
    members = count(network["members"], "member") if network["members"] else "in no network yet"
    return f"Network {called}: {members}, on {network['interface']}; see: --network {network['profile']}"


def _watch(client: ControlClient, status: Any, interval: float, *, as_json: bool) -> None:
    """Repeat until Ctrl-C, which is the normal end; with JSON, one object on each line."""
    import json

    try:
        if as_json:
            while True:
                click.echo(json.dumps(status, ensure_ascii=False))
                time.sleep(interval)
                status = client.call("status")
        from rich.live import Live

        with Live(render_status(status), console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(render_status(client.call("status")), refresh=True)
    except KeyboardInterrupt:
        return


def render_status(status: Any) -> Group:
    """Return a status as rich tables."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [_self_table(status)]
    if status["relays"]:
        parts += [Text("Relays", style="bold"), relay_table(status["relays"])]
    if status["peers"]:
        parts += [Text("Peers", style="bold"), peer_table(status["peers"])]
    else:
        parts += [Text("No peers yet: nostrvpn invite NPUB, or nostrvpn join LINK", style="dim")]
    for problem in status["problems"]:
        style = _SEVERITIES.get(problem.get("severity", ""), "")
        parts.append(Text(f"{problem.get('severity', 'problem')}: {problem['text']}", style=style))
        if problem.get("hint"):
            parts.append(Text(f"  hint: {problem['hint']}"))
    return Group(*parts)


def _self_table(status: Any) -> Table:
    from rich.table import Table

    made = Table.grid(padding=(0, 2))
    for _ in range(2):
        made.add_column(overflow="fold")
    rows = {
        "Name": status.get("name"),
        "npub": status["npub"],
        "WireGuard key": status["wireguard_public_key"],
        "Addresses": ", ".join(status["addresses"]),
        "Interface": f"{status['interface']} ({status['backend']}), UDP port "
        f"{dash(status['listen_port'])}",
        "Network": _network_name(status.get("network")),
        "Names": _names(status.get("dns") or {}),
        "Exit": _exit(status.get("exit") or {}),
    }
    for label, value in rows.items():
        if value:
            made.add_row(label, value)
    return made


def _exit(used: Any) -> str:
    return str(used["text"]) if used and (used["state"] != "off" or used["wanted"]) else ""


def _names(dns: Any) -> str:
    if not dns.get("domain"):
        return ""
    asked = f"asked by {dns['manager']}" if dns["manager"] != "none" else "not asked"
    why = f": {dns['problem']}" if dns.get("problem") else ""
    return f"NAME.{dns['domain']} at {dns['server']}, {asked}{why}"


def _network_name(network: Any) -> str:
    if isinstance(network, dict):
        return str(network.get("name") or network.get("id") or "")
    return str(network or "")


def relay_table(relays: Any) -> Table:
    """Return relays as a table: where, in what state, how far, and why not."""
    from rich.text import Text

    made = table("URL", "state", ">rtt", "fitness", "reason")
    for relay in relays:
        made.add_row(
            Text(relay["url"]),
            _coloured(relay["state"]),
            dash(relay.get("rtt_ms"), "{:.0f} ms"),
            _coloured(dash(relay.get("fitness"))),
            Text(dash(relay.get("reason"))),
        )
    return made


def peer_table(peers: Any) -> Table:
    """Return peers as a table: who, by which path, how far, how much."""
    from rich.text import Text

    made = table(
        "peer", "npub", "address", "state", "path", "endpoint", ">rtt", ">seen", ">rx", ">tx"
    )
    for peer in peers:
        addresses = peer.get("addresses") or []
        made.add_row(
            Text(dash(peer.get("name"))),
            peer["npub"][:16] + "…",
            "\n".join([*addresses, *peer.get("routes", ())]) or "-",
            _coloured(peer["state"]),
            _path(peer),
            dash(peer.get("endpoint")),
            dash(peer.get("rtt_ms"), "{:.1f} ms"),
            span(peer.get("last_handshake_age_s")),
            size(peer.get("rx_bytes")),
            size(peer.get("tx_bytes")),
        )
    return made


def _path(peer: Any) -> Any:
    """Return the path in words: ``direct``, ``relayed via NAME``, ``asleep``, ``none``."""
    from rich.text import Text

    word = "asleep" if peer.get("asleep") else peer["path"]
    via = peer.get("via") if word == "relayed" else None
    style = _COLOURS.get(word, "")
    return Text(f"{word} via {via}" if via else word, style=style)


def _coloured(word: str) -> Any:
    from rich.text import Text

    return Text(word, style=_COLOURS.get(word, ""))
