"""What received messages mean: the node's side of each message type.

A message that got here is authentic, fresh and well-formed (``signaling/courier.py``); what is
decided here is whether its sender may say this to this node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.node.events import Log, NodeEffect, Persist, Reconcile
from nostrvpn.node.peers import parse_relay_list, parse_wireguard_key
from nostrvpn.paths.description import parse_description
from nostrvpn.paths.events import RemoteDescription
from nostrvpn.paths.relay_offers import parse_offer
from nostrvpn.signaling.courier import Delivery
from nostrvpn.signaling.messages import MessageType

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["deliver"]

# A member that names other relays, or lacks operations, again and again must not make us connect,
# write and publish at its pace.
RELAYS_EVERY_S = 60.0
ROSTER_EVERY_S = 3.0


def deliver(node: Node, moment: Moment) -> list[NodeEffect]:
    """Take every message that arrived in this step; a bad one is dropped and counted."""
    effects: list[NodeEffect] = []
    while node.post.deliveries:
        delivery = node.post.deliveries.pop(0)
        try:
            _receive(node, delivery, effects, moment)
        except PeerMisbehaved as exc:
            # What came of the message before its bad part stays: it is decided, and to be stored.
            node.dropped[exc.code] += 1
            kind = delivery.message.type.value
            effects.append(Log("debug", f"a {kind} message was dropped: {exc}"))
    return effects


def _receive(node: Node, delivery: Delivery, effects: list[NodeEffect], moment: Moment) -> None:
    sender, message = delivery.sender, delivery.message
    body, roster = message.body, node.membership.roster
    match message.type:
        case MessageType.JOIN:
            answer = node.membership.on_join_request(sender, body, moment, delivery.created)
            effects += node.take_membership(answer, moment)
            _hear(node, delivery, effects, moment)
        case MessageType.WELCOME:
            effects += node.take_membership(node.membership.on_welcome(sender, body), moment)
            _hear(node, delivery, effects, moment)
        case MessageType.REFUSED:
            effects += node.take_membership(node.membership.on_refused(sender, body), moment)
        case MessageType.ROSTER | MessageType.DESCRIBE:
            if roster is None or message.network_id != roster.network_id:
                raise PeerMisbehaved("other_network")
            if message.type is MessageType.ROSTER:
                effects += node.take_membership(node.membership.on_roster(body), moment)
            elif sender not in roster.members:
                raise PeerMisbehaved("not_a_member")
            else:
                _hear(node, delivery, effects, moment)
                _compare_rosters(node, sender, body, effects, moment)
        case _:
            assert_never(message.type)


def _hear(node: Node, delivery: Delivery, effects: list[NodeEffect], moment: Moment) -> None:
    """Take up what a peer says of itself: WireGuard key, relays, roster version, candidates."""
    sender, body = delivery.sender, delivery.message.body
    peer = node.peers.get(sender)
    if peer is None:
        return  # refused, or removed meanwhile
    if delivery.message.seq <= peer.heard_seq:
        # Relays keep joins and welcomes for days and send them again after each restart: what they
        # say of the peer was true once.
        node.dropped["old_news"] += 1
        return
    peer.heard_seq = delivery.message.seq
    before = (peer.wireguard_key, peer.relays, peer.relay_offer)
    key = parse_wireguard_key(body.get("wg"))
    taken = {p.wireguard_key for p in node.peers.values() if p is not peer}
    if key in taken or key == node.settings.tunnel.public_key:
        raise PeerMisbehaved("duplicate_key", "a peer claims another's WireGuard key")
    peer.wireguard_key = key
    relays = parse_relay_list(body.get("relays", []))
    if relays != peer.relays and _is_past(peer.relays_at, RELAYS_EVERY_S, moment):
        peer.relays, peer.relays_at = relays, moment.now
    offer = body.get("relay")
    peer.relay_offer = parse_offer(offer, sender, node.path_settings) if offer is not None else None
    if peer.relay_offer != before[2]:
        effects += node.offers_changed(moment)
    if before != (peer.wireguard_key, peer.relays, peer.relay_offer):
        effects.append(Reconcile())
        # Offers come with whatever addresses the relay has now: the next start can do with an old one.
        if before[:2] != (peer.wireguard_key, peer.relays) or _is_past(
            peer.stored_at, RELAYS_EVERY_S, moment
        ):
            peer.stored_at = moment.now
            effects.append(Persist("peer", sender, peer.to_json()))
    active = {relay.url for relay in node.post.pool.snapshot()}
    if peer.relays and not active.intersection(peer.relays):
        effects += node.post.use_relays(peer.relays[:1], moment)
    if body.get("desc") is not None:
        description = parse_description(body["desc"], node.path_settings)
        peer.heard = description
        effects.append(Reconcile())  # WireGuard may have to know the peer now
        effects += node.step_paths(RemoteDescription(sender, description), moment)


def _compare_rosters(
    node: Node, sender: str, body: dict[str, object], effects: list[NodeEffect], moment: Moment
) -> None:
    """Send a member what it lacks of the roster."""
    version, peer = body.get("ver"), node.peers.get(sender)
    if type(version) is int and peer is not None:
        answer = node.membership.on_version_heard(sender, version)
        if answer and _is_past(peer.roster_at, ROSTER_EVERY_S, moment):
            peer.roster_at = moment.now
            effects += node.take_membership(answer, moment)


def _is_past(last: float | None, gap_s: float, moment: Moment) -> bool:
    return last is None or moment.now - last >= gap_s
