"""How much guests of this host get, and had: a value, and the nft table that measures and holds back.

Who may go where is judged before, in ``inbound.py``; here a packet passes the limits of its address, of
all together and of the month, and is counted. All of it is sets with an element for each address that
the kernel makes itself, so a packet costs the same with one guest and with a thousand.

The table is not replaced when guests or limits change: what it counted stays, and the month's quota
goes on. Dropping what is too much is all that is done about it: TCP slows down by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import collapse_addresses

from nostrvpn.endpoint import IPAddress
from nostrvpn.host import nft_text
from nostrvpn.host.firewall import table_name
from nostrvpn.host.nft_text import Chain
from nostrvpn.host.state import IPNetwork

__all__ = ["COUNTERS", "ExitMeter", "meter_marks", "meter_table", "render_meter"]

COUNTERS = {"up4": "up", "up6": "up", "down4": "down", "down6": "down"}
"""The sets that count bytes by address, and which way."""

# As many addresses as a network may have members, and more.
_SIZE = 65535
# What TCP sends in one go, besides the second's worth that nftables itself lets gather.
_BURST = 65536
# 120 Gbit/s. The kernel (net/netfilter/nft_limit.c) refuses what overflows 64 bits as nanoseconds.
_FASTEST = 15_000_000_000
_VERSIONS = ((4, "ip"), (6, "ip6"))


@dataclass(frozen=True, slots=True)
class ExitMeter:
    """The empty value is no table; 0 is no limit. ``rate``: of each address each way, ``bandwidth``: of
    all together each way, bytes a second; ``connections``: new ones of each address a second;
    ``budget``: of all, both ways, bytes in ``month``; ``used`` of them were spent when the quota began.
    ``apart``: networks behind this host, which are not what is measured."""

    guests: frozenset[IPAddress] = frozenset()
    apart: frozenset[IPNetwork] = frozenset()
    rate: int = 0
    bandwidth: int = 0
    connections: int = 0
    budget: int = 0
    month: str = ""
    used: int = field(default=0, compare=False)

    @property
    def summary(self) -> str:
        """What is asked, in a few words for a log."""
        return f"{len(self.guests)} addresses of guests" if self.guests else "removed"


def meter_table(interface: str) -> str:
    """Return the name of the table (family inet) for an interface."""
    return f"{table_name(interface)}_exit"


def render_meter(meter: ExitMeter, interface: str, *, anew: bool) -> str:
    """Return an nft script that, as one transaction, makes the table as wanted.

    ``anew``: whatever it counted is forgotten, and the quota begins with ``used``.
    """
    name, mark = meter_table(interface), _digest(meter, interface)
    begin = nft_text.removal(name) if anew else ""
    body = "".join(f"\t{text}\n" for text in _declared(meter))
    chains = _chains(meter, interface)
    for chain, hook, _ in chains:
        body += f"\tchain {chain} {{ {hook} }}\n"
    text = f"{begin}table inet {name} {{\n{body}}}\n"
    flushed = [f"chain inet {name} {chain}" for chain, _, _ in chains]
    flushed += [f"set inet {name} {label}" for label in _FLUSHED]
    text += "".join(f"flush {what}\n" for what in flushed)
    for label, elements in _elements(meter):
        if elements:
            text += f"add element inet {name} {label} {{ {', '.join(elements)} }}\n"
    for chain, _, rules in chains:
        text += "".join(f'add rule inet {name} {chain} {rule} comment "{mark}"\n' for rule in rules)
    return text


def meter_marks(meter: ExitMeter, interface: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as ``meter`` wants it."""
    return nft_text.marks(_chains(meter, interface), _digest(meter, interface))


# Their elements hold the limits of before.
_FLUSHED = tuple(
    f"{label}{version}"
    for label in ("guests", "apart", "conns", "rate_up", "rate_down")
    for version, _ in _VERSIONS
)


def _digest(meter: ExitMeter, interface: str) -> str:
    return nft_text.digest(_elements(meter), _chains(meter, interface))


def _quota(meter: ExitMeter) -> str:
    # Each month and each amount has its own: an object of nftables cannot begin anew.
    return f"budget_{meter.month.replace('-', '')}_{meter.budget}"


def _declared(meter: ExitMeter) -> list[str]:
    made = []
    for version, _ in _VERSIONS:
        kind = f"type ipv{version}_addr;"
        made += [
            f"set guests{version} {{ {kind} }}",
            f"set apart{version} {{ {kind} flags interval; }}",
        ]
        made += [
            f"set {label}{version} {{ {kind} size {_SIZE}; flags dynamic,timeout; timeout 1m; }}"
            for label in ("conns", "rate_up", "rate_down")
        ]
    for label in COUNTERS:
        kind = f"type ipv{label[-1]}_addr;"
        made.append(f"set {label} {{ {kind} size {_SIZE}; flags dynamic; }}")
    if meter.budget:
        spent = min(meter.used, meter.budget)
        made.append(f"quota {_quota(meter)} {{ over {meter.budget} bytes used {spent} bytes; }}")
    return made


def _elements(meter: ExitMeter) -> list[tuple[str, list[str]]]:
    found = []
    for version, _ in _VERSIONS:
        guests = sorted(str(ip) for ip in meter.guests if ip.version == version)
        found += [
            (f"guests{version}", guests),
            (f"apart{version}", _apart(meter.apart, version)),
        ]
    return found


def _apart(networks: Iterable[IPNetwork], version: int) -> list[str]:
    mine = [network for network in networks if network.version == version]
    return [str(network) for network in collapse_addresses(mine)]  # type: ignore[type-var]


def _chains(meter: ExitMeter, interface: str) -> list[Chain]:
    """Return the chains in a fixed order."""
    up = [
        f'iifname "{interface}" {ip} saddr @guests{v} {ip} daddr != @apart{v} jump up'
        for v, ip in _VERSIONS
    ]
    down = [
        f'oifname "{interface}" {ip} daddr @guests{v} {ip} saddr != @apart{v} jump down'
        for v, ip in _VERSIONS
    ]
    return [
        ("up", "", _way(meter, "up", "saddr")),
        ("down", "", _way(meter, "down", "daddr")),
        ("forward", "type filter hook forward priority -9; policy accept;", [*up, *down]),
    ]


def _way(meter: ExitMeter, way: str, address: str) -> list[str]:
    rules = []
    for v, ip in _VERSIONS:
        if meter.connections and way == "up":
            most = f"limit rate over {meter.connections}/second burst {meter.connections} packets"
            # UDP is new until it is answered; only the first packet is not confirmed yet.
            first = "ct state new ct status ! confirmed"
            rules.append(f"{first} update @conns{v} {{ {ip} {address} {most} }} drop")
        if meter.rate:
            rules.append(f"update @rate_{way}{v} {{ {ip} {address} {_over(meter.rate)} }} drop")
    if meter.bandwidth:
        rules.append(f"{_over(meter.bandwidth)} drop")
    if meter.budget:
        rules.append(f"quota name {_quota(meter)} drop")
    return rules + [f"update @{way}{v} {{ {ip} {address} counter }}" for v, ip in _VERSIONS]


def _over(rate: int) -> str:
    return f"limit rate over {min(rate, _FASTEST)} bytes/second burst {_BURST} bytes"
