"""What invites and tokens have in common: options, and the checks of what is typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from nostrvpn.errors import UsageError

__all__ = ["checked_label", "checked_npub", "checked_tags", "parse_span", "terms_options"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
# The limits of the control interface (control/schema.py), told here in the user's words.
_MIN_SPAN, _MAX_SPAN = 60, 366 * 86_400

_Command = TypeVar("_Command", bound=Callable[..., Any])


def terms_options(command: _Command) -> _Command:
    """Give a command ``--tag`` (parameter ``tags``) and ``--ephemeral``."""
    tag = click.option("--tag", "tags", multiple=True, metavar="TAG", help="Tag it; repeatable.")
    ephemeral = click.option(
        "--ephemeral", is_flag=True, help="It is removed when nobody heard of it for an hour."
    )
    return tag(ephemeral(command))


def parse_span(option: str, text: str) -> int:
    """Return the seconds of ``90s``, ``15m``, ``24h``, ``7d`` or ``2w``; UsageError names ``option``."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip().lower())
    if match is None:
        raise UsageError(f"{option}: {text[:40]!r} is not a time span", "write 30m, 24h or 7d")
    seconds = int(match[1]) * _UNITS[match[2]]
    if not _MIN_SPAN <= seconds <= _MAX_SPAN:
        raise UsageError(f"{option} must be between 1m and 366d", f"for example: {option} 24h")
    return seconds


def checked_npub(text: str) -> str:
    """Return an npub unchanged, or raise UsageError."""
    from nostrvpn.identity.keys import BadKey, parse_npub

    try:
        parse_npub(text)
    except BadKey as error:
        raise UsageError(str(error), error.hint) from error
    return text


def checked_label(name: str | None, option: str = "") -> str | None:
    """Return a valid name, or raise UsageError; that names ``option``, if it was given by one."""
    from nostrvpn.config.names import check_name

    try:
        return None if name is None else check_name(name)
    except ValueError as error:
        text = f"{option}: {error}" if option else str(error)
        raise UsageError(text, f"for example: {f'{option} home-server'.strip()}") from error


def checked_tags(tags: tuple[str, ...]) -> list[str]:
    """Return valid tags, each once, or raise UsageError."""
    from nostrvpn.mesh.permissions import is_tag

    for tag in tags:
        if not is_tag(tag):
            raise UsageError(
                f"{tag[:40]!r} is not a tag", "use a-z, 0-9 and -, for example: --tag server"
            )
    return sorted(set(tags))
