"""What the membership machine asks for, as the node carries it out, and who is followed as a peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import (
    JoinState,
    MakeKey,
    MembersChanged,
    MembershipEffect,
    RequestJoin,
    SendRefusal,
    SendRoster,
    SpreadOperations,
    Store,
    Welcome,
)
from nostrvpn.mesh.tokens import TokenLink, token_mailbox
from nostrvpn.node.board import spread_news
from nostrvpn.node.events import NodeEffect, Persist, Reconcile
from nostrvpn.node.peers import Peer
from nostrvpn.node.roster_sync import spread_through
from nostrvpn.node.tunnel_post import is_up
from nostrvpn.node.waking import starts_asleep
from nostrvpn.paths.description import parse_cached_session
from nostrvpn.paths.events import AddPeer, RemovePeer
from nostrvpn.signaling.directory import Listening
from nostrvpn.signaling.network_key import NetworkKey

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = [
    "Expiry",
    "active_peers",
    "members_changed",
    "take_membership",
    "tend_members",
]


# So much a clock may be corrected by without anybody being looked at again.
SET_BACK_S = 60.0


class Expiry:
    """Memberships end by the calendar: until when who is followed holds, in Unix seconds."""

    def __init__(self) -> None:
        self._from = 0.0
        self._until: float | None = None
        self._ahead = 0.0

    @property
    def deadline(self) -> float | None:
        """When the next membership ends (Moment.now)."""
        return None if self._until is None else self._until - self._ahead

    def plan(self, node: Node, moment: Moment) -> None:
        """Who is active was just looked at."""
        roster = node.membership.roster
        members = roster.members.values() if roster is not None else ()
        ends = [m.expires for m in members if m.expires is not None and m.expires > moment.wall]
        self._from, self._until = moment.wall, min(ends, default=None)
        self._ahead = moment.wall - moment.now

    def is_due(self, moment: Moment) -> bool:
        """Whether somebody's membership ended, or the clock was set back."""
        self._ahead = moment.wall - moment.now
        is_over = self._until is not None and moment.wall >= self._until
        return is_over or moment.wall < self._from - SET_BACK_S


def tend_members(node: Node, moment: Moment) -> list[NodeEffect]:
    """Do what the clock asks for: follow nobody whose membership has ended, and an admin's duties."""
    effects = members_changed(node, moment) if node.expiry.is_due(moment) else []
    _excuse_ephemeral(node, moment)
    return effects + take_membership(node, node.membership.tick(moment), moment)


def take_membership(
    node: Node, effects: Sequence[MembershipEffect], moment: Moment
) -> list[NodeEffect]:
    """Carry out what the membership machine asked for."""
    out: list[NodeEffect] = []
    under = node.post.keyring.writing
    key: NetworkKey | None = None
    for effect in effects:
        match effect:
            case Store():
                out.append(Persist(effect.space, effect.key, effect.value))
            case RequestJoin():
                node.outbox.request_join(effect)
            case Welcome():
                node.outbox.welcome(effect)
            case SendRefusal() | SendRoster():
                out += node.outbox.send(effect, moment)
            case MakeKey():
                # Stored with the operation that names it, and before anybody hears of either.
                key = node.post.new_key(effect.key_id, moment)
                out += node.post.keep_key(key, moment)
            case SpreadOperations():
                # Through the tunnels too, while who was removed has one: it hears of it at once.
                out += spread_through(node, effect.operations, moment)
                out += spread_news(node, effect.operations, (key, under), moment)
            case MembersChanged():
                out += members_changed(node, moment)
            case _:
                assert_never(effect)
    return out


