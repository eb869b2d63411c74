"""NIP-01 and NIP-42 frames: what a client says to a relay, and what a relay answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nostrvpn.errors import PeerMisbehaved, one_line
from nostrvpn.nostr.event import Event, decode_json, encode_json, event_json, parse_event

__all__ = [
    "AuthFrame",
    "ClosedFrame",
    "EoseFrame",
    "EventFrame",
    "NoticeFrame",
    "OkFrame",
    "RelayFrame",
    "parse_frame",
    "render_auth",
    "render_close",
    "render_event",
    "render_req",
]

# Larger than any frame we ask for (NIP-44's largest payload is 87,472 characters).
MAX_FRAME = 131_072
# A challenge goes into an event we sign, so it may not be arbitrarily long.
MAX_CHALLENGE = 512


@dataclass(frozen=True, slots=True)
class EventFrame:
    """``["EVENT", subscription, event]``; the event has the right form, its signature is open."""

    subscription: str
    event: Event


@dataclass(frozen=True, slots=True)
class OkFrame:
    """``["OK", event id, accepted, reason]``."""

    event_id: str
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class EoseFrame:
    """``["EOSE", subscription]``: stored events are all sent, live ones follow."""

    subscription: str


@dataclass(frozen=True, slots=True)
class ClosedFrame:
    """``["CLOSED", subscription, reason]``: the relay ended or refused a subscription."""

    subscription: str
    reason: str


@dataclass(frozen=True, slots=True)
class NoticeFrame:
    """``["NOTICE", text]``: words for a human."""

    text: str


@dataclass(frozen=True, slots=True)
class AuthFrame:
    """``["AUTH", challenge]`` (NIP-42)."""

    challenge: str


RelayFrame = EventFrame | OkFrame | EoseFrame | ClosedFrame | NoticeFrame | AuthFrame


def parse_frame(text: str) -> RelayFrame:
    """Parse one message of a relay; else PeerMisbehaved "oversized" or "malformed_*"."""
    if len(text) > MAX_FRAME:
        raise PeerMisbehaved("oversized", f"frame of {len(text)} characters")
    match decode_json(text):
        case ["EVENT", str(subscription), obj]:
            return EventFrame(subscription, parse_event(obj))
        case ["OK", str(identifier), bool(accepted), str(reason)]:
            return OkFrame(identifier, accepted, one_line(reason))
        case ["OK", str(identifier), bool(accepted)]:  # some relays leave the reason out
            return OkFrame(identifier, accepted, "")
        case ["EOSE", str(subscription)]:
            return EoseFrame(subscription)
        case ["CLOSED", str(subscription), str(reason)]:
            return ClosedFrame(subscription, one_line(reason))
        case ["CLOSED", str(subscription)]:
            return ClosedFrame(subscription, "")
        case ["NOTICE", str(words)]:
            return NoticeFrame(one_line(words))
        case ["AUTH", str(challenge)] if 0 < len(challenge) <= MAX_CHALLENGE:
            return AuthFrame(challenge)
        case _:
            raise PeerMisbehaved("malformed_frame", "not a frame of NIP-01 or NIP-42")


def render_event(event: Event) -> str:
    """Return the frame that publishes an event."""
    return encode_json(["EVENT", event_json(event)])


def render_req(subscription: str, filters: Sequence[Mapping[str, object]]) -> str:
    """Return the frame that opens (or replaces) a subscription."""
    return encode_json(["REQ", subscription, *filters])


def render_close(subscription: str) -> str:
    """Return the frame that ends a subscription."""
    return encode_json(["CLOSE", subscription])


def render_auth(event: Event) -> str:
    """Return the frame that answers a NIP-42 challenge."""
    return encode_json(["AUTH", event_json(event)])
