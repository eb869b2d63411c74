"""``ping`` and ``netcheck``: try the network."""

from __future__ import annotations

import time
from statistics import fmean
from typing import Any

import click

from nostrvpn.cli.output import console, dash, json_option, show_json
from nostrvpn.cli.peer_argument import PEER
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import SystemRefused, UsageError

__all__ = ["netcheck_command", "ping_command"]

# What a call may take beyond the wait for the echo itself, seconds.
_CALL_MARGIN = 10.0


@click.command("ping")
@click.argument("peer", type=PEER)
@click.option("--count", "-c", default=4, show_default=True, help="How many echoes.")
@click.option("--until-direct", is_flag=True, help="Go on until the path is direct.")
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two echoes.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for each echo.")
@click.option(
    "--deadline", default=60.0, show_default=True, help="Seconds for --until-direct to give up."
)
@json_option
@click.pass_obj
def ping_command(
    options: Options,
    peer: str,
    count: int,
    until_direct: bool,
    interval: float,
    timeout: float,
    deadline: float,
    as_json: bool,
) -> None:
    """Send echoes to PEER through the tunnel.

    PEER is a name, an npub, or the beginning of one.
    """
    if count < 1 or not 0 < timeout <= 120 or interval < 0:
        raise UsageError(
            "ping needs --count of 1 or more, --timeout of up to 120, --interval of 0 or more",
            "for example: nostrvpn ping PEER --count 4",
        )
    client = ControlClient(options.control_socket)
    end = time.monotonic() + deadline
    echoes: list[dict[str, Any]] = []
    try:
        while True:
            echo = client.call("ping", timeout + _CALL_MARGIN, peer=peer, timeout_s=timeout)
            echoes.append(echo)
            peer = echo["peer"]  # from here on the same peer, whatever is renamed meanwhile
            if not as_json:
                click.echo(_line(echo))
            direct = echo["path"] == "direct" and echo["rtt_ms"] is not None
            over = time.monotonic() >= end
            if (direct or over) if until_direct else len(echoes) >= count:
                break
            time.sleep(interval if echo["rtt_ms"] is not None else min(interval, 0.2))
    except KeyboardInterrupt:
        if not echoes:
            raise
    _finish(echoes, until_direct=until_direct, as_json=as_json)


def _line(echo: dict[str, Any]) -> str:
    who = echo.get("name") or echo["peer"][:16] + "…"
    if echo["rtt_ms"] is None:
        return f"{who}: no echo ({echo.get('reason') or 'timeout'}), path {echo['path']}"
    via = f" by {echo['endpoint']}" if echo.get("endpoint") else ""
    return f"{who} {echo.get('address', '')}: {echo['rtt_ms']:.1f} ms, {echo['path']}{via}"


def _finish(echoes: list[dict[str, Any]], *, until_direct: bool, as_json: bool) -> None:
    """Show the sum of the echoes; raise SystemRefused if what was asked for did not happen."""
    times = [echo["rtt_ms"] for echo in echoes if echo["rtt_ms"] is not None]
    last = echoes[-1]
    if as_json:
        show_json(
            {
                "npub": last["peer"],
                "sent": len(echoes),
                "received": len(times),
                "path": last["path"],
                "rtt_ms": {"min": min(times), "mean": fmean(times), "max": max(times)}
                if times
                else None,
                "echoes": echoes,
            }
        )
    elif times:
        click.echo(
            f"{len(times)} of {len(echoes)} answered, "
            f"min {min(times):.1f} / mean {fmean(times):.1f} / max {max(times):.1f} ms"
        )
    if not times:
        raise SystemRefused(
            f"no echo came back from {last.get('name') or last['peer']}",
            "is it up? see: nostrvpn status",
        )
    if until_direct and last["path"] != "direct":
        raise SystemRefused(
            f"the path is {last['path']}, a direct one was not found in time",
            "see: nostrvpn netcheck, on both nodes",
        )


@click.command("netcheck")
@json_option
@click.pass_obj
def netcheck_command(options: Options, as_json: bool) -> None:
    """Show the NAT, the addresses seen from outside, and the relays."""
    report = ControlClient(options.control_socket).call("netcheck", timeout=60.0)
    if as_json:
        show_json(report)
        return
    nat = report["nat"]
    click.echo(f"NAT mapping     {nat['mapping']}{_meaning(nat['mapping'])}")
    click.echo(f"IPv4 outside    {dash(nat.get('reflexive_v4'))}")
    click.echo(f"IPv6 outside    {dash(nat.get('reflexive_v6'))}")
    if not report["udp"]:
        click.echo("No STUN server answered: UDP may be blocked here.")
    for server in report["stun"]:
        answer = dash(server.get("rtt_ms"), "{:.0f} ms")
        click.echo(f"STUN            {server['server']}: {answer}")
    from nostrvpn.cli.status import relay_table

    console().print(relay_table(report["relays"]))


def _meaning(mapping: str) -> str:
    return {
        "independent": " (easy: one mapping for every destination, direct paths work)",
        "dependent": " (hard: another mapping for each destination, direct paths are rare)",
        "none": " (no NAT)",
    }.get(mapping, "")
