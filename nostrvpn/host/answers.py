"""Answers that take the host's own routes although an exit is used: chains of ``shield``'s table.

What was begun past the exit is answered past it. A packet that leaves so carries a mark within
``MARK_MASK``, and the connection keeps it: with strict reverse-path filters the answers to it are looked
up by the mark. And with the kill switch off, who began from a local network, as a container does, is
answered there and not through the exit.
"""

from __future__ import annotations

from ipaddress import ip_network

from nostrvpn.host.exit_routing import PRIVATE
from nostrvpn.host.nft_text import Chain
from nostrvpn.host.state import FWMARK, MARK_MASK

__all__ = ["MARK", "MARKED", "TOO_LARGE", "answering"]

_OTHER_BITS = 0xFFFFFFFF ^ MARK_MASK
_HOOK = "{} hook {} priority {}; policy accept;"
MARKED = f"meta mark & {MARK_MASK:#010x} == {FWMARK:#010x}"
"""The condition that a packet is ours, or goes around the exit."""
# Other programs' bits stay.
MARK = f"meta mark set meta mark & {_OTHER_BITS:#010x} | {FWMARK:#010x}"
"""The statement that makes it so."""
# RFC 1191 section 4, RFC 4443 section 3.2. The kernel's own belong to the connection that they are
# about; what a program makes up quotes one that is not known, as its source is rewritten on the way.
TOO_LARGE = {
    version: f"{kind} fib saddr type local ct state related ct direction reply accept"
    for version, kind in (
        (4, "icmp type destination-unreachable icmp code 4"),
        (6, "icmpv6 type packet-too-big"),
    )
}
"""By IP version: this host may say to whoever began it that what it forwards is too large."""


def answering(tunnels: str, *, returns: bool) -> list[Chain]:
    """Return the chains. ``tunnels``: our interfaces as nft has them, one or a set. ``returns``: no
    route leads back to local networks, so the answers to what came from there are marked."""
    near = [(word, ", ".join(nets)) for word, nets in _near().items() if returns]
    # The source here is still our own; who began it is told by the connection alone.
    forwarded = [
        f"iifname {tunnels} ct direction reply ct original {word} saddr {{ {nets} }} "
        f"ct original {word} saddr != @overlay{6 if word == 'ip6' else 4} {MARK}"
        for word, nets in near
    ]
    chains: list[Chain] = [
        (
            "answering",
            _HOOK.format("filter", "prerouting", -150),
            [f"ct mark & {MARK_MASK:#010x} == {FWMARK:#010x} {MARK}", *forwarded],
        ),
        (
            "marked",
            _HOOK.format("filter", "output", -140),
            [f"{MARKED} ct mark set ct mark & {_OTHER_BITS:#010x} | {FWMARK:#010x}"],
        ),
    ]
    if returns:
        own = [
            f"oifname {tunnels} ct direction reply {word} daddr {{ {nets} }} "
            f"{word} daddr != @overlay{6 if word == 'ip6' else 4} {MARK}"
            for word, nets in near
        ]
        chains.append(("returning", _HOOK.format("route", "output", -145), own))
    return chains


def _near() -> dict[str, list[str]]:
    """Return the networks that local networks are made of, by nft's word for their version."""
    made: dict[str, list[str]] = {"ip": [], "ip6": []}
    for text in PRIVATE:
        if not (network := ip_network(text)).is_multicast:
            made["ip" if network.version == 4 else "ip6"].append(text)
    return made
