"""NAT kinds, as nftables rulesets for a home router with interfaces ``wan`` and ``lan``.

====================  ==========================  =======================================
kind                  mapping (RFC 4787, 4.1)     filtering (RFC 4787, 5)
====================  ==========================  =======================================
port-restricted       endpoint-independent        address and port dependent
symmetric             address and port dependent  address and port dependent
symmetric-sequential  the same, each new one is   address and port dependent
                      the last port plus 1
one-to-one            endpoint-independent, all   endpoint-independent: all that comes
                      ports kept                  to the address is forwarded
address-restricted    endpoint-independent        address dependent
full-cone             endpoint-independent        endpoint-independent
accept-input          endpoint-independent, but   address and port dependent, and the trap
                      see the trap                of mesh routers without a WAN firewall
udp-blocked           none: UDP is dropped        everything
====================  ==========================  =======================================

How, and how honestly:

- Linux ``masquerade`` keeps the source port while it can, so one LAN host sees an
  endpoint-independent mapping; two hosts with the same source port do not, as on a real router.
- INPUT must drop. Otherwise a packet that arrives before we have sent anything leaves a conntrack
  entry for the NAT host itself, and our own later flow to that sender is moved to another port.
  That is *accept-input*, kept as a kind because such routers exist.
- full-cone and address-restricted remember in an nft map which LAN address last sent from a port
  (and to whom), and translate inbound packets to it. So a port opens with the first packet out and
  closes ``mapping_timeout`` after the last one, as in a real cone NAT. The map knows the port
  before translation: two LAN hosts that use one source port confuse it.
- symmetric-sequential counts in the ruleset (``numgen inc``): all LAN hosts share the counter, and
  each new flow takes one number, so other hosts' traffic leaves gaps in what one host sees. After
  4096 flows it begins again.
- one-to-one forwards to the LAN host that last sent UDP: before a host has sent anything nothing
  comes in. A router of this kind is meant for one host.
- IPv6 is never translated; all kinds have the same stateful firewall there (in: only replies).
- A hairpin (LAN host to its own router's public address) is not translated: it is dropped.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["SEQUENCE", "NatKind", "render_ruleset"]


class NatKind(StrEnum):
    """What a router does to UDP; see the table in the module's docstring."""

    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"
    SYMMETRIC_SEQUENTIAL = "symmetric-sequential"
    ONE_TO_ONE = "one-to-one"
    ADDRESS_RESTRICTED = "address-restricted"
    FULL_CONE = "full-cone"
    ACCEPT_INPUT = "accept-input"
    UDP_BLOCKED = "udp-blocked"


_RULESET = """\
table inet lab_nat {{
    {map}
    chain input {{
        type filter hook input priority filter; policy {input_policy};
        ct state established,related accept
        iifname {{ "lo", "lan" }} accept
        meta l4proto {{ icmp, icmpv6 }} accept
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        {forward}
        ct state established,related accept
        iifname "lan" oifname "wan" accept
        ct status dnat accept
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        {prerouting}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        {postrouting}
        oifname "wan" meta nfproto ipv4 masquerade{masquerade_flags}
    }}
}}
"""

SEQUENCE = range(40_000, 44_096)
"""The ports that a symmetric-sequential router gives out, one after the other."""

_OUT = 'iifname "lan" oifname "wan" meta nfproto ipv4 meta l4proto udp'
_IN = 'iifname "wan" meta nfproto ipv4 meta l4proto udp'


def render_ruleset(kind: NatKind, *, mapping_timeout: int) -> str:
    """Return the nftables ruleset of a router of ``kind``; ``mapping_timeout`` is in seconds."""
    parts = {
        "map": "",
        "input_policy": "accept" if kind is NatKind.ACCEPT_INPUT else "drop",
        "forward": "",
        "prerouting": "",
        "postrouting": "",
        "masquerade_flags": " fully-random" if kind is NatKind.SYMMETRIC else "",
    }
    expiry = f"timeout {mapping_timeout}s"
    if kind is NatKind.UDP_BLOCKED:
        parts["forward"] = "meta l4proto udp drop"
    elif kind is NatKind.SYMMETRIC_SEQUENTIAL:
        # A map and not numgen's own offset, which this nft writes in the wrong byte order.
        ports = ", ".join(f"{n} : {port}" for n, port in enumerate(SEQUENCE))
        number = f"numgen inc mod {len(SEQUENCE)} map {{ {ports} }}"
        match = 'oifname "wan" meta nfproto ipv4 meta l4proto udp'
        parts["postrouting"] = f"{match} masquerade to :{number}"
    elif kind is NatKind.ONE_TO_ONE:
        parts["map"] = "map behind { type inet_proto : ipv4_addr; flags dynamic; size 16; }"
        parts["forward"] = f"{_OUT} update @behind {{ meta l4proto : ip saddr }}"
        parts["prerouting"] = f"{_IN} dnat ip to meta l4proto map @behind"
    elif kind is NatKind.FULL_CONE:
        parts["map"] = f"map opened {{ type inet_service : ipv4_addr; flags timeout; {expiry}; }}"
        parts["forward"] = f"{_OUT} update @opened {{ udp sport : ip saddr }}"
        parts["prerouting"] = f"{_IN} dnat ip to udp dport map @opened"
    elif kind is NatKind.ADDRESS_RESTRICTED:
        parts["map"] = (
            "map opened { type ipv4_addr . inet_service : ipv4_addr; flags timeout; "
            + f"{expiry}; }}"
        )
        parts["forward"] = f"{_OUT} update @opened {{ ip daddr . udp sport : ip saddr }}"
        parts["prerouting"] = f"{_IN} dnat ip to ip saddr . udp dport map @opened"
    return _RULESET.format(**parts)
