"""What the user of a node decided about using exits, and the words in which it is said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from nostrvpn.errors import PeerMisbehaved, UsageError, one_line
from nostrvpn.exits.kill_switch import KillSwitch

__all__ = [
    "AUTO",
    "BOUGHT",
    "MAX_BYPASS",
    "MAX_TRUSTED",
    "BypassKind",
    "BypassWord",
    "ExitSettings",
    "parse_bypass",
    "parse_network_word",
    "parse_resolver",
]

AUTO = "auto"
# The exit is what the market buys.
BOUGHT = "bought"
# Each is an element of a set of the packet filter; by hand nobody writes more.
MAX_BYPASS = 256
MAX_TRUSTED = 64

_MAX_WORD = 300
_MAX_UID = 2**32 - 2  # the last one means "no change" (setuid(2))
_UIDS = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?\Z")
# What systemd makes of names of units, and what a path of the v2 hierarchy may hold.
_CGROUP = re.compile(r"[A-Za-z0-9_.@:\\-]+(/[A-Za-z0-9_.@:\\-]+)*\Z")
_DOMAIN = re.compile(
    r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z][a-z0-9-]{0,62}\Z"
)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_EXAMPLES = "for example: 203.0.113.0/24, example.org, uid:1000, cgroup:user.slice/backup.service"


class BypassKind(Enum):
    """What a word of ``exit bypass`` is about."""

    NETWORK = "network"
    DOMAIN = "domain"
    UID = "uid"
    CGROUP = "cgroup"


@dataclass(frozen=True, slots=True)
class BypassWord:
    """One word, taken apart: of ``network``, ``uids`` (both ends included) and ``text`` (a domain, which
    stands for the names below it too, or a cgroup's path) the one that ``kind`` says is set."""

    kind: BypassKind
    network: IPv4Network | IPv6Network | None = None
    uids: tuple[int, int] = (0, 0)
    text: str = ""

    def __str__(self) -> str:
        match self.kind:
            case BypassKind.NETWORK:
                return str(self.network)
            case BypassKind.UID:
                first, last = self.uids
                return f"uid:{first}" if first == last else f"uid:{first}-{last}"
            case BypassKind.CGROUP:
                return f"cgroup:{self.text}"
            case BypassKind.DOMAIN:
                return self.text


def parse_bypass(word: str) -> BypassWord:
    """Return what a word of ``exit bypass`` means; UsageError if it means nothing."""
    text = word.strip()
    kind, colon, rest = text.partition(":")
    if len(text) > _MAX_WORD:
        raise UsageError("that is too long to go around the exit", _EXAMPLES)
    if kind == "uid" and colon:
        return _parse_uids(rest)
    if kind == "cgroup" and colon:
        path = rest.strip("/")
        if not _CGROUP.match(path) or ".." in path.split("/"):
            raise UsageError(f"{one_line(rest)!r} is no path of a cgroup", _EXAMPLES)
        return BypassWord(BypassKind.CGROUP, text=path)
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        name = text.lower().removesuffix(".")
        if not _DOMAIN.match(name):
            raise UsageError(
                f"{one_line(text)!r} is no address, network, domain, uid: or cgroup:", _EXAMPLES
            ) from None
        return BypassWord(BypassKind.DOMAIN, text=name)
    if network.prefixlen == 0:
        raise UsageError(f"{network} is everything", "to use no exit: nostrvpn exit off")
    return BypassWord(BypassKind.NETWORK, network)


def _parse_uids(text: str) -> BypassWord:
    found = _UIDS.match(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last <= _MAX_UID:
        raise UsageError(f"{one_line(text)!r} is no user id, and no range of them", _EXAMPLES)
    return BypassWord(BypassKind.UID, uids=(first, last))


def parse_resolver(text: str) -> str:
    """Return the address of a DNS resolver in its one spelling; UsageError if it is none."""
    try:
        address = ip_address(text.strip())
    except ValueError:
        raise UsageError(f"{one_line(text)!r} is no IP address", "for example: 9.9.9.9") from None
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        raise UsageError(f"{address} cannot be a resolver", "for example: 9.9.9.9")
    return str(address)


def parse_network_word(text: str) -> str:
    """Return a network's word, ``MAC PREFIX`` of its default gateway, in its one spelling.

    UsageError if it is none.
    """
    mac, _, prefix = text.strip().lower().partition(" ")
    try:
        if not _MAC.match(mac):
            raise ValueError(mac)
        return f"{mac} {ip_network(prefix.strip(), strict=False)}"
    except ValueError:
        hint = "for example: 'aa:bb:cc:dd:ee:ff 192.168.1.0/24', as exit trust list says"
        raise UsageError(f"{one_line(text)!r} is no network", hint) from None


@dataclass(frozen=True, slots=True)
class ExitSettings:
    """``exit``: a member's public key, ``AUTO``, ``BOUGHT``, or empty for none. ``resolver``: an IP
    address asked through the tunnel, or empty for the exit's own. ``bypass``: words as ``exit bypass``
    takes them. ``trusted``: networks in which no exit is used, ``MAC PREFIX`` of their default gateways.
    """

    exit: str = ""
    kill_switch: KillSwitch = KillSwitch.ON
    allow_lan: bool = False
    resolver: str = ""
    bypass: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether nothing was decided yet, or all was taken back."""
        return self == ExitSettings()

    @property
    def bypass_words(self) -> tuple[BypassWord, ...]:
        """The words of ``bypass``, taken apart."""
        return tuple(parse_bypass(word) for word in self.bypass)

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        return {
            "exit": self.exit,
            "kill_switch": self.kill_switch.value,
            "allow_lan": self.allow_lan,
            "resolver": self.resolver,
            "bypass": list(self.bypass),
            "trusted": list(self.trusted),
        }

    @classmethod
    def from_json(cls, stored: object) -> ExitSettings:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        if not isinstance(stored, Mapping):
            raise PeerMisbehaved("bad_record", "not an exit's settings")
        values: Mapping[str, Any] = stored
        try:
            kill_switch = KillSwitch(values.get("kill_switch"))
        except ValueError as exc:
            raise PeerMisbehaved("bad_record", "no such kill switch") from exc
        chosen, resolver = values.get("exit"), values.get("resolver")
        bypass = _texts(values.get("bypass"), MAX_BYPASS)
        trusted = _texts(values.get("trusted", []), MAX_TRUSTED)
        allow_lan = values.get("allow_lan")
        if (
            not isinstance(chosen, str)
            or not isinstance(resolver, str)
            or not isinstance(allow_lan, bool)
            or not re.match(rf"([0-9a-f]{{64}}|{AUTO}|{BOUGHT})?\Z", chosen)
        ):
            raise PeerMisbehaved("bad_record", "not an exit's settings")
        try:
            return cls(
                chosen,
                kill_switch,
                allow_lan,
                parse_resolver(resolver) if resolver else "",
                tuple(str(parse_bypass(word)) for word in bypass),
                tuple(parse_network_word(word) for word in trusted),
            )
        except UsageError as exc:
            raise PeerMisbehaved("bad_record", str(exc)) from exc


def _texts(value: object, most: int) -> list[str]:
    if not isinstance(value, list | tuple) or len(value) > most:
        raise PeerMisbehaved("bad_record", "not a list of words")
    if not all(isinstance(word, str) for word in value):
        raise PeerMisbehaved("bad_record", "not a list of words")
    return list(value)
