"""The settings that exist, with defaults and limits. An empty file is a good configuration."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from nostrvpn.config.defaults import DEFAULT_RELAYS, DEFAULT_STUN
from nostrvpn.config.names import NAME_PATTERN

__all__ = ["INTERFACE_PATTERN", "Config", "Paths", "Relays", "WireGuard"]

# Linux: IFNAMSIZ is 16 with the final NUL; '/', whitespace and ':' are refused by the kernel.
INTERFACE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$"


class Relays(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nostr relays: where nodes leave sealed messages for each other."""

    # In order of preference. More than 32 would only lengthen the search for a fit one.
    urls: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=32)] = DEFAULT_RELAYS
    # How many are kept connected; the rest of the list stands by.
    active: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4


class WireGuard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tunnel's device."""

    interface: Annotated[str, msgspec.Meta(pattern=INTERFACE_PATTERN)] = "nvpn0"
    # IPv6 needs 1280 (RFC 8200 section 5); WireGuard adds up to 80 bytes, so it fits every link.
    mtu: Annotated[int, msgspec.Meta(ge=1280, le=8920)] = 1280
    # 0: chosen at random once, then kept.
    listen_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    backend: Literal["auto", "kernel", "userspace"] = "auto"
    # Seconds between empty packets that hold a NAT mapping open; 0 sends none.
    keepalive: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 25


class Paths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How direct paths are found."""

    # Hops that an opener travels: past the own NAT, and not as far as the peer's.
    opener_ttl: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the configuration file can say. An empty ``name`` means the host's own name."""

    name: Annotated[str, msgspec.Meta(pattern=f"^$|{NAME_PATTERN}")] = ""
    relays: Relays = Relays()
    # host:port of STUN servers; two that answer are enough.
    stun: Annotated[tuple[str, ...], msgspec.Meta(max_length=32)] = DEFAULT_STUN
    wireguard: WireGuard = WireGuard()
    paths: Paths = Paths()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
