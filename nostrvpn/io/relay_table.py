"""The relay's forwarding in the kernel: table ``inet nostrvpn_INTERFACE_relay``, one port per pair.

Stateless: a packet from a bound address to a lent port gets the other end's address and port and the
lent port as its source port before routing, and our own address as its source after it. (Our own
address earlier would be a martian source.) Nothing of it is known to conntrack: there are no entries
that outlive a binding, a flood makes none, and what comes from anybody else still reaches our socket.
The table is one transaction a change, so an address is replaced without a moment in between.

Dropped and counted: what is neither WireGuard's nor STUN, fragments (with a path that needs them the
tunnel's packets are too large; so nothing above the link's MTU passes), more than a pair's share, and
more requests from strangers than anybody looks at. A named counter per direction counts IP bytes.

Blocking; acts in the calling thread's network namespace; one thread at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from nostrvpn.endpoint import Endpoint
from nostrvpn.io.nftables import apply_ruleset, delete_table, list_table
from nostrvpn.io.relay_routing import (
    RoutingBefore,
    interface_with,
    is_routing,
    restore_routing,
    turn_on_routing,
)
from nostrvpn.relaying.events import Channel, End

__all__ = ["RelayTable", "is_for_kernel", "relay_table_name", "remove_relay_table"]

# Strangers' packets that reach the socket; the machine behind it looks at 1000 a second.
STRANGERS_PER_SECOND = 2000
# Kilobytes that may pass at once: 20 ms at 400 Mbit/s, and one full burst of GSO packets.
BURST_KBYTES = 1024
DROPS = ("unshaped", "fragments", "flooded", "over_rate", "transit")

_TABLE = """
table inet {name} {{
  set ports {{ type inet_service; }}
  set routed4 {{ type ifname; {routed4} }}
  set routed6 {{ type ifname; {routed6} }}
  set advertised {{ type ifname; {advertised} }}
  map pairs4 {{ type ipv4_addr . inet_service . inet_service : verdict; }}
  map pairs6 {{ type ipv6_addr . inet_service . inet_service : verdict; }}
  set flows4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; }}
  set flows6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service; }}
  map sources4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr; }}
  map sources6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service : ipv6_addr; }}
  counter unshaped {{ }}
  counter fragments {{ }}
  counter flooded {{ }}
  counter over_rate {{ }}
  counter transit {{ }}
  chain fragments {{
    type filter hook prerouting priority -450; policy accept;
    ip frag-off & 0x3fff != 0 udp dport @ports fib daddr type local counter name fragments drop
    exthdr frag exists udp dport @ports fib daddr type local counter name fragments drop
  }}
  chain prerouting {{
    type filter hook prerouting priority -305; policy accept;
    udp dport @ports fib daddr type local goto lent
  }}
  chain output {{
    type filter hook output priority -305; policy accept;
    udp sport @ports notrack
  }}
  chain lent {{
    @th,64,32 {{ 0x01000000, 0x02000000, 0x03000000, 0x04000000 }} goto shaped
    @th,96,32 0x2112a442 goto shaped
    counter name unshaped drop
  }}
  chain shaped {{
    ip saddr . udp sport . udp dport vmap @pairs4
    ip6 saddr . udp sport . udp dport vmap @pairs6
    limit rate over {strangers}/second burst 500 packets counter name flooded drop
    notrack
  }}
  chain bridged {{
    notrack accept
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    ip saddr . udp sport . ip daddr . udp dport @flows4 accept
    ip6 saddr . udp sport . ip6 daddr . udp dport @flows6 accept
    meta nfproto ipv4 iifname @routed4 oifname @routed4 counter name transit drop
    meta nfproto ipv6 iifname @routed6 oifname @routed6 counter name transit drop
  }}
  chain postrouting {{
    type filter hook postrouting priority 300; policy accept;
    ip saddr set ip saddr . udp sport . ip daddr . udp dport map @sources4
    ip6 saddr set ip6 saddr . udp sport . ip6 daddr . udp dport map @sources6
  }}
}}
"""


def relay_table_name(interface: str) -> str:
    """Return the name of the relay's table of the mesh whose interface this is."""
    return f"nostrvpn_{interface}_relay"


def is_for_kernel(a: End, b: End) -> bool:
    """Say whether the kernel can forward between these two: UDP both, of one family."""
    return (
        isinstance(a.source, Endpoint)
        and isinstance(b.source, Endpoint)
        and a.local_ip is not None
        and b.local_ip is not None
        and len({a.source.ip.version, b.source.ip.version, a.local_ip.version}) == 1
        and a.local_ip.version == b.local_ip.version
    )


