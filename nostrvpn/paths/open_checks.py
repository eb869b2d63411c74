"""Checks as messages: what they carry, and which of them still wait for their answers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.paths.candidates import CandidateKind, candidate_priority
from nostrvpn.paths.path_mtu import Probe, pad_check
from nostrvpn.stun.binding import TRANSACTION, Check, StunMessage, render_check

__all__ = ["Credentials", "OpenChecks", "Sent"]

# Checks whose answers are awaited: 32 pairs with ten sends each, and heartbeats.
MAX_TRANSACTIONS = 384


@dataclass(frozen=True, slots=True)
class Credentials:
    """What our checks carry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sent:
    """A check whose answer is awaited."""

    endpoint: Endpoint
    at: float
    password: str = field(repr=False)
    nomination: int | None
    round: int | None


class OpenChecks:
    """Renders the checks of one link, and knows their answers."""

    def __init__(self, *, controlling: bool, tie_breaker: int) -> None:
        self._controlling = controlling
        self._tie_breaker = tie_breaker
        self._sent: OrderedDict[bytes, Sent] = OrderedDict()

    def __contains__(self, transaction: bytes) -> bool:
        return transaction in self._sent

    def render(
        self,
        endpoint: Endpoint,
        credentials: Credentials,
        moment: Moment,
        *,
        nomination: int | None = None,
        calls: int | None = None,
        probe: Probe | None = None,
    ) -> bytes:
        """Return a check to send to ``endpoint`` now.

        ``nomination``: the number of the choice that it nominates; ``calls``: that of the round that
        it calls; ``probe``: what it is padded to.
        """
        wide = endpoint.ip.version == 6
        check = Check(
            transaction=moment.entropy.take(TRANSACTION) if probe is None else probe.transaction,
            username=credentials.username,
            password=credentials.password,
            priority=candidate_priority(CandidateKind.PEER_REFLEXIVE, endpoint.ip.version),
            controlling=self._controlling,
            tie_breaker=self._tie_breaker,
            use_candidate=nomination is not None,
            round=calls,
            nomination=nomination,
        )
        self._sent[check.transaction] = Sent(
            endpoint, moment.now, check.password, nomination, calls
        )
        if len(self._sent) > MAX_TRANSACTIONS:
            self._sent.popitem(last=False)
        data = render_check(check)
        return data if probe is None else pad_check(data, probe.size, check.password, ipv6=wide)

    def authenticate(self, message: StunMessage) -> Sent:
        """Return the check that ``message`` answers; PeerMisbehaved if the answer is forged."""
        sent = self._sent[message.transaction]
        if not message.is_authentic(sent.password):
            raise PeerMisbehaved("forged_answer", "an answer that is not the peer's")
        return sent

    def clear(self) -> None:
        """Await no answer any more."""
        self._sent.clear()

    def close(self, transaction: bytes) -> None:
        """Its answer came."""
        del self._sent[transaction]
