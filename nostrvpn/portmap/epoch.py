"""Did the router lose its mappings? Its epoch, the seconds since it last did, tells.

The two protocols count alike but judge differently: PCP by RFC 6887 section 8.5, NAT-PMP by
RFC 6886 section 3.6.
"""

from __future__ import annotations

__all__ = ["NatPmpEpoch", "PcpEpoch"]


class PcpEpoch:
    """The epoch of a PCP server."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def lost_state(self, epoch: int, now: float) -> bool:
        """Take the epoch of a response that came at ``now``; say whether mappings were lost."""
        last, self._last = self._last, (epoch, now)
        if last is None:
            return False
        server, client = epoch - last[0], now - last[1]
        if server < -1:
            return True
        # Both clocks may be off by one part in sixteen, and the reading by two seconds.
        return client + 2 < server - server / 16 or server + 2 < client - client / 16


class NatPmpEpoch:
    """The epoch of a NAT-PMP router."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def lost_state(self, epoch: int, now: float) -> bool:
        """Take the epoch of a response that came at ``now``; say whether mappings were lost."""
        last, self._last = self._last, (epoch, now)
        if last is None:
            return False
        return epoch < last[0] + (now - last[1]) * 7 / 8 - 2
