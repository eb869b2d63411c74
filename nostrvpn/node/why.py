"""``why PEER`` in words: what carries data, what was tried, what blocks, what would help."""

from __future__ import annotations

from nostrvpn.node.reasons import BLOCKS, HELPS, Rule
from nostrvpn.node.situation import Situation
from nostrvpn.node.tried import relay_outcome, tried_document

__all__ = ["first_reason", "span_words", "why_document"]

# state -> what goes on, where no data flows yet.
_STATES = {
    "gathering": "a path is being looked for: this node asks for its public address",
    "offered": "a path is being looked for: {name} was told our addresses",
    "checking": "a path is being looked for: addresses are being tried",
    "validated": "{endpoint} answers; the first packets of the tunnel are awaited",
    "connected": "{endpoint} answers; the next packets of the tunnel are awaited",
    "degraded": "nothing: the path was lost, and another one is being looked for",
}
_CARRIERS = {"websocket": ", inside a WebSocket"}


def why_document(s: Situation) -> dict[str, object]:
    """Return the answer of ``why``: what carries data, what was tried, what blocks, what helps."""
    blocks = [] if _settled(s) else [rule for rule in BLOCKS if rule.holds(s)]
    words = _words(s)
    helps: dict[str, str] = {}
    for rule in blocks:
        for code in rule.helps:
            worth, text = HELPS[code]
            if worth(s):
                helps[code] = text.format_map(words)
    return {
        "name": s.name,
        "path": s.path,
        "via": s.via if s.path == "relayed" else None,
        "summary": _summary(s, blocks, words),
        "tried": tried_document(s),
        "blocks": [{"code": rule.code, "text": rule.text.format_map(words)} for rule in blocks],
        "helps": [{"code": code, "text": text} for code, text in helps.items()],
        "search": s.link.search if s.link is not None and s.path != "direct" else "",
        "next_try_in_s": s.link.next_try_in_s if s.link is not None else None,
    }


def first_reason(s: Situation) -> str | None:
    """Return the most important thing that stands in the way, or None if nothing is known to."""
    found = next((rule for rule in BLOCKS if rule.holds(s)), None)
    return None if found is None else found.text.format_map(_words(s))


def _settled(s: Situation) -> bool:
    """Nothing is in the way: data goes directly, or would at once."""
    return s.path == "direct" or (s.link is not None and s.link.asleep and s.tunnel_error is None)


def _summary(s: Situation, blocks: list[Rule], words: dict[str, str]) -> str:
    link = s.link
    if link is not None and link.asleep:
        return "nothing: the path sleeps, as nothing was sent for a while; the next packet wakes it"
    rtt = "" if link is None or link.rtt_ms is None else f" ({link.rtt_ms:.1f} ms)"
    reason = blocks[0].text.format_map(words) if blocks else ""
    if s.path == "direct":
        return f"direct to {words['endpoint']}{rtt}"
    if s.path == "relayed" and link is not None:
        through = f"relayed via {s.via or 'a relay'}{rtt}{_CARRIERS.get(link.carrier, '')}"
        return f"{through}, because {reason}" if reason else f"{through}; a direct path is sought"
    if reason:
        return f"nothing: {reason}"
    return _STATES.get(s.state, "nothing: no address of {name} answered").format_map(words)


def _words(s: Situation) -> dict[str, str]:
    """Return what the blanks of texts are filled with."""
    link = s.link
    relays: dict[str, list[str]] = {"full": [], "refused": [], "silent": []}
    for relay in link.relays if link is not None else ():
        outcome = relay_outcome(relay)
        if outcome in relays:
            reason = f" ({relay.reason})" if relay.reason and outcome == "refused" else ""
            relays[outcome].append(s.names.get(relay.relay, relay.relay) + reason)
    failed = s.services.failed_turn
    return {
        "name": s.name,
        "port": str(s.listen_port),
        "endpoint": str(link.endpoint) if link is not None and link.endpoint else "an address",
        "heard": span_words(s.heard_s or 0.0),
        "skew": span_words(abs(s.skew_s or 0.0)),
        "refused_sends": str(s.refused_sends),
        "tunnel_error": s.tunnel_error or "",
        "tap_error": s.tap_error or "",
        "turn": "; ".join(f"{server}: {reason}" for server, reason in failed.items()),
    } | {outcome: ", ".join(found) for outcome, found in relays.items()}


def span_words(seconds: float) -> str:
    """Return a time span in words: ``42 seconds``, ``3 hours``."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return "1 second" if round(seconds) == 1 else f"{seconds:.0f} seconds"
