"""What may leave this host while an exit is used or nothing may leave at all, and the nft table of it.

One table per interface, replaced in one transaction, and left where it is when the daemon dies: a crash
leaves traffic blocked. ``docs/security.md`` says for each state exactly what may leave.

A packet that leaves is judged twice by the same rules: where it begins (a program is refused at once),
and after routing, as whoever sends it another way in between would pass by. Our own packets, and those
of whoever goes around the exit, carry a mark within ``MARK_MASK``, which takes CAP_NET_ADMIN to set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import collapse_addresses, ip_network

from nostrvpn.endpoint import IPAddress
from nostrvpn.host import nft_text
from nostrvpn.host.answers import MARK, MARKED, TOO_LARGE, answering
from nostrvpn.host.exit_routing import PRIVATE
from nostrvpn.host.firewall import table_name
from nostrvpn.host.nft_text import Chain, elements
from nostrvpn.host.state import BYPASS_MARK, MARK_MASK, IPNetwork

__all__ = [
    "Bypass",
    "Shield",
    "ShieldKind",
    "named_set",
    "render_shield",
    "shield_marks",
    "shield_table",
]

_SUFFIX = "_shield"
_VERSIONS = ((4, "ip"), (6, "ip6"))
_ALL_BITS = 0xFFFFFFFF
# Of ours, whose bits in a mark are: a packet that goes around the exit, with the number of its kind.
_KIND_MASK = MARK_MASK | 0x3
_GOES_AROUND = f"meta mark & {_KIND_MASK:#010x} == {BYPASS_MARK:#010x}"
_DNS = "meta l4proto { tcp, udp } th dport { 53, 853 }"
# RFC 4861 sections 4.1, 4.3, 4.4 and 6.1: what has crossed a router has a smaller hop limit. Nothing
# of it carries what a program says, and no redirects.
_NDP = (
    "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } "
    "ip6 hoplimit 255 accept"
)
# RFC 2131 section 4.1, RFC 8415 section 7.
_DHCP4 = "meta nfproto ipv4 udp sport 68 udp dport 67 accept"
_DHCP6 = (
    "ip6 saddr fe80::/10 ip6 daddr { fe80::/10, ff02::1:2, ff05::1:3 } "
    "udp sport 546 udp dport 547 accept"
)


class ShieldKind(Enum):
    """``OPEN``: nothing is held back outside. ``BLOCKED``: only what always may leave. ``TUNNELLED``:
    the tunnel as well."""

    OPEN = "open"
    BLOCKED = "blocked"
    TUNNELLED = "tunnelled"


@dataclass(frozen=True, slots=True)
class Bypass:
    """Who goes around the exit: destinations (``networks``), users (uid ranges, both ends included),
    cgroups (paths of the v2 hierarchy without the leading slash). Of names the resolved addresses are in
    a set of the table that ``io`` fills (with a timeout each)."""

    networks: frozenset[IPNetwork] = frozenset()
    uids: frozenset[tuple[int, int]] = frozenset()
    cgroups: frozenset[str] = frozenset()
    domains: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nobody does."""
        return self == Bypass()


@dataclass(frozen=True, slots=True)
class Shield:
    """``overlay``: what goes into the tunnel in every state: members, and networks behind them.
    ``versions``: the IP versions that the exit carries (not with BLOCKED). ``resolvers``: the only
    addresses that DNS (53, 853) may go to through the tunnel. ``allow_lan``: private ranges of local
    networks too. ``listen_port``: WireGuard's, whose packets come in marked (reverse-path filters).
    ``behind``: networks behind this host that members may be forwarded into. ``beside``: what goes into
    the tunnels of this host's other networks, with the interface of each. ``link``: the one that the
    exit is behind; empty for the mesh's own.

    The empty value is no table. Another OPEN one holds back nothing outside; it has the marks."""

    kind: ShieldKind = ShieldKind.OPEN
    overlay: frozenset[IPNetwork] = frozenset()
    versions: frozenset[int] = frozenset()
    resolvers: frozenset[IPAddress] = frozenset()
    allow_lan: bool = False
    bypass: Bypass = Bypass()
    listen_port: int = 0
    behind: frozenset[IPNetwork] = frozenset()
    beside: frozenset[tuple[str, IPNetwork]] = frozenset()
    link: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked."""
        return replace(self, behind=frozenset(), beside=frozenset()) == Shield()

    @property
    def summary(self) -> str:
        """What is asked, in a few words for a log."""
        if self.is_empty:
            return "removed"
        words = [self.kind.value, *(f"IPv{version}" for version in sorted(self.versions))]
        words += ["local networks"] if self.allow_lan else []
        return ", ".join(words + ([] if self.bypass.is_empty else ["some go around"]))


def shield_table(interface: str) -> str:
    """Return the name of the table (family inet) for an interface."""
    return table_name(interface) + _SUFFIX


def named_set(version: int) -> str:
    """Return the name of the set of addresses that go around for the names they belong to."""
    return f"named{version}"


def render_shield(
    shield: Shield,
    interface: str,
    unmarked: Iterable[str] = (),
    named: Mapping[IPAddress, int] | None = None,
) -> str:
    """Return an nft script that, as one transaction, replaces our table by what is wanted.

    To be remembered: ``unmarked``, where the kernel's ``src_valid_mark`` was off, and ``named``, the
    addresses of names with the seconds that each is good for.
    """
    sets, chains = _sets(shield), _chains(shield, interface)
    mark = nft_text.digest(sets, chains)
    quoted = [f'"{name}"' for name in unmarked]
    sets.append(f"set unmarked {{ type ifname; {elements(quoted)}}}")
    for version, _ in _VERSIONS if shield.bypass.domains else ():
        good = [f"{ip} timeout {s}s" for ip, s in (named or {}).items() if ip.version == version]
        kind = f"type ipv{version}_addr; flags timeout; "
        sets.append(f"set {named_set(version)} {{ {kind}{elements(good)}}}")
    return nft_text.script(shield_table(interface), sets, chains, mark)


def shield_marks(shield: Shield, interface: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as ``shield`` wants it."""
    chains = _chains(shield, interface)
    return nft_text.marks(chains, nft_text.digest(_sets(shield), chains))


