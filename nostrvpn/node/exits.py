"""This node as one that uses an exit: what its user decided, what holds, what the kernel is to do.

Which exit is taken is ``exits/choice.py``'s; which state holds ``exits/kill_switch.py``'s. What is known
of each exit comes from its peer (``Peer.exit``, told only to those who may use it) and from echoes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.exits.choice import MAX_CANDIDATES, Candidate, ExitChoice
from nostrvpn.exits.kill_switch import ExitState, KillSwitch, exit_state
from nostrvpn.exits.offer import MAX_HOPS, ExitOffer
from nostrvpn.exits.settings import AUTO, BOUGHT, BypassKind, ExitSettings
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.shield import Bypass, Shield, ShieldKind
from nostrvpn.host.state import IPNetwork
from nostrvpn.machine import Moment
from nostrvpn.node.events import ExitProbed, NodeEffect, Purchase, Reconcile, ReconcileFinished
from nostrvpn.node.subnets import overlay_of
from nostrvpn.paths.candidates import PathKind

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = [
    "ExitUse",
    "Probe",
    "bypass_of",
    "leads_back",
    "offer_of",
    "overlay_networks",
    "resolvers_of",
]


@dataclass(frozen=True, slots=True)
class Probe:
    """Send an echo to this exit (public key) at its overlay address every ``interval_s`` seconds."""

    key: str
    address: IPv6Address
    interval_s: float


class ExitUse:
    """``settings``: what the user decided; ``damage``: why that could not be read, in words, or None.
    ``network``: the one that the host is in, ``MAC PREFIX``, or empty while that is not known.
    ``countries``: where databases say that exits are, by public key. ``dns_error``: why names are not
    asked for through the exit; None if they are. ``rival``: the interface of another network of this
    host that uses an exit, so that this one cannot; None if none does. ``purchase``: what the market
    says of the exit that it buys."""

    def __init__(self) -> None:
        self.settings = ExitSettings()
        self.damage: str | None = None
        self.choice = ExitChoice()
        self.network = ""
        self.shield_error: str | None = None
        self.dns_error: str | None = None
        self.rival: str | None = None
        self.countries: dict[str, str] = {}
        self.purchase: Purchase | None = None
        self._candidates: dict[str, Candidate] = {}
        self._seen: tuple[object, ...] = ()
        self.changes = 0  # of what the kernel is to do
        self._in_kernel: int | None = None  # up to which of them it has; None while nobody told
        self._state_since: tuple[ExitState, float] = (ExitState.OFF, 0.0)

    # -- what holds -------------------------------------------------------------------------

    @property
    def is_trusted(self) -> bool:
        """Whether the host is in a network where no exit is used."""
        return bool(self.network) and self.network in self.settings.trusted

    @property
    def is_wanted(self) -> bool:
        """Whether an exit is to be used here and now."""
        return bool(self.settings.exit) and not self.is_trusted and self.rival is None

    @property
    def is_bought(self) -> bool:
        """Whether the exit is what the market buys."""
        return self.settings.exit == BOUGHT

    @property
    def _bought(self) -> Purchase:
        # Without a word of the market there may be one.
        return self.purchase or Purchase(possible=True)

    @property
    def link(self) -> str:
        """The link that the exit in use is behind; empty if that is the mesh's own, or none carries."""
        carries = self.is_bought and self.state is ExitState.CONNECTED
        return self._bought.link if carries else ""

    @property
    def state(self) -> ExitState:
        """The state that holds."""
        return exit_state(
            self.settings.kill_switch,
            wanted=self.is_wanted,
            possible=self._bought.possible if self.is_bought else bool(self._candidates),
            carries=self._bought.carries if self.is_bought else self.choice.carries,
            damaged=self.damage is not None,
        )

    @property
    def state_since(self) -> float:
        """Since when it holds (Moment.now's seconds)."""
        return self._state_since[1]

    @property
    def used(self) -> str | None:
        """The exit (public key) that is given the packets; None if none is."""
        return self.choice.used if self.damage is None else None

    @property
    def candidates(self) -> Mapping[str, Candidate]:
        """The exits that could be used, of those that the user wants."""
        return self._candidates

    @property
    def deadline(self) -> float | None:
        """When :meth:`review` is due (Moment.now's seconds)."""
        return self.choice.deadline

    @property
    def bypass_domains(self) -> frozenset[str]:
        """The domains whose addresses go around the exit, each with the names below it."""
        words = self.settings.bypass_words
        return frozenset(word.text for word in words if word.kind is BypassKind.DOMAIN)

    # -- in ---------------------------------------------------------------------------------

    def restore(self, records: Mapping[str, object]) -> None:
        """Take up what was stored; if that is damaged, nothing may leave until the user decides anew."""
        if "exit" not in records:
            return
        try:
            self.settings = ExitSettings.from_json(records["exit"])
        except PeerMisbehaved as exc:
            self.damage = str(exc)

    def probed(self, event: ExitProbed, now: float) -> list[NodeEffect]:
        """An echo to an exit came back, or did not; the review at the step's end decides."""
        if event.peer_key in self._candidates:
            self.choice.probed(event.peer_key, event.rtt_ms, now)
        return []

    def applied(self, event: ReconcileFinished) -> None:
        """The kernel holds back what it should, or this is why not."""
        self.shield_error, self.rival = event.shield_error, event.exit_rival
        if event.exit_changes is not None and event.error is None and event.shield_error is None:
            self._in_kernel = event.exit_changes

    @property
    def is_in_force(self) -> bool:
        """Whether the kernel has what was decided last, as far as is known."""
        return self._in_kernel is None or self._in_kernel >= self.changes

    def review(self, node: Node, moment: Moment) -> list[NodeEffect]:
        """Look at who may be used, and choose; cheap while no exit is wanted."""
        is_here = self.is_wanted and self.damage is None and not self.is_bought
        wanted = self.settings.exit if is_here else ""
        if not wanted and not self._candidates and self._seen == self._news():
            return []
        self._candidates = _candidates(node, wanted, moment.wall) if wanted else {}
        self.choice.review(wanted, self._candidates, moment.now)
        if self._state_since[0] is not self.state:
            self._state_since = self.state, moment.now
        news = self._news()
        if news == self._seen:
            return []
        self._seen = news
        self.changes += 1
        return [Reconcile()]

    def _news(self) -> tuple[object, ...]:
        """Return what the kernel's desired state follows from."""
        used = self._candidates.get(self.choice.used or "")
        offer = used.offer if used is not None else None
        return self.state, self.used, offer, self.settings, self.is_bought and self._bought

    # -- out --------------------------------------------------------------------------------

    def probes(self, node: Node) -> list[Probe]:
        """Return the echoes that are to be sent now and on; none while no exit is wanted."""
        roster = node.membership.roster
        if roster is None:
            return []
        return [
            Probe(key, roster.address(key).ipv6, self.choice.interval(key))
            for key, candidate in self._candidates.items()
            if key in roster.members and (candidate.has_path or key == self.used)
        ]

    def versions(self, node: Node) -> frozenset[int]:
        """Return the IP versions that leave through the exit now; none unless it carries."""
        if self.state is not ExitState.CONNECTED:
            return frozenset()
        if self.is_bought:
            return self._bought.versions
        used = self._candidates.get(self.used or "")
        if used is None:
            return frozenset()
        # Without an IPv4 address of the mesh there is no source that the exit would take.
        return used.offer.versions & ({4, 6} if node.overlap is None else {6})

    @property
    def chain(self) -> tuple[str, ...]:
        """The exits (public keys) that packets leave by one after the other; empty without one."""
        used = self._candidates.get(self.used or "")
        return () if used is None or self.used is None else (self.used, *used.offer.through)

    def resolvers(self, node: Node) -> tuple[IPAddress, ...]:
        """Return whom DNS questions go to while an exit is wanted, the best first.

        The user's choice, or the exit itself if it answers; empty where nobody does.
        """
        if not self.is_wanted:
            return ()
        if self.is_bought:
            chosen = self.settings.resolver
            return (ip_address(chosen),) if chosen else self._bought.resolvers
        used = self._candidates.get(self.used or "")
        return resolvers_of(node, self.used, None if used is None else used.offer)

    @property
    def shield_after_down(self) -> Shield:
        """What holds traffic back after ``down``: nothing, but for lockdown or if nobody knows."""
        if self.damage is None and self.settings.kill_switch is not KillSwitch.LOCKDOWN:
            return Shield()
        return Shield(ShieldKind.BLOCKED, allow_lan=self.settings.allow_lan)

    def kernel(
        self, node: Node, behind: frozenset[IPNetwork] = frozenset()
    ) -> tuple[Shield, ExitRouting]:
        """Return what may leave beside the exit, and the way to it.

        ``behind``: networks behind this host that members are forwarded into.
        """
        state, settings = self.state, self.settings
        if state is ExitState.OFF:
            return Shield(), ExitRouting()
        overlay, versions = overlay_networks(node), self.versions(node)
        routing, bypass = ExitRouting(), Bypass()
        kind = ShieldKind.TUNNELLED if state is ExitState.CONNECTED else ShieldKind.BLOCKED
        if settings.kill_switch is KillSwitch.OFF and self.damage is None:
            # Nothing is held back; the rest is for who goes around, and for reverse-path filters.
            kind = ShieldKind.OPEN
        if state is not ExitState.LOCKDOWN:
            bypass = bypass_of(settings)
            diverts = not bypass.is_empty
            # Behind a shield the host's routes to its own networks stay in use: the shield turns back
            # what may not go there, and a gateway named by its address alone is still found.
            local = settings.allow_lan or kind is not ShieldKind.OPEN
            routing = ExitRouting(True, overlay, versions, local, behind, diverts, link=self.link)
        shield = Shield(
            kind,
            overlay,
            versions,
            frozenset(self.resolvers(node)),
            settings.allow_lan,
            bypass,
            node.settings.tunnel.listen_port,
            behind,
            link=self.link,
        )
        return shield, routing


