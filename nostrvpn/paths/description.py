"""What two peers tell each other by signaling to find a path, and how it is JSON.

::

    {"session": "<16 hex>", "generation": 1, "answers": null | "<16 hex>",
     "ufrag": "…", "password": "…",
     "candidates": [{"kind": "host", "endpoint": "192.0.2.1:51820", "priority": 2130706431}],
     "relays": [ticket, …], "nat": {"mapping": "independent", "udp": true}, "search": plan}

A session is one set of credentials (RFC 8445 section 5.3); a restart makes a new one. ``generation``
counts the descriptions of a session: the highest wins. ``answers`` names the peer's session that the
sender knew: null is an offer and asks for an answer. ``relays``, ``nat`` and ``search`` may be
missing: a node that knows no relays says nothing of them. ``search`` is the plan of a search for a
path through hard NATs (``hard_nat/plan.py``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.candidates import MAX_CANDIDATES, Candidate, CandidateKind
from nostrvpn.paths.fields import Fields
from nostrvpn.paths.hard_nat.plan import PlanKind, SearchPlan, parse_plan, plan_to_json
from nostrvpn.paths.relay_offers import MAX_TICKETS, RelayTicket, parse_ticket, ticket_to_json
from nostrvpn.paths.settings import PathSettings
from nostrvpn.paths.snapshot import Mapping

__all__ = [
    "CachedSession",
    "Description",
    "NatInfo",
    "cached_session_to_json",
    "description_to_json",
    "parse_cached_session",
    "parse_description",
]

_SESSION = re.compile(r"[0-9a-f]{16}\Z")
# RFC 8839 section 5.4: ice-char; at least 4 and 22 of them. The upper bounds are ours (RFC: 256).
_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,32}\Z")
_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,64}\Z")
_MAX_GENERATION = 1 << 31
_MAX_PRIORITY = 1 << 32
_MAX_MAPPING_TEXT = 32
_FIELDS = Fields("bad_description")


@dataclass(frozen=True, slots=True)
class NatInfo:
    """What a node knows of its own NAT: the kind of mapping, and whether UDP passes."""

    mapping: Mapping
    udp: bool


@dataclass(frozen=True, slots=True)
class Description:
    """One side's session, credentials and candidates, in one generation.

    ``relays`` hold the receiver's keys: tickets for ports that the sender allocated for both.
    """

    session: str
    generation: int
    answers: str | None
    ufrag: str
    password: str = field(repr=False)
    candidates: tuple[Candidate, ...]
    relays: tuple[RelayTicket, ...] = ()
    nat: NatInfo | None = None
    search: SearchPlan | None = None


@dataclass(frozen=True, slots=True)
class CachedSession:
    """What lets a restarted node check its peer's last address at once, without a relay."""

    local: Description
    remote: Description
    endpoint: Endpoint | None


def description_to_json(description: Description) -> dict[str, object]:
    """Return a JSON-able form; it holds the session's password and the tickets' keys."""
    nat, search = description.nat, description.search
    return {
        "session": description.session,
        "generation": description.generation,
        "answers": description.answers,
        "ufrag": description.ufrag,
        "password": description.password,
        "candidates": [
            {
                "kind": candidate.kind.value,
                "endpoint": str(candidate.endpoint),
                "priority": candidate.priority,
            }
            for candidate in description.candidates
        ],
        "relays": [ticket_to_json(ticket) for ticket in description.relays],
        "nat": None if nat is None else {"mapping": nat.mapping.value, "udp": nat.udp},
    } | ({} if search is None else {"search": plan_to_json(search)})


def parse_description(obj: object, settings: PathSettings | None = None) -> Description:
    """Parse a peer's description; PeerMisbehaved("bad_description") if it breaks a bound."""
    fields = _FIELDS.mapping(obj)
    answers = fields.get("answers")
    candidates = fields.get("candidates")
    if not isinstance(candidates, list) or len(candidates) > MAX_CANDIDATES:
        raise _FIELDS.bad("not a bounded list of candidates")
    settings = settings or PathSettings()
    parsed = [_parse_candidate(item, settings) for item in candidates]
    return Description(
        session=_FIELDS.text(fields.get("session"), _SESSION),
        generation=_FIELDS.number(fields.get("generation"), 1, _MAX_GENERATION - 1),
        answers=None if answers is None else _FIELDS.text(answers, _SESSION),
        ufrag=_FIELDS.text(fields.get("ufrag"), _UFRAG),
        password=_FIELDS.text(fields.get("password"), _PASSWORD),
        candidates=tuple(candidate for candidate in parsed if candidate is not None),
        relays=_tickets(fields.get("relays"), settings),
        nat=_nat(fields.get("nat")),
        search=_search(fields.get("search")),
    )


def cached_session_to_json(cached: CachedSession) -> dict[str, object]:
    """Return a JSON-able form for the state database; it holds both passwords."""
    return {
        "local": description_to_json(cached.local),
        "remote": description_to_json(cached.remote),
        "endpoint": None if cached.endpoint is None else str(cached.endpoint),
    }


def parse_cached_session(obj: object, settings: PathSettings | None = None) -> CachedSession:
    """Parse what ``cached_session_to_json`` made; PeerMisbehaved if the state was damaged."""
    fields = _FIELDS.mapping(obj)
    settings = settings or PathSettings()
    endpoint = fields.get("endpoint")
    return CachedSession(
        local=parse_description(fields.get("local"), settings),
        remote=parse_description(fields.get("remote"), settings),
        endpoint=None if endpoint is None else _FIELDS.endpoint(endpoint, settings),
    )


def _parse_candidate(obj: object, settings: PathSettings) -> Candidate | None:
    """Parse one candidate; None for a kind that a later version knows."""
    fields = _FIELDS.mapping(obj)
    kind = fields.get("kind")
    if not isinstance(kind, str) or len(kind) > 16:
        raise _FIELDS.bad("a candidate without a kind")
    endpoint = _FIELDS.endpoint(fields.get("endpoint"), settings)
    priority = _FIELDS.number(fields.get("priority"), 1, _MAX_PRIORITY - 1)
    try:
        return Candidate(CandidateKind(kind), endpoint, priority)
    except ValueError:
        return None


def _tickets(value: object, settings: PathSettings) -> tuple[RelayTicket, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TICKETS:
        raise _FIELDS.bad("not a bounded list of tickets")
    return tuple(parse_ticket(item, settings) for item in value)


def _nat(value: object) -> NatInfo | None:
    if value is None:
        return None
    fields = _FIELDS.mapping(value)
    mapping, udp = fields.get("mapping"), fields.get("udp")
    if not isinstance(mapping, str) or len(mapping) > _MAX_MAPPING_TEXT or type(udp) is not bool:
        raise _FIELDS.bad("a mistyped field")
    known = mapping in {kind.value for kind in Mapping}
    return NatInfo(Mapping(mapping) if known else Mapping.UNKNOWN, udp)


def _search(value: object) -> SearchPlan | None:
    """Parse a plan; None for a kind that a later version knows."""
    if value is None:
        return None
    kind = _FIELDS.mapping(value).get("kind")
    known = {kind.value for kind in PlanKind}
    return parse_plan(value) if not isinstance(kind, str) or kind in known else None
