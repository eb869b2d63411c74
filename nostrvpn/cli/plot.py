"""Earnings and use by day as a picture. Only here the optional matplotlib is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nostrvpn.errors import SystemRefused, UserError

if TYPE_CHECKING:
    from nostrvpn.market.statements import Earnings

__all__ = ["Chart", "charts", "write_png"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars, one for each day ("2026-11-21"), and what they count."""

    unit: str
    colour: str
    days: tuple[str, ...]
    bars: tuple[float, ...]


def charts(rows: Sequence[Earnings]) -> tuple[Chart, Chart]:
    """Return what is drawn, from days in order: sat that were earned, and MiB that were used."""
    days = tuple(row.day for row in rows)
    sat = tuple((row.earned + row.unused) / 1000 for row in rows)
    used = tuple(row.bytes / _MIB for row in rows)
    return Chart("sat earned", "tab:green", days, sat), Chart("MiB used", "tab:blue", days, used)


def write_png(path: str, drawn: Sequence[Chart]) -> None:
    """Draw charts one below the other into a file; UserError without matplotlib, SystemRefused."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise UserError(
            "a picture needs matplotlib, which is not installed",
            "pip install 'nostrvpn[plot]' (or matplotlib); --plot without a file draws here",
        ) from exc
    figure = Figure(figsize=(10, 3 * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, chart in zip(figure.subplots(len(drawn), sharex=True), drawn, strict=True):
        axes.bar(chart.days, chart.bars, color=chart.colour)
        axes.set_ylabel(chart.unit)
        axes.set_ylim(bottom=0)
        # Dates of a month or more do not fit beside each other.
        axes.set_xticks(range(0, len(chart.days), max(1, len(chart.days) // 10)))
    try:
        figure.savefig(path, format="png")
    except OSError as exc:
        raise SystemRefused(f"{path} cannot be written: {exc.strerror or exc}") from exc
