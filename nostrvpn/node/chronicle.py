"""What was decided in a network, in words: its log for people, with what came to nothing and why."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import npub
from nostrvpn.mesh.operations import MAX_TIME, Operation
from nostrvpn.mesh.permissions import parse_rule
from nostrvpn.mesh.policy import rule_words
from nostrvpn.mesh.roster import Roster

__all__ = ["chronicle"]

_Fields = dict[str, Any]
_Name = Callable[[str], str]


def chronicle(roster: Roster, wall: float) -> list[dict[str, object]]:
    """Return the operations in the order in which they hold, each as JSON.

    ``void`` is the reason in words why one has no effect, None if it has. Those that had none and are
    not part of the log any more stand where their date (``at``, Unix seconds) puts them.
    """
    names = _Names(roster)
    folded = roster.folded
    in_order = [
        (folded.operations[key], bool(folded.state.effective >> place & 1))
        for place, key in enumerate(folded.history.order)
    ]
    for void in sorted(roster.aside.values(), key=lambda item: item.event.created_at):
        later = (
            place
            for place, (other, _) in enumerate(in_order)
            if other.event.created_at > void.event.created_at
        )
        in_order.insert(next(later, len(in_order)), (void, False))
    return [_entry(roster, names, item, is_effective=good) for item, good in in_order]


class _Names:
    """What members are called; who is none any more by the last name that the log gave it."""

    def __init__(self, roster: Roster) -> None:
        self._names: dict[str, str] = {}
        for key in roster.folded.history.order:
            operation = roster.folded.operations[key]
            if operation.action == "create":
                self._names[operation.author] = operation.fields["who_name"]
            elif operation.action == "rotate":
                self._names[operation.fields["to"]] = self(operation.who)
            elif "name" in operation.fields and operation.who:
                self._names[operation.who] = operation.fields["name"]
        self._names |= {key: member.name for key, member in roster.members.items()}

    def __call__(self, key: str) -> str:
        return self._names.get(key) or npub(key)[:12]


def _entry(
    roster: Roster, names: _Names, operation: Operation, *, is_effective: bool
) -> dict[str, object]:
    author = operation.author
    return {
        "id": operation.id,
        "at": operation.event.created_at,
        "author": {"npub": npub(author), "name": names(author)},
        "action": operation.action,
        "about": npub(operation.who) if operation.who else None,
        "text": _words(operation, names),
        "void": None if is_effective else _reason(roster, operation, names),
    }


def _reason(roster: Roster, operation: Operation, names: _Names) -> str:
    """Return why an operation has no effect, as far as what is known now tells."""
    author, who, fields = operation.author, operation.who, operation.fields
    if author not in roster.members:
        return f"{names(author)} was removed, or replaced, by somebody who did not know of it"
    if operation.action in ("token", "token_revoke"):
        return "the token was made, or ended, by somebody else meanwhile"
    if operation.action == "admit":
        token = roster.tokens.get(fields["token"])
        if token is None or token.revoked or token.used >= token.uses:
            return "the token was revoked, or used up by others"
    if who and who not in roster.members:
        return f"{names(who)} was removed, or replaced, by somebody who did not know of it"
    if not roster.is_admin(author) and author != who:
        return f"{names(author)} was no admin any more"
    return "it does not go with what somebody else decided at the same time"


def _words(operation: Operation, names: _Name) -> str:
    fields = dict(operation.fields)
    who = "itself" if operation.who == operation.author else ""
    who = who or (names(operation.who) if operation.who else "")
    made = _WORDS.get(operation.action)
    return made(fields, who, names) if made is not None else operation.action


def _added(fields: _Fields, who: str, _names: _Name) -> str:
    text = f"let {fields['name']} in as {fields['role']}"
    if fields["tags"]:
        text += f", tagged {', '.join(fields['tags'])}"
    if fields["owner"] != fields["who"]:
        text += ", as a device of the same owner"
    if fields["expires"] is not None:
        text += f", until {_date(fields['expires'])}"
    return text + (", ephemeral" if fields["ephemeral"] else "")


def _removed(_fields: _Fields, who: str, _names: _Name) -> str:
    return "left" if who == "itself" else f"removed {who}"


def _role(fields: _Fields, who: str, _names: _Name) -> str:
    until = f" until {_date(fields['expires'])}" if fields["expires"] is not None else ""
    return f"made {who} {fields['role']}{until}"


def _tagged(fields: _Fields, who: str, _names: _Name) -> str:
    return f"tagged {who} {', '.join(fields['tags'])}" if fields["tags"] else f"untagged {who}"


def _rule(fields: _Fields, _who: str, names: _Name) -> str:
    try:
        text = rule_words(parse_rule(fields["rule"]), names)
    except PeerMisbehaved:
        text = "a rule of an unknown kind"
    return f"{'withdrew' if fields['withdraw'] else 'set'} the rule: {text}"


def _routes(fields: _Fields, who: str, _names: _Name) -> str:
    networks = ", ".join(fields["networks"])
    return f"approved {networks} behind {who}" if networks else f"approved nothing behind {who}"


def _token(fields: _Fields, _who: str, _names: _Name) -> str:
    times = "once" if fields["uses"] == 1 else f"{fields['uses']} times"
    return f"made the token {fields['id']}, good {times} until {_date(fields['expires'])}"


def _settings(fields: _Fields, _who: str, _names: _Name) -> str:
    said = {"name": "name", "inbound": "inbound", "same_owner": "same owner"}
    values = {True: "on", False: "off"}
    return "set " + ", ".join(f"{said[k]} to {values.get(v, v)}" for k, v in fields.items())


def _rotated(fields: _Fields, who: str, _names: _Name) -> str:
    whose = "its own" if who == "itself" else f"{who}'s"
    return f"put the key {npub(fields['to'])[:16]}… in the place of {whose}"


def _date(at: int) -> str:
    # Years beyond 9999 have no date. Operations are bounded so; this is for what comes from elsewhere.
    return datetime.fromtimestamp(min(at, MAX_TIME - 1), UTC).strftime("%Y-%m-%d %H:%M UTC")


_WORDS: dict[str, Callable[[_Fields, str, _Name], str]] = {
    "create": lambda fields, _who, _names: f"created the network {fields['name']}",
    "add": _added,
    "admit": lambda fields, _who, _names: f"let {fields['name']} in by the token {fields['token']}",
    "remove": _removed,
    "role": _role,
    "name": lambda fields, who, _names: f"named {who} {fields['name']}",
    "tag": _tagged,
    "permit": _rule,
    "routes": _routes,
    "rotate": _rotated,
    "token": _token,
    "token_revoke": lambda fields, _who, _names: f"ended the token {fields['id']}",
    "settings": _settings,
    "rekey": lambda _fields, _who, _names: "renewed the network's key",
}
