"""The node: one event in, effects out.

What it joins: membership (who), paths (over which addresses), the post (how messages travel) and the
tunnel (what WireGuard is told). The rules that belong to none of them alone are here:

- A peer is followed by the path engine from the moment it may matter: as soon as it is a member, and
  the inviter already while we wait to be admitted. So a join request carries our candidates, the
  welcome carries the inviter's, and the first check leaves when the welcome arrives.
- Descriptions that arise in one step leave at its end, one message a peer, after the datagrams: the
  openers must be out before the answer is.
- A peer's WireGuard key is what the peer itself says in a sealed message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import assert_never

from nostrvpn.host.bought import Bought
from nostrvpn.host.sold import Sold
from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.machine import Moment, Tick, earliest
from nostrvpn.mesh.effects import JoinState, MembershipEffect
from nostrvpn.mesh.membership import Membership
from nostrvpn.mesh.policy import LocalPolicy
from nostrvpn.node.board import Presence, read_board, say_presence
from nostrvpn.node.booths import Booths
from nostrvpn.node.commands import answer_joins, run_command
from nostrvpn.node.desired import Desired, TunnelSettings, overlapping_route
from nostrvpn.node.events import (
    Command,
    ExitProbed,
    ExitUsed,
    HeardThrough,
    HostChanged,
    NodeEffect,
    NodeEvent,
    PurchaseChanged,
    Reconcile,
    ReconcileFinished,
    Resumed,
    StunResolved,
    ThroughFailed,
    TunnelSeen,
)
from nostrvpn.node.exit_offer import ExitOffering
from nostrvpn.node.exits import ExitUse
from nostrvpn.node.inbox import deliver, hear_through
from nostrvpn.node.lacking import Lacking, fill_gaps
from nostrvpn.node.membership_effects import Expiry, members_changed, take_membership, tend_members
from nostrvpn.node.moves import Move, Moves
from nostrvpn.node.outbox import Outbox
from nostrvpn.node.path_effects import poke, take_path
from nostrvpn.node.peers import Peer
from nostrvpn.node.policy import Permissions
from nostrvpn.node.post import Post
from nostrvpn.node.relaying import MeshRelays, RelayRole
from nostrvpn.node.restoring import restore
from nostrvpn.node.roster_sync import Efforts
from nostrvpn.node.spreading import Spreading, answer_spread
from nostrvpn.node.stun_lookup import StunLookup
from nostrvpn.node.subnets import Subnets, overlay_of
from nostrvpn.node.tunnel import Tunnel
from nostrvpn.node.tunnel_post import TunnelPost, say_keys, through_failed
from nostrvpn.node.volunteers import Volunteers, put_up_offer, read_notices
from nostrvpn.node.wanted import wanted_state
from nostrvpn.paths.agent import Paths
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.events import (
    ChannelAnswered,
    ChannelClosed,
    ChannelOpened,
    DatagramReceived,
    LocalAddresses,
    MappedAddresses,
    NetworkChanged,
    PathEvent,
    RelayOffers,
    StunServers,
    TurnAllocated,
    TurnHeard,
    TurnLost,
    Wake,
)
from nostrvpn.paths.settings import PathSettings
from nostrvpn.signaling.relays import RelayClosed, RelayOpened, RelayText, RetryNow
from nostrvpn.wireguard.device import ObservedDevice

__all__ = ["Node", "NodeSettings"]


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What is fixed for one run of a node."""

    secret: RootSecret
    name: str
    tunnel: TunnelSettings
    relays: tuple[str, ...]
    active_relays: int
    stun_servers: tuple[str, ...]
    paths: PathSettings
    relay: RelayRole | None = None
    volunteers: bool = True
    policy: LocalPolicy = field(default_factory=LocalPolicy)
    epoch: int = 0  # of the WireGuard key
    is_proxied: bool = False


