"""What the membership machine asks the node to do, and the applicant's record of a joining."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from nostrvpn.mesh.invites import Link
from nostrvpn.mesh.tokens import TokenLink
from nostrvpn.nostr.event import Event

__all__ = [
    "JoinState",
    "Joining",
    "MakeKey",
    "MembersChanged",
    "MembershipEffect",
    "RequestJoin",
    "SendRefusal",
    "SendRoster",
    "SpreadOperations",
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
    """The applicant's record of a link it wants to join by.

    ``welcomed_by`` (a public key) sent the welcome that was taken last. ``is_open``: this node asks, or
    it was welcomed and has not got the network's key for certain, so that the link is still needed.
    """

    link: Link | TokenLink
    state: JoinState = JoinState.ASKING
    reason: str = ""
    attempts: int = 0
    due: float = 0.0
    stored_at: float | None = None
    welcomed_by: str | None = None
    is_open: bool = True

    @property
    def inviter(self) -> str | None:
        """Who gave the link (a public key), or None by a token: then any member may answer."""
        return self.link.inviter if isinstance(self.link, Link) else None


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
    """Tell ``applicant`` that it is a member: part ``part`` of ``total`` of the log, packed."""

    applicant: str
    part: int
    total: int
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SendRefusal:
    """Tell ``applicant`` why its request was refused."""

    applicant: str
    invite_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class SendRoster:
    """Send operations to a member; ``has_more``: it lacks others too, that do not fit the message."""

    recipient: str
    operations: tuple[Event, ...]
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class SpreadOperations:
    """Tell everybody what this node signed, also those that one of the operations removed."""

    operations: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class MakeKey:
    """Make the network key that an operation of this step names: 16 hex digits."""

    key_id: str


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """The roster, or this node's own membership, is another than before."""


MembershipEffect = (
    Store
    | RequestJoin
    | Welcome
    | SendRefusal
    | SendRoster
    | SpreadOperations
    | MakeKey
    | MembersChanged
)
