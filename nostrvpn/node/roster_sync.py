"""How two members come to the same operations, and to the same network key.

ROSTER between two members::

    {"sample": [ids], "key": id of the network key in use}     what I have: send me what I lack
    {"ops": packed, "network_key": {…}, "sample": […]}         what you lack; and what do I lack?

Whoever of two lacks something gets it in one round trip, both sides in two. It goes through the tunnel
where that is up. What came through a tunnel and was new goes on to all other tunnels, so a mesh
without any relay converges too; what came by relays everybody else gets there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import SendRoster
from nostrvpn.mesh.log_text import pack_operations
from nostrvpn.node.events import NodeEffect
from nostrvpn.node.tunnel_post import send_through
from nostrvpn.nostr.event import Event
from nostrvpn.signaling.messages import MessageType
from nostrvpn.signaling.network_key import NetworkKey

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["answer_sample", "ask_roster", "hear_roster", "spread_through"]

# A member that lacks operations again and again must not make us publish at its pace.
ANSWER_EVERY_S = 3.0
# A network key is taken only from whom we asked so lately.
ASKED_S = 300.0
# Operations wait on the relays so long for whoever is offline.
STORED_S = 7 * 86_400


def ask_roster(node: Node, peer: str, moment: Moment) -> list[NodeEffect]:
    """Ask ``peer`` for the operations, and the network key, that it has and we do not."""
    roster, known = node.membership.roster, node.peers.get(peer)
    if roster is None or known is None:
        return []
    if known.asked_at is not None and moment.now - known.asked_at < ANSWER_EVERY_S:
        return []
    known.asked_at = moment.now
    return _tell(node, peer, _holding(node), moment)


def hear_roster(
    node: Node, sender: str, body: dict[str, object], moment: Moment, *, by_tunnel: bool = False
) -> list[NodeEffect]:
    """Take operations that any member may have carried here, and tell the sender what it lacks."""
    effects: list[NodeEffect] = []
    before = node.membership.roster
    if body.get("ops"):
        effects += node.take_membership(node.membership.on_roster(body), moment)
    roster = node.membership.roster
    if roster is None or sender not in roster.members:
        return effects
    if "network_key" in body:
        effects += _take_key(node, sender, body["network_key"], moment)
    if by_tunnel and before is not None and before.digest != roster.digest:
        known = {event.id for event in before.log}
        new = tuple(event for event in roster.log if event.id not in known)
        effects += spread_through(node, new, moment, beside=sender)
    if "sample" in body:
        effects += answer_sample(node, sender, body, moment)
    return effects


def answer_sample(
    node: Node, sender: str, body: dict[str, object], moment: Moment
) -> list[NodeEffect]:
    """A member told what it holds: send it what it lacks, and ask if it has more than we have."""
    roster, peer = node.membership.roster, node.peers.get(sender)
    current = node.post.keyring.current
    if roster is None or peer is None:
        return []
    answer: dict[str, object] = {}
    sample, theirs = body.get("sample"), body.get("key")
    for effect in node.membership.on_sample(sender, sample):
        assert isinstance(effect, SendRoster)
        answer["ops"] = pack_operations(effect.operations)
    may_read = sender in roster.members and roster.members[sender].is_active(moment.wall)
    holds_newest = current is not None and current.id == roster.key_id
    if may_read and holds_newest and isinstance(theirs, str) and theirs != roster.key_id:
        answer["network_key"] = node.post.keyring.welcome_fields(moment.wall)["key"]
    assert isinstance(sample, list)  # on_sample has looked
    lacks_key = theirs == roster.key_id and not holds_newest
    if lacks_key or not roster.holds(sample):
        answer |= _holding(node)
        peer.asked_at = moment.now
    last = peer.roster_at
    if not answer or (last is not None and moment.now - last < ANSWER_EVERY_S):
        return []
    peer.roster_at = moment.now
    return _tell(node, sender, answer, moment)


def spread_through(
    node: Node, operations: tuple[Event, ...], moment: Moment, beside: str = ""
) -> list[NodeEffect]:
    """Send operations through every tunnel that is up, but to whom they came from."""
    body: dict[str, object] = {"ops": pack_operations(operations)}
    effects: list[NodeEffect] = []
    for peer in node.peers:
        if peer != beside:
            effects += send_through(node, peer, (MessageType.ROSTER, body), moment, STORED_S) or []
    return effects


def _holding(node: Node) -> dict[str, object]:
    roster, current = node.membership.roster, node.post.keyring.current
    assert roster is not None
    return {"sample": list(roster.sample()), "key": current.id if current is not None else ""}


def _tell(node: Node, peer: str, body: dict[str, object], moment: Moment) -> list[NodeEffect]:
    expires_s = STORED_S if "ops" in body or "network_key" in body else None
    kind, roster = MessageType.ROSTER, node.membership.roster
    assert roster is not None
    sent = send_through(node, peer, (kind, body), moment, expires_s)
    if sent is not None:
        return sent
    return node.post.send(peer, kind, roster.network_id, body, moment, expires_s=expires_s)


def _take_key(node: Node, sender: str, value: object, moment: Moment) -> list[NodeEffect]:
    """Take the network key that a member handed over because we asked it."""
    roster, peer = node.membership.roster, node.peers.get(sender)
    key = NetworkKey.from_json(value)
    asked = peer.asked_at if peer is not None else None
    if roster is None or asked is None or moment.now - asked > ASKED_S:
        raise PeerMisbehaved("key_unasked", "a network key nobody asked for")
    if key.id != roster.key_id:
        raise PeerMisbehaved("foreign_key", "a network key that is not in use")
    if node.post.keyring.get(key.id) is not None:
        return []
    return node.post.use_key(key, moment)