def bypass_of(settings: ExitSettings) -> Bypass:
    """Return who goes around the exit, as the packet filter is told."""
    words = settings.bypass_words
    return Bypass(
        frozenset(word.network for word in words if word.network is not None),
        frozenset(word.uids for word in words if word.kind is BypassKind.UID),
        frozenset(word.text for word in words if word.kind is BypassKind.CGROUP),
        any(word.kind is BypassKind.DOMAIN for word in words),
    )


def resolvers_of(node: Node, key: str | None, offer: ExitOffer | None) -> tuple[IPAddress, ...]:
    """Return whom DNS questions go to through an exit that offers this, the best first."""
    roster = node.membership.roster
    if node.exits.settings.resolver:
        return (ip_address(node.exits.settings.resolver),)
    if roster is None or key is None or offer is None or not offer.dns:
        return ()
    at = roster.address(key)
    return (at.ipv4, at.ipv6) if node.overlap is None else (at.ipv6,)


def overlay_networks(node: Node) -> frozenset[IPNetwork]:
    """Return what goes into the tunnel in every state: the members, and networks behind them."""
    roster = node.membership.roster
    if roster is None:
        return frozenset()
    own = [n for n in overlay_of(roster) if n.version == 6 or node.overlap is None]
    return frozenset([*own, *node.subnets.used])


