"""The commands of the control interface: name, arguments with their bounds, and who may call.

A request is ``POST /v1/COMMAND`` with a JSON object. The answer is the result as JSON with status
200, or ``{"error": {"code", "text", "hint", "exit_code"}}`` with another status.
``docs/protocol/control.md`` describes the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from nostrvpn.errors import UsageError

__all__ = ["COMMANDS", "Command", "parse_arguments"]

_Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=120)]
# A link lives at least long enough to be typed, at most a year.
_Expiry = Annotated[int, msgspec.Meta(ge=60, le=366 * 86_400)]


class _Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Invite(_Arguments, frozen=True):
    npub: _Reference | None = None
    once: bool = False
    expires_s: _Expiry = 86_400


class _Join(_Arguments, frozen=True):
    link: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class _Peer(_Arguments, frozen=True):
    peer: _Reference


class _Rename(_Arguments, frozen=True):
    peer: _Reference
    name: Annotated[str, msgspec.Meta(max_length=63)]


class _Ping(_Arguments, frozen=True):
    peer: _Reference
    timeout_s: _Seconds = 5.0


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its arguments, and whether it changes something or shows a secret (admin)."""

    name: str
    arguments: type[_Arguments]
    admin: bool


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("status", _Arguments, admin=False),
        Command("id", _Arguments, admin=False),
        Command("peers", _Arguments, admin=False),
        Command("netcheck", _Arguments, admin=False),
        Command("ping", _Ping, admin=False),
        Command("why", _Peer, admin=False),
        Command("invite", _Invite, admin=True),
        Command("join", _Join, admin=True),
        Command("peer_remove", _Peer, admin=True),
        Command("peer_rename", _Rename, admin=True),
        Command("export", _Arguments, admin=True),  # holds the WireGuard private key
        Command("stop", _Arguments, admin=True),
    )
}


def parse_arguments(command: Command, body: bytes) -> dict[str, object]:
    """Return a request's arguments, complete with defaults; UsageError names what is wrong."""
    try:
        parsed = msgspec.json.decode(body or b"{}", type=command.arguments)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{command.name}: {error}", "see docs/protocol/control.md") from error
    return {name: getattr(parsed, name) for name in parsed.__struct_fields__}
