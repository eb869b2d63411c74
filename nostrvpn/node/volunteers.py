"""Relays of strangers: offers on the public noticeboard, ours there, and theirs for us.

Read only while no member of our own network relays: a stranger who relays sees two addresses and how
much they exchange, which is more than nobody. Some of the offers are used, others by other nodes: whom
a node picks follows from its own key, so that load spreads and nobody can place himself first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, earliest
from nostrvpn.node.events import NodeEffect
from nostrvpn.paths.relay_offers import RelayOffer, offer_to_json, parse_offer
from nostrvpn.paths.settings import PathSettings
from nostrvpn.signaling.noticeboard import Notice

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["Volunteers", "put_up_offer", "read_notices"]

# How long an offer stands, and how often it is put up again.
EXPIRES_S = 7200
REPEAT_S = 3000.0
# While no relay takes it, or we have no public address.
RETRY_S = 5.0
# Offers remembered, and those of them that are tried.
MAX_KNOWN = 64
MAX_USED = 6
# All strangers share one set of credentials: the limits for them are per address.
STRANGERS = "anyone"


@dataclass(frozen=True, slots=True)
class _Known:
    offer: RelayOffer
    created: int
    lapses_at: float


class Volunteers:
    """What ``me`` (public key) knows of volunteers."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self.put_up_at: float | None = None

    @property
    def offers(self) -> tuple[RelayOffer, ...]:
        """The offers to use, at most six, of those that did not lapse."""
        standing = [known.offer for known in self._known.values()]
        return tuple(sorted(standing, key=self._order)[:MAX_USED])

    @property
    def lapses_at(self) -> float | None:
        """When the next offer lapses, in Moment.now's seconds; None: there is none."""
        return earliest(*(known.lapses_at for known in self._known.values()))

    def lapse(self, now: float) -> bool:
        """Forget the offers that stand no more; return whether those to use changed."""
        before = self.offers
        self._known = OrderedDict(
            (author, known) for author, known in self._known.items() if known.lapses_at > now
        )
        return self.offers != before

    def take(self, notice: Notice, settings: PathSettings, moment: Moment) -> bool:
        """Take a notice; return whether the offers to use changed. PeerMisbehaved if it is no offer."""
        # From here on our own clock counts: the wall clock may be set meanwhile.
        stands_s = min(EXPIRES_S, notice.created + EXPIRES_S - moment.wall)
        if stands_s <= 0:
            raise PeerMisbehaved("expired", "an offer that does not stand any more")
        body = notice.body.get("relay")
        offer = parse_offer(body, notice.author, settings)
        if not offer.endpoints or not _is_public(offer):
            # A stranger must not make us send into our own network.
            raise PeerMisbehaved("bad_relay_offer", "a volunteer without a public address")
        known = self._known.get(notice.author)
        if known is not None and known.created >= notice.created:
            return False
        before = self.offers
        self._known[notice.author] = _Known(offer, notice.created, moment.now + stands_s)
        self._known.move_to_end(notice.author)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return self.offers != before

    def is_due(self, now: float) -> bool:
        """Say whether it is time to put our own offer up; then ``was_put_up`` says how that went."""
        return self.put_up_at is None or now >= self.put_up_at

    def was_put_up(self, moment: Moment, *, sent: bool) -> None:
        """Our offer was ``sent``, or could not be: come back at ``put_up_at``."""
        jitter = 0.1 * moment.entropy.fraction()
        self.put_up_at = moment.now + (REPEAT_S * (1 - jitter) if sent else RETRY_S)

    def _order(self, offer: RelayOffer) -> bytes:
        return hashlib.sha256(f"{self._me}{offer.relay}".encode()).digest()


def _is_public(offer: RelayOffer) -> bool:
    ips = {endpoint.ip for endpoint in offer.endpoints}
    if any(not ip.is_global for ip in ips):
        return False
    if offer.websocket is None:
        return True
    url = urlsplit(offer.websocket)
    try:
        return ip_address(url.hostname or "") in ips
    except ValueError:
        # A name may lead anywhere, but no server inside has a certificate for it.
        return url.scheme == "wss"


def read_notices(node: Node, moment: Moment) -> list[NodeEffect]:
    """Take every notice that arrived in this step, and let old offers lapse.

    What is no offer is dropped and counted.
    """
    changed = node.volunteers.lapse(moment.now)
    while node.post.notices:
        notice = node.post.notices.pop(0)
        try:
            changed |= node.volunteers.take(notice, node.path_settings, moment)
        except PeerMisbehaved as exc:
            node.dropped[exc.code] += 1
    return node.offers_changed(moment) if changed else []


def put_up_offer(node: Node, moment: Moment) -> list[NodeEffect]:
    """Put our own offer to strangers on the noticeboard, if there is one and it is time."""
    role, volunteers = node.settings.relay, node.volunteers
    if role is None or not role.for_anyone or not volunteers.is_due(moment.now):
        return []
    offer = role.offer_for(STRANGERS, node.addresses)
    sent = offer is not None and node.post.pool.connected > 0
    volunteers.was_put_up(moment, sent=sent)
    if offer is None or not sent:
        return []
    key = node.settings.secret.volunteer_key()
    return node.post.put_up(key, {"relay": offer_to_json(offer)}, moment, expires_s=EXPIRES_S)
