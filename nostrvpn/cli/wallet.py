"""``wallet``: ecash that this node pays and is paid with."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import Any

import click

from nostrvpn.cli.output import console, count, dash, json_option, show_json, shown_as_json, table
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError, UserError

__all__ = ["wallet_command"]

# Mints may be far away, and Tor farther.
_CALL_S = 130.0
_LIGHTNING = ("fund", "withdraw", "connect", "keysend", "payout")


class _WalletGroup(click.Group):
    """``wallet`` with the commands about Lightning, which are in a module of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *_LIGHTNING]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _LIGHTNING:
            command = getattr(import_module("nostrvpn.cli.lightning"), f"{cmd_name}_command")
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)


@click.group("wallet", cls=_WalletGroup)
def wallet_command() -> None:
    """Money that this node pays with and earns: Cashu ecash, at mints that you trust.

    A mint can take what is there, or vanish: keep little. docs/wallet.md says more.
    """


def _call(options: Options, command: str, **arguments: object) -> Any:
    return ControlClient(options.control_socket).call(command, timeout=_CALL_S, **arguments)


@wallet_command.command("balance")
@json_option
@click.pass_obj
def balance(options: Options, as_json: bool) -> None:
    """Show what is at each mint."""
    answer = _call(options, "wallet_balance")
    if shown_as_json(answer, as_json):
        return
    if not answer["mints"]:
        click.echo("No mint is trusted yet: nostrvpn wallet mints add URL")
        return
    made = table("mint", ">sat", ">on their way")
    for one in answer["mints"]:
        made.add_row(one["mint"], str(one["free"]), dash(one["pending"] or None))
    console().print(made)
    click.echo(f"{answer['free']} sat can be spent.")
    if answer.get("coming_home"):
        click.echo(f"{answer['coming_home']} sat come home once they are not locked for sellers.")
    for one in answer["unfinished"]:
        click.echo(f"Not finished yet: {one['kind']}, {abs(one['amount'])} sat, {one['mint']}")


@wallet_command.command("receive")
@click.argument("token", default="-", metavar="[TOKEN]")
@click.option("--mint-ok", is_flag=True, help="Trust the token's mint from now on.")
@json_option
@click.pass_obj
def receive(options: Options, token: str, mint_ok: bool, as_json: bool) -> None:
    """Take a token (cashuA…, cashuB…) into the wallet; whoever gave it cannot spend it any more.

    It is read from standard input. As an argument other users of this host can see it in ps, and be
    quicker.
    """
    text = _read("Token") if token == "-" else token
    answer = _call(options, "wallet_receive", token=text, mint_ok=mint_ok)
    if not shown_as_json(answer, as_json):
        click.echo(f"Received {answer['amount']} sat{_fee(answer['fee'])}.")


@wallet_command.command("send")
@click.argument("amount", type=click.IntRange(1, 100_000_000), metavar="[SAT]", required=False)
@click.option("--mint", default="", metavar="URL", help="From there; else where the most is.")
@click.option("--again", metavar="REF", help="Show a token once more; REF is in the history.")
@json_option
@click.pass_obj
def send(options: Options, amount: int | None, mint: str, again: str | None, as_json: bool) -> None:
    """Take a token out of the wallet and print it: whoever has it first has the money.

    A token that nobody took can be received again.
    """
    if (amount is None) == (again is None):
        raise UsageError(
            "an amount in sat is needed, or --again REF", "see: nostrvpn wallet history"
        )
    if again is not None:
        answer = _call(options, "wallet_token", ref=again)
    else:
        answer = _call(options, "wallet_send", amount=amount, mint=mint)
    if not shown_as_json(answer, as_json):
        click.echo(answer["token"])


@wallet_command.command("history")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@click.pass_obj
def history(options: Options, limit: int, as_json: bool) -> None:
    """Show what came and went, the newest first."""
    answer = _call(options, "wallet_history", limit=limit)
    if shown_as_json(answer, as_json):
        return
    made = table("when", "what", ">sat", ">fee", "mint", "ref")
    for one in answer["entries"]:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["at"]))
        fee = dash(one["fee"] or None)
        made.add_row(at, one["kind"], f"{one['amount']:+d}", fee, one["mint"], one["ref"])
    if made.row_count:
        console().print(made)
    else:
        click.echo("Nothing yet.")


