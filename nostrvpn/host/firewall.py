"""What we ask of the host's packet filter, as a value, and as the nft script that makes it so.

Three things that WireGuard itself cannot do:

- **Guard.** When the endpoint of a live tunnel moves, packets that are still under way over the old
  path would make WireGuard roam back. Before conntrack (-200) and STUN excepted, their source
  becomes the new endpoint, so they count for the tunnel and not for roaming. Where an address cannot
  be rewritten (another family, loopback, or no checksum to mend) they are dropped.
- **Pin.** A NATed peer may be reached from another port than WireGuard's. A pair of stateless rules
  puts that port in the place of WireGuard's towards this one remote: what arrives before conntrack
  sees it, what leaves after it (-150). So conntrack knows one flow of WireGuard's port, and a host
  firewall that lets in answers only lets the peer's packets in.
- **Clamp.** TCP that this host forwards through the tunnel learns the tunnel's MTU (RFC 4459, 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint
from nostrvpn.host import nft_text
from nostrvpn.host.nft_text import Chain

__all__ = ["CLAMP", "Firewall", "Guard", "Pin", "render_firewall", "rule_marks", "table_name"]

# RFC 8489 section 5: at bit 32 of a UDP payload, thus at bit 96 of the UDP header.
_NOT_STUN = "@th,96,32 != 0x2112a442"
# Before conntrack (-200), so that it never sees the packet as it was.
_HOOK = "priority -310; policy accept;"
# RFC 768: a checksum of 0 over IPv4 says there is none. nft would "mend" it, which makes it wrong.
_NO_CHECKSUM = "udp checksum 0"
# Of forwarded TCP, by what the routes carry.
CLAMP = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"


@dataclass(frozen=True, slots=True)
class Guard:
    """Late packets of the path ``old`` count as packets of ``new``."""

    old: Endpoint
    new: Endpoint


@dataclass(frozen=True, slots=True)
class Pin:
    """Towards ``remote``, and back, ``local_port`` stands for WireGuard's port."""

    local_port: int
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Firewall:
    """What we want of the packet filter; the empty value is no table at all.

    ``listen_port`` is WireGuard's (used by pins). ``clamp_forwarded``: this host forwards TCP
    through the tunnel. Raises ValueError where two rules would contradict each other.
    """

    listen_port: int = 0
    guards: frozenset[Guard] = frozenset()
    pins: frozenset[Pin] = frozenset()
    clamp_forwarded: bool = False

    def __post_init__(self) -> None:
        if len({guard.old for guard in self.guards}) != len(self.guards):
            raise ValueError("one old path is guarded twice")
        if len({pin.remote for pin in self.pins}) != len(self.pins):
            raise ValueError("one remote is pinned twice")
        if self.pins and not self.listen_port:
            raise ValueError("a pin stands for WireGuard's port, and that is not known")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked."""
        return not (self.guards or self.pins or self.clamp_forwarded)

    @property
    def summary(self) -> str:
        """What is asked, in a few words for a log."""
        if self.is_empty:
            return "removed"
        words = [f"guard {guard.old} as {guard.new}" for guard in self.guards]
        words += [f"port {pin.local_port} towards {pin.remote}" for pin in self.pins]
        words += ["clamp forwarded TCP"] if self.clamp_forwarded else []
        return ", ".join(sorted(words))


def table_name(interface: str) -> str:
    """Return the name of our table (family inet) for an interface."""
    return f"nostrvpn_{interface}"


def render_firewall(firewall: Firewall, interface: str) -> str:
    """Return an nft script that, as one transaction, replaces our table by what is wanted."""
    name = table_name(interface)
    if firewall.is_empty:
        return nft_text.removal(name)
    chains = _chains(firewall, interface)
    return nft_text.script(name, (), chains, nft_text.digest(chains))


def rule_marks(firewall: Firewall, interface: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as ``firewall`` wants it."""
    chains = _chains(firewall, interface)
    return nft_text.marks(chains, nft_text.digest(chains))


def _chains(firewall: Firewall, interface: str) -> list[Chain]:
    """Return the chains that have rules, in a fixed order."""
    pins = sorted(firewall.pins, key=lambda pin: str(pin.remote))
    guards = sorted(firewall.guards, key=lambda guard: str(guard.old))
    port = firewall.listen_port
    arriving = [
        f"{_from(pin.remote)} udp dport {pin.local_port} udp checksum != 0 udp dport set {port}"
        for pin in pins
    ]
    # Afterwards: a late packet may come to the pinned port as well as to WireGuard's.
    for guard in guards:
        late, verdict = f"{_from(guard.old)} {_NOT_STUN}", _verdict(guard)
        arriving += [f"{late} {_NO_CHECKSUM} drop"] if verdict != "drop" else []
        arriving.append(f"{late} {verdict}")
    leaving = [f"{_to(pin.remote)} udp sport {port} udp sport set {pin.local_port}" for pin in pins]
    clamps = [f'{way} "{interface}" {CLAMP}' for way in ("oifname", "iifname")]
    chains: list[Chain] = [
        ("arriving", f"filter hook prerouting {_HOOK}", arriving),
        ("leaving", "filter hook output priority mangle; policy accept;", leaving),
        (
            "forwarded",
            "filter hook forward priority mangle; policy accept;",
            clamps if firewall.clamp_forwarded else [],
        ),
    ]
    return [chain for chain in chains if chain[2]]


def _verdict(guard: Guard) -> str:
    old, new = guard.old.ip, guard.new.ip
    if old.version != new.version or old.is_loopback or new.is_loopback:
        return "drop"
    return f"{_family(guard.new)} saddr set {new} udp sport set {guard.new.port}"


def _from(remote: Endpoint) -> str:
    return f"{_family(remote)} saddr {remote.ip} udp sport {remote.port}"


def _to(remote: Endpoint) -> str:
    return f"{_family(remote)} daddr {remote.ip} udp dport {remote.port}"


def _family(remote: Endpoint) -> str:
    return "ip" if remote.ip.version == 4 else "ip6"