def _sets(shield: Shield) -> list[str]:
    counters = ("held", "held_forwarded", "strayed", "spoofed")
    made = [f"counter {name} {{ }}" for name in counters]
    for version, _ in _VERSIONS:
        for name, networks in (
            ("overlay", shield.overlay),
            ("behind", {network for network in shield.behind if network.prefixlen}),
            ("bypass", shield.bypass.networks),
        ):
            mine = [str(network) for network in networks if network.version == version]
            kind = f"type ipv{version}_addr; flags interval; auto-merge; "
            made.append(f"set {name}{version} {{ {kind}{elements(mine)}}}")
    return made


def _chains(shield: Shield, interface: str) -> list[Chain]:
    """Return the chains in a fixed order."""
    is_open, tunnels = shield.kind is ShieldKind.OPEN, f'"{interface}"'
    if shield.link:
        tunnels = f'{{ {tunnels}, "{shield.link}" }}'
    chains = [
        (
            "arriving",
            "filter hook prerouting priority -300; policy accept;",
            _arriving(shield, interface),
        ),
        *answering(tunnels, returns=is_open and not shield.allow_lan),
        *_bypassing(shield, interface),
        ("tunnel", "", _tunnel(shield)),
        *([("beyond", "", _beyond(shield))] if shield.link else []),
    ]
    if is_open:
        leaving = [f"oifname != {tunnels} accept", f"{MARKED} accept"]
        leaving += _into(shield, interface, "jump")
        return [
            *chains,
            (
                "output",
                "filter hook output priority 10; policy accept;",
                [*leaving, _reject("held")],
            ),
        ]
    return [
        *chains,
        ("lan", "", _lan(shield)),
        ("leaving", "", _leaving(shield, interface)),
        (
            "output",
            "filter hook output priority 10; policy drop;",
            ["jump leaving", _reject("held")],
        ),
        (
            "forward",
            "filter hook forward priority 10; policy drop;",
            ["jump leaving", "counter name held_forwarded drop"],
        ),
        # Before sources are rewritten (100).
        (
            "routed",
            "filter hook postrouting priority 90; policy drop;",
            ["jump leaving", "counter name strayed drop"],
        ),
    ]


def _reject(counter: str) -> str:
    return f"counter name {counter} reject with icmpx admin-prohibited"


def _arriving(shield: Shield, interface: str) -> list[str]:
    """What comes from a local network for an address of the tunnel is forged (CVE-2019-14899)."""
    rules = [
        f'iifname != {{ "{interface}", "lo" }} {word} daddr @overlay{version} fib daddr type local '
        # Where an overlay overlaps a local network, an interface's own address is not the tunnel's.
        "fib daddr . iif type != local counter name spoofed drop"
        for version, word in _VERSIONS
    ]
    # Neighbours that answer with a public address, to reverse-path filters such as firewalld's.
    marked = ["icmpv6 type nd-neighbor-advert ip6 hoplimit 255"]
    marked += [f"udp dport {shield.listen_port}"] if shield.listen_port else []
    rules += [f'iifname != "{interface}" {one} fib daddr type local {MARK}' for one in marked]
    return rules


