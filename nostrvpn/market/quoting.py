"""Answering who asks for a price: frozen for a minute, nothing promised to whom is not welcome.

Quotes are not written down: a stranger's question shall cost no disk. After a restart it is asked again.
"""

from __future__ import annotations

from nostrvpn.machine import Moment
from nostrvpn.market.effects import MarketEffect, Tell
from nostrvpn.market.escrow import ESCROW_LOCK_S
from nostrvpn.market.lease import Lease, Phase
from nostrvpn.market.messages import Notice, Quote, QuoteRequest, render_message
from nostrvpn.market.payment_check import LOCK_MARGIN_S, LOCK_SLACK_S
from nostrvpn.market.stall import Stall
from nostrvpn.market.terms import PayMode, least_invoice_sat
from nostrvpn.market.work import has_work

__all__ = ["Quoting"]

QUOTE_S = 60
# Quotes open at a time, of all and of one buyer: each costs memory until it expires.
MAX_QUOTES, MAX_OF_ONE = 256, 4


class Quoting:
    """Quotes by the key of their request."""

    def __init__(self, stall: Stall) -> None:
        self._stall = stall

    def answer(self, buyer: str, request: QuoteRequest, moment: Moment) -> list[MarketEffect]:
        """Return the answer to a request: a quote, the same to the same key, or a notice."""
        of_buyer = [lease for lease in self._stall.leases.values() if lease.buyer == buyer]
        for lease in of_buyer:
            if lease.request.key == request.key and lease.phase in (Phase.QUOTED, Phase.OPEN):
                return [self._stall.tell(lease, lease.quote, moment.wall)]
        code = self._refusal(buyer, request, len(of_buyer))
        if code is not None:
            self._stall.counters[f"quote {code}"] += 1
            notice = Notice(level="error", code=code, key=request.key)
            return [Tell(buyer, render_message(notice), "", relays=request.relays)]
        lease = self._lease(buyer, request, moment)
        self._stall.leases[lease.id] = lease
        self._stall.counters["quotes"] += 1
        return [self._stall.tell(lease, lease.quote, moment.wall)]

    def expire(self, wall: float) -> list[MarketEffect]:
        """Forget quotes that nobody took."""
        leases = self._stall.leases.values()
        old = [x for x in leases if x.phase == Phase.QUOTED and x.quote.expires_at < wall]
        return [effect for lease in old for effect in self._stall.drop(lease)]

    def _refusal(self, buyer: str, request: QuoteRequest, of_buyer: int) -> str | None:
        stall, settings = self._stall, self._stall.settings
        leases = stall.leases.values()
        if not stall.welcomes(buyer, request) or any(
            x.request.wg_pub == request.wg_pub for x in leases
        ):
            return "policy-denied"
        if request.offer_id != settings.offer_id:
            return "price-changed"
        if request.mode not in settings.terms.pay or not self._has_room(request.mode):
            return "mode-not-accepted"
        if request.mode is PayMode.ESCROW and not self._takes(buyer, request):
            return "arbiter-not-accepted"
        # Else the work could be done long before.
        is_late = settings.events and request.offer_event not in settings.events
        if settings.pow_bits and is_late:
            return "price-changed"
        if not has_work(request, buyer, stall.pubkey, settings.pow_bits):
            return "work-needed"
        if not self._mints(request):
            return "payment-error-mint-not-accepted"
        open_quotes = sum(lease.phase == Phase.QUOTED for lease in leases)
        if of_buyer >= MAX_OF_ONE or open_quotes >= MAX_QUOTES:
            return "too-busy"
        return stall.service.admit(request.wg_pub)

    def _takes(self, buyer: str, request: QuoteRequest) -> bool:
        """Whether the arbiter is one of ours, and a third."""
        stall = self._stall
        two = {buyer, request.who, stall.pubkey, stall.settings.receiver[2:]}
        return request.arbiter in stall.settings.escrow and request.arbiter not in two

    def _has_room(self, mode: PayMode) -> bool:
        terms = self._stall.settings.terms
        return not mode.by_invoice or least_invoice_sat(terms.price) <= terms.max_slice_sat

    def _mints(self, request: QuoteRequest) -> tuple[str, ...]:
        if request.mode.by_invoice:
            return self._stall.settings.terms.mints  # none of them has to do with it
        taken = [url for url in self._stall.settings.terms.mints if url in self._stall.till.mints]
        return tuple(url for url in taken if not request.mints or url in request.mints)

    def _lease(self, buyer: str, request: QuoteRequest, moment: Moment) -> Lease:
        settings = self._stall.settings
        terms = settings.terms
        in_escrow = request.mode is PayMode.ESCROW
        may_try = self._stall.trials.may_try(buyer, moment.wall)
        quote = Quote(
            key=request.key,
            lease_id=moment.entropy.take(16).hex(),
            step_bytes=terms.price.step_bytes,
            step_msat=terms.price.step_msat,
            hour_msat=terms.price.hour_msat,
            mode=request.mode,
            mints=self._mints(request),
            free_bytes=terms.free_bytes if may_try else 0,
            grace_bytes=terms.grace_bytes,
            max_slice_sat=terms.max_slice_sat,
            receiver=f"02{self._stall.pubkey}" if in_escrow else settings.receiver,
            lock_s=(ESCROW_LOCK_S if in_escrow else LOCK_MARGIN_S) + LOCK_SLACK_S,
            expires_at=int(moment.wall) + QUOTE_S,
            policy=settings.policy,
        )
        return Lease(buyer, settings.offer_id, request, quote)
