"""Routing through an exit, as a value: rules and one table of our own; main's default is never touched.

Unmarked packets look the table up; it leads into the tunnel, and where the tunnel is gone or the exit
does not carry a version, to ``unreachable``. Marked ones (FWMARK) take the host's own routes.
"""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.host.state import IPNetwork

__all__ = ["ExitRouting"]


@dataclass(frozen=True, slots=True)
class ExitRouting:
    """The empty value is no rule and no table.

    ``overlay``: destinations that main routes into the tunnel already. ``versions``: what the exit
    carries; the others are unreachable. ``allow_lan``: private ranges follow main's routes, but for its
    default.
    """

    active: bool = False
    overlay: frozenset[IPNetwork] = frozenset()
    versions: frozenset[int] = frozenset()
    allow_lan: bool = False
