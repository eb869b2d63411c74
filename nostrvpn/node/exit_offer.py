"""This node as an exit for others: who may use it, what they are told, what the kernel is asked to do.

Who may is the permission ``exit``, decided anew on every change: whom it is taken from has no packet
more. Told of the offer are only those who may use it, and only while it can be kept: the host has a way
out, it forwards, and the month's budget is not spent.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.exits.limits import Ledger, fair_rate, next_month
from nostrvpn.exits.offer import MAX_HOPS, ExitOffer, OfferSettings, offer_to_json
from nostrvpn.exits.policy import IPNetwork
from nostrvpn.exits.provider_health import ProviderHealth
from nostrvpn.host.exit_filter import ExitFilter
from nostrvpn.host.exit_meter import ExitMeter
from nostrvpn.host.inbound import Inbound
from nostrvpn.host.state import FWMARK, HostState
from nostrvpn.host.subnet_gateway import Gateway
from nostrvpn.host.upstream import Upstream, upstream_interface
from nostrvpn.machine import Moment
from nostrvpn.mesh.permissions import What
from nostrvpn.mesh.policy import Question, decide
from nostrvpn.node.events import ExitUsed, NodeEffect, Persist, Reconcile, ReconcileFinished
from nostrvpn.node.policy import ExitTerms
from nostrvpn.node.subnets import overlay_of
from nostrvpn.wireguard.device import Device
from nostrvpn.wireguard.provider import Provider

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["LOOK_S", "ExitOffering"]

# Members, paths and rules change many times a second while a mesh starts.
LOOK_S = 1.0
# A crash may lose so much of the month's account, or what was used in so many seconds.
STORE_BYTES = 1 << 24
STORE_S = 60.0
# How often a provider that is silent is asked for, where its file says nothing (WireGuard's usual).
ASK_AGAIN_S = 25
# A load is told in such steps, and again when another one is reached.
LOAD_STEP = 20
# Wider ones are half a way out (of another VPN), not a network that the host is in.
_WIDEST = {4: 8, 6: 32}
_ULA = ip_network("fc00::/7")


class ExitOffering:
    """``settings``: what the user decided, None if this node is no exit. ``sources``: the addresses that
    the host's default routes lead out by. ``answers_dns``: guests' questions for names are answered."""

    def __init__(self) -> None:
        self.settings: OfferSettings | None = None
        self.provider: Provider | None = None
        self.provider_health = ProviderHealth()
        self.ledger = Ledger()
        self.sources: frozenset[IPAddress] = frozenset()
        self.answers_dns = False
        self.error: str | None = None
        self.forward_obstacle: tuple[str, str] | None = None
        self.rate = 0
        self.guests: frozenset[str] = frozenset()
        """Whom ``exit`` is allowed here (public keys), as of the last review."""
        self._offers: dict[str, dict[str, object]] = {}
        self._said: dict[str, dict[str, object] | None] = {}
        self._known: tuple[object, ...] = ()
        self._look_at = self._month_ends = self._stored_at = 0.0
        self._stored = 0
        self._is_due = False

    @property
    def is_spent(self) -> bool:
        """Whether the month's budget is."""
        return self.settings is not None and self.ledger.is_spent(self.settings.limits.budget)

    @property
    def load(self) -> int:
        """Percent of the stated bandwidth that is used; 0 if none is stated."""
        if self.settings is None or not self.settings.limits.bandwidth:
            return 0
        rates = self.ledger.rates.values()
        most = max(sum(rate.up for rate in rates), sum(rate.down for rate in rates))
        return min(100, 100 * int(most) // self.settings.limits.bandwidth)

    @property
    def deadline(self) -> float | None:
        """When :meth:`review` is due (Moment.now's seconds); None while there is nothing to do."""
        return self._look_at if self._is_due else None

    def restore(self, records: dict[str, object] | object) -> str | None:
        """Take up what was stored; if it is damaged, offer nothing and return what is wrong."""
        policy = records if isinstance(records, dict) else {}
        try:
            if policy.get("exit_offer") is not None:
                stored = policy["exit_offer"]
                # Never one without the other: guests would leave by the host's own uplink.
                provider = stored.get("upstream") if isinstance(stored, dict) else None
                self.provider = None if provider is None else Provider.from_json(provider)
                self.settings = OfferSettings.from_json(stored)
            if "exit_used" in policy:
                self.ledger = Ledger.from_json(policy["exit_used"])
                self._stored = self.ledger.used
        except PeerMisbehaved as exc:
            self.settings = None
            return f"what this node offers as an exit is lost: {exc}"
        self._use_rate()
        return None

    def adopt(
        self, settings: OfferSettings | None, provider: Provider | None = None
    ) -> list[NodeEffect]:
        """The user decided anew: None ends it. ``provider``: whom guests leave by, if not this host."""
        self.provider, self.provider_health = provider, ProviderHealth()
        self.settings, self._known, self._look_at = settings, (), 0.0
        self._use_rate()
        upstream = None if provider is None else provider.to_json()
        stored = None if settings is None else settings.to_json() | {"upstream": upstream}
        return [Persist("policy", "exit_offer", stored), Reconcile()]

    def applied(self, event: ReconcileFinished) -> None:
        """The kernel forwards and measures, or this is why not."""
        self.error = event.meter_error or event.gateway_error
        self.forward_obstacle = event.forward_obstacle

    # -- what follows for the kernel ----------------------------------------------------------

    def versions(self, node: Node) -> frozenset[int]:
        """Return the IP versions that this host can carry to the internet now."""
        if self.settings is None:
            return frozenset()
        found: set[int] = {ip.version for ip in self.sources if ip not in _ULA}
        if self.provider is not None:
            # The kill switch of an exit that this host uses lets nothing out beside it.
            silent = node.exits.is_wanted or self.provider_health.is_silent
            found = set() if silent else set(self.provider.versions)
        if not self.settings.ipv6:
            found.discard(6)
        if node.overlap is not None:
            found.discard(4)  # guests' packets have no IPv4 address of the mesh here
        if node.exits.is_wanted:
            found &= node.exits.versions(node)
        return frozenset(found)

    def down(self, node: Node) -> str:
        """Return why this node carries nothing for guests, as its offer says it; empty if it does."""
        if self.versions(node):
            return ""
        if self.provider is not None and not node.exits.is_wanted:
            return "provider"
        return "exit" if node.exits.is_wanted else "route"

    def terms(self, node: Node) -> ExitTerms | None:
        """Return what guests may; None while this node is no exit."""
        roster, versions = node.membership.roster, self.versions(node)
        if self.settings is None or roster is None or not versions or self.is_spent:
            return None
        nat = node.paths.nat()
        own: list[IPAddress | None] = [address.ip for address in node.addresses]
        own += [e.ip if e is not None else None for e in (nat.reflexive_v4, nat.reflexive_v6)]
        never: set[IPNetwork] = {*overlay_of(roster), *node.subnets.used}
        never |= {ip_network(ip) for ip in own if ip is not None}
        around = {n for n in node.routes if n.prefixlen >= _WIDEST[n.version]}
        rules = self.settings.policy.compile(never, around)
        through = node.exits.is_wanted
        made = ExitFilter(frozenset(), rules, self.answers_dns, through)
        # What comes from the exits that we leave by never goes there again.
        return ExitTerms(made, versions, frozenset(node.exits.chain))

    def kernel(self, node: Node, gateway: Gateway, inbound: Inbound) -> tuple[Gateway, ExitMeter]:
        """Return what is forwarded, beside the networks behind this host, and how much of it."""
        guests, roster = inbound.exit.sources, node.membership.roster
        if not guests or self.settings is None or roster is None:
            return gateway, ExitMeter()
        limits = self.settings.limits
        meter = ExitMeter(
            guests,
            gateway.networks,
            self.rate,
            limits.bandwidth,
            limits.connections,
            limits.budget,
            self.ledger.month,
            self.ledger.used,
        )
        wider = replace(
            gateway,
            overlay=frozenset(overlay_of(roster)),
            exit_versions=frozenset(ip.version for ip in guests),
            own=inbound.own,
            listen_port=node.settings.tunnel.listen_port,
            opened=self.settings.policy.opened,
        )
        return wider, meter

    def upstream(self, node: Node, gateway: Gateway) -> Upstream | None:
        """Return the link to the provider that guests leave by; None if there is none."""
        roster = node.membership.roster
        provider, tunnel = self.provider, node.settings.tunnel
        if self.settings is None or provider is None or roster is None:
            return None
        addresses = (f"{one.ip}/{one.ip.max_prefixlen}" for one in provider.addresses)
        host = HostState(
            upstream_interface(tunnel.interface),
            provider.mtu,
            frozenset(map(ip_interface, addresses)),
        )
        overlay = frozenset(overlay_of(roster))
        return Upstream(host, self.versions(node), overlay, gateway.networks)

    @property
    def upstream_device(self) -> Device | None:
        """The WireGuard device to the provider; None without one."""
        provider = self.provider
        if provider is None:
            return None
        peer = provider.peer
        if self.provider_health.is_silent and not peer.persistent_keepalive:
            # Guests send nothing any more, and then WireGuard would never ask again.
            peer = replace(peer, persistent_keepalive=ASK_AGAIN_S)
        return Device(provider.private_key, 0, FWMARK, (peer,))

    # -- what is used -------------------------------------------------------------------------

    def used(self, event: ExitUsed, moment: Moment) -> list[NodeEffect]:
        """Take up what guests had; persist the account, and share what there is anew."""
        was_spent, rate = self.is_spent, self.rate
        has_changed = event.provider is not None and self.provider_health.seen(
            *event.provider, moment.now
        )
        self.ledger.take(event.usage, moment.now, moment.wall)
        self._use_rate()
        effects = self._store(moment)
        if has_changed or self.is_spent != was_spent or self.rate != rate:
            effects.append(Reconcile())
            self._look_at = 0.0
        return effects

    def _use_rate(self) -> None:
        if self.settings is None:
            self.rate = 0
            return
        rates = [max(rate.up, rate.down) for rate in self.ledger.rates.values()]
        self.rate = fair_rate(self.settings.limits, rates)

    def _store(self, moment: Moment) -> list[NodeEffect]:
        grown = self.ledger.used - self._stored
        due = moment.now - self._stored_at >= STORE_S
        if not grown or (not due and 0 <= grown < STORE_BYTES and not self.is_spent):
            return []
        self._stored, self._stored_at = self.ledger.used, moment.now
        return [Persist("policy", "exit_used", self.ledger.to_json())]

    # -- what is told -------------------------------------------------------------------------

    def tell(self, peer: str) -> dict[str, object] | None:
        """Return what ``peer`` is told in a message that leaves now; None: nothing is offered to it."""
        self._said[peer] = self._offers.get(peer)
        return self._said[peer]

    def review(self, node: Node, moment: Moment) -> list[NodeEffect]:
        """Look at what is offered to whom, and tell it; cheap while this node is no exit."""
        if self.settings is None and not self._offers and not self._is_due:
            return []
        if moment.now < self._look_at:
            self._is_due = True  # something happened in between
            return []
        self._look_at, self._is_due = moment.now + LOOK_S, False
        effects: list[NodeEffect] = []
        if moment.wall >= self._month_ends:
            self._month_ends = next_month(moment.wall)
            if self.ledger.tell_time(moment.wall):
                self._stored = 0
                effects += [Persist("policy", "exit_used", self.ledger.to_json()), Reconcile()]
        self._gather(node, moment.wall)
        for key in node.peers:
            if self._said.get(key) == self._offers.get(key):
                continue
            link = node.paths.snapshot(key)
            if link is not None and link.path != "none":
                node.outbox.tell(key)
        return effects

    def _gather(self, node: Node, wall: float) -> None:
        roster, settings = node.membership.roster, self.settings
        versions = self.versions(node)
        stands = self.error is None and self.forward_obstacle is None and not self.is_spent
        load = self.load - self.load % LOAD_STEP
        chain = node.exits.chain if node.exits.is_wanted else ()
        stands = stands and len(chain) <= MAX_HOPS
        local = node.permissions.local
        down = self.down(node)
        known = (roster, local, settings, versions, stands, load, self.answers_dns, chain, down)
        if known == self._known and self.ledger.month:
            return
        self._known, self._offers, self.guests = known, {}, frozenset()
        if roster is None or settings is None or node.me not in roster.members:
            return
        self.guests = frozenset(
            key
            for key in roster.members
            if key != node.me
            and decide(
                roster, node.permissions.local, Question(key, node.me, What.EXIT), wall
            ).allowed
        )
        if not stands:
            return
        offer = ExitOffer(
            4 in versions,
            6 in versions,
            self.answers_dns,
            settings.policy.name,
            settings.country or None,
            load,
            chain,
            down,
        )
        self._offers = dict.fromkeys(self.guests, offer_to_json(offer))

    def has_guests(self, node: Node) -> bool:
        """Whether somebody may be using it: has the permission, and a path to us."""
        if self.settings is None:
            return False
        links = (node.paths.snapshot(key) for key in self.guests)
        return any(link is not None and link.path != "none" for link in links)