@wallet_command.command("backup")
@click.option("--show", is_flag=True, help="Print the words although this is no terminal.")
@json_option
@click.pass_obj
def backup(options: Options, show: bool, as_json: bool) -> None:
    """Print the twelve words that bring the money back; whoever has them has the money.

    They come from this node's key: who restores that has them too. They know nothing of your mints:
    note these with them.
    """
    if not show and not sys.stdout.isatty():
        raise UserError(
            "the words are printed on a terminal only", "to have them all the same: --show"
        )
    answer = _call(options, "wallet_backup")
    if as_json:
        show_json(answer)
        return
    click.echo(answer["words"])
    for mint in answer["mints"]:
        click.echo(f"at {mint}", err=True)


@wallet_command.command("restore")
@click.option(
    "--words", "foreign", is_flag=True, help="Of another wallet, read from standard input."
)
@json_option
@click.pass_obj
def restore(options: Options, foreign: bool, as_json: bool) -> None:
    """Ask the trusted mints for all that the words own, and take it into this wallet.

    Without --words: this node's own, after its state directory was lost. Add your mints first.
    """
    words = _read("Words") if foreign else None
    answer = _call(options, "wallet_restore", words=words)
    if not shown_as_json(answer, as_json):
        _show_reports(answer["mints"])
        click.echo(f"Found {answer['found']} sat.")
    _fail_if_unanswered(answer["mints"])


@wallet_command.command("check")
@json_option
@click.pass_obj
def check(options: Options, as_json: bool) -> None:
    """Finish what was begun, and ask the mints whether all the money is there."""
    answer = _call(options, "wallet_check")
    if not shown_as_json(answer, as_json):
        _show_reports(answer["mints"])
        if answer["unfinished"]:
            left = count(answer["unfinished"], "operation")
            click.echo(f"{left} not finished: a mint or a payment is waited for.")
    _fail_if_unanswered(answer["mints"])


@wallet_command.command("mints")
@click.argument("action", type=click.Choice(["list", "add", "remove"]), default="list")
@click.argument("url", required=False)
@json_option
@click.pass_obj
def mints(options: Options, action: str, url: str | None, as_json: bool) -> None:
    """List, add or remove the mints that may hold this node's money."""
    if (action == "list") != (url is None):
        raise UsageError(f"wallet mints {action}: {'no' if url else 'a'} URL is needed")
    command = {"list": "wallet_mints", "add": "wallet_mint_add", "remove": "wallet_mint_remove"}
    answer = _call(options, command[action], **({} if url is None else {"url": url}))
    if shown_as_json(answer, as_json):
        return
    if action == "list":
        for one in answer["mints"]:
            fee = f"{one['fee_ppk'] / 1000:g} sat for each proof" if one["fee_ppk"] else "no fee"
            click.echo(f"{one['mint']}  {fee}")
        if not answer["mints"]:
            click.echo("No mint is trusted yet: nostrvpn wallet mints add URL")
    elif action == "add":
        found = f" It had {answer['found']} sat of yours." if answer["found"] else ""
        click.echo(f"{answer['mint']} may hold your money now.{found}")
    else:
        click.echo(f"{answer['mint']} is not trusted any more.")


def _read(what: str) -> str:
    """Return a secret from standard input; on a terminal it is asked for, and not shown."""
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True)).strip()
    text = sys.stdin.read(600_000).strip()
    if not text:
        raise UsageError(f"{what.lower()}: nothing on standard input")
    return text


def _show_reports(reports: list[dict[str, Any]]) -> None:
    made = table("mint", ">good", ">on their way", ">found", ">gone", "")
    for one in reports:
        names = ("good", "pending", "found", "spent")
        numbers = ["-" if one["error"] else str(one[name]) for name in names]
        made.add_row(one["mint"], *numbers, one["error"])
    if made.row_count:
        console().print(made)
    else:
        click.echo("No mint is trusted yet: nostrvpn wallet mints add URL")


def _fail_if_unanswered(reports: list[dict[str, Any]]) -> None:
    """End with code 1 if a mint did not say all: what it has is not known, and no nothing."""
    silent = [one for one in reports if one["error"]]
    if silent:
        click.echo(f"{count(len(silent), 'mint')} did not say all: try again later.", err=True)
        raise click.exceptions.Exit(1)


def _fee(fee: int) -> str:
    return f", and the mint kept {fee} sat" if fee else ""
