"""Names for the guests of an exit: asked of the host's own servers, without what is private or blocked.

Never an open resolver: only members that may use this exit are answered, each so many times a second.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable

from nostrvpn.endpoint import IPAddress
from nostrvpn.exits.guest_names import is_private_name
from nostrvpn.exits.policy import is_public
from nostrvpn.host.dns_message import (
    FORMERR,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    is_cut,
    is_query,
    rcode_of,
    read_addresses,
    read_question,
    refusal_of,
)
from nostrvpn.io.blocklists import Blocklists
from nostrvpn.io.dns_forwarder import Forwarder, Way

__all__ = ["GuestNames"]

# Questions of one guest a second, and at once: what a busy household asks.
RATE, BURST = 50.0, 200.0
# Guests whose allowance is remembered; who did not ask for long has a full one anyway.
MAX_GUESTS = 4096


class GuestNames:
    """``may_ask`` says whom to answer, ``way`` whom to ask, ``searched`` our own networks' domains.

    ``private``: names and addresses of our own networks are no secret. ``counters``: what was refused.
    """

    def __init__(
        self,
        may_ask: Callable[[IPAddress], bool],
        way: Callable[[], Way],
        searched: Callable[[], frozenset[str]],
        blocklists: Blocklists,
        *,
        private: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._may_ask = may_ask
        self._way = way
        self._searched = searched
        self._blocklists = blocklists
        self._private = private
        self._clock = clock
        self._forwarder = Forwarder()
        self._allowances: dict[IPAddress, tuple[float, float]] = {}
        self.counters: Counter[str] = Counter()

    def answer(
        self, query: bytes, asker: IPAddress, by_tcp: bool
    ) -> bytes | Awaitable[bytes | None] | None:
        """Return the answer for a guest, now or later; None for whom none is meant."""
        if not self._may_ask(asker):
            self.counters["no_guest"] += 1
            return None
        if not self._may(asker):
            self.counters["too_many"] += 1
            return None
        asked = read_question(query)
        if asked is None or not is_query(query):
            return refusal_of(query, FORMERR)
        if not self._private and is_private_name(asked.labels, self._searched()):
            self.counters["private_name"] += 1
            return refusal_of(query, REFUSED)
        if self._blocklists.current.blocks(asked.labels):
            self.counters["blocked"] += 1
            return refusal_of(query, NXDOMAIN)
        return self._ask(query, by_tcp)

    async def _ask(self, query: bytes, by_tcp: bool) -> bytes | None:
        found = await self._forwarder.ask(query, self._way(), tcp=by_tcp)
        if found is None or rcode_of(found) or is_cut(found) or self._private:
            return found
        try:
            ips = read_addresses(found)[0].ips
        except ValueError:
            self.counters["unreadable"] += 1
            return refusal_of(query, SERVFAIL)
        if not all(is_public(ip) for ip in ips):
            self.counters["private_address"] += 1
            return refusal_of(query, REFUSED)
        return found

    def _may(self, asker: IPAddress) -> bool:
        now = self._clock()
        left, counted_at = self._allowances.get(asker, (BURST, now))
        left = min(BURST, left + (now - counted_at) * RATE)
        if asker not in self._allowances and len(self._allowances) >= MAX_GUESTS:
            del self._allowances[next(iter(self._allowances))]
        self._allowances[asker] = max(0.0, left - 1), now
        return left >= 1
