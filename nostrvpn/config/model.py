"""The settings that exist, with defaults and limits. An empty file is a good configuration."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from nostrvpn.config.defaults import DEFAULT_RELAYS, DEFAULT_STUN
from nostrvpn.config.names import NAME_PATTERN

__all__ = [
    "INTERFACE_PATTERN",
    "Config",
    "Dns",
    "Exit",
    "Market",
    "Paths",
    "Permissions",
    "Relay",
    "Relays",
    "Turn",
    "WebSocket",
    "WireGuard",
]

# Linux: IFNAMSIZ is 16 with the final NUL; '/', whitespace and ':' are refused by the kernel.
# The same as host.state.is_interface_name asks.
INTERFACE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z"


class Relays(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nostr relays: where nodes leave sealed messages for each other."""

    # In order of preference. More than 32 would only lengthen the search for a fit one.
    urls: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=32)] = DEFAULT_RELAYS
    # How many are kept connected; the rest of the list stands by.
    active: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4


class WebSocket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A relay's entrance for members whose network lets no UDP out."""

    # IP:port; empty: no such entrance.
    listen: Annotated[str, msgspec.Meta(max_length=64)] = ""
    # Where members reach it, if that is another name or port (a certificate's host, a proxy).
    url: Annotated[str, msgspec.Meta(max_length=200)] = ""
    # Files in PEM; both or none. None: ws://, or a proxy before it does TLS.
    certificate: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    key: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class Relay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this node carries for pairs that cannot meet directly. It sees sealed packets only."""

    offer: Literal["none", "members", "anyone"] = "none"
    # Public addresses to announce, one a family; none: those of the interfaces that are public.
    address: Annotated[tuple[str, ...], msgspec.Meta(max_length=2)] = ()
    # Each pair costs one UDP port; a mesh of 20 in which nobody reaches anybody has 190.
    pairs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 256
    # Megabits per second that one pair may use.
    mbit: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 100
    # Per calendar month, for all pairs together; 0: no cap.
    gigabytes: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    # UDP ports to lend, one a pair; a router or firewall before this node must let them in.
    ports: Annotated[str, msgspec.Meta(max_length=11)] = "33000-33999"
    websocket: WebSocket = WebSocket()
    # Use relays that strangers volunteer, where no member relays: they see two addresses and volumes.
    volunteers: bool = True


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TURN server (RFC 8656) that relays when no member does."""

    url: Annotated[str, msgspec.Meta(max_length=300)]
    # RFC 8489 section 14.3: fewer than 509 bytes.
    username: Annotated[str, msgspec.Meta(max_length=508)] = ""
    password: Annotated[str, msgspec.Meta(max_length=256)] = ""
    # A file whose first line is the password; keeps it out of the configuration.
    password_file: Annotated[str, msgspec.Meta(max_length=4096)] = ""

    def __repr__(self) -> str:
        return f"Turn(url={self.url!r}, username={self.username!r})"


class WireGuard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tunnel's device."""

    interface: Annotated[str, msgspec.Meta(pattern=INTERFACE_PATTERN)] = "nvpn0"
    # IPv6 needs 1280 (RFC 8200 section 5); WireGuard adds up to 80 bytes, so it fits almost every
    # link. Where probes find that the path to a peer passes more or less, its route says so.
    mtu: Annotated[int, msgspec.Meta(ge=1280, le=8920)] = 1280
    # 0: chosen at random once, then kept.
    listen_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    backend: Literal["auto", "kernel", "userspace"] = "auto"
    # Seconds between empty packets that hold a NAT mapping open; 0 sends none.
    keepalive: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 25


class Paths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How paths are found and kept."""

    # Hops that an opener travels: past the own NAT, and not as far as the peer's.
    opener_ttl: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    # Ask the router for a port (PCP, NAT-PMP, UPnP); "required": say so when none grants one.
    port_mapping: bool | Literal["required"] = True
    # Guess the ports of NATs that give another port for each destination: some hundred packets.
    hard_nat_search: bool = True
    # Minutes (0.05: three seconds) without traffic after which a path is no longer kept open; 0:
    # never. A day at most.
    sleep_after_minutes: Annotated[float, msgspec.Meta(ge=0, le=1440)] = 15


class Permissions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What other members may do at this node, where no rule says; "network": as its admins say."""

    inbound: Literal["network", "none", "ping", "all"] = "network"
    # Whether the devices of this node's owner may everything.
    same_owner: bool | Literal["network"] = "network"
    # Without nftables nothing can be kept out: "require" then does not start.
    enforce: Literal["require", "best-effort"] = "require"


class Dns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names of members (NAME.NETWORK.nvpn) for the programs on this host."""

    enabled: bool = True
    # Edit resolv.conf where neither systemd-resolved nor resolvconf manages it.
    resolv_conf: bool = False


class Exit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this node does as an exit for others, and what it knows of those that it uses."""

    # Files with names that guests get no address for: hosts files, or one domain a line.
    blocklists: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=4096)], ...], msgspec.Meta(max_length=8)
    ] = ()
    # Answer guests about names of our own LAN, and with private addresses.
    private_names: bool = False
    # A file in MaxMind's format (.mmdb) that says in which country addresses are; needs maxminddb.
    country_database: Annotated[str, msgspec.Meta(max_length=4096)] = ""


_Npub = Annotated[str, msgspec.Meta(pattern=r"^\Z|^npub1[02-9ac-hj-np-z]{58}\Z")]


class Market(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where exits are bought and sold, and whose word on sellers counts."""

    # The user's npub on Nostr: whom it follows and mutes; empty: nobody's word counts.
    follow: _Npub = ""
    # 1: ratings by those whom it follows; 2: also by those whom they follow.
    reach: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    # Whose exit-deny lists (NIP-51) are obeyed too.
    lists: Annotated[tuple[_Npub, ...], msgspec.Meta(max_length=16)] = ()
    # Nostr relays where offers are; none: those of relays.urls, over connections of their own.
    relays: Annotated[tuple[str, ...], msgspec.Meta(max_length=12)] = ()


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the configuration file can say. An empty ``name`` means the host's own name."""

    name: Annotated[str, msgspec.Meta(pattern=rf"^\Z|{NAME_PATTERN}")] = ""
    relays: Relays = Relays()
    # socks5h://HOST:PORT of a proxy (Tor: 127.0.0.1:9050) for connections to Nostr relays; empty: none.
    proxy: Annotated[str, msgspec.Meta(max_length=300)] = ""
    # host:port of STUN servers; two that answer are enough.
    stun: Annotated[tuple[str, ...], msgspec.Meta(max_length=32)] = DEFAULT_STUN
    wireguard: WireGuard = WireGuard()
    paths: Paths = Paths()
    dns: Dns = Dns()
    exit: Exit = Exit()
    market: Market = Market()
    permissions: Permissions = Permissions()
    relay: Relay = Relay()
    # Tried in this order; more than a few only cost time.
    turn: Annotated[tuple[Turn, ...], msgspec.Meta(max_length=8)] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
