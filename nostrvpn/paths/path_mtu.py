"""How large a packet may be on one path: packetization layer path MTU discovery (RFC 8899).

No ICMP is trusted or needed. A probe is a connectivity check padded to a size and sent with "don't
fragment"; its answer proves that packets of the size reach the peer. Three unanswered tries refute a
size. First what the tunnel carries by default is confirmed, then the largest size worth having, and
between two sizes a binary search; a good path costs two packets, a bad one about thirty.

While the tunnel is in use, the result is checked again every 10 min, and at once when the tunnel
seems to swallow packets.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass

from nostrvpn.machine import Moment
from nostrvpn.stun.binding import INTEGRITY_ATTRIBUTE, TRANSACTION, sealed

__all__ = ["LARGEST_PROBE", "MtuProber", "Probe", "inner_mtu", "pad_check"]

# Spec (WireGuard, 5.4.6): 16 header, 16 tag, 8 UDP and 20 or 40 IP; data is padded to 16 bytes.
OVERHEAD = {False: 60, True: 80}
WIREGUARD_PADDING = 16
# IPv4 or IPv6, and UDP: what stands before a probe's own bytes.
HEADERS = {False: 28, True: 48}
# Ethernet's. Larger paths exist, but not between two homes.
LARGEST_PROBE = 1500
# The tunnel's default MTU, the least that IPv6 asks of a link (RFC 8200 section 5).
USUAL_INNER = 1280
# Every IPv4 host takes this much (RFC 791); an IPv6 path carries 1280.
LEAST = {False: 576, True: 1280}

# A path chosen a moment ago is often replaced by a better one.
SETTLE = 1.0
TRIES = 3
# Longer than the internet's round trips; a later answer still counts.
PATIENCE = 0.5
# RFC 8899 section 5.1.1 (PMTU_RAISE_TIMER).
RECHECK = 600.0
# A hint that packets are swallowed is followed up this often at most, in seconds.
HINT_GAP = 30.0
# Probes whose answers may still come.
MAX_OUTSTANDING = 8

# Ours, from the range that a receiver skips if it does not know it (RFC 8489 section 18.3).
PADDING_ATTRIBUTE = 0xC9D4
# MESSAGE-INTEGRITY and FINGERPRINT, with their headers.
TAIL = 24 + 8
ATTRIBUTE_HEADER = 4


def inner_mtu(outer: int, *, ipv6: bool) -> int:
    """Return the largest packet that WireGuard carries in outer IP packets of ``outer`` bytes."""
    return (outer - OVERHEAD[ipv6]) // WIREGUARD_PADDING * WIREGUARD_PADDING


def pad_check(check: bytes, size: int, password: str, *, ipv6: bool) -> bytes:
    """Return a rendered check grown so that its IP packet has ``size`` bytes, authenticated again.

    ``check`` ends as ``render_check`` ends it: in MESSAGE-INTEGRITY made with ``password``, and
    FINGERPRINT. Raises ValueError if it does not, or cannot have this size (a multiple of 4).
    """
    body = check[:-TAIL]
    room = size - HEADERS[ipv6] - len(check) - ATTRIBUTE_HEADER
    if check[-TAIL:][:2] != INTEGRITY_ATTRIBUTE.to_bytes(2, "big") or room < 0 or room % 4:
        raise ValueError(f"a check of {len(check)} bytes cannot be padded to {size}")
    padded = body + struct.pack("!HH", PADDING_ATTRIBUTE, room) + bytes(room)
    return sealed(padded, password)


@dataclass(frozen=True, slots=True)
class Probe:
    """A check to send now, padded to an IP packet of ``size`` bytes, with "don't fragment"."""

    transaction: bytes
    size: int


class MtuProber:
    """The path MTU of one link's selected path. ``mtu`` is None while nothing is known.

    Sizes are those whose inner packet is a multiple of 16 bytes: nothing between them is of use.
    """

    def __init__(self) -> None:
        self.mtu: int | None = None
        self.deadline: float | None = None
        self._ipv6 = False
        self._active = False
        self._searching = False
        self._finished_at: float | None = None
        self._hinted_at: float | None = None
        # This search: the largest size proven, the smallest refuted, and the one that is tried.
        self._proven: int | None = None
        self._refuted = 0
        self._first: int | None = None
        self._size = 0
        self._tries = 0
        self._outstanding: OrderedDict[bytes, int] = OrderedDict()

    def start(self, now: float, *, ipv6: bool) -> None:
        """A path was selected, or the network under it changed: nothing is known of it."""
        self.stop()
        self._ipv6 = ipv6
        self._search(now + SETTLE)

    def stop(self) -> None:
        """There is no path to probe."""
        self.mtu, self.deadline = None, None
        self._searching, self._finished_at, self._hinted_at = False, None, None
        self._outstanding.clear()

    def set_active(self, active: bool, now: float) -> None:
        """The tunnel came into use, or fell idle: an idle one is not checked again."""
        if active != self._active:
            self._active = active
            if self._finished_at is not None:
                self._rest(now)

    def suspect(self, now: float) -> None:
        """The tunnel sends and nothing comes back, though checks are answered: look again."""
        recently = self._hinted_at is not None and now - self._hinted_at < HINT_GAP
        if self._finished_at is not None and not recently:
            self._hinted_at = now
            self._search(now)

    def answered(self, transaction: bytes, now: float) -> bool:
        """An authentic answer came; return whether it was to a probe (and not another check)."""
        size = self._outstanding.pop(transaction, None)
        if size is None:
            return False
        if size <= (self._proven or 0):
            return True
        self._proven = size
        if self._refuted <= size:
            # It was only late, and what was concluded from its absence is open again.
            self._refuted = self._beyond
        usual_fails = self.mtu is None and self._refuted <= self._usual
        if usual_fails or (self.mtu is not None and self._refuted <= self.mtu):
            # More than passes is being sent now: do not wait for the exact size.
            self.mtu = size
        self._advance(now)
        return True

    def due(self, moment: Moment) -> Probe | None:
        """Return the probe to send now, if any; call it when the deadline has come."""
        now = moment.now
        if self.deadline is None or now < self.deadline:
            return None
        if not self._searching:
            self._search(now)
        if self._tries >= TRIES:
            self._refuted = self._size
            self._advance(now)
        if not self._searching:
            return None
        self._tries += 1
        self.deadline = now + PATIENCE
        transaction = moment.entropy.take(TRANSACTION)
        self._outstanding[transaction] = self._size
        if len(self._outstanding) > MAX_OUTSTANDING:
            self._outstanding.popitem(last=False)
        return Probe(transaction, self._size)

    # -- the search -------------------------------------------------------------------------

    @property
    def _least(self) -> int:
        wide = OVERHEAD[self._ipv6]
        return wide + -(-(LEAST[self._ipv6] - wide) // WIREGUARD_PADDING) * WIREGUARD_PADDING

    @property
    def _usual(self) -> int:
        return USUAL_INNER + OVERHEAD[self._ipv6]

    @property
    def _largest(self) -> int:
        return OVERHEAD[self._ipv6] + inner_mtu(LARGEST_PROBE, ipv6=self._ipv6)

    @property
    def _beyond(self) -> int:
        return self._largest + WIREGUARD_PADDING

    def _search(self, at: float) -> None:
        self._proven, self._refuted, self._first = None, self._beyond, self.mtu
        self._advance(at)

    def _advance(self, at: float) -> None:
        """Begin with the next size, or end the search."""
        size = self._next_size()
        self._tries = 0
        self._searching = size is not None
        if size is not None:
            self._size, self.deadline, self._finished_at = size, at, None
            return
        if self._proven is not None:
            # Else not even the least passes: that is no matter of size.
            self.mtu = self._proven
        self._finished_at = at
        self._rest(at)

    def _next_size(self) -> int | None:
        if self._proven is None:
            sizes = (self._first or self._usual, self._usual, self._least)
            return next((size for size in sizes if size < self._refuted), None)
        if self._refuted > self._largest:
            return self._largest if self._proven < self._largest else None
        if self._proven == self._first and self._refuted == self._largest:
            # Confirmed, and the path has not become a full one since.
            return None
        steps = (self._refuted - self._proven) // WIREGUARD_PADDING
        return self._proven + steps // 2 * WIREGUARD_PADDING if steps > 1 else None

    def _rest(self, now: float) -> None:
        assert self._finished_at is not None
        self.deadline = max(now, self._finished_at + RECHECK) if self._active else None
