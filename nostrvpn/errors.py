"""The four ways something can go wrong, and what each asks of the reader.

A subclass exists only where somebody catches it or where it has its own hint::

    NostrvpnError
     +-- UserError        the user can mend it: the text names the cause, the hint the next step
     |    +-- UsageError  the command line itself is wrong (exit code 2)
     +-- SystemRefused    the kernel or operating system said no
     +-- PeerMisbehaved   input from outside broke a rule: drop it, count it, never crash
"""

from __future__ import annotations

__all__ = [
    "NostrvpnError",
    "PeerMisbehaved",
    "SystemRefused",
    "UsageError",
    "UserError",
    "one_line",
]

# Characters of a text of somebody else's that a message of ours quotes.
MAX_QUOTED = 200


class NostrvpnError(Exception):
    """Base of every error this project raises on purpose.

    ``str(error)`` is one sentence for the user; ``hint`` is the next step, or empty.
    """

    code = "error"
    exit_code = 1

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


class UserError(NostrvpnError):
    """Something the user can mend: a bad value, a missing file, a daemon that is not running."""

    code = "user_error"


class UsageError(UserError):
    """The command line, or a value on it, is wrong."""

    code = "usage_error"
    exit_code = 2


class SystemRefused(NostrvpnError):
    """The kernel or operating system refused an operation."""

    code = "system_refused"


class PeerMisbehaved(NostrvpnError):
    """Input from outside (a relay, a peer, a datagram) broke a rule; ``code`` is its counter."""

    code = "peer_misbehaved"

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(text or code)
        self.code = code


def one_line(text: str) -> str:
    """Return what somebody else's text adds to a message: short, and nothing a terminal obeys."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_QUOTED])
