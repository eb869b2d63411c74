"""What was tried to reach a peer, and what each result means, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.paths.candidates import is_private

if TYPE_CHECKING:
    from nostrvpn.node.situation import Situation
    from nostrvpn.paths.snapshot import PairResult, RelayResult

__all__ = ["relay_outcome", "tried_document"]

# Candidate kinds (RFC 8445 section 5.1.1), for people.
_KINDS = {
    "host": "its own address",
    "srflx": "its public address",
    "prflx": "where its packets come from",
    "mapped": "a port that its router forwards",
    "static": "an address that its owner named",
    "relay": "through a relay",
}


# The states of our end of a pair on a relay. A relay that is full refuses, with a reason of its own.
_OUTCOMES = {"bound": "works", "silent": "silent", "refused": "refused"}


def relay_outcome(relay: RelayResult) -> str:
    """Return what became of a relay: ``works``, ``full``, ``refused``, ``silent`` or ``waiting``."""
    outcome = _OUTCOMES.get(relay.state, "waiting")
    is_full = relay.reason.endswith(("is full", "used up"))
    return "full" if outcome == "refused" and is_full else outcome


def tried_document(s: Situation) -> list[dict[str, object]]:
    """Return every address and relay that was tried: kind, address, result, round trip, words."""
    if s.link is None:
        return []
    return [_pair(s, pair) for pair in s.link.tried] + [_relay(s, item) for item in s.link.relays]


def _pair(s: Situation, pair: PairResult) -> dict[str, object]:
    result = _result(pair)
    return {
        "kind": pair.kind,
        "address": str(pair.endpoint),
        "result": result,
        "rtt_ms": None if pair.rtt_ms is None else round(pair.rtt_ms, 1),
        "text": f"{_KINDS.get(pair.kind, pair.kind)}: {_meaning(s, pair, result)}",
    }


def _result(pair: PairResult) -> str:
    if pair.state == "succeeded":
        return "answered"
    if pair.reason.startswith("not needed"):
        return "skipped"
    if pair.reason.startswith(("answered from another", "the peer answered with error")):
        return "refused"
    return "silent" if pair.state == "failed" else "waiting"


def _meaning(s: Situation, pair: PairResult, result: str) -> str:
    match result:
        case "answered":
            return "it answers"
        case "skipped":
            return "not needed, a better path was found first"
        case "refused":
            return f"it cannot be used, {pair.reason}"
        case "waiting":
            return "being tried" if pair.tries else "about to be tried"
    if pair.reason == "stopped answering":
        return "it stopped answering"
    if pair.tries == 0:
        return f"not tried, {pair.reason}" if pair.reason else "not tried"
    if not s.answered:
        return f"no answer, {s.name} may be off"
    if pair.endpoint.ip.version == 6:
        return "no answer, a firewall on the way drops it"
    if is_private(pair.endpoint.ip):
        return "no answer, as is usual unless both are on one local network"
    return "no answer, a NAT or a firewall on the way drops it"


def _relay(s: Situation, relay: RelayResult) -> dict[str, object]:
    outcome = relay_outcome(relay)
    meanings = {
        "works": "it carries packets",
        "full": "it is full",
        "refused": "it refused",
        "silent": "it does not answer",
        "waiting": "being tried",
    }
    reason = f", {relay.reason}" if relay.reason and outcome in ("refused", "waiting") else ""
    return {
        "kind": "relay",
        "address": s.names.get(relay.relay, relay.relay),
        "result": outcome if outcome != "works" else "answered",
        "rtt_ms": None if relay.rtt_ms is None else round(relay.rtt_ms, 1),
        "text": f"a relay: {meanings[outcome]}{reason}",
    }
