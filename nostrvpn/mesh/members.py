"""Who and what a roster speaks of, as values: members, roles, tokens, the network's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

__all__ = ["Member", "NetworkSettings", "Role", "Token"]


class Role(Enum):
    """What a member may do: the owner everything, admins all but touch admins, guests admit nobody."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    GUEST = "guest"

    @property
    def rank(self) -> int:
        """3 for the owner, down to 0 for a guest."""
        return _RANKS[self]


_RANKS = {Role.OWNER: 3, Role.ADMIN: 2, Role.MEMBER: 1, Role.GUEST: 0}


@dataclass(frozen=True, slots=True)
class Member:
    """One member. ``owner``: the principal (64 hex digits) of the person whose device it is.

    ``expires``: Unix time in seconds, or None; ``host``: the number of its IPv4 address; ``routes``:
    the networks behind it that admins approved.
    """

    public_key: str
    name: str
    role: Role
    tags: frozenset[str]
    owner: str
    expires: int | None
    ephemeral: bool
    host: int
    routes: frozenset[IPv4Network | IPv6Network]

    def is_active(self, wall: float) -> bool:
        """Whether the membership has not expired at ``wall`` (Unix seconds)."""
        return self.expires is None or wall < self.expires


@dataclass(frozen=True, slots=True)
class Token:
    """A link by which up to ``uses`` keys may be admitted until ``expires`` (Unix seconds).

    ``mailbox``: 32 bytes, known to members; ``signer``: the key under which proofs verify.
    """

    id: str
    signer: str
    mailbox: bytes = field(repr=False)
    uses: int
    used: int
    expires: int
    role: Role
    tags: frozenset[str]
    ephemeral: bool
    revoked: bool

    def refusal(self, wall: float) -> str | None:
        """Return why the token admits nobody at ``wall``, or None."""
        if self.revoked:
            return "revoked"
        if wall >= self.expires:
            return "expired"
        return "used" if self.used >= self.uses else None


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """What admins set for everybody: the network's name, and what holds where no rule speaks.

    ``inbound``: ``ping``, ``none`` or ``all``; ``same_owner``: one person's devices reach each other.
    """

    name: str
    inbound: str = "ping"
    same_owner: bool = True
