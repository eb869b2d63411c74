"""What a peer says of itself, in a description, a welcome or its presence, and what comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.exits.offer import parse_offer as parse_exit
from nostrvpn.machine import Moment
from nostrvpn.mesh.subnets import parse_advertised
from nostrvpn.node.events import NodeEffect, Persist, Reconcile
from nostrvpn.node.peers import Peer, parse_relay_list, parse_wireguard_key
from nostrvpn.paths.description import parse_description
from nostrvpn.paths.events import RemoteDescription
from nostrvpn.paths.relay_offers import parse_offer
from nostrvpn.signaling.messages import Message, MessageType

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["hear"]

# A member that names other relays or networks again and again must not make us connect and write at
# its pace.
RELAYS_EVERY_S = 60.0
STORE_EVERY_S = 3.0
STORE_BURST = 10


def hear(
    node: Node, sender: str, message: Message, effects: list[NodeEffect], moment: Moment
) -> None:
    """Take up what a peer says of itself: WireGuard key, relays, networks, candidates.

    What a message does not speak of stays as it was: presence has no description, and nothing of
    relays and exits.
    """
    peer, body = node.peers.get(sender), message.body
    if peer is None:
        return  # refused, or removed meanwhile
    _note_alive(node, peer, moment)
    if message.seq <= peer.heard_seq:
        # Relays keep joins and welcomes for days and send them again after each restart: what they
        # say of the peer was true once.
        node.dropped["old_news"] += 1
        return
    peer.heard_seq = message.seq
    before = (peer.wireguard_key, peer.relays, peer.relay_offer, peer.advertised, peer.exit)
    _take_fields(node, peer, body, moment)
    after = (peer.wireguard_key, peer.relays, peer.relay_offer, peer.advertised, peer.exit)
    if after[2] != before[2]:
        effects += node.offers_changed(moment)
    if after[3] != before[3]:
        node.subnets.forget()
    if after != before:
        effects.append(Reconcile())
        # Offers come with whatever addresses the relay has now: the next start can do with an old one.
        # An exit's load changes often; that there is one has to be known at the next start.
        shared = before[3] != after[3] or (before[4] is None) != (after[4] is None)
        lasting = shared or before[:2] != after[:2]
        gap_s = STORE_EVERY_S if lasting else RELAYS_EVERY_S
        if shared and peer.shared_at - moment.now <= STORE_BURST * STORE_EVERY_S:
            # The last of a few changes is the one that counts after a crash.
            gap_s, peer.shared_at = 0.0, max(peer.shared_at, moment.now) + STORE_EVERY_S
        if before[0] != after[0] or _is_past(peer.stored_at, gap_s, moment):
            peer.stored_at = moment.now
            effects.append(Persist("peer", sender, peer.to_json()))
    active = {relay.url for relay in node.post.pool.snapshot()}
    # What is said to all came by a relay of ours: nobody shall lead the whole network to another.
    to_all = message.type is MessageType.PRESENCE
    if peer.relays and not to_all and not active.intersection(peer.relays):
        effects += node.post.use_relays(peer.relays[:1], moment)
    if body.get("desc") is not None:
        description = parse_description(body["desc"], node.path_settings)
        peer.heard = description
        effects.append(Reconcile())  # WireGuard may have to know the peer now
        effects += node.step_paths(RemoteDescription(sender, description), moment)


def _take_fields(node: Node, peer: Peer, body: dict[str, object], moment: Moment) -> None:
    advertised = parse_advertised(body.get("routes"))
    key = parse_wireguard_key(body.get("wg"))
    taken = {p.wireguard_key for p in node.peers.values() if p is not peer}
    if key in taken or key == node.settings.tunnel.public_key:
        raise PeerMisbehaved("duplicate_key", "a peer claims another's WireGuard key")
    relays = parse_relay_list(body.get("relays", []))
    offer = peer.relay_offer
    if "relay" in body:
        value = body["relay"]
        offer = None if value is None else parse_offer(value, peer.public_key, node.path_settings)
    exit_offer = parse_exit(body["exit"]) if "exit" in body else peer.exit
    peer.wireguard_key, peer.advertised, peer.relay_offer = key, advertised, offer
    peer.exit = exit_offer
    if relays != peer.relays and _is_past(peer.relays_at, RELAYS_EVERY_S, moment):
        peer.relays, peer.relays_at = relays, moment.now


def _note_alive(node: Node, peer: Peer, moment: Moment) -> None:
    peer.heard_at = moment.now
    roster = node.membership.roster
    member = roster.members.get(peer.public_key) if roster is not None else None
    if member is not None and member.ephemeral:
        node.membership.unheard(peer.public_key, moment.now)


def _is_past(last: float | None, gap_s: float, moment: Moment) -> bool:
    return last is None or moment.now - last >= gap_s