def offer_of(node: Node, key: str, wall: float) -> ExitOffer | None:
    """Return what a member offers this node as an exit at ``wall`` (Unix time); None if nothing."""
    roster, peer = node.membership.roster, node.peers.get(key)
    if roster is None or peer is None or key == node.me or peer.wireguard_key is None:
        return None
    members = [roster.members.get(who) for who in (key, node.me)]
    if any(member is None or not member.is_active(wall) for member in members):
        return None
    return peer.exit


def leads_back(node: Node, offer: ExitOffer) -> bool:
    """Whether what is sent there would come back to this node, or go through too many exits."""
    return node.me in offer.through or len(offer.through) >= MAX_HOPS


def _candidates(node: Node, wanted: str, wall: float) -> dict[str, Candidate]:
    found = {}
    keys = sorted(node.peers) if wanted == AUTO else [wanted]
    for key in keys:
        offer, link = offer_of(node, key, wall), node.paths.link(key)
        if offer is not None and offer.versions and not leads_back(node, offer):
            has_path = link is not None and (link.path is not PathKind.NONE or link.asleep)
            found[key] = Candidate(offer, has_path)
    if len(found) > MAX_CANDIDATES:
        # Those with a path first, then by key; the one in use stays.
        order = sorted(found, key=lambda k: (k != node.exits.choice.used, not found[k].has_path, k))
        found = {key: found[key] for key in order[:MAX_CANDIDATES]}
    return found
