"""The spelling of ``nostrvpn://`` links, as invites and tokens have it in common.

``nostrvpn://HOST/SECRET?net=…&exp=…[&for=…]&relay=…``: the secret (16 bytes) and the network's id are
base64url without padding, ``exp`` is Unix time in seconds.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from nostrvpn.config.addresses import check_relay_url
from nostrvpn.errors import UserError
from nostrvpn.mesh.operations import MAX_TIME

__all__ = ["LINK_HINT", "LINK_SECRET_SIZE", "LinkParts", "damaged"]

LINK_SECRET_SIZE = 16
MAX_LINK = 2_000  # what fits a QR code of version 40 at medium error correction
MAX_LINK_RELAYS = 6
LINK_HINT = "copy the whole link again, from nostrvpn:// to its end, in quotes"


@dataclass(frozen=True, slots=True)
class LinkParts:
    """What every link says. ``bound_to`` is the text after ``for=``, or empty."""

    host: str
    secret: bytes = field(repr=False)
    network_id: str
    expires: int
    relays: tuple[str, ...]
    bound_to: str = ""

    def render(self) -> str:
        """Return the link's text."""
        query = [("net", _b64(bytes.fromhex(self.network_id))), ("exp", str(self.expires))]
        if self.bound_to:
            query.append(("for", self.bound_to))
        query += [("relay", relay) for relay in self.relays[:MAX_LINK_RELAYS]]
        text = urlencode(query, quote_via=quote, safe=":/[].")
        return f"nostrvpn://{self.host}/{_b64(self.secret)}?{text}"

    @classmethod
    def parse(cls, text: str, kind: str) -> LinkParts:
        """Parse a link of a ``kind`` (a word for the user); UserError naming what is wrong with it."""
        text = text.strip()
        if len(text) > MAX_LINK:
            raise UserError(f"this {kind} link is too long to be one of ours", LINK_HINT)
        try:
            parts = urlsplit(text)
            if parts.scheme != "nostrvpn":
                raise UserError(f"this is no {kind} link: those begin with nostrvpn://", LINK_HINT)
            query = parse_qs(parts.query, strict_parsing=True, max_num_fields=16)
            secret, network = _unb64(parts.path.removeprefix("/")), _unb64(query["net"][0])
            expires, bound_to = int(query["exp"][0]), query.get("for", [""])[0]
        except (ValueError, KeyError, binascii.Error) as exc:
            raise damaged(kind) from exc
        if len(secret) != LINK_SECRET_SIZE or len(network) != 32 or not 0 < expires < MAX_TIME:
            raise damaged(kind)
        relays = query.get("relay", [])
        if len(relays) > MAX_LINK_RELAYS:
            raise UserError(f"this {kind} link names too many relays", LINK_HINT)
        try:
            urls = tuple(check_relay_url(relay) for relay in relays)
        except ValueError as exc:
            raise UserError(
                f"this {kind} link names a relay that is none: {exc}", LINK_HINT
            ) from exc
        return cls(parts.netloc, secret, network.hex(), expires, urls, bound_to)


def damaged(kind: str) -> UserError:
    """Return what is said of a link that cannot be read."""
    return UserError(f"this {kind} link is damaged or incomplete", LINK_HINT)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
