"""Values in a peer's JSON: of the right type and within bounds, or PeerMisbehaved."""

from __future__ import annotations

import re

from nostrvpn.endpoint import Endpoint, parse_endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.paths.candidates import refusal
from nostrvpn.paths.settings import PathSettings

__all__ = ["Fields"]

# The longest text of an endpoint: an IPv6 address in brackets with a port.
MAX_ENDPOINT_TEXT = 54


class Fields:
    """What one kind of document holds. Each method returns its value, or raises with ``code``."""

    def __init__(self, code: str) -> None:
        self._code = code

    def bad(self, text: str) -> PeerMisbehaved:
        """Return the error to raise about the document."""
        return PeerMisbehaved(self._code, text)

    def mapping(self, value: object) -> dict[object, object]:
        """Return an object's members."""
        if not isinstance(value, dict):
            raise self.bad("not an object")
        return value

    def text(self, value: object, pattern: re.Pattern[str]) -> str:
        """Return a text that begins with ``pattern`` (which anchors its own end)."""
        if not isinstance(value, str) or pattern.match(value) is None:
            raise self.bad("a mistyped field")
        return value

    def number(self, value: object, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``, both included."""
        if type(value) is not int or not low <= value <= high:
            raise self.bad("a number out of range")
        return value

    def endpoint(self, value: object, settings: PathSettings) -> Endpoint:
        """Return an endpoint that a peer may make us send to."""
        if not isinstance(value, str) or len(value) > MAX_ENDPOINT_TEXT:
            raise self.bad("an endpoint that is no text")
        try:
            endpoint = parse_endpoint(value)
        except ValueError as exc:
            raise self.bad("text that is no endpoint") from exc
        reason = refusal(endpoint, settings)
        if reason is not None:
            raise self.bad(f"an endpoint with {reason}")
        return endpoint
