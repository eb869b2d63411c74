"""``why`` gives the one right sentence for each situation, and never contradicts ``status``."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.endpoint import Endpoint, parse_endpoint
from nostrvpn.node.reasons import BLOCKS, HELPS
from nostrvpn.node.services import Services
from nostrvpn.node.situation import Situation
from nostrvpn.node.why import first_reason, span_words, why_document
from nostrvpn.paths.snapshot import (
    LinkSnapshot,
    NatReport,
    PairResult,
    RelayResult,
    ServerReport,
)

PEER = parse_endpoint("198.51.100.7:4242")
LAN = parse_endpoint("192.168.1.2:4242")
SERVER = Endpoint(ip_address("192.0.2.1"), 3478)
OUTSIDE = parse_endpoint("203.0.113.9:30000")
VPS = "ab" * 32
EASY = NatReport("independent", OUTSIDE, None, (ServerReport(SERVER, OUTSIDE, 20.0),), udp_v4=True)
SILENT_STUN = NatReport("unknown", None, None, (ServerReport(SERVER, None, None),), udp_v4=False)
HEARD = {"remote_described": 12.0}


def pair(endpoint: Endpoint = PEER, **changes: Any) -> PairResult:
    kind = "host" if endpoint == LAN else "srflx"
    return replace(
        PairResult(endpoint, kind, "failed", 7, None, "no answer to 7 checks"), **changes
    )


def relay(state: str, reason: str = "", rtt_ms: float | None = None) -> RelayResult:
    return RelayResult(VPS, state, rtt_ms, reason)


def link(**changes: Any) -> LinkSnapshot:
    """Two nodes that described themselves, after a round in which nothing answered."""
    failed = LinkSnapshot(
        state="failed",
        path="none",
        endpoint=None,
        rtt_ms=None,
        connected_in_ms=None,
        stages=HEARD,
        tried=(pair(), pair(LAN)),
        direct_rounds=1,
        next_try_in_s=35.0,
        peer_nat="independent",
    )
    return replace(failed, **changes)


def situation(found: LinkSnapshot | None = None, **changes: Any) -> Situation:
    usual: dict[str, Any] = {
        "name": "home",
        "link": link() if found is None else found,
        "nat": EASY,
        "listen_port": 23456,
        "heard_s": 30.0,
        "names": {VPS: "vps"},
    }
    return Situation(**(usual | changes))


def nat(mapping: str) -> NatReport:
    return replace(EASY, mapping=mapping)


def mute(state: str = "failed") -> LinkSnapshot:
    """The peer did not answer this attempt's offer."""
    return link(state=state, stages={}, tried=())


RELAYED = link(
    state="connected",
    path="relayed",
    endpoint=parse_endpoint("203.0.113.80:33001"),
    rtt_ms=35.0,
    via=VPS,
    relays=(relay("bound", rtt_ms=35.0),),
    direct_rounds=3,
)

