"""The options of ``up`` and ``daemon`` about relaying for others, and the same as words again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from nostrvpn.config.options import RelayOptions
from nostrvpn.errors import UsageError

__all__ = ["relay_command_line", "relay_options"]

_FLAGS = (
    click.option(
        "--relay-for",
        type=click.Choice(["none", "members", "anyone"]),
        help="Carry the tunnels of pairs that cannot meet directly: of this network's members, of "
        "anyone, or none. They stay encrypted; this node needs a public address.",
    ),
    click.option(
        "--relay-address",
        multiple=True,
        metavar="IP",
        help="The public address where others reach this node; one for IPv4, one for IPv6.  "
        "[default: found by itself]",
    ),
    click.option(
        "--relay-websocket",
        metavar="IP:PORT",
        help="Serve members whose network lets no UDP out too: listen here, as 0.0.0.0:443.",
    ),
    click.option(
        "--relay-pairs",
        type=click.IntRange(1, 1000),
        metavar="N",
        help="How many pairs at once.  [default: 256]",
    ),
    click.option(
        "--relay-mbit",
        type=click.IntRange(1, 100_000),
        metavar="N",
        help="Megabits per second for each pair.  [default: 100]",
    ),
    click.option(
        "--relay-gigabytes",
        type=click.IntRange(0, 1_000_000),
        metavar="N",
        help="Gigabytes a month for all of them, 0: no cap.  [default: 0]",
    ),
)


def relay_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the ``--relay-…`` options, as one parameter ``relay`` (RelayOptions)."""

    @wraps(command)
    def gathered(*args: Any, **given: Any) -> Any:
        relay = _checked(
            RelayOptions(
                offer=given.pop("relay_for"),
                address=given.pop("relay_address"),
                websocket=given.pop("relay_websocket"),
                pairs=given.pop("relay_pairs"),
                mbit=given.pop("relay_mbit"),
                gigabytes=given.pop("relay_gigabytes"),
            )
        )
        return command(*args, relay=relay, **given)

    for flag in reversed(_FLAGS):
        flag(gathered)
    return gathered


def _checked(relay: RelayOptions) -> RelayOptions:
    """Return the options with every address in its one spelling, or raise UsageError."""
    from dataclasses import replace

    from nostrvpn.config.addresses import check_ip_port, check_public_ip

    try:
        address = tuple(dict.fromkeys(check_public_ip(text) for text in relay.address))
    except ValueError as error:
        hint = "for example: --relay-address 203.0.113.5"
        raise UsageError(f"--relay-address: {error}", hint) from error
    try:
        websocket = None if relay.websocket is None else check_ip_port(relay.websocket)
    except ValueError as error:
        hint = "for example: --relay-websocket 0.0.0.0:443"
        raise UsageError(f"--relay-websocket: {error}", hint) from error
    return replace(relay, address=address, websocket=websocket)


def relay_command_line(relay: RelayOptions) -> list[str]:
    """Return the words that give a command these options."""
    flags: list[tuple[str, object]] = [
        ("for", relay.offer),
        *(("address", address) for address in relay.address),
        ("websocket", relay.websocket),
        ("pairs", relay.pairs),
        ("mbit", relay.mbit),
        ("gigabytes", relay.gigabytes),
    ]
    line: list[str] = []
    for name, value in flags:
        if value is not None:
            line += [f"--relay-{name}", str(value)]
    return line
