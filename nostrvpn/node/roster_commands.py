"""The control commands about the network: who is in it, as what, by which links; what was decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nostrvpn.errors import UserError
from nostrvpn.identity.keys import npub, parse_npub
from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import MembershipEffect, SpreadOperations
from nostrvpn.mesh.invites import Terms, parse_link
from nostrvpn.mesh.members import Role, Token
from nostrvpn.mesh.roster import Roster
from nostrvpn.mesh.tokens import parse_token_link
from nostrvpn.node.asked import asked_member, asked_roster
from nostrvpn.node.chronicle import chronicle
from nostrvpn.node.events import Command, NodeEffect, Persist, Reply, ShutDown
from nostrvpn.node.spreading import spread
from nostrvpn.nostr.event import Event

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["ROSTER_COMMANDS", "run_roster_command", "stop_node"]

# Relays that a link names: where this node listens.
LINK_RELAYS = 4
# An ephemeral member that is stopped waits so long for a relay to take its leaving.
LEAVE_S = 3.0

_Json = dict[str, Any]


def run_roster_command(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    """Carry out one of ``ROSTER_COMMANDS``; NostrvpnError refuses it."""
    return ROSTER_COMMANDS[command.name](node, command, moment)


# -- the network ----------------------------------------------------------------------------


def _network(node: Node, command: Command, _moment: Moment) -> list[NodeEffect]:
    return [Reply(command.call, network_document(node))]


def network_document(node: Node) -> _Json:
    """Return what a node says of its network; ``id`` is None if it is in none."""
    roster, joining = node.membership.roster, node.membership.joining
    role = roster.role(node.me) if roster is not None else None
    is_asking = joining is not None and joining.state.value == "asking"
    return {
        "id": roster.network_id if roster is not None else None,
        "name": roster.name if roster is not None else None,
        "interface": node.settings.tunnel.interface,
        "members": len(roster.members) if roster is not None and role is not None else None,
        "role": role.value if role is not None else None,
        "owner": npub(roster.owner) if roster is not None else None,
        "joining": joining.link.network_id if joining is not None and is_asking else None,
        "run": node.run,
    }


def _create(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    effects = node.take_membership(
        node.membership.create(str(command.args["name"]), moment), moment
    )
    return [*effects, Reply(command.call, network_document(node))]


def _leave(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    roster = node.membership.roster
    if roster is None or roster.role(node.me) in (None, Role.OWNER):
        # An owner cannot be removed, not even by itself: the others go on with a silent owner.
        return [Reply(command.call, {"name": roster and roster.name, "told": True})]
    signed = node.membership.leave(moment)
    return spread(node, command, signed, {"name": roster.name}, moment)


def stop_node(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    """End the daemon; an ephemeral member leaves the network first, so nobody has to miss it."""
    roster, answer = node.membership.roster, {"stopping": True}
    me = roster.members.get(node.me) if roster is not None else None
    if me is None or not me.ephemeral or me.role is Role.OWNER:
        return [Reply(command.call, answer), ShutDown()]
    signed = node.membership.leave(moment)
    waits = Command(command.call, command.name, command.args | {"wait_s": LEAVE_S})
    return spread(node, waits, signed, answer, moment, (ShutDown(),))


def _log(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    roster = asked_roster(node)
    answer = {"operations": chronicle(roster, moment.wall), "pending": roster.pending}
    return [Reply(command.call, answer)]


def _settings(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    changes = {key: value for key, value in command.args.items() if value is not None}
    effects: list[NodeEffect] = []
    if changes:
        effects = node.take_membership(node.membership.set_network(changes, moment), moment)
    settings = asked_roster(node).settings
    answer = {
        "name": settings.name,
        "inbound": settings.inbound,
        "same_owner": settings.same_owner,
    }
    return [*effects, Reply(command.call, answer)]


# -- letting others in ----------------------------------------------------------------------


def _invite(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args: _Json = command.args
    wanted, once = args.get("npub"), args.get("once")
    if bool(wanted) == bool(once):
        raise UserError("an invite is either for an npub or --once", "see `nostrvpn invite --help`")
    bound_to = parse_npub(wanted) if wanted else None
    terms = Terms(
        role=Role(args.get("role", "member")),
        tags=tuple(args.get("tags", ())),
        own=args.get("mine", False),
        lasts_s=args.get("lasts_s"),
        ephemeral=args.get("ephemeral", False),
        name=args.get("name") or "",
    )
    return _link_for(node, command, bound_to, terms, moment)


def _link_for(
    node: Node, command: Command, bound_to: str | None, terms: Terms, moment: Moment
) -> list[NodeEffect]:
    expires_s = command.args.get("expires_s", 86_400)
    assert isinstance(expires_s, int)
    link, effects = node.membership.invite(bound_to, expires_s, _relays(node), moment, terms)
    answer = {
        "link": link,
        "npub": npub(bound_to) if bound_to else None,
        "expires_at": parse_link(link).expires,
    }
    return [*node.take_membership(effects, moment), Reply(command.call, answer)]


def _token_create(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args: _Json = command.args
    member = {key: args[key] for key in ("role", "tags", "ephemeral")}
    member["tags"] = sorted(set(member["tags"]))
    text, effects = node.membership.make_token(
        args["uses"], args["expires_s"], member, _relays(node), moment
    )
    link = parse_token_link(text)
    answer = {"link": text, "id": link.token_id, "uses": args["uses"], "expires_at": link.expires}
    return [*node.take_membership(effects, moment), Reply(command.call, answer)]


def _token_list(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    tokens = [_token_document(token, moment.wall) for token in asked_roster(node).tokens.values()]
    return [Reply(command.call, {"tokens": tokens})]


def _token_document(token: Token, wall: float) -> _Json:
    return {
        "id": token.id,
        "state": token.refusal(wall) or "open",
        "uses": token.uses,
        "used": token.used,
        "expires_at": token.expires,
        "role": token.role.value,
        "tags": sorted(token.tags),
        "ephemeral": token.ephemeral,
    }


def _token_revoke(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    wanted = str(command.args["id"])
    found = [token for token in asked_roster(node).tokens if token.startswith(wanted)]
    token = found[0] if len(found) == 1 else wanted
    effects = node.take_membership(node.membership.revoke_token(token, moment), moment)
    return [*effects, Reply(command.call, {"id": token})]


# -- members --------------------------------------------------------------------------------


def _peer_role(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args: _Json = command.args
    peer, lasts_s = asked_member(node, args["peer"]), args["lasts_s"]
    expires = None if lasts_s is None else int(moment.wall) + lasts_s
    effects = node.membership.set_role(peer, Role(args["role"]), expires, moment)
    return _changed(node, command, peer, effects, moment)


def _peer_name(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    peer = asked_member(node, command.args["peer"])
    effects = node.membership.rename(peer, str(command.args["name"]), moment)
    return _changed(node, command, peer, effects, moment)


def _peer_tag(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args: _Json = command.args
    peer = asked_member(node, args["peer"])
    effects = node.membership.tag(peer, args["tags"], moment)
    return _changed(node, command, peer, effects, moment)


def _changed(
    node: Node, command: Command, peer: str, effects: list[MembershipEffect], moment: Moment
) -> list[NodeEffect]:
    done = node.take_membership(effects, moment)
    member = asked_roster(node).members[peer]
    answer = {
        "npub": npub(peer),
        "name": member.name,
        "role": member.role.value,
        "tags": sorted(member.tags),
        "expires_at": member.expires,
    }
    return [*done, Reply(command.call, answer)]


def _peer_replace(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    """The new device is let in by a link of its own: it knows nothing of the network yet."""
    old, new = asked_member(node, command.args["peer"]), parse_npub(str(command.args["npub"]))
    name = asked_roster(node).members[old].name
    if old == node.me:
        raise UserError("this is this node itself", "see `nostrvpn rotate`")
    expires_s = command.args["expires_s"]
    assert isinstance(expires_s, int)
    link, effects = node.membership.replace(old, new, expires_s, _relays(node), moment)
    answer = {
        "link": link,
        "npub": npub(new),
        "name": name,
        "former": npub(old),
        "expires_at": parse_link(link).expires,
    }
    return [*node.take_membership(effects, moment), Reply(command.call, answer)]


# -- this node ------------------------------------------------------------------------------


def _rotate(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    """Sign that another key takes this node's place, and answer when the others can hear of it.

    Asked again, the same is told again: whoever asks may have died before the answer.
    """
    to, roster = parse_npub(str(command.args["npub"])), node.membership.roster
    answer = {"npub": npub(to)}
    if roster is None or not (node.me in roster.members or to in roster.former):
        return [Reply(command.call, answer | {"told": True})]
    signed: list[MembershipEffect] = [SpreadOperations(_rotations_to(roster, to))]
    if node.me in roster.members:
        agreed = command.args.get("proof")
        assert agreed is None or isinstance(agreed, str)
        signed = node.membership.rotate(node.me, to, moment, agreed)
    return spread(node, command, signed, answer, moment)


def _rotations_to(roster: Roster, to: str) -> tuple[Event, ...]:
    return tuple(
        operation.event
        for operation in roster.folded.operations.values()
        if operation.action == "rotate" and operation.fields["to"] == to
    )


def _rotate_wireguard(node: Node, command: Command, _moment: Moment) -> list[NodeEffect]:
    epoch = node.settings.epoch + 1
    return [Persist("meta", "wireguard_epoch", epoch), Reply(command.call, {"epoch": epoch})]


def _restart(node: Node, command: Command, _moment: Moment) -> list[NodeEffect]:
    return [Reply(command.call, {"run": node.run}), ShutDown(restart=True)]


def _relays(node: Node) -> tuple[str, ...]:
    relays = [relay for relay in node.post.pool.snapshot() if relay.state != "standby"]
    relays.sort(key=lambda relay: relay.state != "connected")
    return tuple(relay.url for relay in relays[:LINK_RELAYS])


ROSTER_COMMANDS: dict[str, Callable[[Node, Command, Moment], list[NodeEffect]]] = {
    "network": _network,
    "network_create": _create,
    "network_leave": _leave,
    "network_log": _log,
    "network_settings": _settings,
    "invite": _invite,
    "token_create": _token_create,
    "token_list": _token_list,
    "token_revoke": _token_revoke,
    "peer_role": _peer_role,
    "peer_name": _peer_name,
    "peer_tag": _peer_tag,
    "peer_replace": _peer_replace,
    "rotate": _rotate,
    "rotate_wireguard": _rotate_wireguard,
    "restart": _restart,
}