class Node:
    """One node. ``step`` is the only way in; the properties are for whoever carries effects out."""

    def __init__(
        self, settings: NodeSettings, records: Mapping[str, Mapping[str, object]], backend: str
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.me = settings.secret.public_key
        self.membership = Membership(settings.secret, settings.name)
        self.peers: dict[str, Peer] = {}
        self.paths = Paths(stun_servers=(), settings=settings.paths)
        reserved = records.get("meta", {}).get("seq", 0)
        self.post = Post(
            settings.secret,
            settings.relays,
            settings.active_relays,
            reserved if isinstance(reserved, int) else 0,
            records.get("keys", {}),
            is_isolated=settings.is_proxied,
        )
        self.tunnel = Tunnel(self.peers, partial(poke, self))
        self.dropped: Counter[str] = Counter()
        self.notes: list[tuple[str, str]] = []  # (problem code, text) found at start
        self.stun_lookup = StunLookup(settings.stun_servers)
        self.storage_error: str | None = None
        self.backup_error: str | None = None
        self.tap_error: str | None = None
        self.tap_counters: dict[str, int] = {}  # what the tap dropped, by reason
        self.reconcile_error: str | None = None
        self.firewall_error: str | None = None
        self.inbound_error: str | None = None
        self.obstacle: tuple[str, str] | None = None
        self.permissions = Permissions(settings.policy)
        self.subnets = Subnets()
        self.exits = ExitUse()
        self.exit_offer = ExitOffering()
        self.booths = Booths()
        # What the market sells and buys: set by it, and carried out with the next reconciliation.
        self.sold: Sold | None = None
        self.bought: tuple[Bought, ...] = ()
        self.addresses: tuple[LocalAddress, ...] = ()
        self.routes: frozenset[IPv4Network | IPv6Network] = frozenset()
        self.moves = Moves(settings.paths.skip_interfaces)
        # What the services beside the node say; shown, never decided upon.
        self.port_mapping: dict[str, object] = {}
        self.turn_states: dict[str, str] = {}
        self.relay_snapshot: dict[str, object] | None = None
        self.relay_error: str | None = None
        self.dns: dict[str, object] = {}
        self.awaiting_join: dict[int, float] = {}
        self.spreading: list[Spreading] = []
        self.run = ""  # tells one run of a node from the next
        self.sessions = dict(records.get("session", {}))
        self.relays = MeshRelays(settings.relay, self.peers)
        self.volunteers = Volunteers(self.me)
        self.presence = Presence()
        self.tunnel_post = TunnelPost()
        self.efforts, self.lacking, self.expiry = Efforts(), Lacking(), Expiry()
        self.outbox = Outbox(self.membership, self.post, settings.tunnel.public_key, self.relays)
        self.outbox.exit_for = self.exit_offer.tell
        restore(self, records)

    def _known_relays(self) -> tuple[str, ...]:
        """Relays that peers named when we last met: where they listen now."""
        return tuple(dict.fromkeys(peer.relays[0] for peer in self.peers.values() if peer.relays))

    # -- in ---------------------------------------------------------------------------------

    def start(self, moment: Moment) -> list[NodeEffect]:
        """Begin: the first effects of a run."""
        self.run = f"{moment.wall:.3f}"
        self.permissions.tell_time(moment)
        effects = self.post.use_relays(self._known_relays(), moment)
        effects += self.post.relay_event(Tick(), moment)
        effects += members_changed(self, moment)
        effects += self.offers_changed(moment)
        effects += self.stun_lookup.now(moment)
        return effects + self.outbox.flush(moment)

    def step(self, event: NodeEvent, moment: Moment) -> list[NodeEffect]:
        """Handle one event; return what is to be done, in this order."""
        self.permissions.tell_time(moment)
        effects = self._dispatch(event, moment)
        effects += deliver(self, moment)
        effects += read_board(self, moment)
        effects += read_notices(self, moment)
        effects += fill_gaps(self, moment)
        effects += say_keys(self, moment)
        effects += answer_joins(self, moment)
        effects += answer_spread(self, moment)
        effects += self.subnets.review(self, moment)
        effects += self.exits.review(self, moment)
        effects += self.booths.review(self, moment)
        effects += self.exit_offer.review(self, moment)
        return effects + self.outbox.flush(moment)

    @property
    def deadline(self) -> float | None:
        """When a Tick is due, in Moment.now's seconds."""
        return earliest(
            self.post.deadline,
            self.paths.deadline,
            self.tunnel.deadline,
            self.stun_lookup.deadline,
            self.moves.deadline,
            self.membership.deadline,
            self.volunteers.put_up_at,
            self.volunteers.lapses_at,
            self.subnets.deadline,
            self.exits.deadline,
            self.booths.deadline,
            self.exit_offer.deadline,
            self.presence.due,
            self.efforts.deadline,
            self.lacking.deadline,
            self.expiry.deadline,
            *self.awaiting_join.values(),
            *(waiting.until for waiting in self.spreading),
        )

    def adopt(self, device: ObservedDevice | None) -> None:
        """Take note, before the first step, of a tunnel that an earlier run left standing."""
        found = {peer.public_key: peer for peer in device.peers} if device else {}
        for peer in self.peers.values():
            tunnel = found.get(peer.wireguard_key or "")
            if tunnel is not None:
                peer.handshake_wall = tunnel.last_handshake_wall

    def desired(self, now: float, *, complete: bool = False) -> Desired:
        """What the kernel should look like at ``now``; ``complete`` with every member as a peer."""
        return wanted_state(self, now, complete=complete)

    @property
    def overlap(self) -> IPv4Network | None:
        """A route of the host that takes the overlay's IPv4 range away from us, or None."""
        roster = self.membership.roster
        return overlapping_route(roster, self.routes) if roster is not None else None

    @property
    def path_settings(self) -> PathSettings:
        """The path engine's settings, with the overlay's prefixes, which are never a candidate."""
        roster = self.membership.roster
        if roster is None:
            return self.settings.paths
        overlay = overlay_of(roster)
        return replace(self.settings.paths, overlay=overlay)

    def peer_name(self, public_key: str) -> str:
        """The name a user knows a peer by: own alias, the roster's name, or the npub's beginning."""
        peer, roster = self.peers.get(public_key), self.membership.roster
        if peer is not None and peer.alias:
            return peer.alias
        if roster is not None and roster.members.get(public_key):
            return roster.members[public_key].name
        return npub(public_key)[:12]

    def _dispatch(self, event: NodeEvent, moment: Moment) -> list[NodeEffect]:
        match event:
            case RelayOpened(url) if "#" not in url:  # not a lane: those open with each message
                self.membership.hurry(moment)
                opened = self.post.relay_event(event, moment)
                opened += self._tick_membership(moment) + put_up_offer(self, moment)
                return opened + say_presence(self, moment)
            case RelayOpened() | RelayClosed() | RelayText():
                return self.post.relay_event(event, moment)
            case (
                DatagramReceived()
                | MappedAddresses()
                | ChannelOpened()
                | ChannelAnswered()
                | ChannelClosed()
                | TurnAllocated()
                | TurnHeard()
                | TurnLost()
                | Wake()
            ):
                return self.step_paths(event, moment)
            case HeardThrough():
                return hear_through(self, event, moment)
            case ThroughFailed():
                return through_failed(self, event, moment)
            case HostChanged():
                return self._host_changed(event, moment)
            case Resumed():
                # Nobody was heard while this machine slept.
                self.membership.excuse(self.membership.awaited, moment.now)
                return self._moved(self.moves.again(moment.now), moment, slept=True)
            case StunResolved():
                self.stun_lookup.resolved(event, moment)
                return self.step_paths(StunServers(event.endpoints), moment)
            case TunnelSeen():
                news, effects = self.tunnel.seen(event.device, moment)
                for item in news:
                    effects += self.step_paths(item, moment)
                return effects
            case ReconcileFinished():
                self.reconcile_error, self.firewall_error = event.error, event.firewall_error
                self.inbound_error, self.obstacle = event.inbound_error, event.obstacle
                self.subnets.applied(event)
                self.exits.applied(event)
                self.booths.applied(event)
                self.exit_offer.applied(event)
                return []
            case ExitProbed():
                return self.exits.probed(event, moment.now)
            case PurchaseChanged():
                self.exits.purchase = event.purchase
                return []
            case ExitUsed():
                return self.exit_offer.used(event, moment)
            case Command():
                return run_command(self, event, moment)
            case Tick():
                return self._tick(moment)
            case _:
                assert_never(event)

    def _tick(self, moment: Moment) -> list[NodeEffect]:
        effects = self._moved(self.moves.tick(moment.now), moment)
        effects += self.post.tick(moment)
        effects += self.step_paths(Tick(), moment)
        effects += self.tunnel.tick(moment)
        effects += self.stun_lookup.tick(moment)
        effects += put_up_offer(self, moment)
        effects += self._tick_membership(moment)
        return effects + say_presence(self, moment)

    def _tick_membership(self, moment: Moment) -> list[NodeEffect]:
        return tend_members(self, moment)

    def _host_changed(self, event: HostChanged, moment: Moment) -> list[NodeEffect]:
        self.addresses, self.routes = event.addresses, event.routes
        self.exits.network = event.network
        self.exit_offer.sources = event.sources
        self.relays.local = event.addresses
        return [*self._moved(self.moves.take(event, moment.now), moment), Reconcile()]

    def _moved(self, move: Move | None, moment: Moment, *, slept: bool = False) -> list[NodeEffect]:
        if move is None:
            return []
        port = self.settings.tunnel.listen_port
        effects = self.step_paths(LocalAddresses(move.addresses, port), moment)
        if move.is_first or move.is_cut:
            return effects
        # In the order of what takes longest: STUN's answer, then a relay that carries the news.
        effects += self.step_paths(NetworkChanged(slept), moment)
        effects += self.post.relay_event(RetryNow(), moment)
        effects += self.tunnel.renew(moment)
        self.membership.hurry(moment)
        self.presence.changed(moment)
        return effects + self.stun_lookup.now(moment)

    # -- membership -------------------------------------------------------------------------

    @property
    def is_asking(self) -> bool:
        """Whether this node waits to be admitted."""
        joining = self.membership.joining
        return joining is not None and joining.state is JoinState.ASKING

    def take_membership(
        self, effects: Sequence[MembershipEffect], moment: Moment
    ) -> list[NodeEffect]:
        """Carry out what the membership machine asked for."""
        return take_membership(self, effects, moment)

    # -- paths ------------------------------------------------------------------------------

    def step_paths(self, event: PathEvent, moment: Moment) -> list[NodeEffect]:
        """Give the path engine an event, and carry out what it asks for."""
        effects: list[NodeEffect] = []
        for effect in self.paths.step(event, moment):
            effects += take_path(self, effect, moment)
        return effects

    def offers_changed(self, moment: Moment) -> list[NodeEffect]:
        """Tell the path engine which relays there are; look for volunteers if no member is one."""
        # Whoever relays can be reached, and needs no relay.
        may_read = self.settings.volunteers and self.settings.relay is None
        alone = may_read and not self.relays.of_members
        self.relays.strangers = self.volunteers.offers if alone else ()
        effects = self.post.read_board(alone, moment)
        return effects + self.step_paths(RelayOffers(self.relays.offers), moment)
