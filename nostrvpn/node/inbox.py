"""What received messages mean: the node's side of each message type.

A message that got here is authentic, fresh and well-formed (``signaling/courier.py``); what is
decided here is whether its sender may say this to this node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.node.events import HeardThrough, Log, NodeEffect
from nostrvpn.node.hearing import hear
from nostrvpn.node.roster_sync import answer_sample, hear_roster
from nostrvpn.signaling.courier import Delivery
from nostrvpn.signaling.messages import Message, MessageType

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["deliver", "hear_through"]


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
            hear(node, sender, message, effects, moment)
        case MessageType.WELCOME:
            effects += node.take_membership(node.membership.on_welcome(sender, body), moment)
            hear(node, sender, message, effects, moment)
        case MessageType.REFUSED:
            effects += node.take_membership(node.membership.on_refused(sender, body), moment)
        case MessageType.ROSTER | MessageType.DESCRIBE:
            if roster is None or message.network_id != roster.network_id:
                raise PeerMisbehaved("other_network")
            if message.type is MessageType.ROSTER:
                hear_roster(node, sender, body, effects, moment)
            elif sender not in roster.members:
                raise PeerMisbehaved("not_a_member")
            else:
                hear(node, sender, message, effects, moment)
                answer_sample(node, sender, body, effects, moment)
        case MessageType.KEYS | MessageType.PRESENCE | MessageType.NEWS:
            raise PeerMisbehaved("wrong_place", "a message that does not belong in an inbox")
        case _:
            assert_never(message.type)


def hear_through(node: Node, event: HeardThrough, moment: Moment) -> list[NodeEffect]:
    """Take a message that came through a tunnel; what nobody may say there is dropped and counted."""
    sender = node.tunnel_post.member_at(node, event.address, moment)
    effects: list[NodeEffect] = []
    try:
        if sender is None:
            raise PeerMisbehaved("not_a_member")
        message = node.post.hear_text(sender, event.text, moment)
        _receive_through(node, sender, message, effects, moment)
    except PeerMisbehaved as exc:
        node.dropped[exc.code] += 1
        effects.append(Log("debug", f"a message through the tunnel was dropped: {exc}"))
    return effects


def _receive_through(
    node: Node, sender: str, message: Message, effects: list[NodeEffect], moment: Moment
) -> None:
    roster = node.membership.roster
    if roster is None or message.network_id != roster.network_id:
        raise PeerMisbehaved("other_network")
    node.tunnel_post.counters["heard"] += 1
    match message.type:
        case MessageType.KEYS:
            effects += node.post.hear_keys(sender, message.body, moment)
        case MessageType.ROSTER:
            hear_roster(node, sender, message.body, effects, moment, by_tunnel=True)
        case _:
            raise PeerMisbehaved("wrong_place", "a message that does not belong in a tunnel")
