"""The commands of the control interface: name, arguments with their bounds, and who may call.

A request is ``POST /v1/COMMAND`` with a JSON object. The answer is the result as JSON with status
200, or ``{"error": {"code", "text", "hint", "exit_code"}}`` with another status.
``docs/protocol/control.md`` describes the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from nostrvpn.config.names import NAME_PATTERN
from nostrvpn.control.market_schema import MARKET_COMMANDS
from nostrvpn.errors import UsageError

__all__ = ["COMMANDS", "Command", "parse_arguments"]

_Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=120)]
# A link lives at least long enough to be typed, at most a year.
_Expiry = Annotated[int, msgspec.Meta(ge=60, le=366 * 86_400)]

_Label = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
# As many as an operation may hold.
_Tags = Annotated[
    list[Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]], msgspec.Meta(max_length=32)
]


class _Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Invite(_Arguments, frozen=True):
    npub: _Reference | None = None
    once: bool = False
    expires_s: _Expiry = 86_400
    role: Literal["admin", "member", "guest"] = "member"
    tags: _Tags = []
    mine: bool = False
    name: _Label | None = None
    lasts_s: _Expiry | None = None
    ephemeral: bool = False


class _TokenCreate(_Arguments, frozen=True):
    uses: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    expires_s: _Expiry = 7 * 86_400
    role: Literal["member", "guest"] = "member"
    tags: _Tags = []
    ephemeral: bool = False


class _TokenRevoke(_Arguments, frozen=True):
    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{4,16}$")]


class _NetworkName(_Arguments, frozen=True):
    name: _Label


class _Settings(_Arguments, frozen=True):
    name: _Label | None = None
    inbound: Literal["ping", "none", "all"] | None = None
    same_owner: bool | None = None


class _Wait(_Arguments, frozen=True):
    wait_s: _Seconds = 15.0


class _Rotate(_Arguments, frozen=True):
    npub: _Reference
    # ``mesh.operations.agree_to_rotate``; not needed to tell again what was signed before.
    proof: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$")] | None = None
    wait_s: _Seconds = 15.0


class _Join(_Arguments, frozen=True):
    link: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class _Peer(_Arguments, frozen=True):
    peer: _Reference


class _Resolve(_Arguments, frozen=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class _Rename(_Arguments, frozen=True):
    peer: _Reference
    name: Annotated[str, msgspec.Meta(max_length=63)]


class _PeerName(_Arguments, frozen=True):
    peer: _Reference
    name: _Label


class _PeerRole(_Arguments, frozen=True):
    peer: _Reference
    role: Literal["admin", "member", "guest"]
    lasts_s: _Expiry | None = None


class _PeerTag(_Arguments, frozen=True):
    peer: _Reference
    tags: _Tags


class _PeerReplace(_Arguments, frozen=True):
    peer: _Reference
    npub: _Reference
    expires_s: _Expiry = 86_400


class _Ping(_Arguments, frozen=True):
    peer: _Reference
    timeout_s: _Seconds = 5.0


class _Permit(_Arguments, frozen=True):
    allow: bool
    who: _Reference
    # 32 spans of at most 15 characters.
    what: Annotated[str, msgspec.Meta(min_length=1, max_length=600)] = "inbound"
    at: _Reference | None = None
    network: bool = False
    undo: bool = False


class _Shields(_Arguments, frozen=True):
    up: bool


class _Question(_Arguments, frozen=True):
    source: _Reference
    target: _Reference
    what: Annotated[str, msgspec.Meta(min_length=1, max_length=40)] = "inbound"


_Networks = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=50)]], msgspec.Meta(max_length=64)
]


class _RoutesAdvertise(_Arguments, frozen=True):
    networks: _Networks = []
    withdraw: bool = False
    snat: bool | None = None


class _RoutesApprove(_Arguments, frozen=True):
    peer: _Reference
    networks: _Networks = []
    withdraw: bool = False


class _RoutesAccept(_Arguments, frozen=True):
    who: _Reference
    accept: bool
    networks: _Networks = []
    force: bool = False


_KillSwitch = Literal["off", "on", "lockdown"]
# As many as are kept of one kind, and as long as a domain may be.
_Words = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=300)]], msgspec.Meta(max_length=256)
]


class _ExitUse(_Arguments, frozen=True):
    peer: _Reference
    kill_switch: _KillSwitch | None = None
    allow_lan: bool | None = None
    resolver: Annotated[str, msgspec.Meta(min_length=1, max_length=50)] | None = None
    dry_run: bool = False


class _ExitOff(_Arguments, frozen=True):
    kill_switch: _KillSwitch | None = None


class _ExitWords(_Arguments, frozen=True):
    action: Literal["add", "remove", "list"]
    words: _Words = []


_Amount = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
_Rate = Annotated[float, msgspec.Meta(ge=0, le=100_000)]
_Policy = Literal["web", "reduced", "tor-default", "open"]
_PolicyWords = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=300)]], msgspec.Meta(max_length=64)
]


class _ExecBegin(_Arguments, frozen=True):
    peer: _Reference
    taken: Annotated[
        list[Annotated[int, msgspec.Meta(ge=0, le=31)]], msgspec.Meta(max_length=32)
    ] = []


class _ExecLink(_Arguments, frozen=True):
    link: Annotated[str, msgspec.Meta(min_length=1, max_length=15)]


class _ExitOffer(_Arguments, frozen=True):
    to: Annotated[list[_Reference], msgspec.Meta(max_length=64)] = []
    policy: _Policy = "tor-default"
    allow: _PolicyWords = []
    deny: _PolicyWords = []
    allow_lan: bool = False
    client_rate: _Rate = 0.0  # Mbit/s; of all amounts 0 is no limit
    bandwidth: _Rate = 0.0  # Mbit/s
    connections: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    budget: _Amount = 0.0  # GB a month
    country: Annotated[str, msgspec.Meta(max_length=100)] = ""
    ipv6: bool = True
    upstream: dict[str, object] | None = None  # as ``Provider.to_json`` has it, keys and all


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its arguments, and whether it changes something or shows a secret (admin)."""

    name: str
    arguments: type[msgspec.Struct]
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
        Command("resolve", _Resolve, admin=False),
        Command("rules", _Arguments, admin=False),
        Command("policy_test", _Question, admin=False),
        Command("network", _Arguments, admin=False),
        Command("network_log", _Arguments, admin=False),
        Command("token_list", _Arguments, admin=True),
        Command("routes", _Arguments, admin=False),
        Command("routes_advertise", _RoutesAdvertise, admin=True),
        Command("routes_approve", _RoutesApprove, admin=True),
        Command("routes_accept", _RoutesAccept, admin=True),
        Command("exit_list", _Arguments, admin=False),
        Command("exit_status", _Arguments, admin=False),
        Command("exit_use", _ExitUse, admin=True),
        Command("exit_off", _ExitOff, admin=True),
        Command("exit_bypass", _ExitWords, admin=True),
        Command("exit_trust", _ExitWords, admin=True),
        Command("exec_begin", _ExecBegin, admin=True),
        Command("exec_ready", _ExecLink, admin=True),
        Command("exec_end", _ExecLink, admin=True),
        Command("exit_clients", _Arguments, admin=False),
        Command("exit_offer", _ExitOffer, admin=True),
        Command("exit_offer_stop", _Arguments, admin=True),
        Command("permit", _Permit, admin=True),
        Command("shields_up", _Shields, admin=True),
        Command("invite", _Invite, admin=True),
        Command("join", _Join, admin=True),
        Command("network_create", _NetworkName, admin=True),
        Command("network_leave", _Wait, admin=True),
        Command("network_settings", _Settings, admin=True),
        Command("token_create", _TokenCreate, admin=True),
        Command("token_revoke", _TokenRevoke, admin=True),
        Command("peer_name", _PeerName, admin=True),
        Command("peer_role", _PeerRole, admin=True),
        Command("peer_tag", _PeerTag, admin=True),
        Command("peer_replace", _PeerReplace, admin=True),
        Command("rotate", _Rotate, admin=True),
        Command("rotate_wireguard", _Arguments, admin=True),
        Command("restart", _Arguments, admin=True),
        Command("peer_remove", _Peer, admin=True),
        Command("peer_rename", _Rename, admin=True),
        Command("export", _Arguments, admin=True),  # holds the WireGuard private key
        Command("stop", _Arguments, admin=True),
        *(Command(name, args, admin) for name, (args, admin) in MARKET_COMMANDS.items()),
    )
}


def parse_arguments(command: Command, body: bytes) -> dict[str, object]:
    """Return a request's arguments, complete with defaults; UsageError names what is wrong."""
    try:
        parsed = msgspec.json.decode(body or b"{}", type=command.arguments)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{command.name}: {error}", "see docs/protocol/control.md") from error
    return {name: getattr(parsed, name) for name in parsed.__struct_fields__}
