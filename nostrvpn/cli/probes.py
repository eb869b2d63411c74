"""``ping``: echoes through the tunnel, and by which path each came back."""

from __future__ import annotations

import math
import time
from statistics import fmean
from typing import Any

import click

from nostrvpn.cli.output import json_option, show_json
from nostrvpn.cli.peer_argument import PEER
from nostrvpn.cli.seconds import seconds_option
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import SystemRefused, UsageError

__all__ = ["ping_command"]

# What a call may take beyond the wait for the echo itself, seconds.
_CALL_MARGIN = 10.0
_COUNT = 4


@click.command("ping")
@click.argument("peer", type=PEER)
@click.option(
    "--count",
    "-c",
    type=int,
    help="How many echoes.  [default: 4; with --until-direct, as many as it takes]",
)
@click.option(
    "--until-direct",
    is_flag=True,
    help="Stop at the first echo over a direct path; exit code 1 if none comes.",
)
@seconds_option("--interval", 1.0, "Seconds between two echoes.", least=0.0)
@seconds_option("--timeout", 5.0, "Seconds to wait for each echo.")
@seconds_option("--deadline", 60.0, "Seconds for --until-direct to give up.", least=0.0)
@json_option
@click.pass_obj
def ping_command(
    options: Options,
    peer: str,
    count: int | None,
    until_direct: bool,
    interval: float,
    timeout: float,
    deadline: float,
    as_json: bool,
) -> None:
    """Send echoes to PEER through the tunnel.

    PEER is a name, an npub, or the beginning of one.
    """
    if (count is not None and count < 1) or not 0 < timeout <= 120 or interval < 0:
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
            if until_direct and (direct or time.monotonic() >= end):
                break
            if len(echoes) >= (count or (math.inf if until_direct else _COUNT)):
                break
            time.sleep(interval if echo["rtt_ms"] is not None else min(interval, 0.2))
    except KeyboardInterrupt:
        if not echoes:
            raise
    _finish(echoes, until_direct=until_direct, as_json=as_json)


def _line(echo: dict[str, Any]) -> str:
    who = f"{echo.get('name') or echo['peer'][:16] + '…'} {echo.get('address', '')}".strip()
    if echo["rtt_ms"] is None:
        return f"{who}: no echo ({echo.get('reason') or 'timeout'}) {_via(echo)}"
    return f"{who}: {_via(echo)} in {echo['rtt_ms']:.1f} ms"


def _via(echo: dict[str, Any]) -> str:
    match echo["path"]:
        case "direct":
            return f"via direct {echo.get('endpoint') or ''}".strip()
        case "relayed":
            via = echo.get("via") or "of unknown name"
            carrier = " (websocket)" if echo.get("carrier") == "websocket" else ""
            return f"via {via}" if via.startswith("turn ") else f"via relay {via}{carrier}"
    return "while asleep" if echo.get("asleep") else "without a proven path"


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
            f"see: nostrvpn why {last.get('name') or last['peer']}",
        )
    if until_direct and not (last["path"] == "direct" and last["rtt_ms"] is not None):
        path = "no path is proven" if last["path"] == "none" else f"the path is {last['path']}"
        raise SystemRefused(
            f"{path}, no echo came over a direct one in time",
            f"see: nostrvpn why {last.get('name') or last['peer']}",
        )
