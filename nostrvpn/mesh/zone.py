"""The names of one network: ``NAME.NETWORK.nvpn``, ``NPUB.nvpn``, and addresses back to names.

Names come from the roster and from the local user (aliases), never from a peer's own word. A zone is
a value: the node builds it, ``zone_answers`` puts it into DNS messages, ``nostrvpn resolve`` into words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_address

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import NostrvpnError
from nostrvpn.identity.keys import parse_npub
from nostrvpn.mesh.names import dns_label, free_label

__all__ = ["TOP", "Finding", "Outcome", "Resident", "Zone", "make_zone", "network_label"]

TOP = "nvpn"
# What of a network's id stands for a name that it does not have.
_ID_DIGITS = 8
# Labels under in-addr.arpa and ip6.arpa, and the bits that each stands for.
_REVERSE = {("arpa", "in-addr"): (4, 8), ("arpa", "ip6"): (6, 4)}

IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Resident:
    """One member: ``name`` is the roster's, ``alias`` what the local user calls it (or empty)."""

    public_key: str
    name: str
    alias: str
    addresses: tuple[IPAddress, ...]


class Outcome(Enum):
    """What there is under a name."""

    HOST = "host"
    POINTER = "pointer"
    EMPTY = "empty"  # the name exists, with names below it and nothing at it
    NOBODY = "nobody"
    ELSEWHERE = "elsewhere"  # not ours to say


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one look: for a POINTER ``name`` is where it points, ``origin`` the zone's top."""

    outcome: Outcome
    origin: str = TOP
    resident: Resident | None = None
    name: str = ""
    source: str = ""  # alias, roster or npub

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The addresses of a HOST."""
        found = self.resident if self.outcome is Outcome.HOST else None
        return found.addresses if found is not None else ()


@dataclass(frozen=True, slots=True)
class Zone:
    """Every name that this node answers for. Made by :func:`make_zone`."""

    network: str
    prefixes: tuple[IPNetwork, ...]
    _labels: Mapping[str, tuple[Resident, str]] = field(repr=False)
    _keys: Mapping[str, Resident] = field(repr=False)
    _pointers: Mapping[IPAddress, str] = field(repr=False)
    shadowed: frozenset[str] = (
        frozenset()
    )  # labels that lead to nobody, since two aliases claim them

    @property
    def domain(self) -> str:
        """The network's own domain: ``home.nvpn``."""
        return f"{self.network}.{TOP}"

    @property
    def origins(self) -> tuple[str, ...]:
        """The top of everything this node answers for: names, then addresses."""
        return (TOP, *(reverse_origin(prefix) for prefix in self.prefixes))

    def name_of(self, public_key: str) -> str | None:
        """Return the full name by which a member is best known here; None for a stranger."""
        resident = self._keys.get(public_key)
        found = (
            self._pointers.get(resident.addresses[0]) if resident and resident.addresses else None
        )
        return found

    def look_up(self, labels: tuple[str, ...]) -> Finding:
        """Look for a name, given as its labels in lower case, the leftmost first, without the root."""
        match labels[::-1]:
            case ("nvpn",):
                return Finding(Outcome.EMPTY)
            case ("nvpn", network) if network == self.network:
                return Finding(Outcome.EMPTY)
            case ("nvpn", network, label) if network == self.network and label in self._labels:
                resident, source = self._labels[label]
                return Finding(Outcome.HOST, resident=resident, source=source)
            case ("nvpn", label) if resident_ := self._by_npub(label):
                return Finding(Outcome.HOST, resident=resident_, source="npub")
            case ("nvpn", *_):
                return Finding(Outcome.NOBODY)
            case ("arpa", family, *numbers) if ("arpa", family) in _REVERSE:
                return self._reverse(family, tuple(numbers))
        return Finding(Outcome.ELSEWHERE)

    def _by_npub(self, label: str) -> Resident | None:
        if not label.startswith("npub1"):
            return None
        try:
            return self._keys.get(parse_npub(label))
        except NostrvpnError:
            return None

    def _reverse(self, family: str, numbers: tuple[str, ...]) -> Finding:
        version, bits = _REVERSE["arpa", family]
        for prefix in self.prefixes:
            fixed = prefix.prefixlen // bits
            own = tuple(reverse_origin(prefix).split(".")[-3::-1])
            if prefix.version != version or numbers[:fixed] != own:
                continue
            origin = reverse_origin(prefix)
            if len(numbers) < prefix.max_prefixlen // bits:
                return Finding(Outcome.EMPTY, origin)
            found = self._pointers.get(_address(version, numbers)) if _is_address(numbers) else None
            if found is None:
                return Finding(Outcome.NOBODY, origin)
            return Finding(Outcome.POINTER, origin, name=found)
        return Finding(Outcome.ELSEWHERE)


def make_zone(network: str, residents: Iterable[Resident], prefixes: Iterable[IPNetwork]) -> Zone:
    """Return the zone of one network; ``network`` is a DNS label (:func:`network_label`).

    An alias goes before a name in the roster, so that nobody can take a name which the local user
    gave to somebody else. Of equal names in the roster the later ones get ``-2``, ``-3`` …; an alias
    that two members have leads to neither. ``prefixes`` are /8, /16, /24 (IPv4) or a multiple of 4.
    """
    members = tuple(residents)
    aliases = Counter(label for member in members if (label := dns_label(member.alias, "")))
    labels: dict[str, tuple[Resident, str]] = {}
    best: dict[str, str] = {}
    for member in members:
        alias = dns_label(member.alias, "")
        if alias and aliases[alias] == 1:
            labels[alias] = (member, "alias")
            best[member.public_key] = alias
    taken = set[str]()
    for member in members:
        label = free_label(dns_label(member.name), taken)
        taken.add(label)
        if label not in aliases:
            labels[label] = (member, "roster")
            best.setdefault(member.public_key, label)
    pointers = {
        address: f"{best[member.public_key]}.{network}.{TOP}"
        for member in members
        if member.public_key in best
        for address in member.addresses
    }
    shadowed = frozenset(label for label, count in aliases.items() if count > 1)
    keys = {member.public_key: member for member in members}
    return Zone(network, tuple(prefixes), labels, keys, pointers, shadowed)


def network_label(name: str, network_id: str) -> str:
    """Return the DNS label of a network: its name's, or else the first digits of its id."""
    return dns_label(name, network_id[:_ID_DIGITS])


def reverse_origin(prefix: IPNetwork) -> str:
    """Return the domain of a prefix's addresses: ``70.10.in-addr.arpa``."""
    bits = 8 if prefix.version == 4 else 4
    left_out = (prefix.max_prefixlen - prefix.prefixlen) // bits
    return ".".join(prefix.network_address.reverse_pointer.split(".")[left_out:])


def _is_address(numbers: tuple[str, ...]) -> bool:
    if len(numbers) == 4:
        return all(re.fullmatch(r"0|[1-9][0-9]{0,2}", text) and int(text) < 256 for text in numbers)
    return len(numbers) == 32 and all(re.fullmatch(r"[0-9a-f]", text) for text in numbers)


def _address(version: int, numbers: tuple[str, ...]) -> IPAddress:
    if version == 4:
        return ip_address(".".join(numbers))
    digits = "".join(numbers)
    return ip_address(":".join(digits[at : at + 4] for at in range(0, 32, 4)))
