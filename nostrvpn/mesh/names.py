"""Labels: how members and networks are called, in a form that a name server can answer.

A label is what RFC 1035 section 2.3.1 lets be one, in lower case: ``a-z``, ``0-9`` and inner hyphens,
at most 63. Whatever a host or a user is called is made one before it is signed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container

__all__ = ["MAX_LABEL", "dns_label", "free_label", "is_label"]

MAX_LABEL = 63
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def is_label(text: object) -> bool:
    """Whether ``text`` is a label as :func:`dns_label` makes them."""
    # Users name a peer by name or npub: nobody may be named like somebody else's npub.
    return isinstance(text, str) and bool(_LABEL.fullmatch(text)) and not text.startswith("npub1")


def dns_label(text: object, otherwise: str = "node") -> str:
    """Return the label nearest to ``text``: accents are left out, all else becomes hyphens.

    ``otherwise`` (a label) where nothing is left, or where it would look like an npub.
    """
    if not isinstance(text, str):
        return otherwise
    # Bounded first: a name from outside may be long, and some characters decompose to eighteen.
    plain = unicodedata.normalize("NFKD", text[: 4 * MAX_LABEL]).encode("ascii", "ignore").decode()
    label = re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("'", "")).strip("-")
    label = label[:MAX_LABEL].strip("-")
    return label if is_label(label) else otherwise


def free_label(label: str, taken: Container[str]) -> str:
    """Return ``label``, or with ``-2``, ``-3`` … added, whichever is the first that is not taken."""
    if label not in taken:
        return label
    number = 2
    while True:
        ending = f"-{number}"
        found = label[: MAX_LABEL - len(ending)].rstrip("-") + ending
        if found not in taken:
            return found
        number += 1
