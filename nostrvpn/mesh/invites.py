"""Invites: the ``nostrvpn://`` link, and the inviter's own record of each one.

A link names the inviter, carries a secret of 16 random bytes and the relays to meet on, and may be
bound to one npub. From the secret both sides derive the mailbox for the first contact, so even there
no relay sees an npub. ``once`` links are bound to nobody: the secret is what admits, one time only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from nostrvpn.identity.keys import npub, parse_npub
from nostrvpn.mesh.links import LinkParts, damaged
from nostrvpn.mesh.members import Role
from nostrvpn.mesh.names import dns_label

__all__ = ["Invite", "Link", "Terms", "invite_id", "parse_link", "render_link"]


def invite_id(secret: bytes) -> str:
    """Return the public name of an invite, 16 hex digits: it can be told without telling the secret."""
    return hashlib.sha256(b"nostrvpn/invite/v1" + secret).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Link:
    """What a ``nostrvpn://`` link says. ``expires`` is Unix time in seconds."""

    inviter: str
    secret: bytes
    network_id: str
    expires: int
    bound_to: str | None
    relays: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Link from {self.inviter[:8]} redacted>"

    @property
    def invite_id(self) -> str:
        """See :func:`invite_id`."""
        return invite_id(self.secret)


@dataclass(frozen=True, slots=True)
class Terms:
    """As what somebody is admitted. ``own``: as a device of the inviter's own person.

    ``lasts_s``: seconds from the admission on, or None for good. ``name``: a label, or empty for the one
    that it gives itself.
    """

    role: Role = Role.MEMBER
    tags: tuple[str, ...] = ()
    own: bool = False
    lasts_s: int | None = None
    ephemeral: bool = False
    name: str = ""

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able form for the store."""
        return {
            "role": self.role.value,
            "tags": list(self.tags),
            "own": self.own,
            "lasts_s": self.lasts_s,
            "ephemeral": self.ephemeral,
            "name": self.name,
        }

    @classmethod
    def from_json(cls, stored: object) -> Terms:
        """Rebuild terms from :meth:`to_json`; ValueError or KeyError if they are damaged."""
        if not isinstance(stored, dict) or not isinstance(stored["tags"], list):
            raise ValueError("damaged terms of an invite")
        lasts_s = stored["lasts_s"]
        if lasts_s is not None and type(lasts_s) is not int:
            raise ValueError("damaged terms of an invite")
        tags = tuple(str(tag) for tag in stored["tags"])
        flags = stored["own"] is True, stored["ephemeral"] is True
        name = dns_label(stored["name"], "")
        return cls(Role(stored["role"]), tags, flags[0], lasts_s, flags[1], name)


@dataclass(frozen=True, slots=True)
class Invite:
    """The inviter's record of a link. ``used_by`` is the public key that was admitted by it."""

    secret: bytes
    bound_to: str | None
    expires: int
    created: int
    used_by: str | None = None
    terms: Terms = field(default_factory=Terms)

    def __repr__(self) -> str:
        return f"<Invite {invite_id(self.secret)}>"

    @property
    def id(self) -> str:
        """See :func:`invite_id`."""
        return invite_id(self.secret)

    def refusal(self, applicant: str, wall: float) -> str | None:
        """Return why ``applicant`` (a public key) may not use this invite, or None."""
        if self.used_by is not None and self.used_by != applicant:
            return "used"
        if self.bound_to is not None and self.bound_to != applicant:
            return "foreign"
        if self.used_by is None and wall >= self.expires:
            return "expired"
        return None

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able form for the store."""
        return {
            "secret": self.secret.hex(),
            "bound_to": self.bound_to,
            "expires": self.expires,
            "created": self.created,
            "used_by": self.used_by,
            "terms": self.terms.to_json(),
        }

    @classmethod
    def from_json(cls, stored: dict[str, object]) -> Invite:
        """Rebuild an invite from :meth:`to_json`; ValueError or KeyError if it is damaged."""
        expires, created = stored["expires"], stored["created"]
        bound_to, used_by = stored.get("bound_to"), stored.get("used_by")
        if not isinstance(expires, int) or not isinstance(created, int):
            raise ValueError("a damaged invite record")
        return cls(
            bytes.fromhex(str(stored["secret"])),
            str(bound_to) if bound_to is not None else None,
            expires,
            created,
            str(used_by) if used_by is not None else None,
            Terms.from_json(stored["terms"]),
        )


def render_link(link: Link) -> str:
    """Return the link's text: ``nostrvpn://npub1…/SECRET?net=…&exp=…[&for=npub1…]&relay=…``."""
    bound_to = "" if link.bound_to is None else npub(link.bound_to)
    host, relays = npub(link.inviter), link.relays
    return LinkParts(host, link.secret, link.network_id, link.expires, relays, bound_to).render()


def parse_link(text: str) -> Link:
    """Parse what :func:`render_link` wrote; UserError naming what is wrong otherwise."""
    parts = LinkParts.parse(text, "invite")
    try:
        inviter = parse_npub(parts.host)
        bound_to = parse_npub(parts.bound_to) if parts.bound_to else None
    except ValueError as exc:
        raise damaged("invite") from exc
    return Link(inviter, parts.secret, parts.network_id, parts.expires, bound_to, parts.relays)
