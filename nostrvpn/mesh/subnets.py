"""Networks behind members, as values: which may be shared at all, and what this node's user decided.

A network is carried through a member only if three agree: the member offers it (*advertised*), an
admin allowed that in the roster (*approved*), and the user of this node wants it (*accepted*).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_network

from nostrvpn.errors import PeerMisbehaved, UsageError, one_line

__all__ = [
    "MAX_ADVERTISED",
    "MAX_CHOICES",
    "Choice",
    "IPNetwork",
    "SubnetSettings",
    "covering_route",
    "objection",
    "parse_advertised",
    "parse_subnet",
]

IPNetwork = IPv4Network | IPv6Network

# 32 networks are 1,400 bytes of a message at most.
MAX_ADVERTISED = 32
# A choice for each of a few networks behind each of some dozens of routers.
MAX_CHOICES = 256
# Wider than any organization's own (10.0.0.0/8): several halves of the internet would be a default
# route that does not say so.
_WIDEST = {4: 8, 6: 16}
# Spec: RFC 6890 (IANA special-purpose addresses).
_NEVER = {
    "it is this host's own loopback": ("127.0.0.0/8", "::1/128"),
    "it is link-local: such addresses end at the next router": ("169.254.0.0/16", "fe80::/10"),
    "it is multicast": ("224.0.0.0/4", "ff00::/8"),
    "no host has such an address": ("0.0.0.0/8", "240.0.0.0/4", "::/96", "::ffff:0:0/96"),
}
_EXAMPLE = "for example: 192.168.5.0/24, or fd12:3456:789a::/48"


def parse_subnet(text: str) -> IPNetwork:
    """Parse a network as a user writes it; UsageError says what is wrong with it."""
    try:
        return ip_network(text)
    except ValueError as exc:
        try:
            whole = ip_network(text, strict=False)
        except ValueError:
            raise UsageError(f"{one_line(text)!r} is not a network", _EXAMPLE) from exc
        raise UsageError(f"{text!r} is one address in a network", f"write {whole}") from exc


def objection(network: IPNetwork, overlay: Iterable[IPNetwork] = ()) -> str | None:
    """Return why nobody may share ``network`` (half a sentence), or None.

    ``overlay``: the prefixes of the members' own addresses. Who held a part of them could speak in
    the name of members that are not connected.
    """
    if network.prefixlen == 0:
        return "a default route is what exits are for"
    for reason, spans in _NEVER.items():
        if any(_overlap(network, ip_network(span)) for span in spans):
            return reason
    if network.prefixlen < _WIDEST[network.version]:
        return f"it is too wide: /{_WIDEST[network.version]} is the widest"
    for prefix in overlay:
        if _overlap(network, prefix):
            return f"it overlaps the members' own addresses, {prefix}"
    return None


def parse_advertised(value: object) -> tuple[IPNetwork, ...]:
    """Return the networks that a peer offers, sorted, without what nobody may share.

    PeerMisbehaved if it is no list of at most ``MAX_ADVERTISED`` texts. None is an empty list.
    """
    items = [] if value is None else value
    if not isinstance(items, list) or len(items) > MAX_ADVERTISED:
        raise PeerMisbehaved("bad_message", "not a list of networks")
    found: set[IPNetwork] = set()
    for text in items:
        # The longest, ffff:…/128, has 43 characters.
        if not isinstance(text, str) or len(text) > 43:
            raise PeerMisbehaved("bad_message", "not a network")
        try:
            network = ip_network(text)
        except ValueError as exc:
            raise PeerMisbehaved("bad_message", "not a network") from exc
        if objection(network) is None:
            found.add(network)
    return tuple(sorted(found, key=_order))


def covering_route(network: IPNetwork, routes: Iterable[IPNetwork]) -> IPNetwork | None:
    """Return a route of the host that a route to ``network`` would hide (a part of), or None.

    That is an equal or a wider one. What is more specific than ``network`` stays as it is, for more
    specific routes win; default routes are there to be refined.
    """
    found = (r for r in routes if r.prefixlen > 0 and _covers(r, network))
    return max(found, key=lambda route: route.prefixlen, default=None)


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _covers(wide: IPNetwork, narrow: IPNetwork) -> bool:
    return _overlap(wide, narrow) and wide.prefixlen <= narrow.prefixlen


def _order(network: IPNetwork) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


@dataclass(frozen=True, slots=True)
class Choice:
    """The user takes (or refuses) ``network`` from ``who``.

    ``who``: a public key, or empty for every member; ``network`` None: whatever that one shares, else
    this network and its parts. ``force``: although it hides a part of a local network.
    """

    who: str
    network: IPNetwork | None
    accept: bool
    force: bool = False

    def is_about(self, router: str, network: IPNetwork) -> bool:
        """Whether the choice speaks of ``network`` behind ``router``."""
        whose = self.who in ("", router)
        return whose and (self.network is None or _covers(self.network, network))

    def is_within(self, other: Choice) -> bool:
        """Whether this one is about nothing that ``other`` is not about."""
        if other.who not in ("", self.who):
            return False
        if other.network is None:
            return True
        return self.network is not None and _covers(other.network, self.network)

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        network = None if self.network is None else str(self.network)
        return {"who": self.who, "network": network, "accept": self.accept, "force": self.force}


@dataclass(frozen=True, slots=True)
class SubnetSettings:
    """What the user of one node decided: what it shares, how, and what it takes from whom.

    ``snat``: hosts behind this node see its address instead of the member's, so they need no route.
    """

    advertised: tuple[IPNetwork, ...] = ()
    snat: bool = True
    choices: tuple[Choice, ...] = ()

    def advertising(self, networks: Iterable[IPNetwork], *, withdraw: bool) -> SubnetSettings:
        """Return the settings with (or without) these networks shared; UsageError if too many."""
        changed = set(networks)
        kept = set(self.advertised) - changed if withdraw else set(self.advertised) | changed
        if len(kept) > MAX_ADVERTISED:
            raise UsageError(f"a node shares at most {MAX_ADVERTISED} networks", "share wider ones")
        return replace(self, advertised=tuple(sorted(kept, key=_order)))

    def choosing(self, choice: Choice) -> SubnetSettings:
        """Return the settings with a choice, in the place of those that it makes pointless."""
        kept = tuple(one for one in self.choices if not one.is_within(choice))
        # Refusing is how it begins: only what is accepted more widely needs a word against it.
        if choice.accept or any(_applies(one, choice) for one in kept):
            kept = (*kept, choice)
        if len(kept) > MAX_CHOICES:
            raise UsageError(f"a node keeps at most {MAX_CHOICES} choices", "accept wider networks")
        return replace(self, choices=kept)

    def choice_about(self, router: str, network: IPNetwork) -> Choice | None:
        """Return the choice that decides about ``network`` behind ``router``, or None.

        A narrower one beats a wider one; of two that are not within each other, refusing wins.
        """
        found = [choice for choice in self.choices if choice.is_about(router, network)]
        narrow = [
            choice
            for choice in found
            if not any(one is not choice and one.is_within(choice) for one in found)
        ]
        return min(narrow, key=lambda choice: choice.accept, default=None)

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        return {
            "advertised": [str(network) for network in self.advertised],
            "snat": self.snat,
            "choices": [choice.to_json() for choice in self.choices],
        }

    @classmethod
    def from_json(cls, stored: object) -> SubnetSettings:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        fields = stored if isinstance(stored, Mapping) else {}
        snat, choices = fields.get("snat"), fields.get("choices")
        if not isinstance(snat, bool) or not isinstance(choices, list):
            raise PeerMisbehaved("bad_record", "not the settings of subnets")
        if len(choices) > MAX_CHOICES:
            raise PeerMisbehaved("bad_record", "too many choices about subnets")
        advertised = parse_advertised(fields.get("advertised"))
        return cls(advertised, snat, tuple(_parse_choice(one) for one in choices))


def _applies(accepted: Choice, refused: Choice) -> bool:
    """Whether something that is accepted may be what was refused."""
    if not accepted.accept or not (accepted.who == "" or refused.who in ("", accepted.who)):
        return False
    if accepted.network is None or refused.network is None:
        return True
    return _covers(accepted.network, refused.network)


def _parse_choice(stored: object) -> Choice:
    fields = stored if isinstance(stored, Mapping) else {}
    who, text = fields.get("who"), fields.get("network")
    accept, force = fields.get("accept"), fields.get("force")
    try:
        if not isinstance(who, str) or not isinstance(accept, bool) or not isinstance(force, bool):
            raise ValueError("mistyped")
        if not (text is None or isinstance(text, str)) or len(bytes.fromhex(who)) not in (0, 32):
            raise ValueError("mistyped")
        return Choice(who, None if text is None else ip_network(text), accept, force)
    except ValueError as exc:
        raise PeerMisbehaved("bad_record", "a damaged choice about subnets") from exc
