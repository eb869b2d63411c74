"""One node's roster, and what every change of it asks for: stored first, then told, then acted on."""

from __future__ import annotations

from collections.abc import Mapping

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import (
    MakeKey,
    MembersChanged,
    MembershipEffect,
    SpreadOperations,
    Store,
)
from nostrvpn.mesh.roster import Roster, create_network, open_roster
from nostrvpn.nostr.event import event_json, parse_event

__all__ = ["Ledger"]

_SPACE = "network"


class Ledger:
    """Holds the roster (None: in no network) and signs for this node. Knows no message."""

    def __init__(self, secret: RootSecret) -> None:
        self._secret = secret
        self.me = secret.public_key
        self.roster: Roster | None = None

    def restore(self, records: Mapping[str, object]) -> None:
        """Take up the stored operations, by id; PeerMisbehaved if they are no network's log."""
        if records:
            self.roster = open_roster(parse_event(value) for value in records.values())

    def adopt(self, roster: Roster) -> list[MembershipEffect]:
        """Take another roster; return what it asks for, nothing if its log is the same."""
        before = self.roster
        self.roster = roster
        if before is not None and before == roster:
            return []
        old = {event.id for event in before.log} if before is not None else set()
        new = {event.id for event in roster.log}
        stores = [
            Store(_SPACE, event.id, event_json(event))
            for event in roster.log
            if event.id not in old
        ]
        gone = [Store(_SPACE, identifier, None) for identifier in sorted(old - new)]
        return [*stores, *gone, MembersChanged()]

    def create(self, name: str, who_name: str, moment: Moment) -> list[MembershipEffect]:
        """Create a network of this node's own."""
        take = moment.entropy.take
        key_id = take(8).hex()
        roster = create_network(
            self._secret.reveal(),
            name,
            who_name,
            wall=moment.wall,
            nonce=take(16),
            key_id=key_id,
            aux=take(32),
        )
        return [MakeKey(key_id), *self.adopt(roster)]

    def sign(
        self, action: str, fields: Mapping[str, object], moment: Moment
    ) -> list[MembershipEffect]:
        """Sign an operation; UserError if this node may not. Everybody is told before it is acted on.

        So who is removed hears of it before its mailbox is forgotten.
        """
        before = self.roster
        if before is None:
            raise PeerMisbehaved("no_network", "an operation, and this node is in no network")
        roster = before.sign(
            self._secret.reveal(), action, fields, wall=moment.wall, aux=moment.entropy.take(32)
        )
        known = {event.id for event in before.log}
        signed = tuple(event for event in roster.log if event.id not in known)
        *stores, changed = self.adopt(roster)
        key_id = fields.get("key")
        keys = [MakeKey(key_id)] if isinstance(key_id, str) else []
        return [*keys, *stores, SpreadOperations(signed), changed]
