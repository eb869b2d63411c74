"""The catalogue of what can be wrong with a node, in words, each with the next step."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "Problem", "problem", "refusal_words"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong now. ``severity`` is ``error``, ``warning`` or ``info``."""

    code: str
    severity: str
    text: str
    hint: str

    def to_json(self) -> dict[str, str]:
        """Return the form that ``status --json`` shows."""
        return {
            "code": self.code,
            "severity": self.severity,
            "text": self.text,
            "hint": self.hint,
        }


# code -> (severity, text, hint); braces are filled in by :func:`problem`.
CATALOGUE: dict[str, tuple[str, str, str]] = {
    "relays_down": (
        "error",
        "no Nostr relay can be reached ({reason})",
        "check the internet connection; live tunnels stay up meanwhile",
    ),
    "proxy_down": (
        "error",
        "no Nostr relay can be reached: {reason}",
        "start the proxy, or correct proxy: in the configuration; live tunnels stay up meanwhile",
    ),
    "relay_unfit": (
        "warning",
        "relay {url} does not carry our messages: {reason}",
        "nothing to do if others are fit; otherwise set relays.urls in the configuration",
    ),
    "stun_silent": (
        "warning",
        "no STUN server answers, so the public address is unknown",
        "set stun: in the configuration to a server you can reach",
    ),
    "stun_unresolved": (
        "warning",
        "the STUN servers' names do not resolve: {names}",
        "check DNS, or give addresses in stun: of the configuration",
    ),
    "hard_nat": (
        "info",
        "this network's NAT gives another port for each destination",
        "where no direct path is found, packets are relayed; forward UDP port {port} on the router, or "
        "switch on UPnP or PCP there, to be reached directly",
    ),
    "udp_blocked": (
        "warning",
        "no UDP answer comes from anywhere, so this network seems to block UDP",
        "allow UDP out, or let a member relay by TCP: `nostrvpn up --relay-for members "
        "--relay-websocket 0.0.0.0:443`",
    ),
    "relay_refused": (
        "error",
        "this node cannot relay for others: {reason}",
        "see relay: in the configuration, or go on without: `nostrvpn up --relay-for none`",
    ),
    "relay_slow": (
        "info",
        "the kernel does not forward for members that relay through this node: {reason}",
        "nothing to do: the daemon forwards itself, at the cost of some processor time",
    ),
    "relay_not_saved": (
        "warning",
        "the bytes relayed this month cannot be stored: {reason}",
        "free space on the disk that holds the state directory; else the count is lost with a crash",
    ),
    "relay_failed": (
        "warning",
        "relaying for others met {count} unexpected errors, the last: {reason}",
        "it goes on by itself; the daemon's log says where each happened first",
    ),
    "turn_failed": (
        "warning",
        "the TURN server {server} does not serve this node: {reason}",
        "check url, username and password in turn: of the configuration",
    ),
    "port_mapping_failed": (
        "info",
        "the router opened no port for this node: {reason}",
        "switch on UPnP, NAT-PMP or PCP there, or forward UDP port {port}",
    ),
    "names_failed": (
        "warning",
        "members' names do not resolve on this host: {reason}",
        "tunnels work all the same; `nostrvpn resolve NAME` gives addresses",
    ),
    "guard_missing": (
        "warning",
        "the firewall rules for moving tunnels cannot be set: {reason}",
        "install nftables (sudo apt install nftables); until then a path may change more slowly",
    ),
    "not_enforced": (
        "error",
        "permissions are not enforced, so all members reach everything here: {reason}",
        "install nftables (sudo apt install nftables), then `nostrvpn down` and `nostrvpn up`",
    ),
    "firewall_drops": (
        "warning",
        "the firewall chain {where} of this host drops what members may send here",
        "let it in, nostrvpn's own rules still hold: {remedy}",
    ),
    "shields_up": (
        "info",
        "shields are up: nothing is let in from the network",
        "`nostrvpn shields-up off` ends it",
    ),
    "policy_damaged": (
        "error",
        "{text}; shields are up",
        "see `nostrvpn rules`, make the rules again, then `nostrvpn shields-up off`",
    ),
    "clock_skew": (
        "warning",
        "{name}'s clock and ours differ by {minutes} minutes, so its messages are refused",
        "set both clocks (timedatectl set-ntp true)",
    ),
    "tunnel_refused": (
        "error",
        "the tunnel could not be configured: {reason}",
        "run `nostrvpn cleanup`, then `nostrvpn up` as root",
    ),
    "not_saved": (
        "error",
        "the state cannot be saved, so no message leaves: {reason}",
        "free space on the disk that holds the state directory; it goes on by itself",
    ),
    "queue_full": (
        "warning",
        "{datagrams} datagrams and {messages} messages were dropped because a queue was full",
        "the host is overloaded or flooded; `nostrvpn status --json` has the counters",
    ),
    "no_backup": (
        "warning",
        "the backup of the state could not be written: {reason}",
        "free space on the disk that holds the state directory; it is tried again by itself",
    ),
    "tap_failed": (
        "error",
        "probes cannot share WireGuard's port: {reason}",
        "run as root or with CAP_NET_RAW and CAP_NET_ADMIN",
    ),
    "ipv4_overlap": (
        "warning",
        "the overlay's IPv4 range {prefix} overlaps {route}, so only IPv6 is used",
        "reach peers by their IPv6 addresses",
    ),
    "routes_refused": (
        "error",
        "the networks behind this host cannot be reached through it: {reason}",
        "install nftables and run as root, or share none: `nostrvpn routes advertise --withdraw CIDR`",
    ),
    "routes_blocked": (
        "error",
        "another firewall of this host drops what it would forward: chain {where}",
        "let it through: {remedy}",
    ),
    "route_overlap": (
        "warning",
        "{network} behind {name} is not used: {reason}",
        "`nostrvpn routes accept {name} {network} --force` if you want that, else `routes refuse`",
    ),
    "exit_blocked": (
        "error",
        "nothing leaves outside the mesh: {reason}",
        "see `nostrvpn exit list` and choose one: `nostrvpn exit use PEER`; `nostrvpn exit off` ends it",
    ),
    "exit_not_permitted": (
        "error",
        "nothing leaves outside the mesh: {reason}",
        "it has to run `nostrvpn exit offer`, and to allow this node; else `nostrvpn exit off`",
    ),
    "exit_unreachable": (
        "error",
        "{name} does not answer, so nothing leaves outside the mesh",
        "it is tried again by itself; see `nostrvpn exit list`, or `nostrvpn exit use auto`",
    ),
    "exit_lockdown": (
        "warning",
        "lockdown: no exit is used, so nothing leaves outside the mesh",
        "`nostrvpn exit use PEER`, or `nostrvpn exit off --kill-switch off`",
    ),
    "exit_offer_failed": (
        "error",
        "this node is no exit for others now, and lets no guest through: {reason}",
        "install nftables and run as root; then it goes on by itself, or `nostrvpn exit offer --stop`",
    ),
    "exit_offer_down": (
        "warning",
        "guests of this exit have no network: {reason}",
        "it goes on by itself; look at the host's routes, or at the provider: `nostrvpn exit clients`",
    ),
    "exit_offer_blocked": (
        "error",
        "another firewall of this host drops what this exit's guests send: chain {where}",
        "let it through: {remedy}",
    ),
    "exit_rival": (
        "error",
        "no exit is used here: another network of this host ({interface}) uses one",
        "a host has one exit at a time: `nostrvpn exit off` in that network (with --network), or here",
    ),
    "exit_no_v6": (
        "info",
        "{name} carries no IPv6, so IPv6 to the internet is blocked",
        "nothing to do: programs use IPv4; or choose another one: `nostrvpn exit list`",
    ),
    "exit_no_v4": (
        "warning",
        "no IPv4 goes through {name}, so IPv4 to the internet is blocked",
        "choose another one: `nostrvpn exit list`",
    ),
    "exit_dns": (
        "warning",
        "names on the internet do not resolve: {reason}",
        "choose a resolver: `nostrvpn exit use PEER --resolver IP`",
    ),
    "exit_country": (
        "warning",
        "{text}",
        "without it `exit list` shows only where exits say that they are",
    ),
    "exit_shield_failed": (
        "error",
        "what may leave beside the exit cannot be enforced: {reason}",
        "install nftables and run as root (sudo apt install nftables), or `nostrvpn exit off`",
    ),
    "purchase_waits": (
        "error",
        "no exit is bought yet, so nothing leaves outside the mesh: {reason}",
        "see `nostrvpn market list`, or pay more: `nostrvpn exit buy --max-price`; `exit off` ends it",
    ),
    "purchase_short": (
        "warning",
        "the exit that is bought cannot be paid further: {reason}",
        "`nostrvpn wallet fund SAT`, or a larger budget: `nostrvpn exit buy --budget 500sat/day`",
    ),
    "purchase_paused": (
        "error",
        "the seller of the exit waits for money, and lets nothing through: {reason}",
        "`nostrvpn wallet fund SAT`, or a larger budget: `nostrvpn exit buy --budget 500sat/day`",
    ),
    "sale_failed": (
        "error",
        "this node's exit is for sale, and nobody can use it: {reason}",
        "see `nostrvpn market selling`; behind a NAT forward a port and say where: `nostrvpn exit offer "
        "--public --endpoint HOST:PORT`",
    ),
    "sale_without_ipv6": (
        "warning",
        "this node's exit is sold without IPv6: {reason}",
        "or sell IPv4 only, then this is no problem: `nostrvpn exit offer --public --no-ipv6`",
    ),
    "sale_unlisted": (
        "warning",
        "this node's exit is for sale, and no relay has the offer",
        "it is tried again by itself; market.relays in the configuration says where",
    ),
    "state_restored": (
        "warning",
        "{text}",
        "check `nostrvpn peers`; the damaged file was kept beside the new one",
    ),
    "record_damaged": (
        "warning",
        "{text}",
        "the record was left out; join or invite again if a peer is missing",
    ),
    "join_waiting": (
        "info",
        "waiting for {name} to admit this node",
        "it completes when that node is online; keep this one running",
    ),
    "join_refused": (
        "error",
        "the invite was refused: {reason}",
        "ask for a new invite for this node's npub: {npub}",
    ),
    "applicant_refused": (
        "info",
        "{name} tried to join and was refused: {reason}",
        "if you know this npub, invite it with `nostrvpn invite`",
    ),
    "key_replaced": (
        "error",
        "another key has taken this node's place in the network",
        "if this node was given a new npub, run `nostrvpn rotate` to finish it; else ask an admin",
    ),
    "removed": (
        "error",
        "this node was removed from the network by its owner",
        "ask the owner for a new invite",
    ),
    "membership_ended": (
        "error",
        "this node's membership has ended",
        "ask the owner or an admin to renew it: `nostrvpn peer role NAME ROLE --for TIME`",
    ),
    "network_key_missing": (
        "warning",
        "this node has not got the network's present key, so it may not hear of changes",
        "keep it running: it asks the other members; if that does not help, have an admin make a link "
        "with `nostrvpn invite`, and join by it again",
    ),
    "peer_unreachable": (
        "warning",
        "no path to {name}: {reason}",
        "see `nostrvpn why {name}`; it is tried again by itself",
    ),
    "no_network": (
        "info",
        "this node is in no network yet",
        "run `nostrvpn invite NPUB` to start one, or `nostrvpn join LINK`",
    ),
}


def problem(code: str, **values: object) -> Problem:
    """Return the catalogue's entry ``code`` with its blanks filled in."""
    severity, text, hint = CATALOGUE[code]
    return Problem(code, severity, text.format(**values), hint.format(**values))


# What a refusal message says (docs/protocol/membership.md), for people. An inviter of another
# version may know further reasons; they are shown as they came.
_REFUSALS = {
    "used": "another node has used it",
    "foreign": "it was made for another npub",
    "expired": "it has expired",
    "removed": "this node was removed from the network",
}


def refusal_words(reason: str) -> str:
    """Return an invite refusal's reason in words."""
    return _REFUSALS.get(reason, reason)
