"""``market``: what exits strangers sell, for how much, and how far they are trusted."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from nostrvpn.cli.output import console, count, dash, json_option, shown_as_json, table
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient

__all__ = ["market_command"]

_LABELS = ("speed", "country-mismatch", "overcharge", "blocked-ports", "no-service")
_REPORTS = ("nudity", "malware", "profanity", "illegal", "spam", "impersonation", "other")
_AS_ME = click.option(
    "--as-me",
    is_flag=True,
    help="Sign with this node's own npub instead of a key of its own for ratings. It tells everybody "
    "who buys from whom.",
)
_REMOVE = click.option("--remove", is_flag=True, help="Take it off the list again.")


# In a module of its own: imported when it is asked for.
_ELSEWHERE = {
    **dict.fromkeys(("selling", "sessions", "earnings"), "nostrvpn.cli.statements"),
    **dict.fromkeys(("arbitrate", "dispute"), "nostrvpn.cli.arbitration"),
}


class _MarketGroup(click.Group):
    """``market`` with the commands about what was sold and bought."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *_ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            command = getattr(import_module(_ELSEWHERE[cmd_name]), f"{cmd_name}_command")
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)


@click.group("market", cls=_MarketGroup)
def market_command() -> None:
    """Find exits that strangers sell by the byte, say which were good, and see what was earned.

    OFFER is what market list shows, or the seller's npub. Buying: nostrvpn exit buy. Selling: nostrvpn
    exit offer --public.
    """


@market_command.command("list")
@click.option("--country", metavar="CC", multiple=True, help="Only there (DE); may be repeated.")
@click.option("--max-price", metavar="PRICE", default="", help="For traffic: 50sat/GiB.")
@click.option("--max-price-time", metavar="PRICE", default="", help="For time: 5sat/h.")
@click.option("--mint", metavar="URL", multiple=True, help="Only what takes this mint's money.")
@click.option("--ip-version", type=click.Choice(["4", "6"]), help="What the exit must carry.")
@click.option(
    "--sort",
    type=click.Choice(["trust", "price", "latency", "country"]),
    default="trust",
    show_default=True,
    help="What comes first.",
)
@click.option("--refresh", is_flag=True, help="Fetch everything anew, contact lists too.")
@json_option
@click.pass_obj
def list_offers(options: Options, /, as_json: bool, **asked: Any) -> None:
    """List the exits on offer; those that cannot be bought come last, with the reason.

    Country is the seller's own word; seen is where it was when this host used it. Latency is of the
    fastest connection through its tunnel; in brackets, how soon it answered when it was asked.
    """
    version = asked.pop("ip_version")
    asked |= {"country": list(asked["country"]), "mint": list(asked["mint"])}
    answer = ControlClient(options.control_socket).call(
        "market_list", ip_version=int(version) if version else None, **asked
    )
    if shown_as_json(answer, as_json):
        return
    if not answer["offers"]:
        click.echo("No offers. Ask for less, or for other relays: market.relays")
        return
    made = table(
        *("offer", "country", "seen", ">sat/GiB", ">sat/h", ">trust", ">latency", "pay", "IP"),
        "why not",
    )
    for one in answer["offers"]:
        cells = _cells(one)
        made.add_row(*cells, style=None if one["usable"] else "dim")
    console().print(made)
    if answer["left_out"]:
        click.echo(f"{answer['left_out']} more that cannot be bought.")
    if not answer["follows"]:
        click.echo("Nobody's ratings count yet: set market.follow to your npub on Nostr.")


def _cells(one: Any) -> list[str]:
    price = _sat(one["gib_msat"])
    if one["market"] != "nostrvpn" and one["gib_msat"] is None and one["hour_msat"] is None:
        price = one["price"]
    return [
        one["ref"],
        dash(one["country"]),
        dash(one["country_seen"]),
        price,
        _sat(one["hour_msat"]),
        f"{one['trust']:.2f}",
        _latency(one["rtt_ms"], one["quote_ms"]),
        ", ".join(one.get("pay", ())) or "-",
        ", ".join(str(version) for version in one["ip_versions"]) or "-",
        "; ".join(reason["text"] for reason in one["why_not"]),
    ]


