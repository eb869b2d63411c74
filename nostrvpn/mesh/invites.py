"""Invites: the ``nostrvpn://`` link, and the inviter's own record of each one.

A link names the inviter, carries a secret of 16 random bytes and the relays to meet on, and may be
bound to one npub. From the secret both sides derive the mailbox for the first contact, so even there
no relay sees an npub. ``once`` links are bound to nobody: the secret is what admits, one time only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from nostrvpn.config.addresses import check_relay_url
from nostrvpn.errors import UserError
from nostrvpn.identity.keys import npub, parse_npub
from nostrvpn.mesh.members import Role
from nostrvpn.mesh.names import dns_label

__all__ = ["Invite", "Link", "Terms", "invite_id", "parse_link", "render_link"]

SECRET_SIZE = 16
MAX_LINK = 2_000  # what fits a QR code of version 40 at medium error correction
MAX_LINK_RELAYS = 6


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
    query: list[tuple[str, str]] = [("net", _b64(bytes.fromhex(link.network_id)))]
    query.append(("exp", str(link.expires)))
    if link.bound_to is not None:
        query.append(("for", npub(link.bound_to)))
    query += [("relay", relay) for relay in link.relays[:MAX_LINK_RELAYS]]
    text = urlencode(query, quote_via=quote, safe=":/[].")
    return f"nostrvpn://{npub(link.inviter)}/{_b64(link.secret)}?{text}"


def parse_link(text: str) -> Link:
    """Parse what :func:`render_link` wrote; UserError naming what is wrong otherwise."""
    hint = "copy the whole link again, from nostrvpn:// to its end, in quotes"
    text = text.strip()
    if len(text) > MAX_LINK:
        raise UserError("this invite link is too long to be one of ours", hint)
    try:
        parts = urlsplit(text)
        if parts.scheme != "nostrvpn":
            raise UserError("an invite link begins with nostrvpn://", hint)
        query = parse_qs(parts.query, strict_parsing=True, max_num_fields=16)
        secret, network = _unb64(parts.path.lstrip("/")), _unb64(query["net"][0])
        expires = int(query["exp"][0])
        bound_to = query.get("for", [None])[0]
        link = Link(
            parse_npub(parts.netloc),
            secret,
            network.hex(),
            expires,
            parse_npub(bound_to) if bound_to else None,
            tuple(query.get("relay", ())),
        )
    except (ValueError, KeyError, binascii.Error) as exc:
        raise UserError("this invite link is damaged or incomplete", hint) from exc
    if len(secret) != SECRET_SIZE or len(network) != 32 or not 0 < expires < 1 << 40:
        raise UserError("this invite link is damaged or incomplete", hint)
    if len(link.relays) > MAX_LINK_RELAYS:
        raise UserError("this invite link names too many relays", hint)
    try:
        return replace(link, relays=tuple(check_relay_url(relay) for relay in link.relays))
    except ValueError as exc:
        raise UserError(f"this invite link names a relay that is none: {exc}", hint) from exc


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
