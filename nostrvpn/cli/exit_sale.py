"""``exit offer --public`` and ``exit buy``: strangers' exits, paid by the megabyte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nostrvpn.cli.output import json_option, shown_as_json, size
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError, UserError

__all__ = ["SALE_OPTIONS", "buy_command", "purchase_rows", "sale_options", "sale_rows", "sell"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--public", is_flag=True, help="Sell to strangers; docs/providers.md."),
    click.option(
        "--price", default="", metavar="20sat/GiB", help="Of traffic, both ways together."
    ),
    click.option("--price-time", default="", metavar="5sat/h", help="Of time, beside it."),
    click.option("--mint", multiple=True, metavar="URL", help="Whose tokens are taken."),
    click.option(
        "--pay", multiple=True, type=click.Choice(["channel"]), help="Taken too; an experiment."
    ),
    click.option(
        "--endpoint", default="", metavar="HOST:PORT", help="Where buyers reach this host."
    ),
    click.option(
        "--port", type=click.IntRange(1, 65535), help="Where WireGuard listens for buyers."
    ),
    click.option("--max-sessions", type=click.IntRange(1, 4096), help="Buyers at a time (100)."),
    click.option("--free", type=click.IntRange(0, 1024), metavar="MiB", help="To try (1)."),
    click.option(
        "--pow", type=click.IntRange(0, 28), metavar="BITS", help="Work asked of a request."
    ),
    click.option("--quiet", default="", metavar="01:00-07:00", help="Nobody is served then."),
    click.option("--contact", default="", metavar="ADDRESS", help="Where complaints go."),
    click.option("--mirror", is_flag=True, help="Also as a classified listing (NIP-99)."),
    click.option(
        "--only", multiple=True, metavar="NPUB", help="Sell to these, who say who they are."
    ),
    click.option("--never", multiple=True, metavar="NPUB", help="Never sell to these."),
    click.option("--escrow", multiple=True, metavar="NPUB", help="Arbiters that buyers may name."),
    click.option("--i-understand", is_flag=True, help="I have read what selling asks of me."),
)
SALE_OPTIONS = (
    *("public", "price", "price_time", "mint", "endpoint", "port", "max_sessions", "free", "pow"),
    *("pay", "quiet", "contact", "mirror", "only", "never", "escrow", "i_understand"),
)
# Beside waiting: mints and relays are asked.
_CALL_S = 60.0
# What is said to members only.
_FOR_MEMBERS = {"to": "--to", "allow_lan": "--allow-lan", "upstream": "--upstream"}


def sale_options(command: _Command) -> _Command:
    """Give ``exit offer`` the options about selling."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def sell(options: Options, given: dict[str, Any], *, as_json: bool, stop: bool) -> None:
    """Put this node's exit on the market, or take it off."""
    client = ControlClient(options.control_socket)
    if stop:
        answer = client.call("market_sell_stop")
    else:
        for key, option in _FOR_MEMBERS.items():
            if given.pop(key):
                raise UsageError(f"{option} is for members", "strangers never get there")
        if not given["price"]:
            raise UsageError("--public needs a price", "for example: --price 20sat/GiB")
        if not given["mint"]:
            raise UsageError("--public needs a mint", "for example: --mint https://mint.example")
        answer = client.call("market_sell", **_words(given))
    if shown_as_json(answer, as_json):
        return
    click.echo(f"{answer['text'][:1].upper()}{answer['text'][1:]}.")
    for line in answer["lines"]:
        click.echo(f"  {line}")


def _words(given: dict[str, Any]) -> dict[str, Any]:
    """Return what was said, as the daemon takes it."""
    said = {key: value for key, value in given.items() if value not in (None, "", ())}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in said.items()}