def _latency(rtt_ms: float | None, quote_ms: float | None) -> str:
    return dash(rtt_ms, "{:.0f} ms") if quote_ms is None or rtt_ms else f"({quote_ms:.0f} ms)"


def _sat(msat: int | None) -> str:
    from nostrvpn.market.terms import sat_text

    return "-" if msat is None else sat_text(msat)


@market_command.command("why")
@click.argument("offer")
@json_option
@click.pass_obj
def why(options: Options, offer: str, as_json: bool) -> None:
    """Say why OFFER is trusted as far as it is, and why it cannot be bought."""
    answer = ControlClient(options.control_socket).call("market_why", offer=offer)
    if shown_as_json(answer, as_json):
        return
    click.echo(f"{answer['ref']}, sold by {answer['seller']}")
    if answer.get("contact"):
        click.echo(f"  complaints to {answer['contact']}")
    for arbiter in answer.get("escrow", ()):
        click.echo(f"  paid in escrow with {arbiter}, if you name him: exit buy --escrow")
    for line in answer["lines"]:
        click.echo(f"  {line}")
    for reason in answer.get("why_not", ()):
        click.echo(f"  not to be bought: {reason['text']}")


@market_command.command("rate", context_settings={"ignore_unknown_options": True})
@click.argument("target", metavar="OFFER|LEASE")
@click.argument("score", type=click.IntRange(-100, 100))
@click.option("--label", "labels", type=click.Choice(_LABELS), multiple=True, help="What it was.")
@_AS_ME
@json_option
@click.pass_obj
def rate(
    options: Options, target: str, score: int, labels: tuple[str, ...], as_me: bool, as_json: bool
) -> None:
    """Rate a seller from -100 to 100, for everybody to read.

    Of a LEASE the receipt's hash is shown with it, which gives the rating more weight. What was bought,
    when and for how much is not told.
    """
    answer = ControlClient(options.control_socket).call(
        "market_rate", target=target, score=score, labels=list(labels), as_me=as_me
    )
    if not shown_as_json(answer, as_json):
        _say_told(f"Rated {answer['seller']} {answer['score']:+d}", answer["accepted"])


@market_command.command("report")
@click.argument("target", metavar="OFFER|LEASE|NPUB")
@click.option(
    "--type",
    "kind",
    type=click.Choice(_REPORTS),
    default="other",
    show_default=True,
    help="Of what kind (NIP-56).",
)
@_AS_ME
@json_option
@click.pass_obj
def report(options: Options, target: str, kind: str, as_me: bool, as_json: bool) -> None:
    """Report a seller for abuse, for everybody to read."""
    answer = ControlClient(options.control_socket).call(
        "market_report", target=target, type=kind, as_me=as_me
    )
    if not shown_as_json(answer, as_json):
        _say_told(f"Reported {answer['seller']}", answer["accepted"])


@market_command.command("deny")
@click.argument("seller", metavar="NPUB|OFFER|LEASE")
@_REMOVE
@json_option
@click.pass_obj
def deny(options: Options, seller: str, remove: bool, as_json: bool) -> None:
    """Buy nothing of a seller, and sell nothing to a buyer; this stays on this host.

    A LEASE that was sold ends, and its buyer has back what was not used.
    """
    _edit(options, "deny", seller, remove=remove, as_json=as_json)


@market_command.command("allow")
@click.argument("seller", metavar="NPUB|OFFER")
@_REMOVE
@json_option
@click.pass_obj
def allow(options: Options, seller: str, remove: bool, as_json: bool) -> None:
    """Buy of a seller although mute lists, others' lists or reports name it."""
    _edit(options, "allow", seller, remove=remove, as_json=as_json)


def _edit(options: Options, what: str, seller: str, *, remove: bool, as_json: bool) -> None:
    answer = ControlClient(options.control_socket).call(
        f"market_{what}", seller=seller, remove=remove
    )
    if shown_as_json(answer, as_json):
        return
    for name in ("denied", "allowed"):
        for one in answer[name]:
            click.echo(f"{name}  {one}")
    if not answer["denied"] and not answer["allowed"]:
        click.echo("No seller is denied or allowed by name.")


def _say_told(what: str, accepted: int) -> None:
    if accepted:
        click.echo(f"{what}; {count(accepted, 'relay')} took it.")
    else:
        click.echo(f"{what}; no relay took it, so only this host knows.", err=True)