# what is, the codes of what blocks, the summary, one of the helps (None: there are none)
SITUATIONS: dict[str, tuple[Situation, list[str], str, str | None]] = {
    "direct": (
        situation(link(state="connected", path="direct", endpoint=PEER, rtt_ms=12.25)),
        [],
        "direct to 198.51.100.7:4242 (12.2 ms)",
        None,
    ),
    "relayed because both NATs are random": (
        situation(replace(RELAYED, peer_nat="random"), nat=nat("random")),
        ["both_random"],
        "relayed via vps (35.0 ms), because this network's NAT and home's both give another, random "
        "port for each destination, so neither side can know where to send",
        "forward UDP port 23456 on the router to this host",
    ),
    "relayed because of our NAT": (
        situation(RELAYED, nat=nat("predictable")),
        ["own_nat"],
        "relayed via vps (35.0 ms), because this network's NAT gives another port for each "
        "destination, so home cannot know where to send",
        "IPv6 on both sides: it needs no NAT",
    ),
    "relayed because of the peer's NAT": (
        situation(replace(RELAYED, peer_nat="random")),
        ["peer_nat"],
        "relayed via vps (35.0 ms), because home's NAT gives another port for each destination, so "
        "this node cannot know where to send",
        "forward a UDP port to home, or switch on UPnP or PCP on its router",
    ),
    "relayed because UDP is blocked": (
        situation(replace(RELAYED, carrier="websocket"), nat=SILENT_STUN),
        ["udp_blocked"],
        "relayed via vps (35.0 ms), inside a WebSocket, because no UDP "
        "answer comes from anywhere, so this network seems to block UDP",
        "allow UDP out of this network",
    ),
    "relayed by a TURN server": (
        situation(replace(RELAYED, via="turn a.example", carrier="turn"), nat=nat("random")),
        ["own_nat"],
        "relayed via turn a.example (35.0 ms), because this network's NAT gives another port for "
        "each destination, so home cannot know where to send",
        "forward UDP port 23456 on the router to this host",
    ),
    "relayed, the first moments": (
        situation(replace(RELAYED, direct_rounds=0, stages={})),
        [],
        "relayed via vps (35.0 ms); a direct path is sought",
        None,
    ),
    "STUN was not asked yet": (
        situation(
            mute("offered"),
            nat=replace(SILENT_STUN, udp_v4=None, udp_v6=None),
            heard_s=None,
            services=Services(),
        ),
        ["never_heard"],
        "nothing: home never told us its addresses: it is off, offline, or uses other Nostr relays",
        "on home: sudo nostrvpn up, then nostrvpn status",
    ),
    "only IPv6 answers": (
        situation(nat=replace(SILENT_STUN, udp_v6=True)),
        ["silent", "no_relay"],
        "nothing: none of home's addresses answered, and what kind of NAT lies between is not known",
        "forward UDP port 23456 on the router to this host",
    ),
    "asleep": (
        situation(link(state="idle", path="none", asleep=True)),
        [],
        "nothing: the path sleeps, as nothing was sent for a while; the next packet wakes it",
        None,
    ),
    "one moment before the proof": (
        situation(link(state="validated", endpoint=PEER, direct_rounds=0)),
        [],
        "198.51.100.7:4242 answers; the first packets of the tunnel are awaited",
        None,
    ),
    "trying": (
        situation(link(state="checking", direct_rounds=0)),
        [],
        "a path is being looked for: addresses are being tried",
        None,
    ),
    "a firewall": (
        situation(link(relays=(relay("allocating"),))),
        ["firewall"],
        "nothing: both NATs would let a direct path through, but no probe was answered: a firewall on "
        "the way, or on one of the two hosts, drops UDP",
        "let UDP port 23456 in and out in the firewalls of both hosts",
    ),
    "two hard NATs and nobody relays": (
        situation(link(peer_nat="random"), nat=nat("random")),
        ["both_random", "no_relay"],
        "nothing: this network's NAT and home's both give another, random port for each destination, "
        "so neither side can know where to send",
        "on a member with a public address: sudo nostrvpn up --relay-for members",
    ),
    "two hard NATs, one to be guessed": (
        situation(link(peer_nat="predictable", relays=(relay("binding"),)), nat=nat("random")),
        ["both_changing"],
        "nothing: this network's NAT and home's both give another port for each destination; the "
        "ports are guessed, but no guess was right yet",
        "switch UPnP, NAT-PMP or PCP on in the router's settings",
    ),
    "two NATs in a row": (
        situation(
            replace(RELAYED, peer_nat="random"),
            services=Services(port_mapping={"external": "100.64.0.9:23456", "public": False}),
        ),
        ["peer_nat", "double_nat"],
        "relayed via vps (35.0 ms), because home's NAT gives another port for each destination, so "
        "this node cannot know where to send",
        "IPv6 on both sides: it needs no NAT",
    ),
    "NATs of unknown kinds": (
        situation(link(peer_nat=None, relays=(relay("binding"),))),
        ["silent"],
        "nothing: none of home's addresses answered, and what kind of NAT lies between is not known",
        "name a TURN server in turn: of the configuration",
    ),
    "no family in common": (
        situation(link(tried=(pair(kind="relay"),), relays=(relay("binding"),))),
        ["no_common_family"],
        "nothing: home and this node have no kind of address in common: one has IPv4 only, one IPv6 "
        "only",
        "give both hosts IPv6, or both IPv4",
    ),
    "the relay is full": (
        situation(link(relays=(relay("refused", "it is full"),))),
        ["firewall", "relay_full"],
        "nothing: both NATs would let a direct path through, but no probe was answered: a firewall on "
        "the way, or on one of the two hosts, drops UDP",
        "on that relay: sudo nostrvpn up --relay-for members --relay-pairs N",
    ),
    "the relay refuses": (
        situation(link(relays=(relay("refused", "error 401"),))),
        ["firewall", "relay_refused"],
        "nothing: both NATs would let a direct path through, but no probe was answered: a firewall on "
        "the way, or on one of the two hosts, drops UDP",
        "name a TURN server in turn: of the configuration",
    ),
    "the relay is silent": (
        situation(link(relays=(relay("silent", "no answer"),))),
        ["firewall", "relay_silent"],
        "nothing: both NATs would let a direct path through, but no probe was answered: a firewall on "
        "the way, or on one of the two hosts, drops UDP",
        "on a member with a public address: sudo nostrvpn up --relay-for members",
    ),
    "the TURN server refuses": (
        situation(services=Services(turn_states={"a.example": "failed: error 401"})),
        ["firewall", "turn_failed"],
        "nothing: both NATs would let a direct path through, but no probe was answered: a firewall on "
        "the way, or on one of the two hosts, drops UDP",
        "check url, username and password in turn: of the configuration",
    ),
    "the peer never described itself": (
        situation(mute("offered"), heard_s=None),
        ["never_heard"],
        "nothing: home never told us its addresses: it is off, offline, or uses other Nostr relays",
        "on home: sudo nostrvpn up, then nostrvpn status",
    ),
    "the peer went away": (
        situation(mute(), heard_s=3 * 3600.0),
        ["not_heard"],
        "nothing: home does not answer: it is off or offline; it was last heard 3 hours ago",
        "on home: sudo nostrvpn up, then nostrvpn status",
    ),
    "the peer went away, and is tried again": (
        situation(mute("checking"), heard_s=7200.0),
        ["not_heard"],
        "nothing: home does not answer: it is off or offline; it was last heard 2 hours ago",
        "on home: sudo nostrvpn up, then nostrvpn status",
    ),
    "clocks differ": (
        situation(mute("offered"), heard_s=None, skew_s=-7200.0),
        ["clock_skew"],
        "nothing: home's clock and ours differ by 2 hours, so its messages are refused",
        "set both clocks: timedatectl set-ntp true",
    ),
    "UDP is blocked here": (
        situation(nat=SILENT_STUN, services=Services(turn_states={"a.example": "connecting"})),
        ["udp_blocked"],
        "nothing: no UDP answer comes from anywhere, so this network seems to block UDP",
        "on a member with a public address: sudo nostrvpn up --relay-for members --relay-websocket "
        "0.0.0.0:443",
    ),
    "UDP is blocked there": (
        situation(link(peer_udp=False, peer_nat="unknown")),
        ["peer_udp_blocked", "no_relay"],
        "nothing: home says that no UDP answer reaches it, so its network seems to block UDP",
        "allow UDP out of home's network",
    ),
    "relayed because UDP is blocked there": (
        situation(replace(RELAYED, peer_udp=False, peer_nat="unknown")),
        ["peer_udp_blocked"],
        "relayed via vps (35.0 ms), because home says that no UDP answer reaches it, so its network "
        "seems to block UDP",
        "allow UDP out of home's network",
    ),
    "UDP passes there": (
        situation(link(peer_udp=True)),
        ["firewall", "no_relay"],
        "nothing: both NATs would let a direct path through, but no probe was answered: a firewall on "
        "the way, or on one of the two hosts, drops UDP",
        "let UDP port 23456 in and out in the firewalls of both hosts",
    ),
    "only STUN is silent": (
        situation(link(relays=(relay("binding"),)), nat=SILENT_STUN, udp_works=True),
        ["stun_silent"],
        "nothing: no STUN server answers, so this node cannot tell home its public address",
        "name a STUN server that answers in stun: of the configuration",
    ),
    "this host is offline": (
        situation(mute(), nostr=False, nat=SILENT_STUN),
        ["offline"],
        "nothing: this host seems to be offline: no Nostr relay and no STUN server answers",
        "connect this host to a network; see: ip address",
    ),
    "no Nostr relay": (
        situation(mute("offered"), nostr=False),
        ["no_nostr"],
        "nothing: no Nostr relay can be reached, so home and this node cannot tell each other "
        "anything",
        "check relays: in the configuration, and that TCP port 443 is let out",
    ),
    "no address of our own": (
        situation(link(state="idle", tried=(), direct_rounds=0)),
        ["no_address"],
        "nothing: this host has no network address that a peer could use",
        "connect this host to a network; see: ip address",
    ),
    "not admitted yet": (
        situation(mute("offered"), member=False),
        ["joining"],
        "nothing: home has not admitted this node to its network yet",
        "keep this node running; it completes when home is online",
    ),
    "our own firewall": (
        situation(link(relays=(relay("binding"),)), refused_sends=4, nat=SILENT_STUN),
        ["host_firewall", "udp_blocked"],
        "nothing: this host's own firewall refused to let 4 UDP packets out",
        "let UDP port 23456 in and out in the firewalls of both hosts",
    ),
    "the tunnel is refused": (
        situation(tunnel_error="no such device"),
        ["tunnel_refused", "firewall", "no_relay"],
        "nothing: the tunnel could not be configured on this host: no such device",
        "sudo nostrvpn cleanup, then sudo nostrvpn up",
    ),
    "no raw socket": (
        situation(link(relays=(relay("binding"),)), tap_error="not permitted"),
        ["tap_failed", "firewall"],
        "nothing: this host does not let probes share WireGuard's port: not permitted",
        "run nostrvpn as root, or with CAP_NET_RAW and CAP_NET_ADMIN",
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_each_situation_has_its_sentence(name: str) -> None:
    given_situation, codes, summary, help_text = SITUATIONS[name]
    told: Any = why_document(given_situation)
    assert [block["code"] for block in told["blocks"]] == codes
    assert told["summary"] == summary
    texts = [item["text"] for item in told["helps"]]
    assert (help_text in texts) if help_text else texts == []
    assert len(texts) == len(set(texts))
    if codes:
        assert first_reason(given_situation) == told["blocks"][0]["text"]


@pytest.mark.parametrize(
    ("state", "reason", "text"),
    [
        (
            "refused",
            "it does not know us",
            "a relay refused to carry the packets: vps (it does not know us)",
        ),
        ("refused", "", "a relay refused to carry the packets: vps"),
        ("refused", "it is full", "a relay that could carry the packets is full: vps"),
        ("silent", "no answer", "a relay that could carry the packets does not answer: vps"),
    ],
)
def test_a_relay_that_does_not_help_is_named(state: str, reason: str, text: str) -> None:
    told: Any = why_document(situation(link(relays=(relay(state, reason),))))
    assert told["blocks"][-1]["text"] == text


@pytest.mark.parametrize(
    ("state", "rounds", "codes"),
    [
        ("checking", 0, []),
        ("checking", 1, ["firewall", "no_relay"]),
        ("failed", 0, ["firewall", "no_relay"]),
        ("degraded", 0, ["firewall", "no_relay"]),
    ],
)
def test_nothing_is_blamed_before_a_round_is_over(
    state: str, rounds: int, codes: list[str]
) -> None:
    told: Any = why_document(situation(link(state=state, direct_rounds=rounds)))
    assert [block["code"] for block in told["blocks"]] == codes


def test_a_relayed_pair_needs_no_other_relay() -> None:
    found = situation(replace(RELAYED, carrier="websocket"), nat=SILENT_STUN)
    assert [item["code"] for item in _dicts(why_document(found)["helps"])] == ["open_udp"]
    dark = situation(nat=SILENT_STUN)
    codes = [item["code"] for item in _dicts(why_document(dark)["helps"])]
    assert codes == ["open_udp", "websocket", "turn_tcp"]


def test_every_rule_and_every_help_is_told_somewhere() -> None:
    told: list[Any] = [why_document(found) for found, *_ in SITUATIONS.values()]
    assert {rule.code for rule in BLOCKS} == {b["code"] for item in told for b in item["blocks"]}
    assert set(HELPS) == {h["code"] for item in told for h in item["helps"]}
    assert len({rule.code for rule in BLOCKS}) == len(BLOCKS)


def test_help_that_is_there_already_is_not_offered() -> None:
    bare = situation(link(peer_nat="random"), nat=nat("random"))
    served = replace(
        bare,
        services=Services(
            port_mapping={"external": "203.0.113.9:23456"}, turn_states={"a.example": "allocated"}
        ),
    )
    before, after = (
        {item["code"] for item in _dicts(why_document(found)["helps"])} for found in (bare, served)
    )
    assert before - after == {"forward_port", "port_mapping", "turn"}
    assert "offer_relay" not in {
        item["code"] for item in _dicts(why_document(situation(RELAYED))["helps"])
    }


def _dicts(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list)
    return value


V6 = parse_endpoint("[2001:db8::7]:4242")


@pytest.mark.parametrize(
    ("result", "said", "text"),
    [
        (
            pair(),
            "silent",
            "its public address: no answer, a NAT or a firewall on the way drops it",
        ),
        (
            pair(LAN),
            "silent",
            "its own address: no answer, as is usual unless both are on one local network",
        ),
        (
            pair(V6, kind="host"),
            "silent",
            "its own address: no answer, a firewall on the way drops it",
        ),
        (
            pair(state="succeeded", rtt_ms=12.34, reason=""),
            "answered",
            "its public address: it answers",
        ),
        (
            pair(state="failed", reason="stopped answering"),
            "silent",
            "its public address: it stopped answering",
        ),
        (
            pair(state="waiting", tries=0, reason=""),
            "waiting",
            "its public address: about to be tried",
        ),
        (
            pair(state="in-progress", tries=2, reason=""),
            "waiting",
            "its public address: being tried",
        ),
        (
            pair(state="waiting", reason="not needed: a better path was found first"),
            "skipped",
            "its public address: not needed, a better path was found first",
        ),
        (
            pair(kind="prflx", reason="answered from another address, 192.0.2.9:1"),
            "refused",
            "where its packets come from: it cannot be used, answered from another address, "
            "192.0.2.9:1",
        ),
        (
            pair(kind="mapped", tries=0, reason="too many probes to this address"),
            "silent",
            "a port that its router forwards: not tried, too many probes to this address",
        ),
    ],
)
def test_what_was_tried_is_said_in_words(result: PairResult, said: str, text: str) -> None:
    [told] = _dicts(why_document(situation(link(tried=(result,))))["tried"])
    assert (told["result"], told["text"]) == (said, text)
    assert told["address"] == str(result.endpoint)
    assert told["rtt_ms"] in (None, 12.3)


def test_an_address_of_a_peer_that_may_be_off_says_so() -> None:
    [told] = _dicts(why_document(situation(link(stages={}, tried=(pair(V6),))))["tried"])
    assert told["text"] == "its public address: no answer, home may be off"


@pytest.mark.parametrize(
    ("result", "said", "text"),
    [
        (relay("bound", rtt_ms=35.04), "answered", "a relay: it carries packets"),
        (relay("allocating"), "waiting", "a relay: being tried"),
        (relay("binding", "too many probes"), "waiting", "a relay: being tried, too many probes"),
        (relay("silent", "no answer"), "silent", "a relay: it does not answer"),
        (relay("refused", "it is full"), "full", "a relay: it is full"),
        (
            relay("refused", "it does not know us"),
            "refused",
            "a relay: it refused, it does not know us",
        ),
        (relay("some new state"), "waiting", "a relay: being tried"),
    ],
)
def test_relays_are_among_what_was_tried(result: RelayResult, said: str, text: str) -> None:
    [told] = _dicts(why_document(situation(link(tried=(), relays=(result,))))["tried"])
    assert (told["kind"], told["address"], told["result"]) == ("relay", "vps", said)
    assert told["text"] == text
    assert told["rtt_ms"] == (35.0 if result.rtt_ms else None)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 seconds"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7200, "2 hours"),
        (9e5, "10 days"),
    ],
)
def test_spans_in_words(seconds: float, words: str) -> None:
    assert span_words(seconds) == words


