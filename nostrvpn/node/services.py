"""What the services beside the node report: port mapping, TURN, our own relay, the firewall.

The node decides nothing about them; it shows what they say. Nothing said is None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nostrvpn.node.node import Node
    from nostrvpn.paths.relay_offers import RelayOffer
    from nostrvpn.paths.snapshot import LinkSnapshot
    from nostrvpn.relaying.snapshot import RelaySnapshot

__all__ = ["Services", "relay_document", "relay_name", "services", "via_name"]

_KEY_LENGTH = 64  # a public key in hex


@dataclass(frozen=True, slots=True)
class Services:
    """One look at all of them.

    ``port_mapping`` has the fields of a PortMapReport, and ``required``: whether the configuration
    insists; empty before anybody looked. ``turn_states`` says for each server how it stands, a
    failure as ``failed: REASON``; ``relay_snapshot`` is our own relay's (:func:`relay_document`),
    ``relay_offers`` are the peers'.
    """

    port_mapping: Mapping[str, object] = field(default_factory=dict)
    turn_states: Mapping[str, str] = field(default_factory=dict)
    relay_snapshot: Mapping[str, object] | None = None
    relay_error: str | None = None
    firewall_error: str | None = None
    relay_offers: tuple[RelayOffer, ...] = ()

    @property
    def failed_turn(self) -> dict[str, str]:
        """The TURN servers that failed, with the reason."""
        failed = {server: text for server, text in self.turn_states.items() if _failed(text)}
        return {
            server: text.partition(":")[2].strip() or "no reason was given"
            for server, text in failed.items()
        }


def _failed(state: str) -> bool:
    return state.startswith("failed")


def services(node: Node) -> Services:
    """Return what the services of a node said last."""
    return Services(
        port_mapping=node.port_mapping,
        turn_states=node.turn_states,
        relay_snapshot=node.relay_snapshot,
        relay_error=node.relay_error,
        firewall_error=node.firewall_error,
        relay_offers=node.relays.offers,
    )


def relay_document(relay: RelaySnapshot) -> dict[str, object]:
    """Return what is shown of our own relay: no user, no address of anybody. Bytes are this month's.

    Its host adds what is wrong there: ``slow`` and ``unsaved`` say why the kernel does not forward and
    why the month's bytes are not stored, or are None; ``forward_dropped`` counts the pairs that another
    firewall kept from the kernel; ``failures`` errors that nobody foresaw, ``failure`` is the last.
    """
    limits = relay.settings
    return {
        "pairs": len(relay.pairs),
        "websockets": relay.channels,
        "bytes": relay.month_bytes,
        "month": relay.month,
        "exhausted": relay.is_exhausted,
        "for": "anyone" if limits.for_anyone else "members",
        "limits": {
            "pairs": limits.max_pairs,
            "mbit": limits.mbit_per_s,
            "bytes": limits.monthly_bytes,
        },
        "counters": dict(relay.counters),
    }


def relay_name(node: Node, relay: str) -> str:
    """Return what a user calls a relay: a peer's name, an npub's beginning, or what it is given as."""
    if relay in node.peers or len(relay) == _KEY_LENGTH:
        return node.peer_name(relay)
    # A relay that the peer chose shows by its address; it may be one that we know as well.
    for offer in node.relays.offers:
        if relay in {str(endpoint.ip) for endpoint in offer.endpoints}:
            return node.peer_name(offer.relay)
    return relay  # an address, or "turn SERVER"


def via_name(node: Node, link: LinkSnapshot | None) -> str | None:
    """Return what a relayed path goes through, as a user calls it; None if it is not relayed."""
    if link is None or link.via is None or link.path != "relayed":
        return None
    return relay_name(node, link.via)
