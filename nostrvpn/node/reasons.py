"""What can stand between two nodes, and what would help: the rules behind ``why``.

Rules are data: each is a code, a condition on the situation, words, and which helps fit it. They stand
in the order of importance; the first that holds is the reason that ``status`` gives too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nostrvpn.node.situation import Situation, is_hard
from nostrvpn.node.tried import relay_outcome

__all__ = ["BLOCKS", "HELPS", "Rule"]

# A peer's clock that is off by less than this is not what keeps its messages away.
_SKEW_S = 60.0


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that can stand in the way. ``text`` is filled by ``why.py``."""

    code: str
    holds: Callable[[Situation], bool]
    text: str
    helps: tuple[str, ...] = ()


def _dark(s: Situation) -> bool:
    return s.path == "none"


def _mute(s: Situation) -> bool:
    """The peer did not answer our offer."""
    over = s.state in ("gathering", "offered", "failed", "degraded")
    again = s.state == "checking" and s.link is not None and s.link.direct_rounds > 0
    return s.nostr and not s.answered and (over or again)


def _both(s: Situation, kinds: tuple[str, ...]) -> bool:
    return s.link is not None and s.nat.mapping in kinds and s.link.peer_nat in kinds


def _own_hard(s: Situation) -> bool:
    return is_hard(s.nat.mapping)


def _peer_hard(s: Situation) -> bool:
    return s.link is not None and is_hard(s.link.peer_nat)


def _checked(s: Situation) -> bool:
    """A round of direct checks between two described nodes found nothing, and UDP is not the reason."""
    mute = s.stun_silent or _no_family(s) or _peer_udp_blocked(s)
    return s.tried and s.answered and not mute


def _no_family(s: Situation) -> bool:
    """The peer described itself, but with no address of a family that we have."""
    if s.link is None or not s.tried or not s.answered:
        return False
    return all(pair.kind == "relay" for pair in s.link.tried)


def _udp_blocked(s: Situation) -> bool:
    return s.stun_silent and s.nostr and not s.udp_works and s.path != "direct"


def _peer_udp_blocked(s: Situation) -> bool:
    """The peer says that nothing answers it by UDP; before a round is over it may not know better."""
    return s.tried and s.answered and s.link is not None and s.link.peer_udp is False


def _relays(s: Situation, outcome: str) -> bool:
    if s.link is None or not _dark(s) or not s.tried:
        return False
    return any(relay_outcome(relay) == outcome for relay in s.link.relays)


_NAT_HELPS = ("forward_port", "port_mapping", "ipv6", "offer_relay", "turn")

BLOCKS: tuple[Rule, ...] = (
    Rule(
        "tunnel_refused",
        lambda s: s.tunnel_error is not None,
        "the tunnel could not be configured on this host: {tunnel_error}",
        ("cleanup",),
    ),
    Rule(
        "tap_failed",
        lambda s: s.tap_error is not None and s.path != "direct",
        "this host does not let probes share WireGuard's port: {tap_error}",
        ("as_root",),
    ),
    Rule(
        "joining",
        lambda s: not s.member,
        "{name} has not admitted this node to its network yet",
        ("keep_running",),
    ),
    Rule(
        "no_address",
        lambda s: s.member and _dark(s) and s.state == "idle",
        "this host has no network address that a peer could use",
        ("connect",),
    ),
    Rule(
        "offline",
        lambda s: _dark(s) and not s.nostr and s.stun_silent and not s.udp_works,
        "this host seems to be offline: no Nostr relay and no STUN server answers",
        ("connect",),
    ),
    Rule(
        "no_nostr",
        lambda s: _dark(s) and not s.nostr and not (s.stun_silent and not s.udp_works),
        "no Nostr relay can be reached, so {name} and this node cannot tell each other anything",
        ("nostr",),
    ),
    Rule(
        "clock_skew",
        lambda s: _dark(s) and s.skew_s is not None and abs(s.skew_s) >= _SKEW_S,
        "{name}'s clock and ours differ by {skew}, so its messages are refused",
        ("clocks",),
    ),
    Rule(
        "never_heard",
        lambda s: _mute(s) and s.heard_s is None and s.skew_s is None,
        "{name} never told us its addresses: it is off, offline, or uses other Nostr relays",
        ("start_peer",),
    ),
    Rule(
        "not_heard",
        lambda s: _mute(s) and s.heard_s is not None and s.skew_s is None,
        "{name} does not answer: it is off or offline; it was last heard {heard} ago",
        ("start_peer",),
    ),
    Rule(
        "host_firewall",
        lambda s: s.refused_sends > 0 and s.path != "direct",
        "this host's own firewall refused to let {refused_sends} UDP packets out",
        ("open_firewall",),
    ),
    Rule(
        "udp_blocked",
        _udp_blocked,
        "no UDP answer comes from anywhere, so this network seems to block UDP",
        ("open_udp", "websocket", "turn_tcp"),
    ),
    Rule(
        "peer_udp_blocked",
        _peer_udp_blocked,
        "{name} says that no UDP answer reaches it, so its network seems to block UDP",
        ("peer_open_udp", "websocket", "turn_tcp"),
    ),
    Rule(
        "stun_silent",
        lambda s: s.stun_silent and s.udp_works and s.path != "direct",
        "no STUN server answers, so this node cannot tell {name} its public address",
        ("stun",),
    ),
    Rule(
        "no_common_family",
        _no_family,
        "{name} and this node have no kind of address in common: one has IPv4 only, one IPv6 only",
        ("both_families", "offer_relay", "turn"),
    ),
    Rule(
        "both_random",
        lambda s: _checked(s) and _both(s, ("random", "dependent")),
        "this network's NAT and {name}'s both give another, random port for each destination, so "
        "neither side can know where to send",
        _NAT_HELPS,
    ),
    Rule(
        "both_changing",
        lambda s: (
            _checked(s) and _own_hard(s) and _peer_hard(s) and not _both(s, ("random", "dependent"))
        ),
        "this network's NAT and {name}'s both give another port for each destination; the ports are "
        "guessed, but no guess was right yet",
        _NAT_HELPS,
    ),
    Rule(
        "own_nat",
        lambda s: _checked(s) and _own_hard(s) and not _peer_hard(s),
        "this network's NAT gives another port for each destination, so {name} cannot know where to "
        "send",
        _NAT_HELPS,
    ),
    Rule(
        "peer_nat",
        lambda s: _checked(s) and _peer_hard(s) and not _own_hard(s),
        "{name}'s NAT gives another port for each destination, so this node cannot know where to send",
        ("peer_port", "ipv6", "offer_relay", "turn"),
    ),
    Rule(
        "firewall",
        lambda s: _checked(s) and _both(s, ("independent",)),
        "both NATs would let a direct path through, but no probe was answered: a firewall on the way, "
        "or on one of the two hosts, drops UDP",
        ("open_firewall", "forward_port", "offer_relay", "turn"),
    ),
    Rule(
        "silent",
        lambda s: (
            _checked(s)
            and not _own_hard(s)
            and not _peer_hard(s)
            and not _both(s, ("independent",))
        ),
        "none of {name}'s addresses answered, and what kind of NAT lies between is not known",
        _NAT_HELPS,
    ),
    Rule(
        "double_nat",
        lambda s: (
            _checked(s)
            and bool(s.services.port_mapping.get("external"))
            and s.services.port_mapping.get("public") is False
        ),
        "this network's router is behind another NAT itself, so a port that it opens is not reached "
        "from outside",
        ("ipv6", "offer_relay", "turn"),
    ),
    Rule(
        "relay_full",
        lambda s: _relays(s, "full"),
        "a relay that could carry the packets is full: {full}",
        ("more_pairs", "offer_relay"),
    ),
    Rule(
        "relay_refused",
        lambda s: _relays(s, "refused"),
        "a relay refused to carry the packets: {refused}",
        ("offer_relay", "turn"),
    ),
    Rule(
        "relay_silent",
        lambda s: _relays(s, "silent"),
        "a relay that could carry the packets does not answer: {silent}",
        ("offer_relay", "turn"),
    ),
    Rule(
        "turn_failed",
        lambda s: _dark(s) and bool(s.services.failed_turn),
        "the TURN server does not serve this node: {turn}",
        ("check_turn",),
    ),
    Rule(
        "no_relay",
        lambda s: (
            _dark(s)
            and s.tried
            and s.answered
            and s.link is not None
            and not s.link.relays
            and not s.services.turn_states
        ),
        "no member that both can reach offers to relay",
        ("offer_relay", "turn"),
    ),
)


