"""``market selling``, ``market sessions``, ``market earnings``: what is sold, was used, and brought."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nostrvpn.cli.output import (
    console,
    count,
    json_option,
    show_json,
    shown_as_json,
    size,
    span,
    table,
)
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from nostrvpn.market.statements import Earnings, Statement

__all__ = ["earnings_command", "earnings_plot", "selling_command", "sessions_command"]

_BAR_WIDTH = 30
_TERMINAL = "-"
_days_option = click.option(
    "--days",
    type=click.IntRange(1, 3660),
    default=30,
    show_default=True,
    help="Of so many days.",
)
_csv_option = click.option("--csv", "as_csv", is_flag=True, help="Print CSV, sums in msat.")


@click.command("selling")
@json_option
@click.pass_obj
def selling_command(options: Options, as_json: bool) -> None:
    """Show what of this host is for sale, and how it stands."""
    answer = ControlClient(options.control_socket).call("market_selling")
    if shown_as_json(answer, as_json):
        return
    click.echo(f"{answer['text'][:1].upper()}{answer['text'][1:]}.")
    for line in answer["lines"]:
        click.echo(f"  {line}")
    if answer["state"] == "off":
        click.echo("To sell: nostrvpn exit offer --public --price 20sat/GiB --mint URL")


@click.command("sessions")
@_days_option
@_csv_option
@json_option
@click.pass_obj
def sessions_command(options: Options, days: int, as_csv: bool, as_json: bool) -> None:
    """List the leases that were sold and bought, the newest first."""
    _refuse_two(as_csv=as_csv, as_json=as_json)
    answer = ControlClient(options.control_socket).call("market_sessions", days=days)
    if shown_as_json(answer, as_json):
        return
    from nostrvpn.market.statements import Statement, csv_text, statements

    rows = statements(answer["sold"], answer["bought"])
    if as_csv:
        click.echo(csv_text(Statement, rows), nl=False)
    elif rows:
        console().print(_sessions_table(rows))
    else:
        click.echo(f"Nothing was sold or bought in {count(days, 'day')}.")


def _sessions_table(rows: Sequence[Statement]) -> Table:
    from rich.text import Text

    made = table(
        "lease", "", "with", "state", "pay", ">ended", ">used", ">due", ">paid", ">back", "why"
    )
    for row in rows:
        is_over = row.state == "closed"
        words = (row.lease, row.side, row.other[:16], row.state, row.mode)
        made.add_row(
            *map(Text, words),
            f"{span(max(0.0, time.time() - row.at))} ago" if is_over else "-",
            size(row.bytes),
            _sat(row.due_msat),
            _sat(row.paid_msat),
            _sat(1000 * row.refund_sat),
            Text(row.reason),  # a stranger's word: no markup
        )
    return made


@click.command("earnings")
@_days_option
@_csv_option
@click.option(
    "--plot",
    metavar="[FILE.png]",
    is_flag=False,
    flag_value=_TERMINAL,
    help="Draw earnings and use by day: here, or into a picture.",
)
@json_option
@click.pass_obj
def earnings_command(
    options: Options, days: int, as_csv: bool, plot: str | None, as_json: bool
) -> None:
    """Show what selling brought on each day (UTC), and what is in both books."""
    _refuse_two(as_csv=as_csv, as_json=as_json, plot=plot is not None)
    if plot not in (None, _TERMINAL) and not str(plot).lower().endswith(".png"):
        raise UsageError(f"{plot} is no name of a PNG", "for example: --plot earnings.png")
    answer = ControlClient(options.control_socket).call("market_earnings", days=days)
    if as_json:
        show_json(answer)
        return
    from nostrvpn.market.statements import Earnings, csv_text

    rows = [Earnings(**row) for row in answer["days"]]
    if as_csv:
        click.echo(csv_text(Earnings, rows), nl=False)
    elif plot == _TERMINAL:
        console().print(earnings_plot(rows))
    elif plot is not None:
        from nostrvpn.cli.plot import charts, write_png

        write_png(plot, charts(rows))
        click.echo(f"Wrote {plot}.")
    else:
        _show_earnings(answer, rows)


def _show_earnings(answer: Any, rows: Sequence[Earnings]) -> None:
    eventful = [row for row in rows if _is_eventful(row)]
    if eventful:
        made = table("day", ">sessions", ">used", ">sat earned", ">paid", ">given back", ">fees")
        for row in eventful:
            figures = (row.earned + row.unused, row.received, row.refunds, row.fees)
            made.add_row(row.day, str(row.sessions), size(row.bytes), *map(_sat, figures))
        console().print(made)
    else:
        click.echo(f"Nothing was sold in {count(len(rows), 'day')}.")
    earned = sum(row.earned + row.unused for row in rows)
    lost = sum(row.lost for row in rows)
    if eventful:
        gone = f", {_sat(lost)} sat lost" if lost else ""
        click.echo(f"{_sat(earned)} sat earned in {count(len(rows), 'day')}{gone}.")
    accounts = answer["accounts"]
    owed = -_sum(accounts["sold"], "lease:")
    if owed:
        click.echo(f"{_sat(owed)} sat are paid ahead: they are earned as leases are used.")
    spent = accounts["bought"].get("spent", 0) + accounts["bought"].get("unused", 0)
    if spent:
        fees = accounts["bought"].get("fees", 0)
        click.echo(f"{_sat(spent)} sat spent on exits so far, {_sat(fees)} sat on mints' fees.")
    for problem in answer["problems"]:
        click.secho(f"the books are wrong: {problem}", fg="red", err=True)


def earnings_plot(rows: Sequence[Earnings]) -> Table:
    """Return earnings and use by day as bars; from the first day with any on, the oldest first."""
    from rich.bar import Bar

    begin = next((at for at, row in enumerate(rows) if _is_eventful(row)), len(rows) - 1)
    shown = rows[begin:]
    sats = [row.earned + row.unused for row in shown]
    used = [row.bytes for row in shown]
    made = table("day", ">sat earned", "", ">used", "")
    for row, sat, moved in zip(shown, sats, used, strict=True):
        bars = [
            Bar(max(*column, 1), 0, max(0, value), width=_BAR_WIDTH, color=colour)
            for column, value, colour in ((sats, sat, "green"), (used, moved, "blue"))
        ]
        made.add_row(row.day, _sat(sat), bars[0], size(moved), bars[1])
    return made


def _is_eventful(row: Earnings) -> bool:
    return any((row.sessions, row.received, row.refunds, row.fees, row.lost, row.bytes))


def _refuse_two(**forms: bool) -> None:
    if sum(forms.values()) > 1:
        raise UsageError("two forms of one answer were asked for", "say --json, --csv or --plot")


def _sum(accounts: dict[str, int], prefix: str) -> int:
    return sum(msat for name, msat in accounts.items() if name.startswith(prefix))


def _sat(msat: int) -> str:
    return f"{msat / 1000:,.3f}".rstrip("0").rstrip(".")
