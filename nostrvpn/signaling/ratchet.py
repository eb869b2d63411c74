"""Secrets that move one way, one step a day: who has today's cannot compute yesterday's.

Days are counted since 1970, in UTC. A step is HKDF-SHA256 (RFC 5869) with one block of output.
"""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["DAY_S", "MAX_STEPS", "OVERLAP_S", "days_around", "derive", "standing_day", "step_to"]

DAY_S = 86_400
# Both clocks may be off by this much around midnight: yesterday's secret is kept so long.
OVERLAP_S = 3_600
# A step forward cannot be taken back, so a clock that is years ahead shall not take any.
MAX_STEPS = 400


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes that follow from ``secret`` and tell nothing about it (HKDF-SHA256)."""
    prk = hmac.digest(salt, secret, hashlib.sha256)
    return hmac.digest(prk, info + b"\x01", hashlib.sha256)


def step_to(secret: bytes, day: int, target: int) -> bytes:
    """Return the secret of day ``target``, where ``secret`` is of ``day``; ValueError if it is no
    later day, or too many days ahead."""
    if not 0 <= target - day <= MAX_STEPS:
        raise ValueError(f"no way from day {day} to day {target}")
    for _ in range(target - day):
        secret = derive(secret, b"nostrvpn/ratchet", b"day/v1")
    return secret


def standing_day(wall: float) -> int:
    """Return the earliest day whose secrets are still of use at ``wall`` (Unix seconds)."""
    return int(wall - OVERLAP_S) // DAY_S


def days_around(wall: float) -> tuple[int, ...]:
    """Return the one or two days that it may be by a clock near ours."""
    return tuple(sorted({int(wall + shift) // DAY_S for shift in (-OVERLAP_S, 0, OVERLAP_S)}))
