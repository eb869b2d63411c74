"""``wallet fund``, ``withdraw``, ``connect``, ``keysend`` and ``payout``: money by Lightning."""

from __future__ import annotations

import sys
import time

import click

from nostrvpn.cli.output import json_option, show_json, shown_as_json
from nostrvpn.cli.qr import show_qr
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError

__all__ = [
    "connect_command",
    "fund_command",
    "keysend_command",
    "payout_command",
    "withdraw_command",
]

_AMOUNT = click.IntRange(1, 100_000_000)
# A mint takes an invoice to be unpaid for at least as long as it takes to find the phone.
_POLL_S = 2.0
_CALL_S = 130.0


@click.command("fund")
@click.argument("amount", type=_AMOUNT, metavar="SAT")
@click.option("--mint", default="", metavar="URL", help="Where, if you trust several.")
@click.option("--invoice", is_flag=True, help="Only print the invoice, whoever pays it.")
@click.option("--wait", type=click.IntRange(0, 3600), default=600, help="Seconds; 0: not at all.")
@json_option
@click.pass_obj
def fund_command(
    options: Options, amount: int, mint: str, invoice: bool, wait: int, as_json: bool
) -> None:
    """Put money into the wallet, by a Lightning invoice of a mint.

    A connected wallet pays it; otherwise it is shown for you to pay.
    """
    client = ControlClient(options.control_socket)
    by_wallet = False if invoice else None
    answer = client.call(
        "wallet_fund", amount=amount, mint=mint, by_wallet=by_wallet, timeout=_CALL_S
    )
    if not as_json and not answer["paid_by_wallet"]:
        click.echo(answer["invoice"])
        if sys.stdout.isatty():
            show_qr(answer["invoice"].upper())
    end = time.monotonic() + wait
    while not answer["funded"] and time.monotonic() < end and not invoice:
        time.sleep(_POLL_S)
        answer |= client.call("wallet_funded", ref=answer["ref"])
    if as_json:
        show_json(answer)
    elif answer["funded"]:
        click.echo(f"{amount} sat are in the wallet, at {answer['mint']}.")
    else:
        click.echo("The money comes into the wallet by itself, once the invoice is paid.")


@click.command("withdraw")
@click.argument("amount", metavar="SAT|all")
@click.argument("to", default="", metavar="[INVOICE|ADDRESS]")
@click.option("--mint", default="", metavar="URL", help="From there; else where the most is.")
@json_option
@click.pass_obj
def withdraw_command(options: Options, amount: str, to: str, mint: str, as_json: bool) -> None:
    """Pay money out of the wallet, to an invoice, to name@host, or to the connected wallet."""
    if amount != "all" and not amount.isdecimal():
        raise UsageError(f"{amount!r} is no amount", "a number of sat, or all")
    answer = ControlClient(options.control_socket).call(
        "wallet_withdraw",
        amount=None if amount == "all" else int(amount),
        to=to,
        mint=mint,
        timeout=_CALL_S,
    )
    if not shown_as_json(answer, as_json):
        fee = f", and {answer['fee']} sat of fees" if answer["fee"] else ""
        click.echo(f"Paid {answer['amount']} sat{fee}.")


@click.command("connect")
@click.option("--forget", is_flag=True, help="Use no wallet any more.")
@json_option
@click.pass_obj
def connect_command(options: Options, forget: bool, as_json: bool) -> None:
    """Connect a Lightning wallet that speaks Nostr Wallet Connect (NIP-47).

    The link, nostr+walletconnect://…, is read from standard input: whoever has it can spend. Give it a
    budget in the wallet that made it.
    """
    link = None
    if not forget:
        if sys.stdin.isatty():
            link = click.prompt("Link", hide_input=True)
        else:
            link = sys.stdin.readline().strip()
    answer = ControlClient(options.control_socket).call(
        "wallet_connect", link=link, timeout=_CALL_S
    )
    if not shown_as_json(answer, as_json):
        click.echo("Connected." if answer["connected"] else "No Lightning wallet is connected.")


@click.command("keysend")
@click.argument("payee", metavar="NODE")
@click.argument("amount", type=_AMOUNT, metavar="SAT")
@click.option("--note", default="", help="What the receiver reads.")
@json_option
@click.pass_obj
def keysend_command(options: Options, payee: str, amount: int, note: str, as_json: bool) -> None:
    """Pay a Lightning node by its public key, from the connected wallet."""
    answer = ControlClient(options.control_socket).call(
        "wallet_keysend", payee=payee, amount=amount, note=note, timeout=_CALL_S
    )
    if not shown_as_json(answer, as_json):
        click.echo(f"Paid {amount} sat.")


@click.command("payout")
@click.argument("threshold", metavar="SAT|off")
@click.argument("to", default="", metavar="[ADDRESS]")
@json_option
@click.pass_obj
def payout_command(options: Options, threshold: str, to: str, as_json: bool) -> None:
    """Withdraw by itself whenever a mint holds more than so much.

    To a lightning address, or to the connected wallet.
    """
    if threshold != "off" and not threshold.isdecimal():
        raise UsageError(f"{threshold!r} is no amount", "a number of sat, or off")
    limit = None if threshold == "off" else int(threshold)
    answer = ControlClient(options.control_socket).call("wallet_payout", threshold=limit, to=to)
    if shown_as_json(answer, as_json):
        return
    rule = answer["payout"]
    if rule is None:
        click.echo("Nothing is withdrawn by itself.")
    else:
        click.echo(
            f"Above {rule['threshold']} sat all goes to {rule['to'] or 'the connected wallet'}."
        )
