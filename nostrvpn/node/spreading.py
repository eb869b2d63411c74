"""Answers that wait until what was signed has left: before that, whoever asked must not go away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import MembershipEffect
from nostrvpn.node.events import Command, NodeEffect, Reply

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["Spreading", "answer_spread", "spread"]


@dataclass(frozen=True, slots=True)
class Spreading:
    """A command that waits for publications (by their tokens), at most until ``until``."""

    call: int
    until: float
    tokens: frozenset[str]
    answer: dict[str, Any]
    then: tuple[NodeEffect, ...] = ()


def spread(
    node: Node,
    command: Command,
    signed: list[MembershipEffect],
    answer: dict[str, Any],
    moment: Moment,
    then: tuple[NodeEffect, ...] = (),
) -> list[NodeEffect]:
    """Carry out what was ``signed``, and answer once a relay has taken it, or ``wait_s`` later.

    The answer gets ``told``: whether one has. Where there is nobody to tell, it is. ``then`` do more.
    """
    wait_s = command.args["wait_s"]
    assert isinstance(wait_s, float | int)
    before, others = node.post.on_their_way(), node.membership.peers
    effects = node.take_membership(signed, moment)
    tokens = node.post.on_their_way() - before
    if not tokens:  # without a network key nothing can be put on the board
        return [*effects, Reply(command.call, answer | {"told": not others}), *then]
    waiting = Spreading(command.call, moment.now + wait_s, tokens, answer, then)
    node.spreading.append(waiting)
    return effects


def answer_spread(node: Node, moment: Moment) -> list[NodeEffect]:
    """Answer the commands whose publications came to an end, or took too long."""
    effects: list[NodeEffect] = []
    under_way = node.post.on_their_way() if node.spreading else frozenset()
    for waiting in list(node.spreading):
        is_told = bool(waiting.tokens & node.post.taken)
        if is_told or moment.now >= waiting.until or not waiting.tokens & under_way:
            node.spreading.remove(waiting)
            effects += [Reply(waiting.call, waiting.answer | {"told": is_told}), *waiting.then]
    return effects
