"""The relay's forwarding in the kernel: table ``inet nostrvpn_INTERFACE_relay``, one port per pair.

Stateless: a packet from a bound address to a lent port gets the other end's address and port and the
lent port as its source port before routing, and our own address as its source after it. (Our own
address earlier would be a martian source.) Nothing of it is known to conntrack: there are no entries
that outlive a binding, a flood makes none, and what comes from anybody else still reaches our socket.

The rules are the same for any number of pairs, which are elements of sets and maps: a change costs as
much with one pair as with a thousand. Within prerouting the packet's mark says which direction of
which pair it is: setting one port would spoil a key for the other. Any number of changes is one
transaction, so an address is replaced without a moment in between.

Dropped and counted: what is neither WireGuard's nor STUN, fragments (with a path that needs them the
tunnel's packets are too large; so nothing above the link's MTU passes), more than a pair's share, and
more requests from strangers than anybody looks at. A counter per direction counts IP bytes.

Blocking; acts in the calling thread's network namespace; one thread at a time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.host.state import RELAY_MARK
from nostrvpn.io.nftables import apply_ruleset, list_objects, own_tables
from nostrvpn.io.relay_routing import (
    RoutingBefore,
    RoutingMemory,
    interface_with,
    is_routing,
    relay_table_name,
    turn_on_routing,
)
from nostrvpn.relaying.events import Channel, End

__all__ = ["RelayTable", "is_for_kernel"]

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
  set counted {{ type mark; counter; }}
  set rates {{ type mark; limit rate over {kbytes} kbytes/second burst {burst} kbytes; }}
  set bridged4 {{ type ipv4_addr . inet_service . inet_service; }}
  set bridged6 {{ type ipv6_addr . inet_service . inet_service; }}
  map pairs4 {{ type ipv4_addr . inet_service . inet_service : mark; }}
  map pairs6 {{ type ipv6_addr . inet_service . inet_service : mark; }}
  map targets4 {{ type mark : ipv4_addr; }}
  map targets6 {{ type mark : ipv6_addr; }}
  map target_ports {{ type mark : inet_service; }}
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
    meta mark set ip saddr . udp sport . udp dport map @pairs4 goto paired
    meta mark set ip6 saddr . udp sport . udp dport map @pairs6 goto paired
    ip saddr . udp sport . udp dport @bridged4 goto bridged
    ip6 saddr . udp sport . udp dport @bridged6 goto bridged
    limit rate over {strangers}/second burst 500 packets counter name flooded drop
    meta mark set {mark} notrack
  }}
  chain paired {{
    # None at all (RFC 768): the kernel would "update" it, so our socket forwards it.
    udp checksum 0 goto bridged
    meta mark @rates counter name over_rate drop
    ip daddr set meta mark map @targets4 goto readdressed
    ip6 daddr set meta mark map @targets6 goto readdressed
  }}
  chain readdressed {{
    meta mark @counted udp sport set udp dport
    udp dport set meta mark map @target_ports meta mark set {mark} notrack accept
  }}
  chain bridged {{
    meta mark set {mark} notrack accept
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


Element = tuple[str, str, str]
"""The set or map, the key, and the rest that an element of a map has."""


class RelayTable:
    """The table of ``interface``'s relay. A pair may carry ``mbit_per_s`` in each direction.

    Changes are only noted, and made by ``apply``.
    """

    def __init__(self, interface: str, mbit_per_s: int) -> None:
        self._name = relay_table_name(interface)
        self._table = f"inet {self._name}"
        self._kbytes = max(1, mbit_per_s * 1000 // 8)
        self._wanted: dict[int, frozenset[Element]] = {}
        self._there: dict[int, frozenset[Element]] = {}
        # Closed since the last apply: if they are opened again, their counters begin anew.
        self._closed: set[int] = set()
        self._routed: set[IPAddress | None] = set()
        self._memory = RoutingMemory(self._name)
        self._uplinks: tuple[str, ...] | None = None
        # Bytes read, by port; and those that a table of before had counted.
        self._read: dict[int, int] = {}
        self._counted_before: dict[int, int] = {}

    def create(self, uplinks: tuple[str, ...]) -> None:
        """Make the table anew, empty, and let packets pass between ``uplinks``.

        What the host forwards is changed only where it forwarded nothing, and what is not ours still
        does not pass between those interfaces. What was noted is in the table after the next
        ``apply``. SystemRefused if there is no nftables.
        """
        turn_on_routing(uplinks, self._memory, self._make)
        self._uplinks = uplinks
        self._there.clear()
        self._routed.clear()
        self._counted_before = dict(self._read)

    def mend(self) -> bool:
        """Create the table again if somebody removed it; return whether that was so.

        SystemRefused if nft refuses.
        """
        if self._uplinks is None or self._name in own_tables():
            return False
        self.create(self._uplinks)
        return True

    def remove(self) -> None:
        """Put the host's routing back as it was, and remove the table, present or not."""
        self._memory.put_back()
        self._uplinks = None
        self._wanted.clear()
        self._there.clear()

    def open(self, port: int) -> None:
        """Look at what comes to ``port``, and forward nothing of it."""
        ours = [("ports", str(port), "")]
        for mark in _marks(port):
            ours += [("counted", mark, ""), ("rates", mark, "")]
        self._wanted[port] = frozenset(ours)

    def close(self, port: int) -> None:
        """Undo ``open``; a port that is not open is fine."""
        self._wanted.pop(port, None)
        self._closed.add(port)
        self._read.pop(port, None)
        self._counted_before.pop(port, None)

    def forward(self, port: int, a: End, b: End) -> None:
        """Forward between two ends that ``is_for_kernel`` approves, instead of any others."""
        self.unforward(port)
        elements: list[Element] = []
        for mark, (near, far) in zip(_marks(port), ((a, b), (b, a)), strict=True):
            source, target = near.source, far.source
            assert isinstance(source, Endpoint)
            assert isinstance(target, Endpoint)
            v = source.ip.version
            flow = f"{source.ip} . {port} . {target.ip} . {target.port}"
            elements += [
                (f"pairs{v}", f"{source.ip} . {source.port} . {port}", f" : {mark}"),
                (f"targets{v}", mark, f" : {target.ip}"),
                ("target_ports", mark, f" : {target.port}"),
                (f"flows{v}", flow, ""),
                (f"sources{v}", flow, f" : {far.local_ip}"),
            ]
        self._add(port, elements)

    def bridge(self, port: int, ends: tuple[End, End]) -> None:
        """Let all through from these ends to our socket, which forwards between them."""
        self.unforward(port)
        sources = [end.source for end in ends if not isinstance(end.source, Channel)]
        keys = [(one.ip.version, f"{one.ip} . {one.port} . {port}") for one in sources]
        self._add(port, [(f"bridged{version}", key, "") for version, key in keys])

    def unforward(self, port: int) -> None:
        """Forward nothing at ``port``; what comes there reaches our socket."""
        if port in self._wanted:
            self.open(port)

    def apply(self) -> dict[int, str]:
        """Make all that was noted so, as one transaction.

        Where that is refused, each port by itself; return those refused again, with the reason: they
        stay as they were.
        """
        changed = {
            port
            for port in self._wanted.keys() | self._there.keys()
            if self._wanted.get(port) != self._there.get(port) or port in self._closed
        }
        self._closed &= changed
        refused: dict[int, str] = {}
        try:
            self._apply_ports(changed)
        except SystemRefused:
            for port in changed:
                try:
                    self._apply_ports({port})
                except SystemRefused as exc:
                    refused[port] = str(exc)
                    if port in self._there:
                        self._wanted[port] = self._there[port]
                    else:
                        self._wanted.pop(port, None)
        return refused

    def read_counters(self) -> dict[int, int]:
        """Return the IP bytes forwarded at each open port since it was opened."""
        carried = {port: self._counted_before.get(port, 0) for port in self._there}
        for item in list_objects("set", self._table, "counted"):
            for element in item.get("set", {}).get("elem", ()):
                port = int(element["elem"]["val"]) >> 1
                if port in carried:
                    carried[port] += element["elem"]["counter"]["bytes"]
        self._read = dict(carried)
        return carried

    def read_drops(self) -> Mapping[str, int]:
        """Return how many packets were dropped, by reason."""
        listed = (item.get("counter") for item in list_objects("counters", "table", self._table))
        counted = Counter({item["name"]: item["packets"] for item in listed if item})
        return {name: counted[name] for name in DROPS}

    def route_at(self, ends: Iterable[End]) -> None:
        """Let packets pass at the interfaces of ``ends``, which may be younger than the table."""
        for ip in {end.local_ip for end in ends} - self._routed:
            assert ip is not None
            name = interface_with(ip)
            if name is not None and not is_routing(name, ip.version):
                turn_on_routing((name,), self._memory, self._remember)
            self._routed.add(ip)

    def look_again(self) -> None:
        """Forget at which interfaces packets pass already: somebody may have changed that."""
        self._routed.clear()

    def _remember(self, before: RoutingBefore) -> None:
        for name in ("routed4", "routed6", "advertised"):
            found = sorted(getattr(before, name))
            quoted = ", ".join(f'"{interface}"' for interface in found)
            if found:
                self._apply([f"add element {self._table} {name} {{ {quoted} }}"])

    def _add(self, port: int, elements: list[Element]) -> None:
        if port in self._wanted:
            self._wanted[port] |= frozenset(elements)

    def _apply_ports(self, ports: Collection[int]) -> None:
        nothing: frozenset[Element] = frozenset()
        gone: dict[str, list[str]] = defaultdict(list)
        new: dict[str, list[str]] = defaultdict(list)
        for port in ports:
            there, wanted = self._there.get(port, nothing), self._wanted.get(port, nothing)
            kept = nothing if port in self._closed else there & wanted
            for name, key, _ in there - kept:
                gone[name].append(key)
            for name, key, rest in wanted - kept:
                new[name].append(key + rest)
        self._apply(self._commands("delete", gone) + self._commands("add", new))
        for port in ports:
            self._closed.discard(port)
            if port in self._wanted:
                self._there[port] = self._wanted[port]
            else:
                self._there.pop(port, None)

    def _commands(self, verb: str, elements: Mapping[str, list[str]]) -> list[str]:
        return [
            f"{verb} element {self._table} {name} {{ {', '.join(sorted(items))} }}"
            for name, items in elements.items()
        ]

    def _apply(self, lines: list[str]) -> None:
        if lines:
            apply_ruleset("\n".join(lines) + "\n")

    def _make(self, before: RoutingBefore) -> None:
        text = _TABLE.format(
            name=self._name,
            mark=f"{RELAY_MARK:#010x}",
            strangers=STRANGERS_PER_SECOND,
            kbytes=self._kbytes,
            burst=BURST_KBYTES,
            routed4=_names(before.routed4),
            routed6=_names(before.routed6),
            advertised=_names(before.advertised),
        )
        apply_ruleset(f"table inet {self._name} {{}}\ndelete table inet {self._name}\n{text}")


def _marks(port: int) -> tuple[str, str]:
    """Return the marks of a pair's two directions."""
    return str(port << 1), str(port << 1 | 1)


def _names(names: frozenset[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in sorted(names))
    return f"elements = {{ {quoted} }}" if names else ""