def _lacks_port(s: Situation) -> bool:
    return not s.services.port_mapping.get("external")


def _lacks_turn(s: Situation) -> bool:
    return not s.services.turn_states


def _relay_by_udp(s: Situation) -> bool:
    """Nothing carries data, and a relay that is reached by UDP could."""
    return _dark(s) and not _udp_blocked(s) and not _peer_udp_blocked(s)


def _always(_s: Situation) -> bool:
    return True


# code -> (whether it is worth saying, words)
HELPS: dict[str, tuple[Callable[[Situation], bool], str]] = {
    "forward_port": (_lacks_port, "forward UDP port {port} on the router to this host"),
    "port_mapping": (_lacks_port, "switch UPnP, NAT-PMP or PCP on in the router's settings"),
    "peer_port": (_always, "forward a UDP port to {name}, or switch on UPnP or PCP on its router"),
    "open_firewall": (_always, "let UDP port {port} in and out in the firewalls of both hosts"),
    "open_udp": (_always, "allow UDP out of this network"),
    "peer_open_udp": (_always, "allow UDP out of {name}'s network"),
    "ipv6": (_always, "IPv6 on both sides: it needs no NAT"),
    "both_families": (_always, "give both hosts IPv6, or both IPv4"),
    "offer_relay": (
        _relay_by_udp,
        "on a member with a public address: sudo nostrvpn up --relay-for members",
    ),
    "more_pairs": (_always, "on that relay: sudo nostrvpn up --relay-for members --relay-pairs N"),
    "websocket": (
        _dark,
        "on a member with a public address: sudo nostrvpn up --relay-for members "
        "--relay-websocket 0.0.0.0:443",
    ),
    "turn": (
        lambda s: _relay_by_udp(s) and _lacks_turn(s),
        "name a TURN server in turn: of the configuration",
    ),
    "turn_tcp": (
        lambda s: _dark(s) and _lacks_turn(s),
        "name a TURN server with ?transport=tcp in turn: of the configuration",
    ),
    "check_turn": (_always, "check url, username and password in turn: of the configuration"),
    "stun": (_always, "name a STUN server that answers in stun: of the configuration"),
    "nostr": (_always, "check relays: in the configuration, and that TCP port 443 is let out"),
    "connect": (_always, "connect this host to a network; see: ip address"),
    "clocks": (_always, "set both clocks: timedatectl set-ntp true"),
    "start_peer": (_always, "on {name}: sudo nostrvpn up, then nostrvpn status"),
    "keep_running": (_always, "keep this node running; it completes when {name} is online"),
    "cleanup": (_always, "sudo nostrvpn cleanup, then sudo nostrvpn up"),
    "as_root": (_always, "run nostrvpn as root, or with CAP_NET_RAW and CAP_NET_ADMIN"),
}
