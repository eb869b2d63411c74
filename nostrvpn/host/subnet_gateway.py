"""This host as the way into the networks behind it: a value, and the nft table that goes with it.

Who may be forwarded from the tunnel is said in ``inbound.py``. Here is the rest, a table per interface:

- Source addresses of members become the host's own on their way out (SNAT), so that hosts behind it
  answer without a route; only from members' addresses and only to shared networks.
- Where forwarding was off before, it is on now for these interfaces (IPv4) or for all (IPv6). So what
  neither comes from the tunnel nor goes there is dropped: the host becomes no router for anything
  else. What was set up by others passes: replies, published ports, and packets of our own relay.
- The table's sets remember which settings of the host were off (``io/subnet_gateway.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from nostrvpn.host.firewall import table_name
from nostrvpn.host.state import IPNetwork

__all__ = ["Gateway", "gateway_marks", "gateway_table", "render_gateway"]

_DIGEST_CHARS = 16


@dataclass(frozen=True, slots=True)
class Gateway:
    """The networks to forward into, from members in ``overlay``; the empty value is no table."""

    networks: frozenset[IPNetwork] = frozenset()
    overlay: frozenset[IPNetwork] = frozenset()
    snat: bool = True

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions to forward."""
        return frozenset(network.version for network in self.networks)

    @property
    def summary(self) -> str:
        """What is asked, in a few words for a log."""
        if not self.networks:
            return "removed"
        names = ", ".join(sorted(map(str, self.networks)))
        return f"forward to {names}{' with the own address' if self.snat else ''}"


def gateway_table(interface: str) -> str:
    """Return the name of the table (family inet) for an interface."""
    return f"{table_name(interface)}_subnets"


def render_gateway(
    gateway: Gateway,
    interface: str,
    routed4: Iterable[str],
    routed6: Iterable[str],
    advertised: Iterable[str],
) -> str:
    """Return an nft script that, as one transaction, replaces our table by what is wanted.

    The rest is to be remembered, names of interfaces: those that did not forward IPv4, and IPv6, and
    those whose ``accept_ra`` was 1.
    """
    name, mark = gateway_table(interface), _digest(gateway, interface)
    routed6 = list(routed6)
    body = "".join(
        f"\tset {label} {{ type ifname; {_elements(names)}}}\n"
        for label, names in (
            ("routed4", routed4),
            ("routed6", routed6),
            ("advertised", advertised),
        )
    )
    body += f"\tset opened {{ type nf_proto; {'elements = { ipv6 }; ' if routed6 else ''}}}\n"
    for chain, hook, rules in _chains(gateway, interface):
        text = "".join(f'\t\t{rule} comment "{mark}"\n' for rule in rules)
        body += f"\tchain {chain} {{\n\t\ttype {hook}\n{text}\t}}\n"
    return f"table inet {name} {{}}\ndelete table inet {name}\ntable inet {name} {{\n{body}}}\n"


def gateway_marks(gateway: Gateway, interface: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as ``gateway`` wants it."""
    count = sum(len(rules) for _, _, rules in _chains(gateway, interface))
    return (_digest(gateway, interface),) * count


def _digest(gateway: Gateway, interface: str) -> str:
    text = repr(_chains(gateway, interface))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]


def _elements(names: Iterable[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in sorted(names))
    return f"elements = {{ {quoted} }}; " if quoted else ""


def _chains(gateway: Gateway, interface: str) -> list[tuple[str, str, list[str]]]:
    """Return (name, hook, rules) of each chain, in a fixed order."""
    forward = [
        f'iifname "{interface}" accept',
        f'oifname "{interface}" accept',
        "ct direction reply accept",
        "ct status dnat accept",
        "ct state untracked accept",
        "meta nfproto ipv4 iifname @routed4 drop",
        "meta nfproto @opened drop",
    ]
    hide = [
        f'oifname != "{interface}" {word} saddr {source} {word} daddr {target} masquerade'
        for version, word in ((4, "ip"), (6, "ip6"))
        if (source := _set(gateway.overlay, version))
        and (target := _set(gateway.networks, version))
        and gateway.snat
    ]
    return [
        ("forward", "filter hook forward priority -5; policy accept;", forward),
        ("postrouting", "nat hook postrouting priority 100; policy accept;", hide),
    ]


def _set(networks: Iterable[IPNetwork], version: int) -> str:
    # Of networks within each other the widest says it all; nft refuses overlaps in a set.
    mine = [network for network in networks if network.version == version]
    widest = [
        n
        for n in mine
        if not any(n != wide and n.overlaps(wide) and wide.prefixlen < n.prefixlen for wide in mine)
    ]
    return f"{{ {', '.join(sorted(map(str, widest)))} }}" if widest else ""
