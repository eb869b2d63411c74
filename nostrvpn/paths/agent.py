"""Paths: the path engine as one machine. Events in, effects out; one Link per peer.

Decides which link a datagram belongs to, and what is answered at all: only authentic checks, at a
bounded rate, never with more bytes than came in. Everything else is dropped and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import assert_never

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, Tick, earliest
from nostrvpn.paths.agenda import Agenda
from nostrvpn.paths.budgets import ANSWERS_PER_SECOND, PROBES_PER_MINUTE, Budget
from nostrvpn.paths.candidates import CandidateKind, LocalAddress, Surroundings, survey
from nostrvpn.paths.events import (
    AddPeer,
    ChannelAnswered,
    ChannelClosed,
    ChannelOpened,
    CloseChannel,
    DatagramReceived,
    Describe,
    LinkChanged,
    LocalAddresses,
    MappedAddresses,
    NetworkChanged,
    PathEffect,
    PathEvent,
    RelayOffers,
    Remember,
    RemoteDescription,
    RemovePeer,
    Restart,
    SendDatagram,
    StunServers,
    Trace,
    TunnelObserved,
    TurnAllocated,
    TurnHeard,
    TurnLost,
    UseEndpoint,
    Wake,
)
from nostrvpn.paths.link import Link
from nostrvpn.paths.reflexive import REFRESH, ReflexiveProbe
from nostrvpn.paths.relay_book import RelayBook
from nostrvpn.paths.settings import PathSettings
from nostrvpn.paths.snapshot import LinkSnapshot, NatReport
from nostrvpn.stun.binding import StunKind, StunMessage, parse_stun

__all__ = [
    "AddPeer",
    "DatagramReceived",
    "Describe",
    "LinkChanged",
    "LocalAddress",
    "LocalAddresses",
    "NetworkChanged",
    "PathEffect",
    "PathEvent",
    "Paths",
    "Remember",
    "RemoteDescription",
    "RemovePeer",
    "Restart",
    "SendDatagram",
    "StunServers",
    "Tick",
    "Trace",
    "TunnelObserved",
    "UseEndpoint",
]

# Links kept; a mesh has tens of members, and each link costs some kilobytes.
MAX_PEERS = 1024
# USERNAME of a bind: see nostrvpn/stun/relaying.py.
BIND_USER = re.compile(r"[0-9a-f]{16}:[ab]\Z")
# Endpoints that routers lend us; a host has one or two routers.
MAX_MAPPED = 4


class Paths:
    """The machine. ``step`` never raises for input from outside: it drops and counts."""

    def __init__(
        self, *, stun_servers: tuple[Endpoint, ...] = (), settings: PathSettings | None = None
    ) -> None:
        self._settings = settings or PathSettings()
        self._probe = ReflexiveProbe(stun_servers, self._settings)
        self._links: dict[str, Link] = {}
        self._by_ufrag: dict[str, Link] = {}
        self._ufrags: dict[str, tuple[str, ...]] = {}
        self._shown: dict[str, tuple[object, ...]] = {}
        self._addresses: tuple[LocalAddress, ...] = ()
        self._port = 0
        self._surroundings = Surroundings()
        self._answers = Budget(ANSWERS_PER_SECOND, ANSWERS_PER_SECOND)
        self._probes = Budget(PROBES_PER_MINUTE / 60, PROBES_PER_MINUTE)
        self._book = RelayBook(self._probes)
        self._mapped: tuple[Endpoint, ...] = ()
        self._surveyed: tuple[object, ...] = ()
        self._agenda = Agenda()
        self.counters: Counter[str] = Counter()

    @property
    def deadline(self) -> float | None:
        """When a Tick is due next, in Moment.now's time."""
        links, refresh = self._agenda.deadline, self._probe.refresh_at
        if refresh is not None and (links is None or links > refresh + REFRESH):
            # Nobody needs our address, or our NAT open, while all links sleep.
            refresh = None
        return earliest(self._probe.urgent, refresh, links)

    @property
    def peers(self) -> tuple[str, ...]:
        """The peers added, in the order of their arrival."""
        return tuple(self._links)

    def snapshot(self, peer: str) -> LinkSnapshot | None:
        """Return what is known of the path to ``peer``; None if it was not added."""
        link = self._links.get(peer)
        return None if link is None else link.snapshot()

    def link(self, peer: str) -> Link | None:
        """Return the link of ``peer``, to look at: each step may, where ``snapshot`` costs too much."""
        return self._links.get(peer)

    def nat(self) -> NatReport:
        """Return what STUN servers told about our NAT."""
        return self._probe.report()

    def step(self, event: PathEvent, moment: Moment) -> list[PathEffect]:
        """Take one event; return the effects in the order to perform them."""
        match event:
            case AddPeer():
                return self._add(event, moment)
            case RemovePeer(peer):
                return self._remove(peer)
            case DatagramReceived():
                return self._receive(event, moment)
            case RemoteDescription(peer) | TunnelObserved(peer) | Restart(peer) | Wake(peer):
                return self._tell(peer, event, moment)
            case LocalAddresses(addresses, port):
                return self._move(addresses, port, moment)
            case StunServers(endpoints):
                sent = self._probe.use_servers(endpoints, moment)
                return [*sent, *self._survey(moment)]
            case MappedAddresses(endpoints):
                self._mapped = endpoints[:MAX_MAPPED]
                return self._survey(moment)
            case RelayOffers(offers):
                return self._settle_all(moment) if self._book.use_offers(offers) else []
            case ChannelOpened() | ChannelAnswered() | ChannelClosed():
                return self._channel(event, moment)
            case TurnAllocated() | TurnLost() | TurnHeard():
                return self._turn(event, moment)
            case NetworkChanged(slept):
                return self._network_changed(moment, slept=slept)
            case Tick():
                return self._tick(moment)
            case _:
                assert_never(event)

    def _tell(
        self, peer: str, event: RemoteDescription | TunnelObserved | Restart | Wake, moment: Moment
    ) -> list[PathEffect]:
        """Give an event to the link it is about."""
        link = self._links.get(peer)
        if link is None:
            return self._drop("unknown_peer") if isinstance(event, RemoteDescription) else []
        wanted = not isinstance(event, TunnelObserved)
        asked: list[PathEffect] = [*self._probe.freshen(moment)] if wanted else []
        asked += self._survey(moment) if asked else []
        match event:
            case RemoteDescription(_, description):
                try:
                    effects = link.described(description, moment)
                except PeerMisbehaved as exc:
                    return self._drop(exc.code)
            case TunnelObserved():
                effects = link.observed(event, moment)
            case Restart():
                effects = link.restart(moment)
            case Wake():
                effects = link.wake(moment)
        return asked + self._after(link, effects, moment)

    def _channel(
        self, event: ChannelOpened | ChannelAnswered | ChannelClosed, moment: Moment
    ) -> list[PathEffect]:
        """A channel's number is known to one link only."""
        effects: list[PathEffect] = []
        for link in list(self._links.values()):
            detours = link.detours
            if event.channel not in (*detours.relays.channels, *detours.turn.channels):
                continue
            done: list[PathEffect] = []
            match event:
                case ChannelOpened(channel, endpoint):
                    detours.channel_opened(channel, endpoint)
                case ChannelAnswered(channel, data):
                    try:
                        done = detours.relays.channel_answered(channel, data, moment.now)
                    except PeerMisbehaved as exc:
                        self._drop(exc.code)
                        # Open, it would carry for who has not shown that he is the relay.
                        done = [CloseChannel(channel)]
                case ChannelClosed(channel, reason):
                    detours.channel_closed(channel, reason, moment.now)
            effects += self._after(link, done, moment)
        return effects

    def _turn(
        self, event: TurnAllocated | TurnLost | TurnHeard, moment: Moment
    ) -> list[PathEffect]:
        match event:
            case TurnAllocated(server, relayed):
                self._book.turn[server] = relayed
            case TurnLost(server, _):
                self._book.turn.pop(server, None)
            case TurnHeard(server, remote, ufrag):
                link = self._by_ufrag.get(ufrag)
                return [] if link is None else link.detours.turn.heard(server, remote)
        return self._survey(moment) + self._settle_all(moment)

    def _settle_all(self, moment: Moment) -> list[PathEffect]:
        """Something that all links share changed."""
        links = list(self._links.values())
        return [effect for link in links for effect in self._after(link, [], moment)]

    def _add(self, event: AddPeer, moment: Moment) -> list[PathEffect]:
        if event.peer in self._links:
            return []
        if len(self._links) >= MAX_PEERS:
            return self._drop("too_many_peers")
        link = Link(event, self._settings, self._probes, self._book, moment)
        self._links[event.peer] = link
        started = link.start(self._surroundings, moment, asleep=event.asleep)
        return self._after(link, started, moment)

    def _remove(self, peer: str) -> list[PathEffect]:
        link = self._links.pop(peer, None)
        self._shown.pop(peer, None)
        self._agenda.forget(peer)
        for ufrag in self._ufrags.pop(peer, ()):
            self._by_ufrag.pop(ufrag, None)
        return [] if link is None else link.close()

    def _move(
        self, addresses: tuple[LocalAddress, ...], port: int, moment: Moment
    ) -> list[PathEffect]:
        before = survey(self._addresses, self._port, {}, self._settings, reflexive_pending=False)
        self._addresses, self._port = addresses, port
        now = survey(addresses, port, {}, self._settings, reflexive_pending=False)
        if before.versions == now.versions and before.prefixes == now.prefixes:
            # Known addresses: nothing to ask the STUN servers.
            return self._survey(moment)
        # Behind another router, what was seen of us behind the last one leads nowhere.
        sent = self._ask_servers(now.versions, moment, forget=before.hosts != now.hosts)
        return sent + self._survey(moment)

    def _ask_servers(
        self, versions: frozenset[int], moment: Moment, *, forget: bool = False
    ) -> list[PathEffect]:
        """Everything known of the way out may be wrong now: ask the STUN servers again."""
        if not forget and self._probe.just_began(versions, moment.now):
            return []  # addresses and routes change together: once is enough
        self._book.network_changed()
        sent = self._probe.start(versions, moment, forget=forget)
        if sent:
            self._book.asked(moment.now)
        return [*sent]

    def _network_changed(self, moment: Moment, *, slept: bool) -> list[PathEffect]:
        effects = self._ask_servers(self._surroundings.versions, moment)
        for link in list(self._links.values()):
            effects += self._after(link, link.network_changed(moment, slept=slept), moment)
        return effects + self._survey(moment)

    def _survey(self, moment: Moment) -> list[PathEffect]:
        """Work out our candidates again, and tell the links if they differ."""
        self._book.describe_nat(self._probe.mapping)
        # While they are asked anew none has answered, and a plan for a search may come just then.
        self._book.stun_servers = self._probe.mapping_servers or self._book.stun_servers
        endpoints = (self._mapped, self._probe.endpoints, tuple(self._book.turn.values()))
        known = (self._addresses, self._port, self._probe.pending, *endpoints)
        if known == self._surveyed:
            return []
        self._surveyed = known
        surroundings = survey(
            self._addresses,
            self._port,
            {
                CandidateKind.MAPPED: self._mapped,
                CandidateKind.REFLEXIVE: self._probe.endpoints,
                CandidateKind.RELAYED: self._book.turn.values(),
            },
            self._settings,
            reflexive_pending=self._probe.pending,
        )
        if surroundings == self._surroundings:
            return []
        self._surroundings = surroundings
        effects: list[PathEffect] = []
        for link in list(self._links.values()):
            effects += self._after(link, link.surroundings_changed(surroundings, moment), moment)
        return effects

    def _receive(self, event: DatagramReceived, moment: Moment) -> list[PathEffect]:
        try:
            message = parse_stun(event.data)
            if message.kind is StunKind.REQUEST:
                if self._probe.saw_request(message.transaction):
                    return []
                return self._request(message, event, moment)
            if message.kind is StunKind.INDICATION:
                return self._drop("indication")
            if self._probe.knows(message.transaction):
                self._probe.answered(message, event.source, moment)
                self._book.udp_passes = True
                return self._survey(moment)
            link = self._links.get(self._agenda.asked_by(message.transaction) or "")
            if link is None:
                return self._drop("unknown_transaction")
            if link.hard.knows(message.transaction):
                done = link.search_answered(message, event.source, moment)
            elif link.checks.knows(message.transaction):
                done = link.answered(message, event.source, moment)
            elif link.detours.relays.knows(message.transaction):
                done = link.relay_answered(message, event.source, moment)
            else:
                return self._drop("unknown_transaction")
            return self._after(link, done, moment)
        except PeerMisbehaved as exc:
            return self._drop(exc.code)

    def _request(
        self, message: StunMessage, event: DatagramReceived, moment: Moment
    ) -> list[PathEffect]:
        ufrag = message.username.partition(":")[0]
        link = self._by_ufrag.get(ufrag)
        password = None if link is None else link.announcer.password(ufrag)
        if link is None or password is None:
            # What a bound peer says to the relay is forwarded to us.
            is_bind = BIND_USER.match(message.username) is not None
            return self._drop("relayed_bind" if is_bind else "unknown_user")
        # RFC 8445 section 7.2.2 asks for each of these in a check.
        if not message.has_fingerprint or message.priority is None:
            return self._drop("incomplete_check")
        if not message.is_authentic(password):
            return self._drop("forged_check")
        if not self._answers.spend(event.source, moment.now):
            return self._drop("rate_limited")
        contacted, address_known = link.checks.has_contacted(event.source)
        arrived_at = (event.destination_ip, event.destination_port)
        done = link.asked(message, event.source, arrived_at, moment)
        unasked = not contacted and event.source not in link.detours.routes
        if unasked and event.destination_port is None:
            self._probe.saw_unsolicited(event.source, address_known=address_known)
        return self._after(link, done, moment)

    def _tick(self, moment: Moment) -> list[PathEffect]:
        effects: list[PathEffect] = []
        if self._probe.deadline is not None and self._probe.deadline <= moment.now:
            sent, _ = self._probe.tick(moment)
            effects += sent
            effects += self._survey(moment)
        for peer in self._agenda.due(moment.now):
            link = self._links[peer]
            effects += self._after(link, link.tick(moment), moment)
        return effects

    def _after(self, link: Link, effects: list[PathEffect], moment: Moment) -> list[PathEffect]:
        """Add what follows from a link's change: what to persist, and what to show."""
        effects = effects + link.settle(moment)
        if link.doubtful and not self._book.maps_by_destination:
            effects = [*effects, *self._probe.doubt(moment)]
        ufrags, known = link.announcer.ufrags, self._ufrags.get(link.peer, ())
        if ufrags != known:
            for ufrag in known:
                self._by_ufrag.pop(ufrag, None)
            self._by_ufrag |= dict.fromkeys(ufrags, link)
            self._ufrags[link.peer] = ufrags
        memory = link.memory()
        if memory is not None:
            effects = [*effects, memory]
        shown = (link.state, link.path, link.endpoint, link.crossed)
        if self._shown.get(link.peer) != shown:
            self._shown[link.peer] = shown
            effects = [*effects, LinkChanged(link.peer, link.snapshot())]
        self._agenda.note(link.peer, link.deadline, effects)
        return effects

    def _drop(self, code: str) -> list[PathEffect]:
        self.counters[code] += 1
        return []