_STATES = [
    "idle",
    "gathering",
    "offered",
    "checking",
    "validated",
    "connected",
    "degraded",
    "failed",
]
_MAPPINGS = [None, "independent", "predictable", "random", "dependent", "unknown", "new word"]
_ERRORS = st.sampled_from([None, "no {brace} here"])
_LINKS = st.builds(
    link,
    state=st.sampled_from(_STATES),
    path=st.sampled_from(["none", "direct", "relayed"]),
    endpoint=st.sampled_from([None, PEER]),
    rtt_ms=st.sampled_from([None, 3.0]),
    stages=st.sampled_from([{}, HEARD]),
    tried=st.sampled_from([(), (pair(),)]),
    via=st.sampled_from([None, VPS, "turn a.example", "203.0.113.80:33001"]),
    carrier=st.sampled_from(["udp", "websocket", "turn", "pigeon"]),
    relays=st.lists(
        st.sampled_from([relay("bound"), relay("refused", "it is full"), relay("new state")]),
        max_size=2,
    ).map(tuple),
    direct_rounds=st.integers(0, 2),
    peer_nat=st.sampled_from(_MAPPINGS),
    asleep=st.booleans(),
)
_ANY = st.builds(
    situation,
    st.none() | _LINKS,
    name=st.sampled_from(["home", "{name}"]),
    nat=st.sampled_from([SILENT_STUN, *(nat(m) for m in _MAPPINGS if m)]),
    member=st.booleans(),
    heard_s=st.sampled_from([None, 0.0, 1e6]),
    skew_s=st.sampled_from([None, 5.0, -1e6]),
    nostr=st.booleans(),
    udp_works=st.booleans(),
    refused_sends=st.integers(0, 1),
    tunnel_error=_ERRORS,
    tap_error=_ERRORS,
    services=st.sampled_from([Services(), Services(turn_states={"a": "failed"})]),
)


@given(_ANY)
def test_whatever_is_the_answer_is_whole_and_true_to_the_path(found: Situation) -> None:
    told: Any = why_document(found)
    summary = told["summary"]
    assert not re.search(r"\{(?!name|brace)|None", summary)
    asleep = found.link is not None and found.link.asleep
    assert summary.startswith("direct to") == (found.path == "direct" and not asleep)
    assert summary.startswith("relayed via") == (found.path == "relayed" and not asleep)
    assert told["path"] == found.path
    assert (told["via"] is not None) <= (told["path"] == "relayed")
    if found.path == "direct":
        assert told["blocks"] == []
    for item in (*told["blocks"], *told["helps"]):
        assert item["text"]
        assert item["text"].count("{") <= 1 + item["text"].count("{brace}")
