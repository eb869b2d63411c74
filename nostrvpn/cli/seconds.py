"""Options in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["seconds_option"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

# More than anybody waits at a terminal; a timer of the system takes it.
MAX_SECONDS = 86_400.0


class _Seconds(click.FloatRange):
    """A finite number of seconds, from ``least`` to a day."""

    name = "seconds"

    def __init__(self, least: float) -> None:
        super().__init__(least, MAX_SECONDS)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; click's own usage error for anything else."""
        number = float(super().convert(value, param, ctx))
        # Not a number is neither above nor below any.
        if math.isnan(number):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return number


def seconds_option(
    flag: str, default: float, words: str, *, least: float = 0.1
) -> Callable[[_Command], _Command]:
    """Return the decorator for an option in seconds; ``words`` are its help."""
    return click.option(flag, type=_Seconds(least), default=default, show_default=True, help=words)
