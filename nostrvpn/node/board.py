"""What this node says to its whole network, and what it makes of what others say.

- PRESENCE says that the node is there, under which WireGuard key and on which relays, and which
  operations it has (a digest). At start, after a change, and every half an hour or so at random: one
  message a node, however many read it.
- NEWS carries what a node has just signed; after a removal also the new network key, for each remaining
  member under a key of its own.

Who hears of other operations than its own asks: at once if two others agree with each other, else with
the chance that makes three of all members ask. So one that was away is told by a few, not by all.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.mesh.log_text import pack_operations, split_operations
from nostrvpn.mesh.roster import Roster
from nostrvpn.node.events import Log, NodeEffect
from nostrvpn.node.hearing import hear
from nostrvpn.node.roster_sync import ask_roster, hear_roster
from nostrvpn.nostr.event import Event
from nostrvpn.signaling.board import Posting
from nostrvpn.signaling.messages import MessageType
from nostrvpn.signaling.network_key import NetworkKey

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["Presence", "read_board", "say_presence", "spread_news"]

# After a start the board waits: descriptions to those that are needed at once come first.
HELLO_S = (2.0, 8.0)
# Changes that come together are said once, and no node is talkative.
CHANGE_S = (5.0, 10.0)
LEAST_GAP_S = 60.0
# Without memory, as radioactive atoms decay: when a node spoke last says nothing about when it speaks
# next, so on a board of many nobody can tell by the times which messages have one author. In seconds,
# the mean of what is drawn; longer than so many means is drawn anew, since presence stands two hours on
# relays, and so the mean of what is used is 0.69 of it, 38 minutes.
PERIOD_S = 3300.0
LONGEST = 2.0
# An ephemeral member is missed sooner (mesh/upkeep.py).
EPHEMERAL_PERIOD_S = 1500.0
# Of all members, so many tell one that lacks operations.
TELLERS = 3
# Members whose digest was another than ours.
MAX_DIFFERING = 64
# Members that handed over a key before the operation that names it was known.
MAX_EARLY = 16


class Presence:
    """When to speak next (Moment.now), and who has other operations than we have."""

    def __init__(self) -> None:
        self.due: float | None = None
        self._said_at: float | None = None
        self.differing: OrderedDict[str, str] = OrderedDict()
        # Network keys whose operation has not come yet, by who said so: relays give the newest first.
        self._early: OrderedDict[str, NetworkKey] = OrderedDict()

    def keep(self, author: str, key: NetworkKey) -> None:
        """``author`` handed over a network key; the latest of each is kept until it is ``named``."""
        self._early[author] = key
        self._early.move_to_end(author)
        while len(self._early) > MAX_EARLY:
            self._early.popitem(last=False)

    def named(self, roster: Roster | None) -> list[tuple[str, NetworkKey]]:
        """Return, once, the keys (with who handed them over) that an operation names by now."""
        known = roster.keys if roster is not None else {}
        found = [(author, key) for author, key in self._early.items() if key.id in known]
        for author, _ in found:
            del self._early[author]
        return found

    def hello(self, moment: Moment) -> None:
        """This node can speak now and has not: after a start, or after it joined."""
        if self.due is None:
            self.due = moment.now + _within(HELLO_S, moment)

    def changed(self, moment: Moment) -> None:
        """What presence says is not so any more."""
        if self._said_at is None:
            return self.hello(moment)
        due = max(moment.now, self._said_at + LEAST_GAP_S) + _within(CHANGE_S, moment)
        self.due = due if self.due is None else min(self.due, due)

    def said(self, moment: Moment, period: float) -> None:
        """Presence was said; once more after 0.69 of ``period`` seconds in the mean (``PERIOD_S``)."""
        self._said_at = moment.now
        self.due = moment.now + _memoryless(period, moment)

    def is_needed(self, author: str, digest: str, members: int, moment: Moment) -> bool:
        """``author`` has other operations than we have: say whether to ask it."""
        self.differing[author] = digest
        self.differing.move_to_end(author)
        while len(self.differing) > MAX_DIFFERING:
            self.differing.popitem(last=False)
        agree = sum(other == digest for other in self.differing.values())
        return agree == 2 or moment.entropy.fraction() * members < TELLERS


def say_presence(node: Node, moment: Moment) -> list[NodeEffect]:
    """Say presence if it is time and somebody can hear it."""
    presence, roster = node.presence, node.membership.roster
    me = roster.members.get(node.me) if roster is not None else None
    can_speak = node.post.pool.connected and node.post.keyring.writing is not None
    if roster is None or me is None or not me.is_active(moment.wall) or not can_speak:
        presence.due = None  # RelayOpened, or a tick after the welcome, begins again
        return []
    if presence.due is None:
        presence.changed(moment)
    if presence.due is None or moment.now < presence.due:
        return []
    presence.said(moment, EPHEMERAL_PERIOD_S if me.ephemeral else PERIOD_S)
    body = node.outbox.about_us() | {"digest": roster.digest}
    return node.post.tell_all(MessageType.PRESENCE, roster.network_id, body, moment)


def spread_news(
    node: Node,
    operations: tuple[Event, ...],
    keys: tuple[NetworkKey | None, NetworkKey | None],
    moment: Moment,
) -> list[NodeEffect]:
    """Tell everybody what this node signed.

    ``keys``: the network key that one of the operations names, if any, to be handed over to all who are
    active, and the one that all have so far: news are said under it.
    """
    roster, (key, under) = node.membership.roster, keys
    if roster is None:
        return []
    bodies: list[dict[str, object]] = [
        {"ops": pack_operations(part)} for part in split_operations(operations)
    ]
    if key is not None and under is not None:
        active = (m.public_key for m in roster.members.values() if m.is_active(moment.wall))
        # Each part brings the operation too: without it nobody believes a new key.
        first = bodies.pop(0)
        parts = node.post.rekey_parts(key, frozenset(active), under)
        bodies = [*([first | {"rekey": part} for part in parts] or [first]), *bodies]
    effects: list[NodeEffect] = []
    for body in bodies:
        effects += node.post.tell_all(MessageType.NEWS, roster.network_id, body, moment, under)
    return effects


def read_board(node: Node, moment: Moment) -> list[NodeEffect]:
    """Take what was left on the network's board; what nobody may say is dropped and counted."""
    effects: list[NodeEffect] = []
    while node.post.postings:
        posting = node.post.postings.pop(0)
        try:
            _read(node, posting, effects, moment)
        except PeerMisbehaved as exc:
            node.dropped[exc.code] += 1
            kind = posting.message.type.value
            effects.append(Log("debug", f"{kind} on the board was dropped: {exc}"))
    for author, key in node.presence.named(node.membership.roster):
        effects += _use(node, author, key, moment)
    return effects


