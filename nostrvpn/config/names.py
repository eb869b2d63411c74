"""Names of nodes: one DNS label, so that a name can become a host name. And names of networks here."""

from __future__ import annotations

import re

__all__ = ["MAX_PROFILE", "NAME_PATTERN", "check_name", "check_profile", "name_from_hostname"]

# RFC 1123, section 2.1, in lower case: DNS compares without case, so only one spelling exists.
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"

# A network's directories are called so: the path of a Unix socket in one has at most 107 bytes.
MAX_PROFILE = 32


def check_name(text: str) -> str:
    """Return a node name unchanged; ValueError says what a name may hold."""
    if not re.fullmatch(NAME_PATTERN, text):
        raise ValueError(f"{text[:80]!r} is not a name: 1 to 63 of a-z, 0-9 and -, not - at an end")
    return text


def check_profile(text: str) -> str:
    """Return the name of a network's profile unchanged; ValueError says what it may hold."""
    if not re.fullmatch(NAME_PATTERN, text) or len(text) > MAX_PROFILE:
        allowed = f"1 to {MAX_PROFILE} of a-z, 0-9 and -, not - at an end"
        raise ValueError(f"{text[:80]!r} is not a name for a network: {allowed}")
    return text


def name_from_hostname(hostname: str) -> str:
    """Return the name that fits a host name best: its first label, cleaned; ``node`` if empty."""
    label = re.sub(r"[^a-z0-9]+", "-", hostname.split(".")[0].lower())
    return label.strip("-")[:63].strip("-") or "node"
