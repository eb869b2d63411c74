"""``exit offer`` and ``exit clients``: be an exit for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nostrvpn.cli.exit_sale import SALE_OPTIONS, sale_options, sell
from nostrvpn.cli.output import console, json_option, shown_as_json, size, table
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError

__all__ = ["clients_command", "offer_command"]

_POLICIES = click.Choice(["web", "reduced", "tor-default", "open"])
_MBIT = 125_000
# As far as the daemon counts.
_MOST_MBIT, _MOST_GB, _MOST_CONNECTIONS = 100_000, 1_000_000, 100_000


class _Amount(click.types.FloatParamType):
    """A number from 0, which is no limit, to ``most``."""

    name = "number"

    def __init__(self, most: int) -> None:
        self._most = most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; click's own usage error for anything else."""
        number = float(super().convert(value, param, ctx))
        # Not a number is neither above nor below any.
        if not 0 <= number <= self._most:
            self.fail(f"{value} is not between 0 and {self._most}", param, ctx)
        return number


def _country(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    from nostrvpn.exits.offer import parse_country

    return parse_country(text) if text else ""


@click.command("offer")
@click.option(
    "--to", multiple=True, metavar="members|tag:T|PEER", help="Who may use it; as often as needed."
)
@click.option("--policy", type=_POLICIES, default="tor-default", show_default=True)
@click.option("--allow", multiple=True, metavar="PORTS|CIDR", help="What the policy leaves out.")
@click.option("--deny", multiple=True, metavar="PORTS|CIDR", help="What nobody reaches through it.")
@click.option("--allow-lan", is_flag=True, help="The networks this host is in, and private ranges.")
@click.option(
    "--client-rate",
    type=_Amount(_MOST_MBIT),
    default=0.0,
    metavar="Mbit/s",
    help="Most of each guest.",
)
@click.option(
    "--bandwidth",
    type=_Amount(_MOST_MBIT),
    default=0.0,
    metavar="Mbit/s",
    help="Of all, shared fairly.",
)
@click.option(
    "--connections",
    type=click.IntRange(0, _MOST_CONNECTIONS),
    metavar="N/s",
    help="New ones of each guest (100).",
)
@click.option(
    "--budget", type=_Amount(_MOST_GB), default=0.0, metavar="GB", help="Of all, in a month."
)
@click.option("--country", default="", metavar="CC", callback=_country, help="Where it says it is.")
@click.option("--no-ipv6", is_flag=True, help="IPv4 only.")
@click.option(
    "--upstream",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Guests leave by the WireGuard provider of this wg-quick file.",
)
@click.option("--stop", is_flag=True, help="Be no exit any more; open connections are cut.")
@sale_options
@json_option
@click.pass_obj
def offer_command(
    options: Options, /, stop: bool, no_ipv6: bool, as_json: bool, to: tuple[str, ...], **given: Any
) -> None:
    """Be an exit: let members reach the internet through this host.

    Who may is the permission exit; --to gives it. Guests reach neither the networks this host is in, nor
    its own services, nor each other. PORTS is 22, tcp/80-90, udp or icmp, several joined by commas, and
    may stand behind a CIDR: 192.168.5.4/32,tcp/80. A deny beats an allow. Each call says all anew but
    for --to, which adds; take it back with nostrvpn deny WHO exit.

    With --public it is sold to strangers, beside and apart from members: --price, --mint, and what
    follows them.
    """
    sold = {key: given.pop(key) for key in SALE_OPTIONS}
    if sold.pop("public"):
        words = sold | given | {"to": to, "ipv6": not no_ipv6}
        sell(options, words, as_json=as_json, stop=stop)
        return
    if any(sold.values()):
        raise UsageError("this is about selling to strangers", "add --public, or leave it out")
    client = ControlClient(options.control_socket)
    if stop:
        chosen = any(value for key, value in given.items() if key != "policy")
        if to or no_ipv6 or chosen:
            raise UsageError("--stop goes alone", "nostrvpn exit offer --stop")
        answer = client.call("exit_offer_stop")
    else:
        path = given.pop("upstream")
        upstream = None if path is None else _provider(path)
        answer = client.call(
            "exit_offer", to=list(to), ipv6=not no_ipv6, upstream=upstream, **given
        )
    if shown_as_json(answer, as_json):
        return
    _show_offer(answer)


def _provider(path: Path) -> dict[str, object]:
    """Return what a wg-quick file says, its endpoint looked up; the file must be private."""
    from nostrvpn.io.provider_file import read_provider

    return read_provider(path).to_json()


@click.command("clients")
@json_option
@click.pass_obj
def clients_command(options: Options, as_json: bool) -> None:
    """List who may leave through this host, who does, and what each had."""
    answer = ControlClient(options.control_socket).call("exit_clients")
    if shown_as_json(answer, as_json):
        return
    _show_offer(answer)
    made = table("guest", "uses it now", "sent", "received", "up", "down")
    for one in answer["clients"]:
        name = one["name"] if one["allowed"] else f"{one['name']} (not allowed any more)"
        rates = [f"{one[key] / _MBIT:.1f} Mbit/s" for key in ("rate_up", "rate_down")]
        made.add_row(
            name, "yes" if one["uses"] else "no", size(one["up"]), size(one["down"]), *rates
        )
    if made.row_count:
        console().print(made)


def _show_offer(answer: dict[str, Any]) -> None:
    offer = answer["offer"]
    text = answer["text"]
    click.echo(f"{text[:1].upper()}{text[1:]}.")
    if answer["hint"]:
        click.echo(f"  {answer['hint']}")
    if offer is None:
        return
    carried = " and ".join(name for key, name in (("v4", "IPv4"), ("v6", "IPv6")) if answer[key])
    click.echo(f"  carries {carried or 'nothing'}, policy {offer['policy']}")
    for key in ("allow", "deny"):
        if offer[key]:
            click.echo(f"  {key}: {' '.join(offer[key])}")
    if offer["upstream"] is not None:
        click.echo(f"  guests leave by the WireGuard provider at {offer['upstream']['endpoint']}")
    if offer["allow_lan"]:
        click.echo("  the networks this host is in are open to guests")
    for text in answer["to"]:
        click.echo(f"  {text}")
    limits = [
        f"{offer['bandwidth'] / _MBIT:g} Mbit/s for all" if offer["bandwidth"] else "",
        f"{answer['rate'] / _MBIT:.3g} Mbit/s for each" if answer["rate"] else "",
        f"{offer['connections']} connections a second" if offer["connections"] else "",
    ]
    click.echo(f"  limits: {', '.join(filter(None, limits)) or 'none'}")
    budget = f" of {size(offer['budget'])}" if offer["budget"] else ""
    click.echo(f"  in {answer['month']}: {size(answer['month_bytes'])}{budget}")
