"""How two members come to the same operations, and to the same network key.

ROSTER between two members::

    {"digest": …, "sample": [ids], "key": id of the network key}    what I have: send me what I lack
    {"ops": packed, "more": true, "network_key": {…}, "sample": …}   what you lack; what do I lack?

Whoever of two lacks something gets it in one round trip, both sides in two; who lacks more than fits a
message (``more``) asks on. It goes through the tunnel where that is up. What came through a tunnel and
was new goes on to all other tunnels, so a mesh without any relay converges too; what came by relays
everybody else gets there.

Members may lie. What one can make this node do for it, again and again, is bounded for each alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import SendRoster
from nostrvpn.mesh.log_text import pack_operations, split_operations
from nostrvpn.mesh.roster import Roster
from nostrvpn.node.events import NodeEffect
from nostrvpn.node.tunnel_post import send_through
from nostrvpn.nostr.event import Event
from nostrvpn.signaling.allowance import Allowances
from nostrvpn.signaling.messages import MessageType
from nostrvpn.signaling.network_key import received_key

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = [
    "Efforts",
    "answer_sample",
    "ask_on",
    "ask_roster",
    "has_network_key",
    "hear_roster",
    "spread_through",
]

# Two questions to one member, and two answers, are at least so far apart.
ANSWER_EVERY_S = 3.0
# A network key is taken only from whom we asked so lately.
ASKED_S = 300.0
# Operations wait on the relays so long for whoever is offline.
STORED_S = 7 * 86_400
# Questions to one member, beside those that what it sent led to: one whose digest always differs.
ASK_BURST, ASK_RATE = 12.0, 1 / 300
# Answers to one member: a whole log of 10,000 operations, then one in two minutes.
ANSWER_BURST, ANSWER_RATE = 48.0, 1 / 120
# Messages of operations without effect: each may cost a fold, half a second in the largest network.
JUNK_BURST, JUNK_RATE = 8.0, 1 / 60
# More members than there may be are not kept in mind.
MAX_MEMBERS = 2_048


class Efforts:
    """What each member may cost this node, and whom to ask on, when (Moment.now)."""

    def __init__(self) -> None:
        self.asks = Allowances(ASK_BURST, ASK_RATE, MAX_MEMBERS)
        self.answers = Allowances(ANSWER_BURST, ANSWER_RATE, MAX_MEMBERS)
        self.junk = Allowances(JUNK_BURST, JUNK_RATE, MAX_MEMBERS)
        self.again: dict[str, float] = {}

    @property
    def deadline(self) -> float | None:
        """When somebody is to be asked on."""
        return min(self.again.values(), default=None)


def ask_roster(node: Node, peer: str, moment: Moment) -> list[NodeEffect]:
    """Ask ``peer`` for the operations, and the network key, that it has and we do not."""
    known = node.peers.get(peer)
    if node.membership.roster is None or known is None:
        return []
    if known.asked_at is not None and moment.now - known.asked_at < ANSWER_EVERY_S:
        return []
    if not node.efforts.asks.of(peer).spend(moment.now):
        return []
    known.asked_at = moment.now
    return _tell(node, peer, _holding(node), moment)


def ask_on(node: Node, moment: Moment) -> list[NodeEffect]:
    """Ask those on who said that they have more, when it is time."""
    effects: list[NodeEffect] = []
    for peer in [peer for peer, at in node.efforts.again.items() if moment.now >= at]:
        del node.efforts.again[peer]
        if peer in node.peers and node.membership.roster is not None:
            node.peers[peer].asked_at = moment.now
            effects += _tell(node, peer, _holding(node), moment)
    return effects


def hear_roster(
    node: Node,
    sender: str,
    body: dict[str, object],
    effects: list[NodeEffect],
    moment: Moment,
    *,
    by_tunnel: bool = False,
) -> None:
    """Take operations that any member may have carried here, and tell the sender what it lacks.

    What follows is added to ``effects``, also of a message whose end is bad: its beginning counts.
    """
    before = node.membership.roster
    if body.get("ops"):
        _take_operations(node, sender, body, effects, moment)
    roster = node.membership.roster
    is_news = before is not None and roster is not None and before.digest != roster.digest
    if is_news and by_tunnel:
        assert before is not None
        assert roster is not None
        effects += spread_through(node, _new_in(roster, before), moment, beside=sender)
    if roster is None or sender not in roster.members:
        return
    if "network_key" in body:
        try:
            _take_key(node, sender, body["network_key"], effects, moment)
        except PeerMisbehaved as exc:
            # Who is behind hands over the key before; what it asks is to be answered all the same.
            node.dropped[exc.code] += 1
    if is_news and body.get("more") is True and sender in node.peers:
        # Only while it brings something: whoever says so for ever is not asked for ever.
        asked = node.peers[sender].asked_at
        since = moment.now if asked is None else asked
        node.efforts.again[sender] = max(moment.now, since + ANSWER_EVERY_S)
    if "sample" in body:
        answer_sample(node, sender, body, effects, moment)


def answer_sample(
    node: Node, sender: str, body: dict[str, object], effects: list[NodeEffect], moment: Moment
) -> None:
    """A member told what it holds: send it what it lacks, and ask if it has more than we have."""
    roster, peer = node.membership.roster, node.peers.get(sender)
    if roster is None or peer is None:
        return
    if body.get("sample"):  # without any it waits for its welcome
        node.membership.heard(sender)
    last, allowance = peer.roster_at, node.efforts.answers.of(sender)
    is_soon = last is not None and moment.now - last < ANSWER_EVERY_S
    if is_soon or not allowance.has(moment.now):
        return
    answer: dict[str, object] = {}
    sample, theirs = body.get("sample"), body.get("key")
    for effect in node.membership.on_sample(sender, sample):
        assert isinstance(effect, SendRoster)
        if body.get("digest") == roster.digest:
            break  # it has more heads than a sample tells
        answer["ops"] = pack_operations(effect.operations)
        if effect.has_more:
            answer["more"] = True
    is_member = sender in roster.members and roster.members[sender].is_active(moment.wall)
    holds_newest = has_network_key(node)
    if is_member and holds_newest and isinstance(theirs, str) and theirs != roster.key_id:
        answer["network_key"] = node.post.keyring.welcome_fields(moment.wall)["key"]
    assert isinstance(sample, list)  # on_sample has looked
    lacks_key = theirs == roster.key_id and not holds_newest
    if lacks_key or not roster.holds(sample):
        answer |= _holding(node)
        peer.asked_at = moment.now
    if answer:
        allowance.spend(moment.now)
        peer.roster_at = moment.now
        effects += _tell(node, sender, answer, moment)


def has_network_key(node: Node) -> bool:
    """Whether this node has the network key that the roster names, and not only by hearsay."""
    roster, key = node.membership.roster, node.post.keyring.current
    return roster is not None and key is not None and key.id == roster.key_id and not key.told_by


def spread_through(
    node: Node, operations: tuple[Event, ...], moment: Moment, beside: str = ""
) -> list[NodeEffect]:
    """Send operations through every tunnel that is up, but to whom they came from."""
    effects: list[NodeEffect] = []
    for part in split_operations(operations):
        body: dict[str, object] = {"ops": pack_operations(part)}
        for peer in node.peers:
            if peer != beside:
                what = MessageType.ROSTER, body
                effects += send_through(node, peer, what, moment, STORED_S) or []
    return effects


def _take_operations(
    node: Node, sender: str, body: dict[str, object], effects: list[NodeEffect], moment: Moment
) -> None:
    # Those that are no peers (yet) share one allowance.
    junk = node.efforts.junk.of(sender if sender in node.peers else "")
    if not junk.has(moment.now):
        raise PeerMisbehaved("roster_flood", "operations of a member that sent useless ones")
    before = node.membership.roster
    try:
        effects += node.take_membership(node.membership.on_roster(body), moment)
    except PeerMisbehaved:
        junk.spend(moment.now)
        raise
    after = node.membership.roster
    if before is None or after is None or before.digest != after.digest:
        return
    if after.aside.keys() - before.aside.keys():
        junk.spend(moment.now)


def _new_in(roster: Roster, before: Roster) -> tuple[Event, ...]:
    known = {event.id for event in before.log}
    return tuple(event for event in roster.log if event.id not in known)


def _holding(node: Node) -> dict[str, object]:
    roster, current = node.membership.roster, node.post.keyring.current
    assert roster is not None
    # A key held on somebody's word is asked for: who has another one says so.
    key_id = current.id if current is not None and not current.told_by else ""
    return {"digest": roster.digest, "sample": list(roster.sample()), "key": key_id}


def _tell(node: Node, peer: str, body: dict[str, object], moment: Moment) -> list[NodeEffect]:
    expires_s = STORED_S if "ops" in body or "network_key" in body else None
    kind, roster = MessageType.ROSTER, node.membership.roster
    assert roster is not None
    sent = send_through(node, peer, (kind, body), moment, expires_s)
    if sent is not None:
        return sent
    return node.post.send(peer, kind, roster.network_id, body, moment, expires_s=expires_s)


def _take_key(
    node: Node, sender: str, value: object, effects: list[NodeEffect], moment: Moment
) -> None:
    """Take the network key that a member handed over because we asked it.

    The word of an admin, which could make another key, and of who made this one is enough. A plain
    member's is believed until another says otherwise, and nothing is written under it until one of those
    writes under it too.
    """
    roster, peer = node.membership.roster, node.peers.get(sender)
    key = received_key(value, moment.wall)
    asked = peer.asked_at if peer is not None else None
    if roster is None or asked is None or moment.now - asked > ASKED_S:
        raise PeerMisbehaved("key_unasked", "a network key nobody asked for")
    if key.id != roster.key_id:
        raise PeerMisbehaved("foreign_key", "a network key that is not in use")
    held = node.post.keyring.get(key.id)
    if held is not None and (not held.told_by or held.told_by == sender):
        return
    is_sure = roster.is_admin(sender) or roster.keys.get(key.id) == sender
    told_by = "" if is_sure else sender
    effects += node.post.use_key(key.told(told_by), moment)
