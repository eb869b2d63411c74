"""Show values: JSON for programs, rich tables and short lines for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "console",
    "count",
    "dash",
    "json_option",
    "show_error",
    "show_json",
    "shown_as_json",
    "size",
    "span",
    "table",
    "version_spelled",
    "warn_unless_applied",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """Give a command the option ``--json`` (parameter ``as_json``)."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def show_json(value: object) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def shown_as_json(answer: object, as_json: bool) -> bool:
    """Print an answer as JSON if that was asked for; return whether it was."""
    if as_json:
        show_json(answer)
    return as_json


def warn_unless_applied(answer: dict[str, Any]) -> None:
    """Say so if the kernel does not have yet what an answer tells of."""
    if answer.get("applied") is False:
        click.echo("This is not in force yet; why, says: nostrvpn status", err=True)


def show_error(code: str, text: str, hint: str, *, as_json: bool) -> None:
    """Print an error on standard error: two lines at most, or one JSON object."""
    if as_json:
        error = {"code": code, "text": text, "hint": hint}
        print(json.dumps({"error": error}, ensure_ascii=False), file=sys.stderr)  # noqa: T201
        return
    click.secho("error: ", fg="red", nl=False, err=True)
    click.echo(" ".join(text.split()), err=True)
    if hint:
        click.echo(f"hint: {' '.join(hint.split())}", err=True)


def console(*, stderr: bool = False) -> Console:
    """Return a rich console; without a terminal it is wide, so that nothing is cut off."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table in this program's style; a column ``>name`` is right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return made


def dash(value: object, form: str = "{}") -> str:
    """Return a value in a format, or ``-`` where there is none."""
    return "-" if value is None or value == "" else form.format(value)


def count(number: int, word: str) -> str:
    """Return ``1 relay``, ``2 relays``: a word whose plural has an s."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def size(count: int | None) -> str:
    """Return a number of bytes in the unit that fits: ``10.0 MiB``."""
    if count is None:
        return "-"
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def span(seconds: float | None) -> str:
    """Return a time span in the unit that fits: ``42 s``, ``3 min``."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def version_spelled() -> str:
    """Return this program's version for people."""
    from nostrvpn import __version__

    return f"nostrvpn {__version__}"
