"""The node's zone: who is called what, from the roster and the local user's aliases; ``resolve``."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import UserError
from nostrvpn.identity.keys import npub
from nostrvpn.mesh.addressing import ipv4_prefix, ipv6_prefix
from nostrvpn.mesh.zone import TOP, Finding, Outcome, Resident, Zone, make_zone, network_label

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["NodeNames", "guest_addresses", "own_addresses", "resolve_document"]

_RCODES = {
    Outcome.HOST: "NOERROR",
    Outcome.POINTER: "NOERROR",
    Outcome.EMPTY: "NOERROR",
    Outcome.NOBODY: "NXDOMAIN",
    Outcome.ELSEWHERE: "REFUSED",
}
_SOURCES = {
    "alias": "the name you gave it",
    "roster": "its name in the network",
    "npub": "its npub",
}


class NodeNames:
    """The zone of a node, made again only when what it is made of has changed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._zone: Zone | None = None
        self._made_of: tuple[object, ...] = ()

    def zone(self) -> Zone | None:
        """Return the zone as of now; None for a node that is in no network."""
        node, roster = self._node, self._node.membership.roster
        if roster is None or node.me not in roster.members:
            return None
        aliases = tuple((key, peer.alias) for key, peer in node.peers.items() if peer.alias)
        # A roster is a value: another one is another object.
        made_of = (roster, aliases, node.overlap is None)
        if self._zone is None or any(
            new is not old and new != old for new, old in zip(made_of, self._made_of, strict=True)
        ):
            self._zone, self._made_of = _make(node), made_of
        return self._zone


def _make(node: Node) -> Zone:
    roster = node.membership.roster
    assert roster is not None
    with_ipv4 = node.overlap is None
    residents = []
    for public_key, member in roster.members.items():
        address = roster.address(public_key)
        addresses: tuple[IPAddress, ...] = (address.ipv6,)
        addresses += (address.ipv4,) if with_ipv4 else ()
        peer = node.peers.get(public_key)
        alias = (peer.alias or "") if peer is not None else ""
        residents.append(Resident(public_key, member.name, alias, addresses))
    prefixes = (ipv6_prefix(roster.network_id),)
    return make_zone(
        network_label(roster.name, roster.network_id),
        residents,
        (*prefixes, ipv4_prefix(roster.network_id)) if with_ipv4 else prefixes,
    )


def own_addresses(node: Node) -> tuple[IPAddress, ...]:
    """Return this node's addresses in the mesh, IPv4 first; empty for a node in no network."""
    roster = node.membership.roster
    if roster is None or node.me not in roster.members:
        return ()
    own = roster.address(node.me)
    return (own.ipv6,) if node.overlap is not None else (own.ipv4, own.ipv6)


def guest_addresses(node: Node) -> frozenset[IPAddress]:
    """Return the addresses in the mesh of those who may use this node as an exit, if it is one."""
    roster, offering = node.membership.roster, node.exit_offer
    if roster is None or offering.settings is None:
        return frozenset()
    found = [roster.address(key) for key in offering.guests if key in roster.members]
    ipv4 = [address.ipv4 for address in found] if node.overlap is None else []
    return frozenset([*(address.ipv6 for address in found), *ipv4])


def resolve_document(node: Node, asked: str) -> dict[str, object]:
    """Say what this node itself answers for a name or an address, and why; UserError in no network.

    A name without a dot is completed with the network's domain, an npub with ``nvpn``.
    """
    zone = NodeNames(node).zone()
    if zone is None:
        raise UserError(
            "this node is in no network yet, so it knows no names",
            "run `nostrvpn invite NPUB` to start one, or `nostrvpn join LINK`",
        )
    name = _full_name(asked, zone)
    finding = zone.look_up(tuple(name.split(".")))
    resident = finding.resident
    return {
        "name": name,
        "answer": _RCODES[finding.outcome],
        "npub": npub(resident.public_key) if resident is not None else None,
        "addresses": [str(address) for address in finding.addresses],
        "pointer": finding.name or None,
        "text": _words(name, finding, zone),
        "dns": node.dns,
    }


def _full_name(asked: str, zone: Zone) -> str:
    text = asked.strip().lower().removesuffix(".")
    try:
        return ip_address(text).reverse_pointer
    except ValueError:
        pass
    if "." in text or text == TOP:
        return text
    return f"{text}.{TOP}" if text.startswith("npub1") else f"{text}.{zone.domain}"


def _words(name: str, finding: Finding, zone: Zone) -> str:
    labels = name.split(".")
    match finding.outcome:
        case Outcome.HOST:
            return f"a member, by {_SOURCES[finding.source]}"
        case Outcome.POINTER:
            return "an address of a member"
        case Outcome.EMPTY:
            return "a domain of this network, not a member"
        case Outcome.ELSEWHERE:
            return "not a name of this network: it is refused here, so the host's other servers say"
    if labels[-1] != TOP:
        return "no member has this address"
    if labels[0].startswith("npub1"):
        return "no member has this npub"
    if labels[1:] != zone.domain.split("."):
        return f"the names that this node knows end in {zone.domain}"
    if labels[0] in zone.shadowed:
        return "you gave this name to two members, so it leads to neither; rename one of them"
    return "nobody in the network has this name; see `nostrvpn peers`"