@click.command("buy")
@click.argument("offer", default="auto")
@click.option("--budget", default="", metavar="500sat/day", help="Most that is spent in a day.")
@click.option("--max-price", default="", metavar="100sat/GiB", help="Dearer ones are not used.")
@click.option("--max-price-time", default="", metavar="200sat/h", help="The same of time.")
@click.option("--country", default="", metavar="CC", help="Only there.")
@click.option("--mint", multiple=True, metavar="URL", help="Only with tokens of these.")
@click.option("--ip-version", type=click.Choice(["4", "6"]), help="It must carry that.")
@click.option(
    "--max-rtt",
    type=click.IntRange(1, 60_000),
    metavar="MS",
    help="One that is slower three times in a row is left.",
)
@click.option(
    "--pay",
    type=click.Choice(["locked", "plain", "bolt11", "channel"]),
    help="Only in this way; the last is an experiment.",
)
@click.option(
    "--escrow",
    multiple=True,
    metavar="NPUB",
    help="Paid in escrow with this arbiter, if he takes it.",
)
@click.option("--kill-switch", type=click.Choice(["on", "off", "lockdown"]))
@click.option("--allow-lan/--no-allow-lan", default=None, help="The local network stays reachable.")
@click.option(
    "--resolver",
    metavar="IP|exit",
    help="Whom to ask for names, through the seller.  [default: as last time; at first the seller]",
)
@click.option("--as-me", is_flag=True, help="Tell sellers this node's npub: some sell to friends.")
@click.option("--wait", type=click.IntRange(0, 120), default=30, help="Seconds; 0: not at all.")
@json_option
@click.pass_obj
def buy_command(options: Options, /, offer: str, as_json: bool, wait: int, **given: Any) -> None:
    """Leave through a stranger's exit, and pay it by the megabyte from the wallet.

    OFFER is a row of nostrvpn market list, or auto: the best that fits. It is paid in small slices,
    the next one when the last is used; when it fails the next best one is taken, within the budget.
    End it with nostrvpn exit off.
    """
    words = _words(given)
    if "ip_version" in words:
        words["ip_version"] = int(str(words["ip_version"]))
    client = ControlClient(options.control_socket)
    answer = client.call(
        "exit_buy", timeout=wait + _CALL_S, offer=offer, wait_s=float(wait), **words
    )
    if shown_as_json(answer, as_json):
        return
    click.echo(f"{answer['text'][:1].upper()}{answer['text'][1:]}.")
    for line in answer["lines"]:
        click.echo(f"  {line}")
    if answer["state"] == "failed":
        raise UserError(answer["text"], answer["hint"])


def purchase_rows(purchase: Any) -> dict[str, str]:
    """Return what ``exit status`` says of an exit that is paid for, by label."""
    from nostrvpn.market.terms import price_text

    if purchase["state"] == "off":
        return _coming_home(purchase)
    rows = {"Purchase": purchase["text"]}
    lease = purchase["lease"]
    if lease is not None:
        seen = "" if lease["is_country_seen"] else " (claimed)"
        rows["Offer"] = lease["offer"] + (f", {lease['country']}{seen}" if lease["country"] else "")
        price = price_text(lease["gib_msat"], lease["hour_msat"])
        where = f" at {lease['mint']}" if lease["mint"] else ""
        rows["Price"] = f"{price}, {lease['mode']}{where}"
        used, due, paid = size(lease["bytes"]), lease["due_msat"] / 1000, lease["paid_msat"] / 1000
        rows["Used"] = f"{used} for {due:g} sat, {paid:g} sat paid"
    rows["Today"] = (
        f"{purchase['spent_day_sat']} of {purchase['budget_day_sat']} sat spent or aside"
    )
    rows |= _coming_home(purchase)
    if purchase["error"]:
        rows["Disk"] = f"nothing more is paid until it can be written: {purchase['error']}"
    return rows


def _coming_home(purchase: Any) -> dict[str, str]:
    coming = purchase["coming_home_sat"]
    return {"Coming home": f"{coming} sat, not used and locked yet"} if coming else {}


def sale_rows(sale: Any) -> dict[str, str]:
    """Return what ``exit status`` says of what this host sells, by label."""
    return {} if sale["state"] == "off" else {"For sale": sale["text"]}