def _bypassing(shield: Shield, interface: str) -> list[Chain]:
    """Return the chains that send some around the exit, with a source that is not the tunnel's."""
    bypass = shield.bypass
    if bypass.is_empty:
        return []
    beside = [(word, _beside(shield, version)) for version, word in _VERSIONS]
    who = [f"meta skuid {{ {', '.join(_spans(bypass.uids))} }}"] if bypass.uids else []
    who += [
        f'socket cgroupv2 level {path.count("/") + 1} "{path}"' for path in sorted(bypass.cgroups)
    ]
    sets = ["bypass", *(["named"] if bypass.domains else [])]
    to = [f"{word} daddr @{name}{version}" for name in sets for version, word in _VERSIONS]
    kept = _ALL_BITS ^ _KIND_MASK
    return [
        ("around", "", [f"meta mark set meta mark & {kept:#010x} | {BYPASS_MARK:#010x}"]),
        (
            "bypassing",
            "route hook output priority -150; policy accept;",
            [
                'oifname "lo" return',
                f"{MARKED} return",
                *(f"{word} daddr @overlay{version} return" for version, word in _VERSIONS),
                *(f"{word} daddr {{ {nets} }} return" for word, nets in beside if nets),
                *(f"{condition} goto around" for condition in (*to, *who)),
            ],
        ),
        (
            "hiding",
            "nat hook postrouting priority 100; policy accept;",
            [f'{_GOES_AROUND} oifname != {{ "{interface}", "lo" }} masquerade'],
        ),
        # A connection that began inside the tunnel keeps its source: it does not go on outside.
        (
            "hidden",
            "filter hook postrouting priority 110; policy accept;",
            [
                f'{_GOES_AROUND} oifname != {{ "{interface}", "lo" }} {word} saddr @overlay{version} '
                "counter name strayed drop"
                for version, word in _VERSIONS
            ],
        ),
    ]


def _beside(shield: Shield, version: int, interface: str = "") -> str:
    """Return what goes into the tunnels of other networks, or of one, as the elements of a set."""
    mine = {n for name, n in shield.beside if n.version == version and interface in ("", name)}
    # Of networks within each other the widest says it all; nft refuses overlaps in a set.
    return ", ".join(map(str, collapse_addresses(mine)))  # type: ignore[type-var]


def _spans(ranges: Iterable[tuple[int, int]]) -> list[str]:
    """Return ranges as nft has them; it takes none that overlap."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return [str(first) if first == last else f"{first}-{last}" for first, last in merged]


def _tunnel(shield: Shield) -> list[str]:
    """Return what is accepted of packets into the tunnel; the rest returns."""
    rules = [f"{word} daddr @overlay{version} accept" for version, word in _VERSIONS]
    return rules if shield.link else rules + _through_exit(shield)


def _beyond(shield: Shield) -> list[str]:
    """Return what is accepted of packets into the link that the exit is behind, apart from the mesh."""
    rules = [f"{word} daddr @overlay{version} return" for version, word in _VERSIONS]
    return rules + _through_exit(shield)


def _into(shield: Shield, interface: str, verb: str) -> list[str]:
    """Return the rules that judge what goes into our tunnels."""
    rules = [f'oifname "{interface}" {verb} tunnel']
    return rules + ([f'oifname "{shield.link}" {verb} beyond'] if shield.link else [])


def _through_exit(shield: Shield) -> list[str]:
    rules: list[str] = []
    if shield.kind is ShieldKind.BLOCKED or not shield.versions:
        return rules
    if shield.resolvers or shield.kind is ShieldKind.TUNNELLED:
        rules += _resolvers(
            shield, {ip for ip in shield.resolvers if ip.version in shield.versions}
        )
    return rules + [f"meta nfproto ipv{version} accept" for version in sorted(shield.versions)]


def _resolvers(shield: Shield, asked: Iterable[IPAddress]) -> list[str]:
    """Return the rules that let DNS go to these addresses only."""
    rules = [
        f"{'ip' if ip.version == 4 else 'ip6'} daddr {ip} {_DNS} accept"
        for ip in sorted(asked, key=str)
    ]
    return [*rules, f"{_DNS} return"]


def _lan(shield: Shield) -> list[str]:
    """Return what may leave for local networks; never what belongs into the tunnel, nor names."""
    if not shield.allow_lan:
        return []
    private = [ip_network(text) for text in PRIVATE]
    near = {ip for ip in shield.resolvers if any(ip in network for network in private)}
    rules = [f"{word} daddr @overlay{version} return" for version, word in _VERSIONS]
    rules += _resolvers(shield, near)
    for version, word in _VERSIONS:
        ranges = ", ".join(str(network) for network in private if network.version == version)
        rules.append(f"{word} daddr {{ {ranges} }} accept")
    return rules


def _leaving(shield: Shield, interface: str) -> list[str]:
    """Return what is accepted of all that leaves; the rest returns."""
    # Where it begins, who goes around still seems to leave by the tunnel: so the mark comes first.
    rules = ['oifname "lo" accept', f"{MARKED} accept", *_into(shield, interface, "goto")]
    rules += [_NDP, _DHCP4, _DHCP6]
    rules += [
        f'oifname "{other}" {word} daddr {{ {nets} }} accept'
        for other in sorted({name for name, _ in shield.beside})
        for version, word in _VERSIONS
        if (nets := _beside(shield, version, other))
    ]
    rules += [
        f'iifname "{interface}" {word} daddr @behind{version} accept' for version, word in _VERSIONS
    ]
    if shield.kind is ShieldKind.TUNNELLED:
        # Answers to what was forwarded into the tunnel: those of containers.
        rules += [
            f'iifname "{shield.link or interface}" meta nfproto ipv{version} ct direction reply accept'
            for version in sorted(shield.versions)
        ]
        rules += [TOO_LARGE[version] for version in sorted(shield.versions)]
    return [*rules, "jump lan"]
