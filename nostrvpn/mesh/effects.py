"""What the membership machine asks the node to do, and the applicant's record of a joining."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from nostrvpn.mesh.invites import Link
from nostrvpn.nostr.event import Event

__all__ = [
    "JoinState",
    "Joining",
    "MembersChanged",
    "MembershipEffect",
    "RequestJoin",
    "SendRefusal",
    "SendRoster",
    "Store",
    "Welcome",
]


class JoinState(Enum):
    """How far an application to join has come."""

    ASKING = "asking"
    JOINED = "joined"
    REFUSED = "refused"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Joining:
    """The applicant's record of a link it wants to join by."""

    link: Link
    state: JoinState = JoinState.ASKING
    reason: str = ""
    attempts: int = 0
    due: float = 0.0
    stored_at: float | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """Persist ``value`` (None deletes) before anything that follows."""

    space: str
    key: str
    value: object | None = field(repr=False)  # an invite holds its secret


@dataclass(frozen=True, slots=True)
class RequestJoin:
    """Send the join request again; ``stored`` asks relays to keep a copy for the inviter."""

    joining: Joining
    stored: bool


@dataclass(frozen=True, slots=True)
class Welcome:
    """Tell ``applicant`` that it is a member, with a part of the log from position ``start`` on."""

    applicant: str
    operations: tuple[Event, ...]
    start: int


@dataclass(frozen=True, slots=True)
class SendRefusal:
    """Tell ``applicant`` why its request was refused."""

    applicant: str
    invite_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class SendRoster:
    """Send operations to a member (or to one that was just removed)."""

    recipient: str
    operations: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """The roster, or this node's own membership, is another than before."""


MembershipEffect = Store | RequestJoin | Welcome | SendRefusal | SendRoster | MembersChanged