def members_changed(node: Node, moment: Moment) -> list[NodeEffect]:
    """Follow the members there are now, and nobody else."""
    effects: list[NodeEffect] = []
    roster = node.membership.roster
    if roster is not None:
        effects += node.post.settle_key(roster.key_id, moment)
    followed = _followed(node, moment)
    for gone in [peer for peer in node.peers if peer not in followed]:
        offered = node.peers.pop(gone).relay_offer
        node.outbox.forget(gone)
        node.sessions.pop(gone, None)
        effects += [Persist("session", gone, None), Persist("peer", gone, None)]
        effects += node.step_paths(RemovePeer(gone), moment)
        if offered:
            effects += node.offers_changed(moment)
    effects += node.relays.lend(followed)
    effects += _listen(node, moment)
    for peer in followed:
        if peer not in node.peers:
            node.peers[peer] = Peer(peer)
        if node.paths.link(peer) is None:
            effects += _follow(node, peer, moment)
    _watch_ephemeral(node, moment)
    node.expiry.plan(node, moment)
    joining = node.membership.joining
    if joining is not None and joining.state is JoinState.ASKING:
        effects += node.post.use_relays(joining.link.relays, moment)
    return [*effects, Reconcile()]


def active_peers(node: Node, moment: Moment) -> tuple[str, ...]:
    """Return the public keys of all other members whose membership has not ended."""
    roster = node.membership.roster
    if roster is None or not node.membership.is_member:
        return ()
    others = node.membership.peers
    return tuple(key for key in others if roster.members[key].is_active(moment.wall))


def _followed(node: Node, moment: Moment) -> dict[str, None]:
    """The peers the path engine must know: active members, and the inviter we wait for."""
    followed = dict.fromkeys(active_peers(node, moment))
    joining = node.membership.joining
    if joining is not None and joining.state is JoinState.ASKING and joining.inviter is not None:
        followed[joining.inviter] = None
    return followed


def _listen(node: Node, moment: Moment) -> list[NodeEffect]:
    """Hear the members, whom we or a token invite, and who answers our own application."""
    membership = node.membership
    roster = membership.roster
    is_out = roster is not None and not membership.is_member and not node.is_asking
    if roster is not None and is_out and not roster.is_rotated(node.me):
        # A key that was replaced stays a while, to tell by what.
        return node.post.leave_network(moment)
    joining, asks_by = membership.joining, None
    if joining is not None and not joining.is_open:
        joining = None
    if joining is not None and isinstance(joining.link, TokenLink):
        asks_by = token_mailbox(joining.link.secret)
    members = frozenset(active_peers(node, moment))
    wanted = Listening(
        members,
        frozenset(key for key in members if roster is not None and roster.is_admin(key)),
        roster.keys if roster is not None else {},
        roster.key_id if roster is not None else "",
        tuple(invite.secret for invite in membership.open_invites(moment.wall)),
        membership.token_mailboxes(moment.wall),
        joining.inviter if joining is not None else None,
        asks_by,
        joining.welcomed_by if joining is not None else None,
    )
    return node.post.listen(wanted, moment)


def _follow(node: Node, peer: str, moment: Moment) -> list[NodeEffect]:
    cached = node.sessions.get(peer)
    session = None
    if cached is not None:
        try:
            session = parse_cached_session(cached, node.path_settings)
        except PeerMisbehaved as exc:
            node.dropped[exc.code] += 1
    asleep = starts_asleep(node, peer, moment)
    return node.step_paths(AddPeer(peer, node.me < peer, session, asleep), moment)


def _watch_ephemeral(node: Node, moment: Moment) -> None:
    """Count from now on how long an ephemeral member is not heard; others may stay away."""
    roster = node.membership.roster
    if roster is None:
        return
    for key, member in roster.members.items():
        if member.ephemeral and key in node.peers and node.peers[key].heard_at is None:
            node.peers[key].heard_at = moment.now
            node.membership.unheard(key, moment.now)


def _excuse_ephemeral(node: Node, moment: Moment) -> None:
    """Who is not heard because this node hears nobody is not gone, nor whose tunnel is up."""
    waiting = node.membership.awaited
    if not node.post.pool.connected:
        node.membership.excuse(waiting, moment.now)
        return
    up = [peer for peer in waiting if is_up(node, peer, moment)]
    node.membership.excuse(up, moment.now)
