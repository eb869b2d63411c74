"""``market arbitrate`` and ``market dispute``: money in escrow that two do not agree about."""

from __future__ import annotations

import time
from typing import Any

import click

from nostrvpn.cli.output import console, json_option, shown_as_json, size, span, table
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient

__all__ = ["arbitrate_command", "dispute_command"]


@click.group("arbitrate")
def arbitrate_command() -> None:
    """Decide, as a third, who gets money that is in escrow.

    Seller and buyer name your npub (list shows it). You never have the money: your signature lets one
    of them take it. Without a decision the buyer has it back when the lock ends.
    """


@arbitrate_command.command("start")
@click.option("--only", multiple=True, metavar="NPUB", help="Only leases of these sellers.")
@json_option
@click.pass_obj
def start(options: Options, only: tuple[str, ...], as_json: bool) -> None:
    """Hear claims from now on."""
    _act(options, as_json, action="start", only=list(only))


@arbitrate_command.command("stop")
@json_option
@click.pass_obj
def stop(options: Options, as_json: bool) -> None:
    """Hear no more claims. What is open is not decided then."""
    _act(options, as_json, action="stop")


@arbitrate_command.command("list")
@json_option
@click.pass_obj
def list_cases(options: Options, as_json: bool) -> None:
    """List the cases, the newest first."""
    answer = ControlClient(options.control_socket).call("market_cases")
    if not shown_as_json(answer, as_json):
        _show_all(answer)


@arbitrate_command.command("show")
@click.argument("case")
@json_option
@click.pass_obj
def show(options: Options, case: str, as_json: bool) -> None:
    """Show what each side says of CASE.

    Each counts for itself, and can say anything: a seller's receipt proves only that it is his word.
    """
    answer = ControlClient(options.control_socket).call("market_cases", case=case)
    if not shown_as_json(answer, as_json):
        _show(answer)


@arbitrate_command.command("decide")
@click.argument("case")
@click.option("--for", "winner", type=click.Choice(["buyer", "seller"]), required=True)
@json_option
@click.pass_obj
def decide(options: Options, case: str, winner: str, as_json: bool) -> None:
    """Give the money of CASE to one side, for good."""
    answer = ControlClient(options.control_socket).call(
        "market_arbitrate", action="decide", case=case, winner=winner
    )
    if not shown_as_json(answer, as_json):
        click.echo(f"Case {answer['id'][:16]} is the {answer['state']}'s. Both are told.")


@click.command("dispute")
@click.argument("lease")
@click.option("--text", default="", metavar="TEXT", help="Why the money should be yours.")
@json_option
@click.pass_obj
def dispute_command(options: Options, lease: str, text: str, as_json: bool) -> None:
    """Ask the arbiter for the money of LEASE that is in escrow, sold or bought.

    He is told how much was used by your count, and TEXT; the other side is asked too.
    """
    answer = ControlClient(options.control_socket).call("market_dispute", lease=lease, text=text)
    if not shown_as_json(answer, as_json):
        click.echo(f"The arbiter is asked, as the {answer['side']} of {answer['lease'][:16]}.")


def _act(options: Options, as_json: bool, **args: Any) -> None:
    answer = ControlClient(options.control_socket).call("market_arbitrate", **args)
    if not shown_as_json(answer, as_json):
        _show_all(answer)


def _show_all(answer: Any) -> None:
    heard = "heard" if answer["state"] == "open" else "not heard: nostrvpn market arbitrate start"
    click.echo(f"You decide as {answer['npub']}; claims are {heard}.")
    for key in answer["only"]:
        click.echo(f"  only of {key}")
    if not answer["cases"]:
        click.echo("No cases.")
        return
    made = table("case", "lease", ">sat", "claimed by", "state", "left")
    for one in answer["cases"]:
        sat = max(claim["sat"] for claim in one["claims"].values())
        made.add_row(
            one["id"][:16],
            one["lease"][:16],
            str(sat),
            ", ".join(sorted(one["claims"])),
            one["state"],
            span(max(0.0, one["ends_at"] - time.time())),
        )
    console().print(made)


def _show(one: Any) -> None:
    click.echo(f"Case {one['id'][:16]} of lease {one['lease'][:16]}: {one['state']}")
    click.echo(f"  the lock ends in {span(max(0.0, one['ends_at'] - time.time()))}")
    for side in ("seller", "buyer"):
        click.echo(f"  {side} {one[side]}")
        claim = one["claims"].get(side)
        if claim is None:
            click.echo("    said nothing yet")
            continue
        used, due = claim["used_msat"] / 1000, claim["due_msat"] / 1000
        click.echo(f"    {used:g} of {claim['sat']} sat were used, {due:g} sat of the whole lease")
        served = f"{size(claim['bytes'])} in {span(claim['ms'] / 1000)}"
        click.echo(f"    {served}; {_one_line(claim['reason'])}")
        if claim["text"]:
            click.echo(f"    {_one_line(claim['text'])}")


def _one_line(text: str) -> str:
    """A stranger's words, as no terminal obeys them."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
