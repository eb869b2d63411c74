"""The roster: a log of operations signed by the network's owner, and its fold.

Each operation is a Nostr event (NIP-01) of kind 31910 that is never published; it travels inside
sealed messages. Its content names the network, a version that grows by one, and the id of the
operation before it, so a log can neither be rolled back nor spliced. The network id is the id of the
first operation, so it commits to the owner's key.

Whoever holds the log may hand it on: it proves itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.mesh.addressing import OverlayAddress, ipv4_host, overlay_address
from nostrvpn.nostr.event import Event, parse_event, sign_event, verify_event

__all__ = [
    "MAX_NAME",
    "MAX_OPERATIONS",
    "OPERATION_KIND",
    "Roster",
    "create_network",
    "open_roster",
    "parse_operations",
]

OPERATION_KIND = 31910
# 2,000 operations are 1 MB: beyond a household or a team, and folded in a second.
MAX_OPERATIONS = 2_000
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class _Operation:
    event: Event
    network: str
    version: int
    previous: str
    action: str
    subject: str
    name: str


@dataclass(frozen=True)
class Roster:
    """The folded state of one network's log: who is a member, and with which addresses.

    A value: :meth:`extend` and :meth:`sign` return a new roster and leave this one as it was.
    """

    network_id: str
    owner: str
    name: str
    log: tuple[Event, ...]
    members: dict[str, str] = field(repr=False)  # public key -> the name the owner admitted it by
    _hosts: dict[str, int] = field(repr=False)

    @property
    def version(self) -> int:
        """The number of operations in the log."""
        return len(self.log)

    def address(self, public_key: str) -> OverlayAddress:
        """Return the overlay addresses of anybody who is or was a member; KeyError otherwise."""
        return overlay_address(self.network_id, public_key, self._hosts[public_key])

    def since(self, version: int) -> tuple[Event, ...]:
        """Return the operations after ``version``."""
        return self.log[max(0, version) :]

    def extend(self, operations: Iterable[Event]) -> Roster:
        """Return the roster after those of ``operations`` that are new to it.

        Known operations are passed over, so any suffix or repetition of the log may be given.
        Raises PeerMisbehaved: ``bad_roster`` (not signed by the owner, not of this network, or a gap),
        ``roster_fork`` (another history than ours: ours is kept).
        """
        roster = self
        for event in operations:
            operation = _parse(event)
            if operation.version <= roster.version:
                if roster.log[operation.version - 1].id != event.id:
                    raise PeerMisbehaved("roster_fork", "a second history of the same network")
                continue
            roster = roster._append(operation)
        return roster

    def sign(
        self, owner_secret: bytes, action: str, subject: str, name: str, *, wall: float, aux: bytes
    ) -> Roster:
        """Return the roster after a new operation by the owner (``add``, ``remove`` or ``rename``)."""
        content = {
            "v": 1,
            "net": self.network_id,
            "ver": self.version + 1,
            "prev": self.log[-1].id,
            "op": action,
            "who": subject,
            "name": name,
        }
        event = sign_event(
            owner_secret,
            kind=OPERATION_KIND,
            tags=(),
            content=_text(content),
            created_at=int(wall),
            aux=aux,
        )
        return self._append(_parse(event))

    def _append(self, operation: _Operation) -> Roster:
        expected = (self.owner, self.network_id, self.version + 1, self.log[-1].id)
        found = (operation.event.pubkey, operation.network, operation.version, operation.previous)
        if found != expected:
            raise PeerMisbehaved("bad_roster", "an operation that does not follow from the log")
        if self.version >= MAX_OPERATIONS:
            raise PeerMisbehaved("bad_roster", "the log is full")
        members = dict(self.members)
        match operation.action:
            case "add" | "rename":
                if operation.action == "rename" and operation.subject not in members:
                    raise PeerMisbehaved("bad_roster", "renames somebody who is not a member")
                members[operation.subject] = operation.name
            case "remove":
                if operation.subject == self.owner or operation.subject not in members:
                    raise PeerMisbehaved("bad_roster", "removes the owner or a stranger")
                del members[operation.subject]
            case _:
                raise PeerMisbehaved("bad_roster", f"unknown operation {operation.action!r}")
        hosts = self._hosts
        if operation.subject not in hosts:
            host = ipv4_host(self.network_id, operation.subject, frozenset(hosts.values()))
            hosts = {**hosts, operation.subject: host}
        return Roster(
            self.network_id, self.owner, self.name, (*self.log, operation.event), members, hosts
        )


def create_network(
    owner_secret: bytes, name: str, owner_name: str, *, wall: float, nonce: bytes, aux: bytes
) -> Roster:
    """Return a new network whose only member is its owner; ``nonce`` (16 bytes) makes its id unique."""
    content = {
        "v": 1,
        "ver": 1,
        "op": "create",
        "nonce": nonce.hex(),
        "net": name,
        "name": owner_name,
    }
    event = sign_event(
        owner_secret,
        kind=OPERATION_KIND,
        tags=(),
        content=_text(content),
        created_at=int(wall),
        aux=aux,
    )
    return _found(event)


def parse_operations(operations: list[object]) -> tuple[Event, ...]:
    """Parse and verify events received or stored; PeerMisbehaved if one is malformed or forged."""
    if len(operations) > MAX_OPERATIONS:
        raise PeerMisbehaved("bad_roster", "too many operations")
    return tuple(parse_event(operation) for operation in operations)


def open_roster(log: Iterable[Event]) -> Roster:
    """Fold a whole log, from the operation that created the network; PeerMisbehaved if it is invalid."""
    events = list(log)
    if not events:
        raise PeerMisbehaved("bad_roster", "an empty log")
    return _found(events[0]).extend(events[1:])


def _found(event: Event) -> Roster:
    operation = _parse(event)
    if operation.action != "create" or operation.version != 1:
        raise PeerMisbehaved("bad_roster", "the log does not begin with its creation")
    hosts = {event.pubkey: ipv4_host(event.id, event.pubkey, frozenset())}
    members = {event.pubkey: operation.name}
    return Roster(event.id, event.pubkey, operation.network, (event,), members, hosts)


def _text(content: dict[str, object]) -> str:
    # Not ASCII-escaped: a name of 64 emoji would take 900 bytes, and a welcome not fit a message.
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def _parse(event: Event) -> _Operation:
    """Verify one operation's signature and shape."""
    if event.kind != OPERATION_KIND:
        raise PeerMisbehaved("bad_roster", "not a roster operation")
    verify_event(event)
    try:
        content = json.loads(event.content)
    except (ValueError, RecursionError) as exc:
        raise PeerMisbehaved("bad_roster", "an operation that is not JSON") from exc
    if not isinstance(content, dict) or content.get("v") != 1:
        raise PeerMisbehaved("bad_roster", "an operation of an unknown version")
    texts = [content.get(key, "") for key in ("net", "prev", "op", "who", "name")]
    version = content.get("ver")
    if type(version) is not int or version < 1 or not all(type(text) is str for text in texts):
        raise PeerMisbehaved("bad_roster", "an operation with a missing or mistyped field")
    network, previous, action, subject, name = texts
    if action != "create" and (len(subject) != 64 or set(subject) - set("0123456789abcdef")):
        raise PeerMisbehaved("bad_roster", "an operation on something that is not a public key")
    if len(name) > MAX_NAME or len(network) > MAX_NAME or not (name + network).isprintable():
        raise PeerMisbehaved("bad_roster", "a name that is too long or not printable")
    return _Operation(event, network, version, previous, action, subject, name)