class RelayTable:
    """The table of ``interface``'s relay. A pair may carry ``mbit_per_s`` in each direction."""

    def __init__(self, interface: str, mbit_per_s: int) -> None:
        self._name = relay_table_name(interface)
        self._table = f"inet {self._name}"
        self._kbytes = max(1, mbit_per_s * 1000 // 8)
        # What is in the maps for each port: removing an element needs its key.
        self._elements: dict[int, list[str]] = {}

    def create(self, uplinks: tuple[str, ...]) -> None:
        """Make the table anew, empty, and let packets pass between ``uplinks``.

        What the host forwards is changed only where it forwarded nothing, and what is not ours still
        does not pass between those interfaces. SystemRefused if there is no nftables.
        """
        turn_on_routing(uplinks, _remembered(self._name), self._make)
        self._elements.clear()

    def remove(self) -> None:
        """Remove the table, present or not, and put the host's routing back as it was."""
        remove_relay_table(self._name)
        self._elements.clear()

    def open(self, port: int) -> None:
        """Begin to look at what comes to ``port``."""
        lines = [f"add counter {self._table} p{port}{side}" for side in "ab"]
        lines += [f"add chain {self._table} p{port}{side}" for side in "ab"]
        self._apply([*lines, f"add element {self._table} ports {{ {port} }}"])
        self._elements[port] = []

    def close(self, port: int) -> None:
        """Undo ``open``; a port that is not open is fine."""
        if port not in self._elements:
            return
        lines = [*self._removal(port), f"delete element {self._table} ports {{ {port} }}"]
        for side in "ab":
            lines += [
                f"flush chain {self._table} p{port}{side}",
                f"delete chain {self._table} p{port}{side}",
            ]
            lines.append(f"delete counter {self._table} p{port}{side}")
        self._apply(lines)
        del self._elements[port]

    def forward(self, port: int, a: End, b: End) -> None:
        """Forward between two ends that ``is_for_kernel`` approves, instead of any others."""
        for end in (a, b):
            self._route_where(end)
        elements: list[str] = []
        lines = self._removal(port)
        for side, (near, far) in (("a", (a, b)), ("b", (b, a))):
            source, target, own = near.source, far.source, far.local_ip
            assert isinstance(source, Endpoint)
            assert isinstance(target, Endpoint)
            v, ip = ("4", "ip") if source.ip.version == 4 else ("6", "ip6")
            chain = f"p{port}{side}"
            lines += [
                f"flush chain {self._table} {chain}",
                # None at all (RFC 768): the kernel would "update" it, so our socket forwards it.
                f"add rule {self._table} {chain} udp checksum 0 goto bridged",
                f"add rule {self._table} {chain} limit rate over {self._kbytes} kbytes/second "
                f"burst {BURST_KBYTES} kbytes counter name over_rate drop",
                f"add rule {self._table} {chain} counter name {chain} notrack {ip} daddr set "
                f"{target.ip} udp sport set {port} udp dport set {target.port} accept",
            ]
            flow = f"{source.ip} . {port} . {target.ip} . {target.port}"
            elements += [
                f"pairs{v} {{ {source.ip} . {source.port} . {port} : goto {chain} }}",
                f"flows{v} {{ {flow} }}",
                f"sources{v} {{ {flow} : {own} }}",
            ]
        self._replace(port, lines, elements)

    def bridge(self, port: int, ends: tuple[End, End]) -> None:
        """Let all through from these ends to our socket, which forwards between them."""
        elements = []
        for end in ends:
            if not isinstance(end.source, Channel):
                ip, source_port = end.source.ip, end.source.port
                key = f"{ip} . {source_port} . {port} : goto bridged"
                elements.append(f"pairs{ip.version} {{ {key} }}")
        self._replace(port, self._removal(port), elements)

    def unforward(self, port: int) -> None:
        """Forward nothing at ``port``; what comes there reaches our socket."""
        if port in self._elements:
            self._replace(port, self._removal(port), [])

    def read_counters(self) -> dict[int, int]:
        """Return the IP bytes forwarded at each open port since it was opened."""
        counted = self._counters("bytes")
        return {port: counted[f"p{port}a"] + counted[f"p{port}b"] for port in self._elements}

    def read_drops(self) -> Mapping[str, int]:
        """Return how many packets were dropped, by reason."""
        counted = self._counters("packets")
        return {name: counted[name] for name in DROPS}

    def _counters(self, unit: str) -> Counter[str]:
        listed = (item.get("counter") for item in list_table(self._name) or ())
        return Counter({item["name"]: item[unit] for item in listed if item})

    def _route_where(self, end: End) -> None:
        """Let packets pass at the interface of ``end``, which may be younger than the table."""
        assert end.local_ip is not None
        name = interface_with(end.local_ip)
        if name is not None and not is_routing(name, end.local_ip.version):
            turn_on_routing((name,), _remembered(self._name), self._remember)

    def _remember(self, before: RoutingBefore) -> None:
        for name in ("routed4", "routed6", "advertised"):
            found = sorted(getattr(before, name))
            quoted = ", ".join(f'"{interface}"' for interface in found)
            if found:
                self._apply([f"add element {self._table} {name} {{ {quoted} }}"])

    def _replace(self, port: int, lines: list[str], elements: list[str]) -> None:
        self._apply([*lines, *(f"add element {self._table} {element}" for element in elements)])
        self._elements[port] = elements

    def _removal(self, port: int) -> list[str]:
        return [f"delete element {self._table} {item}" for item in self._elements[port]]

    def _apply(self, lines: list[str]) -> None:
        if lines:
            apply_ruleset("\n".join(lines) + "\n")

    def _make(self, before: RoutingBefore) -> None:
        text = _TABLE.format(
            name=self._name,
            strangers=STRANGERS_PER_SECOND,
            routed4=_names(before.routed4),
            routed6=_names(before.routed6),
            advertised=_names(before.advertised),
        )
        apply_ruleset(f"table inet {self._name} {{}}\ndelete table inet {self._name}\n{text}")


def remove_relay_table(name: str) -> None:
    """Remove a relay's table by its name, and put the routing back that it remembers."""
    before = _remembered(name)
    delete_table(name)
    restore_routing(before)


def _names(names: frozenset[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in sorted(names))
    return f"elements = {{ {quoted} }}" if names else ""


def _remembered(name: str) -> RoutingBefore:
    """Return what the table remembers of the host; nothing if there is no such table."""
    names = ("routed4", "routed6", "advertised")
    listed = [item["set"] for item in list_table(name) or () if "set" in item]
    sets = {one["name"]: frozenset(one.get("elem", ())) for one in listed if one["name"] in names}
    return RoutingBefore(*(sets.get(one, frozenset()) for one in names))
