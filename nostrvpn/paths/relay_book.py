"""What this node knows of relays, for all its links: offers, round trips, and whether UDP passes."""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.paths.budgets import Budget
from nostrvpn.paths.description import NatInfo
from nostrvpn.paths.hard_nat.roles import SearchBudget
from nostrvpn.paths.openings import Openings
from nostrvpn.paths.relay_offers import RelayOffer
from nostrvpn.paths.snapshot import Mapping

__all__ = ["RelayBook"]

# Relays kept; each link uses two, and a mesh has few members with a public address.
MAX_OFFERS = 16
# Addresses of relays that answered; above this the oldest is forgotten and counts as unproven.
MAX_ALIVE = 256
# Without any answer by UDP for this long after the first request, UDP counts as blocked.
SILENCE = 1.0


class RelayBook:
    """Shared by the links. Round trips are in seconds."""

    def __init__(self, probes: Budget) -> None:
        self._probes = probes
        self._offers: dict[str, RelayOffer] = {}
        self._rtt: dict[str, float] = {}
        self._alive: dict[IPAddress, None] = {}
        self._channels = 0
        self.nat: NatInfo | None = None
        """What we tell peers of our NAT, if we know anything."""
        self.stun_servers: tuple[Endpoint, ...] = ()
        """The IPv4 servers that answered."""
        self.searches = SearchBudget()
        self.openings = Openings()
        self.turn: dict[str, Endpoint] = {}
        self.udp_passes = False
        """Whether anything came back by UDP from beyond since the network changed."""
        self._asked_at: float | None = None

    @property
    def offers(self) -> tuple[RelayOffer, ...]:
        """The relays that we may use."""
        return tuple(self._offers.values())

    def use_offers(self, offers: tuple[RelayOffer, ...]) -> bool:
        """Replace the offers; return whether they changed."""
        # A lent port has the address of the offer: without one there is nothing to use.
        new = {offer.relay: offer for offer in offers[:MAX_OFFERS] if offer.endpoints}
        changed = new != self._offers
        self._offers = new
        return changed

    def name_of(self, ip: IPAddress) -> str | None:
        """Return the relay that has this address, by its offer."""
        for offer in self._offers.values():
            if any(endpoint.ip == ip for endpoint in offer.endpoints):
                return offer.relay
        return None

    def ranked(self, without: set[str], *, first: str = "") -> list[RelayOffer]:
        """Return the relays but ``without`` some: ``first``, then the nearest, unknown ones last."""
        usable = [offer for offer in self._offers.values() if offer.relay not in without]
        if len(usable) < 2:
            return usable
        far = float("inf")
        return sorted(usable, key=lambda o: (o.relay != first, self._rtt.get(o.relay, far)))

    def heard(self, relay: str, source: Endpoint, rtt: float) -> None:
        """A relay answered authentically, by UDP."""
        self.udp_passes = True
        known = self._rtt.get(relay, rtt)
        self._rtt[relay] = min(rtt, (known * 3 + rtt) / 4)
        self._alive[source.ip] = None
        if len(self._alive) > MAX_ALIVE:
            del self._alive[next(iter(self._alive))]

    def may_send(self, target: Endpoint, now: float) -> bool:
        """Say whether a request may go there: a relay that never answered is a target like any."""
        return target.ip in self._alive or self._probes.spend(target.ip, now)

    def asked(self, now: float) -> None:
        """A request left by UDP, to a STUN server or a relay."""
        if self._asked_at is None:
            self._asked_at = now

    def network_changed(self) -> None:
        """What was known of UDP and of our NAT may be wrong."""
        self.udp_passes, self._asked_at = False, None
        self.nat = None
        self.openings.clear()

    def describe_nat(self, mapping: Mapping) -> None:
        """Note how our NAT maps; it is not forgotten while the servers are asked again."""
        if mapping is Mapping.UNKNOWN and self.nat is not None:
            mapping = self.nat.mapping
        # Whoever asked nobody knows nothing of UDP, and shall not say that it is blocked.
        is_known = self.udp_passes or self._asked_at is not None or mapping is not Mapping.UNKNOWN
        self.nat = NatInfo(mapping, self.udp_passes) if is_known else None

    @property
    def maps_by_destination(self) -> bool:
        """Whether what a STUN server sees says little about what a peer will see."""
        return self.nat is not None and self.nat.mapping.is_dependent

    @property
    def silent_at(self) -> float | None:
        """When UDP will seem to be blocked if nothing answers; None: something did, or nobody asked."""
        if self.udp_passes or self._asked_at is None:
            return None
        return self._asked_at + SILENCE

    def udp_seems_blocked(self, now: float) -> bool:
        """Say whether nobody answers by UDP: neither STUN servers nor relays."""
        # By the same figure as the deadline: a rounding error must not put one before the other.
        return self.silent_at is not None and self.silent_at <= now

    def next_channel(self) -> int:
        """Return a number that no channel had."""
        self._channels += 1
        return self._channels
