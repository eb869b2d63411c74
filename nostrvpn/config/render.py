"""A Config as commented YAML: what was chosen stands, each default is there to uncomment."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from nostrvpn.config.model import Config

__all__ = ["render_config"]

_HEADER = """\
# Configuration of nostrvpn. Every line is optional; lines that start with '#' show the defaults.
# After a change: nostrvpn down && nostrvpn up
"""
_COMMENTS = {
    "name": "What other members call this node (a-z, 0-9, '-'). Default: the host's name.",
    "relays": "Nostr relays, in order of preference; 'active' of them are kept connected.",
    "proxy": "A SOCKS5 proxy for connections to Nostr relays; Tor's is socks5h://127.0.0.1:9050.\n"
    "# Packets, STUN and port mapping do not use it: peers and STUN servers still see this address.",
    "stun": "STUN servers (host:port) that tell this node its address as seen from outside.",
    "wireguard": "The tunnel. listen_port 0: chosen at random once, then kept.",
    "paths": "How paths through NATs are opened and kept. sleep_after_minutes 0: never.",
    "permissions": "What other members may do here where no rule says: none, ping, all, or network (as\n"
    "# its admins say). enforce best-effort: go on without nftables, open to all members.",
    "dns": "Members' names on this host. resolv_conf: may resolv.conf be edited, where neither\n"
    "# systemd-resolved nor resolvconf manages it.",
    "exit": "Being an exit for others: blocklists are files with names that guests get no address for;\n"
    "# private_names: answer about names of the own LAN. Using one: country_database, an .mmdb file.",
    "market": "Buying and selling exits. follow: your npub on Nostr; ratings by those whom it follows\n"
    "# count, and its mutes. reach 2: also by whom those follow. lists: others' exit-deny to obey.",
    "relay": "What this node carries, still sealed, for pairs that cannot meet directly.\n"
    "# offer: none, members or anyone. gigabytes: each month, 0: no cap. websocket: for members\n"
    "# whose network lets no UDP out; listen is IP:port, url how members reach it.",
    "turn": "TURN servers that relay when no member does: a list of url (turn:host:port),\n"
    "# username, and password or password_file.",
    "log_level": "debug, info, warning or error",
}


def render_config(config: Config) -> str:
    """Return YAML that parses back to the same Config; defaults are commented out."""
    default = Config()
    parts = [_HEADER]
    for name in config.__struct_fields__:
        value, usual = getattr(config, name), getattr(default, name)
        body = _section(name, value, usual)
        parts.append(f"\n# {_COMMENTS[name]}\n{body}")
    return "".join(parts)


def _section(name: str, value: Any, usual: Any) -> str:
    if not isinstance(value, msgspec.Struct):
        return _lines({name: value}, commented=value == usual)
    head = _comment(f"{name}:\n") if value == usual else f"{name}:\n"
    body = ""
    for field in value.__struct_fields__:
        inner = getattr(value, field)
        text = _lines({field: inner}, indent="  ")
        body += _comment(text) if inner == getattr(usual, field) else text
    return head + body


def _lines(value: dict[str, Any], *, indent: str = "", commented: bool = False) -> str:
    plain = msgspec.to_builtins(value)
    for key, inner in plain.items():
        plain[key] = list(inner) if isinstance(inner, tuple) else inner
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=False, width=1000)
    text = "".join(f"{indent}{line}\n" for line in text.splitlines())
    return _comment(text) if commented else text


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())
