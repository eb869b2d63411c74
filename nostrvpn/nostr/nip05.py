"""NIP-05: ``NAME@DOMAIN`` to a public key, by the word of that domain's web server alone.

Whoever runs the domain decides, and can change it any day, so an answer is shown and never used to
admit, address or route anybody.
"""

from __future__ import annotations

import re

import msgspec

from nostrvpn.errors import PeerMisbehaved, UsageError

__all__ = ["MAX_DOCUMENT", "Identifier", "parse_identifier", "read_document"]

# A whole document of some hundred users; servers are to answer the asked one only.
MAX_DOCUMENT = 64 * 1024

_LOCAL = re.compile(r"[a-z0-9._-]{1,64}")
_DOMAIN = re.compile(
    r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]"
)
_KEY = re.compile(r"[0-9a-f]{64}")


class Identifier(msgspec.Struct, frozen=True):
    """An internet identifier; ``_`` is a domain's own."""

    local: str
    domain: str

    @property
    def url(self) -> str:
        """Where the domain tells whose it is."""
        return f"https://{self.domain}/.well-known/nostr.json?name={self.local}"


def parse_identifier(text: str) -> Identifier:
    """Return ``NAME@DOMAIN`` (or ``DOMAIN``, for its own) in parts; UsageError if it is neither."""
    local, separator, domain = text.strip().lower().rpartition("@")
    local = local if separator else "_"
    if not _LOCAL.fullmatch(local) or not _DOMAIN.fullmatch(domain):
        raise UsageError(f"{text[:80]!r} is not NAME@DOMAIN", "an example: alice@example.org")
    return Identifier(local, domain)


def read_document(text: bytes, identifier: Identifier) -> str:
    """Return the public key (64 hex) that the document names; PeerMisbehaved if it names none."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise PeerMisbehaved("bad_nip05", f"{identifier.domain} answers with no JSON") from exc
    names = document.get("names") if isinstance(document, dict) else None
    key = names.get(identifier.local) if isinstance(names, dict) else None
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise PeerMisbehaved("bad_nip05", f"{identifier.domain} knows no {identifier.local!r}")
    return key
