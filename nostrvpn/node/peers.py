"""What the node knows of each peer, and how far its tunnel is."""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from dataclasses import dataclass

from nostrvpn.config.addresses import check_relay_url
from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.exits.offer import ExitOffer
from nostrvpn.exits.offer import offer_to_json as exit_to_json
from nostrvpn.exits.offer import parse_offer as parse_exit
from nostrvpn.mesh.subnets import IPNetwork, parse_advertised
from nostrvpn.paths.description import Description
from nostrvpn.paths.relay_offers import RelayOffer, offer_to_json, parse_offer
from nostrvpn.paths.settings import PathSettings

__all__ = ["MAX_PEER_RELAYS", "Peer", "parse_relay_list", "parse_wireguard_key"]

MAX_PEER_RELAYS = 6


@dataclass(slots=True)
class Peer:
    """One peer. The persistent part is :meth:`to_json`; the rest is this run's.

    ``endpoint`` is what the path engine decided, ``held_until`` the moment (seconds, Moment.now)
    before which WireGuard is not told: the other side starts the handshake then, since two
    handshakes begun at once cancel each other and cost WireGuard's 5 s retry. ``heard_seq`` is the
    sequence number of the newest message in which the peer spoke of itself. ``guard`` is (old, new)
    while late packets of the old path may come, ``pin`` (local port, remote) where the peer is not
    reached from WireGuard's port, ``mtu`` the largest outer IP packet known to reach it, in bytes.
    ``advertised`` are the networks behind it that it offers to carry packets to, ``exit`` what it offers
    this node as the way to the internet.
    ``doorbell`` is where WireGuard's packets for it go while it sleeps; ``used_day`` is the last day
    (Unix time, UTC) on which it had a path that did not sleep.
    """

    public_key: str
    wireguard_key: str | None = None
    alias: str = ""
    relays: tuple[str, ...] = ()
    relay_offer: RelayOffer | None = None
    advertised: tuple[IPNetwork, ...] = ()
    exit: ExitOffer | None = None
    heard_seq: int = 0
    relays_at: float | None = None  # when it named other relays last (Moment.now)
    shared_at: float = 0.0  # until when its changes of the networks behind it are used up
    stored_at: float | None = None  # when what it said was persisted last
    roster_at: float | None = None  # when it was sent a part of the roster last
    asked_at: float | None = None  # when it was asked for one
    heard_at: float | None = None  # when it said anything last
    endpoint: Endpoint | None = None
    endpoint_generation: int = 0
    doorbell: Endpoint | None = None
    used_day: int = 0
    guard: tuple[Endpoint, Endpoint] | None = None
    pin: tuple[int, Endpoint] | None = None
    mtu: int | None = None
    told: Description | None = None
    heard: Description | None = None
    held_until: float | None = None
    watch_since: float | None = None
    poke_at: float | None = None
    wireguard_endpoint: Endpoint | None = None
    handshake_wall: float | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0

    def starts_handshake(self, me: str) -> bool:
        """Whether this node starts the WireGuard handshake: who offered does, of two the lower key.

        Without descriptions (a cached path after a restart) the peer may not know yet that it has to
        do anything, so we start.
        """
        if self.told is None or self.heard is None:
            return True
        answered = self.heard.answers == self.told.session
        answering = self.told.answers == self.heard.session
        return answered if answered != answering else me < self.public_key

    def to_json(self) -> dict[str, object]:
        """Return what survives a restart."""
        return {
            "wg": self.wireguard_key,
            "alias": self.alias,
            "relays": list(self.relays),
            "relay": None if self.relay_offer is None else offer_to_json(self.relay_offer),
            "routes": [str(network) for network in self.advertised],
            "exit": None if self.exit is None else exit_to_json(self.exit),
            "seq": self.heard_seq,
            "used": self.used_day,
        }

    @classmethod
    def from_json(cls, public_key: str, stored: object) -> Peer:
        """Rebuild a peer from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        if not isinstance(stored, dict):
            raise PeerMisbehaved("bad_record", "a damaged peer record")
        key, seq, used = stored.get("wg"), stored.get("seq", 0), stored.get("used", 0)
        offer = stored.get("relay")
        if type(seq) is not int or type(used) is not int:
            raise PeerMisbehaved("bad_record", "a damaged peer record")
        return cls(
            public_key,
            parse_wireguard_key(key) if key is not None else None,
            str(stored.get("alias", "")),
            parse_relay_list(stored.get("relays", [])),
            None if offer is None else parse_offer(offer, public_key, PathSettings()),
            parse_advertised(stored.get("routes")),
            parse_exit(stored.get("exit")),
            heard_seq=seq,
            used_day=used,
        )


def parse_wireguard_key(value: object) -> str:
    """Return a WireGuard public key (base64 of 32 bytes, not all zero); PeerMisbehaved otherwise."""
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or not any(raw):
        raise PeerMisbehaved("bad_message", "not a WireGuard key")
    return base64.b64encode(raw).decode()


def parse_relay_list(value: object) -> tuple[str, ...]:
    """Return a bounded list of relay URLs from outside, leaving out what is none."""
    if not isinstance(value, list):
        raise PeerMisbehaved("bad_message", "not a list of relays")
    urls: dict[str, None] = {}
    for url in value[:MAX_PEER_RELAYS]:
        # Shown in status and in logs, and kept: a URL in its one spelling, and nothing else.
        with suppress(ValueError):
            urls[check_relay_url(str(url))] = None
    return tuple(urls)