def _read(node: Node, posting: Posting, effects: list[NodeEffect], moment: Moment) -> None:
    roster, body = node.membership.roster, posting.message.body
    if roster is None or posting.message.network_id != roster.network_id:
        raise PeerMisbehaved("other_network")
    if posting.message.type is MessageType.PRESENCE:
        if posting.author not in roster.members:
            raise PeerMisbehaved("not_a_member")
        hear(node, posting.author, posting.message, effects, moment)
        _compare(node, posting, effects, moment)
        return
    if "rekey" in body:
        # First, for what the operations are about may be that the author is a member no more.
        _take_key(node, posting)
    if "ops" in body:
        hear_roster(node, posting.author, {"ops": body["ops"]}, effects, moment)


def _take_key(node: Node, posting: Posting) -> None:
    key = node.post.open_rekey(posting.author, posting.key_id, posting.message.body["rekey"])
    held = node.post.keyring.get(key.id) if key is not None else None
    if key is None or (held is not None and not held.told_by):
        return  # it is not for us, or known
    node.presence.keep(posting.author, key)


def _use(node: Node, author: str, key: NetworkKey, moment: Moment) -> list[NodeEffect]:
    roster = node.membership.roster
    if roster is None or roster.keys.get(key.id) != author:
        node.dropped["foreign_key"] += 1
        return []
    # Of keys made at the same time the roster says which one all use.
    kept = node.post.use_key(key, moment)
    return kept + node.post.settle_key(roster.key_id, moment)


def _compare(node: Node, posting: Posting, effects: list[NodeEffect], moment: Moment) -> None:
    """Ask who has other operations than we have, or writes under another key."""
    roster, digest = node.membership.roster, posting.message.body.get("digest")
    assert roster is not None
    if not isinstance(digest, str) or len(digest) != len(roster.digest):
        raise PeerMisbehaved("bad_message", "presence without a digest")
    current = node.post.keyring.current
    if digest == roster.digest and current is not None and posting.key_id == current.id:
        node.presence.differing.pop(posting.author, None)
    elif node.presence.is_needed(posting.author, digest, len(node.peers), moment):
        effects += ask_roster(node, posting.author, moment)


def _memoryless(mean: float, moment: Moment) -> float:
    while (wait := -mean * math.log(1.0 - moment.entropy.fraction())) > LONGEST * mean:
        pass
    return wait


def _within(bounds: tuple[float, float], moment: Moment) -> float:
    low, high = bounds
    return low + (high - low) * moment.entropy.fraction()
