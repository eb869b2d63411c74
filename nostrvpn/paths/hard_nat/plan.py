"""What two peers tell each other to find a path through NATs with unpredictable ports, as JSON.

::

    {"search": "<8 hex>", "kind": "opened", "ip": "192.0.2.1", "step": 1,
     "ports": [[40007, 40007, 51820]]}

``ip`` is the sender's address from outside. ``ports`` are [first, last, towards]; what they mean
depends on ``kind``:

- ``forecast``: the last port that the sender's NAT gave out (first = last = port), the next ones
  follow in steps of ``step``. Asks the receiver to open ports towards some of them.
- ``opened``: one of the ports first..last leads to the sender, if it is sent to from the receiver's
  port ``towards``. 0: from the receiver's reflexive endpoint.
- ``scattered``: some hundreds of the ports first..last lead to the sender; nobody knows which.

``search`` names the search, so that a plan that comes late or twice is known as such.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address

from nostrvpn.paths.fields import Fields

__all__ = ["MAX_SPANS", "PlanKind", "PortSpan", "SearchPlan", "parse_plan", "plan_to_json"]

# Ours: openings told at once; the search makes at most six.
MAX_SPANS = 8
MAX_STEP = 64
MAX_PORT = 65535
_SEARCH = re.compile(r"[0-9a-f]{8}\Z")
_IPV4 = re.compile(r"[0-9.]{7,15}\Z")
_FIELDS = Fields("bad_search_plan")


class PlanKind(Enum):
    """See the module's docstring."""

    FORECAST = "forecast"
    OPENED = "opened"
    SCATTERED = "scattered"


@dataclass(frozen=True, slots=True)
class PortSpan:
    """Ports ``first`` to ``last``, both included; ``towards`` 0: the peer's reflexive endpoint."""

    first: int
    last: int
    towards: int = 0


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What one side did or foresees; see the module's docstring."""

    search: str
    kind: PlanKind
    ip: IPv4Address
    step: int
    ports: tuple[PortSpan, ...]


def plan_to_json(plan: SearchPlan) -> dict[str, object]:
    """Return a JSON-able form."""
    return {
        "search": plan.search,
        "kind": plan.kind.value,
        "ip": str(plan.ip),
        "step": plan.step,
        "ports": [[span.first, span.last, span.towards] for span in plan.ports],
    }


def parse_plan(obj: object) -> SearchPlan:
    """Parse a peer's plan; PeerMisbehaved("bad_search_plan") if it breaks a bound."""
    fields = _FIELDS.mapping(obj)
    ip = _FIELDS.text(fields.get("ip"), _IPV4)
    spans = fields.get("ports")
    if not isinstance(spans, list) or not 0 < len(spans) <= MAX_SPANS:
        raise _FIELDS.bad("not a bounded list of ports")
    try:
        return SearchPlan(
            search=_FIELDS.text(fields.get("search"), _SEARCH),
            kind=PlanKind(fields.get("kind")),
            ip=IPv4Address(ip),
            step=_FIELDS.number(fields.get("step"), -MAX_STEP, MAX_STEP),
            ports=tuple(_span(span) for span in spans),
        )
    except ValueError as exc:
        raise _FIELDS.bad("a search of another kind, or at no address") from exc


def _span(obj: object) -> PortSpan:
    if not isinstance(obj, list) or len(obj) != 3:
        raise _FIELDS.bad("ports that are no span")
    first, last, towards = (
        _FIELDS.number(value, low, MAX_PORT) for value, low in zip(obj, (1, 1, 0), strict=True)
    )
    if last < first:
        raise _FIELDS.bad("a span that ends before it begins")
    return PortSpan(first, last, towards)
