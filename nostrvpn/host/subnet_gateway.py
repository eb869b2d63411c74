"""This host as the way into the networks behind it, and to the internet: a value, and its nft table.

Who may be forwarded from the tunnel is said in ``inbound.py``. Here is the rest, a table per interface:

- Source addresses of members become the host's own on their way out (SNAT), so that hosts behind it
  answer without a route; only from members' addresses and only to shared networks. Those of an exit's
  guests always do, with ports drawn at random away from WireGuard's own: two guests behind one address
  must not guess each other's (port shadowing), nor sit on the port that members reach this host by.
- Where forwarding was off before, it is on now for these interfaces (IPv4) or for all (IPv6). So what
  neither comes from the tunnel nor goes there is dropped: the host becomes no router for anything
  else. What was set up by others passes: replies, published ports, and packets of our own relay.
- The table's sets remember which settings of the host were off (``io/subnet_gateway.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from nostrvpn.endpoint import IPAddress
from nostrvpn.host import nft_text
from nostrvpn.host.firewall import table_name
from nostrvpn.host.links import own_links
from nostrvpn.host.nft_text import Chain, elements
from nostrvpn.host.state import IPNetwork

__all__ = ["Gateway", "gateway_marks", "gateway_table", "guest_ports", "render_gateway"]

# The lowest port of the registered range, and the highest of all.
_GUEST_PORTS = (1024, 65535)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The networks to forward into, from members in ``overlay``; the empty value is no table.

    ``exit_versions``: the IP versions of which guests' packets go to the internet. ``own``: this host's
    addresses in the overlay, ``listen_port`` WireGuard's. ``opened``: networks around this host that
    guests may be let into; it forwards from the interfaces that lead there. ``booths``: the IP versions
    of commands that this host leads into the tunnel; it forwards for them.
    """

    networks: frozenset[IPNetwork] = frozenset()
    overlay: frozenset[IPNetwork] = frozenset()
    snat: bool = True
    exit_versions: frozenset[int] = frozenset()
    own: frozenset[IPAddress] = frozenset()
    listen_port: int = 0
    opened: frozenset[IPNetwork] = frozenset()
    booths: frozenset[int] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is forwarded."""
        return not self.networks and not self.exit_versions and not self.booths

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions to forward."""
        return (
            frozenset(network.version for network in self.networks)
            | self.exit_versions
            | self.booths
        )

    @property
    def summary(self) -> str:
        """What is asked, in a few words for a log."""
        if self.is_empty:
            return "removed"
        if not self.networks and not self.exit_versions:
            return "forward for commands of this host"
        if self.exit_versions:
            kinds = " and ".join(f"IPv{version}" for version in sorted(self.exit_versions))
            behind = f", {len(self.networks)} networks behind" if self.networks else ""
            return f"forward to the internet, {kinds}{behind}"
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
    routed6 = list(routed6)
    sets = [
        f"set {label} {{ type ifname; {elements(_quoted(names))}}}"
        for label, names in (
            ("routed4", routed4),
            ("routed6", routed6),
            ("advertised", advertised),
        )
    ]
    sets.append(f"set opened {{ type nf_proto; {elements(['ipv6'] if routed6 else ())}}}")
    chains = _chains(gateway, interface)
    return nft_text.script(gateway_table(interface), sets, chains, nft_text.digest(chains))


def gateway_marks(gateway: Gateway, interface: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as ``gateway`` wants it."""
    chains = _chains(gateway, interface)
    return nft_text.marks(chains, nft_text.digest(chains))


def _quoted(names: Iterable[str]) -> list[str]:
    return [f'"{name}"' for name in names]


def _chains(gateway: Gateway, interface: str) -> list[Chain]:
    """Return the chains in a fixed order."""
    # What is forwarded between these and elsewhere is judged by others.
    ours = ", ".join(f'"{name}"' for name in own_links(interface))
    forward = [
        f"iifname {{ {ours} }} accept",
        f"oifname {{ {ours} }} accept",
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
        (
            "postrouting",
            "nat hook postrouting priority 100; policy accept;",
            [*hide, *_hide_guests(gateway)],
        ),
    ]


def _hide_guests(gateway: Gateway) -> list[str]:
    """Return the rules that give guests' packets this host's address, wherever they leave."""
    low, high = guest_ports({gateway.listen_port})
    rules = []
    for version, word in ((4, "ip"), (6, "ip6")):
        source = _set(gateway.overlay, version)
        if version not in gateway.exit_versions or not source:
            continue
        if target := _set(gateway.networks, version):
            rules.append(f"{word} saddr {source} {word} daddr {target} return")
        rules += [
            f"{word} saddr {ip} return"
            for ip in sorted(gateway.own, key=str)
            if ip.version == version
        ]
        rules += [
            f"{word} saddr {source} meta l4proto {{ tcp, udp }} "
            f"masquerade to :{low}-{high} fully-random",
            f"{word} saddr {source} masquerade fully-random",
        ]
    return rules


def guest_ports(taken: Iterable[int]) -> tuple[int, int]:
    """Return the widest range of ports above those for services that is without ``taken`` ones."""
    first, last = _GUEST_PORTS
    edges = sorted({first - 1, last + 1, *(port for port in taken if first <= port <= last)})
    spans = [(low + 1, high - 1) for low, high in itertools.pairwise(edges)]
    return max(spans, key=lambda span: span[1] - span[0])


def _set(networks: Iterable[IPNetwork], version: int) -> str:
    # Of networks within each other the widest says it all; nft refuses overlaps in a set.
    mine = [network for network in networks if network.version == version]
    widest = [
        n
        for n in mine
        if not any(n != wide and n.overlaps(wide) and wide.prefixlen < n.prefixlen for wide in mine)
    ]
    return f"{{ {', '.join(sorted(map(str, widest)))} }}" if widest else ""
