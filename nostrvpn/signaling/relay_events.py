"""What goes into the relay pool and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nostrvpn.machine import Tick
from nostrvpn.nostr.event import Event

__all__ = [
    "CloseRelay",
    "Listen",
    "OpenRelay",
    "Publish",
    "Published",
    "Received",
    "RelayClosed",
    "RelayEffect",
    "RelayEvent",
    "RelayOpened",
    "RelayStateChanged",
    "RelayStatus",
    "RelayText",
    "RetryNow",
    "SendText",
    "UseRelays",
]


@dataclass(frozen=True, slots=True)
class RelayOpened:
    """The connection asked for by ``OpenRelay`` is up."""

    url: str


@dataclass(frozen=True, slots=True)
class RelayClosed:
    """The connection is gone or never came up. Every ``OpenRelay`` ends in exactly one of these,
    also after ``CloseRelay``; nothing of that connection may follow it."""

    url: str
    reason: str


@dataclass(frozen=True, slots=True)
class RelayText:
    """One text message of a relay."""

    url: str
    text: str


@dataclass(frozen=True, slots=True)
class Listen:
    """The complete set of mailboxes to receive from: public key -> secret.

    The secret answers NIP-42 for that mailbox. Where it is empty, AUTH is never answered for that
    key, and it is read through a subscription of its own, so that a relay that insists on AUTH
    refuses only that one.

    ``is_urgent`` False: the day changes. What comes and goes has half an hour's time, and where each
    mailbox has its own connection it takes it, so that not all of one node's come and go together.
    """

    mailboxes: Mapping[str, bytes] = field(repr=False)
    is_urgent: bool = True


@dataclass(frozen=True, slots=True)
class Publish:
    """Send one message to every active relay; ``wraps`` maps kind (21059, 1059) to its event."""

    token: str
    wraps: Mapping[int, Event]


@dataclass(frozen=True, slots=True)
class UseRelays:
    """The complete ordered list of relays to choose from."""

    urls: Sequence[str]


@dataclass(frozen=True, slots=True)
class RetryNow:
    """The network changed or the machine woke up: forget every backoff."""


RelayEvent = RelayOpened | RelayClosed | RelayText | Listen | Publish | UseRelays | RetryNow | Tick


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Connect to this relay."""

    url: str


@dataclass(frozen=True, slots=True)
class CloseRelay:
    """Close the connection to this relay; answered by ``RelayClosed``."""

    url: str


@dataclass(frozen=True, slots=True)
class SendText:
    """Send one text message to a relay."""

    url: str
    text: str


@dataclass(frozen=True, slots=True)
class Received:
    """A wrap for one of our mailboxes, its signature verified, not seen before."""

    event: Event
    url: str


@dataclass(frozen=True, slots=True)
class Published:
    """The fate of a ``Publish``, told once: at the first acceptance (1), or when all failed (0)."""

    token: str
    accepted: int
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RelayStateChanged:
    """The state, fitness or reason of a relay in the snapshot is another now."""

    url: str


RelayEffect = OpenRelay | CloseRelay | SendText | Received | Published | RelayStateChanged


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """One relay as the user sees it.

    ``state``: connecting, connected, unfit (connected, but failed its test), down (waiting to try
    again), standby (not needed now). ``fitness``: testing, fit, stored-only, unfit.
    """

    url: str
    state: str
    rtt_ms: float | None
    fitness: str
    reason: str
    counters: Mapping[str, int]
