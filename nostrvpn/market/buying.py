"""One purchase, from the request to the receipt: what is said to one seller, and when it is left.

The machine of one lease within :class:`~nostrvpn.market.buyer.Buyer`, which chooses among several and
stores each record before anything leaves. Every message is made from the record, so what was not
answered is said again in the same words, also after a restart.
"""

from __future__ import annotations

from collections import Counter

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, earliest
from nostrvpn.market import invoice_paying, patience, paying
from nostrvpn.market.attest import is_signed_by
from nostrvpn.market.bill_check import OwnCount
from nostrvpn.market.bought_lease import BoughtLease, Phase
from nostrvpn.market.deal import check_quote
from nostrvpn.market.effects import Counted, MarketEffect, Probe, Probed, Say, ServiceChanged
from nostrvpn.market.exit_access import ExitAccess
from nostrvpn.market.invoice_paying import hold, hold_at_end, prepare_invoice, take_invoice
from nostrvpn.market.messages import (
    Grant,
    Invoice,
    LeaseMessage,
    Low,
    Notice,
    Quote,
    Receipt,
    Usage,
)
from nostrvpn.market.paying import Pocket, ask_again, go_home, prepare, show
from nostrvpn.market.receipts import take_receipt
from nostrvpn.market.saying import Voice
from nostrvpn.market.told import Told
from nostrvpn.market.tries import Tries
from nostrvpn.market.trust import Outcome

__all__ = ["Buying"]


class Buying:
    """The life of one :class:`BoughtLease`; ``pocket`` is shared with the others."""

    def __init__(
        self, lease: BoughtLease, pocket: Pocket, counters: Counter[str], now: float
    ) -> None:
        self.lease, self.pocket, self.counters = lease, pocket, counters
        self.count = OwnCount(lease)
        self.slot = 0
        self.tries = Tries()
        self.wants_out = ""  # why another seller should be looked for, while this one still serves
        self.is_short = ""  # why the next payment cannot be made
        self.told = Told()
        self._since = now
        self._voice = Voice()
        self._money_at: float | None = None
        self._probe_at: float | None = None
        self._since_shown = now

    @property
    def is_serving(self) -> bool:
        """Whether traffic may go through it."""
        return self.lease.phase == Phase.SERVED and self.lease.is_probed

    @property
    def deadline(self) -> float | None:
        """When the next step is due without an event."""
        limit = patience.PATIENCE_S.get(self.lease.phase)
        given_up = self._since + limit if limit is not None else None
        return earliest(self._voice.due, self._money_at, self._probe_at, given_up)

    # What it does

    def begin(self, moment: Moment) -> list[MarketEffect]:
        """Take the quote: try the tunnel for nothing, or pay where that is not offered."""
        assert self.lease.quote is not None
        self._enter(Phase.TRYING if self.lease.quote.free_bytes else Phase.PAYING, moment)
        return self.say(moment) if self.lease.phase == Phase.TRYING else self._pay(moment)

    def resume(self, moment: Moment) -> list[MarketEffect]:
        """Go on after a restart: the tunnel is tried again, and what was not answered said again."""
        effects: list[MarketEffect] = [*ask_again(self.lease)]
        self._money_at = moment.now + patience.MONEY_AGAIN_S
        if self.lease.phase in (Phase.PROBING, Phase.SERVED):
            self._probe_at = moment.now
        return [*effects, *self.say(moment)]

    def end(
        self, moment: Moment, reason: str, outcome: Outcome | None = None
    ) -> list[MarketEffect]:
        """Leave: no more is paid; the receipt is asked for, and money that is out comes home."""
        lease = self.lease
        if lease.phase in (Phase.CLOSING, Phase.OVER):
            return []
        changed: list[MarketEffect] = [ServiceChanged()] if lease.is_live else []
        lease.label, lease.ended_at = reason, int(moment.wall)
        if outcome is not None:
            lease.outcome = outcome
        if lease.is_choosing:
            lease.phase = Phase.OVER
            return []
        self._enter(Phase.CLOSING, moment)
        self._probe_at = None
        if lease.purse is not None and (lease.purse.is_there or lease.is_asking):
            go_home(lease, lease.purse)
        return [*changed, Say("info", f"exit of {lease.seller[:8]}: {reason}"), *self.say(moment)]

    def tick(self, moment: Moment) -> list[MarketEffect]:
        """Do what is due."""
        lease, now = self.lease, moment.now
        limit = patience.PATIENCE_S.get(lease.phase)
        if limit is not None and now >= self._since + limit:
            return self._give_up(moment)
        late = now >= self._since_shown + patience.answer_s(lease) and lease.phase == Phase.SERVED
        if late and (lease.pending is not None or lease.is_asking or lease.is_holding):
            why = "it made no invoice" if lease.is_asking else "it did not answer for the payment"
            return self.end(moment, why, Outcome.BROKE_OFF)
        effects: list[MarketEffect] = []
        is_again = self._voice.due is not None and now >= self._voice.due
        if lease.phase == Phase.SERVED and lease.pending is not None and is_again:
            self._probe_at = now  # no answer to a payment: perhaps nobody is there any more
        if self._probe_at is not None and now >= self._probe_at:
            self._probe_at = now + patience.PROBE_S
            effects.append(Probe(lease.key))
        if self._voice.due is not None and now >= self._voice.due:
            effects += self.say(moment)
        if self._money_at is not None and now >= self._money_at:
            again = ask_again(lease)
            self._money_at = now + patience.money_again_s(lease, moment.wall) if again else None
            effects += [*again, *self._pay(moment)]
        return effects

    def try_money(self, moment: Moment) -> None:
        """More may be spent than before: ask for what was refused, at once."""
        if self._money_at is not None:
            self._money_at = moment.now

    def counted(self, counted: Counted, moment: Moment) -> list[MarketEffect]:
        """Take a reading of this lease's tunnel; its peer may be missing."""
        counters = self.count.read(counted, moment)
        if self.count.overcharge is not None:
            self.counters["overcharged"] += 1
            why = f"overcharge: {self.count.overcharge}"
            return self.end(moment, why, Outcome.OVERCHARGED)
        if self.lease.phase != Phase.SERVED or self.count.is_doubting:
            return []
        if counters is not None and counters.last_handshake and not self.count.is_alive(moment):
            return self.end(moment, "the tunnel is dead", Outcome.BROKE_OFF)
        return self._pay(moment)

    def probed(self, probe: Probed, moment: Moment) -> list[MarketEffect]:
        """Take what a try of the tunnel found."""
        lease = self.lease
        if lease.phase not in (Phase.PROBING, Phase.SERVED):
            return []
        limit = self.pocket.wish.max_rtt_ms if self.pocket.wish is not None else 0
        failed = self.tries.take(probe, lease, limit, is_suspended=self.told.is_suspended)
        if failed is not None:
            return self.end(moment, *failed)
        if not probe.ok:
            self._probe_at = moment.now + patience.PROBE_AGAIN_S
            return []
        self.wants_out = self.tries.why_slow or self.wants_out
        if lease.phase != Phase.PROBING:
            return []
        lease.is_probed, self._probe_at = True, None
        return self._tried(moment)

    def heard(self, message: LeaseMessage, moment: Moment) -> list[MarketEffect]:
        """Take a message that the lease's seller signed, and that names this lease."""
        try:
            return self._take(message, moment)
        except PeerMisbehaved as exc:
            self.counters[exc.code] += 1
            why = f"its {type(message).__name__.lower()} cannot be used"
            return self.end(moment, why, Outcome.NO_SERVICE)

    def _take(self, message: LeaseMessage, moment: Moment) -> list[MarketEffect]:
        match message:
            case Quote() if self.lease.phase == Phase.ASKING:
                return self._quoted(message, moment)
            case Grant():
                return self._granted(message, moment)
            case Usage():
                return self._used(message, moment)
            case Invoice():
                return self._invoiced(message, moment)
            case Low():
                self.told.low(self.lease.paid_msat)
                return self._pay(moment)
            case Notice():
                return self._noticed(message, moment)
            case Receipt():
                return self._receipted(message, moment)
            case _:
                self.counters["unexpected_message"] += 1
                return []

    def no_money(self, ref: str, why: str, may_retry: bool, moment: Moment) -> list[MarketEffect]:
        """The wallet could not make money ready."""
        lease, money = self.lease, self.lease.purse
        if money is None or money.ref != ref or money.is_there:
            return []
        self._money_at = moment.now + patience.money_again_s(lease, moment.wall)
        if may_retry:
            if not lease.is_holding:  # that waits, as it should
                self.is_short = self.wants_out = f"the mint {lease.mint}: {why}"
            return []
        money.is_over = True
        self.is_short = self.wants_out = why
        return self.end(moment, why) if lease.phase == Phase.PAYING else []

    def money_came(self, moment: Moment) -> list[MarketEffect]:
        """The wallet made money ready (``paying.took`` put it into the record)."""
        self.is_short = self.wants_out = ""
        purse = self.lease.purse
        if self.lease.phase in (Phase.CLOSING, Phase.OVER):
            if purse is not None and purse.is_there:
                go_home(self.lease, purse)
            return []
        return self._pay(moment)

    def _quoted(self, quote: Quote, moment: Moment) -> list[MarketEffect]:
        why = check_quote(quote, self.lease, moment)
        if why is not None:
            self.counters["bad_quote"] += 1
            return self.end(moment, why, Outcome.NO_SERVICE)
        self.lease.quote = quote
        self._enter(Phase.QUOTED, moment)
        return []

    def _invoiced(self, message: Invoice, moment: Moment) -> list[MarketEffect]:
        asked = take_invoice(self.lease, message, moment)
        if not asked:
            return []
        self._money_at, self._since_shown = moment.now + patience.MONEY_AGAIN_S, moment.now
        return [*asked, *self.say(moment)]  # of what is held, the seller's word counts

    def _granted(self, grant: Grant, moment: Moment) -> list[MarketEffect]:
        lease = self.lease
        if hold(lease, self.pocket, moment, grant.seq):
            self.is_short = self.wants_out = ""
        was_pending = lease.pending is not None
        if not self._is_answered(grant.seq, grant.paid_msat):
            return self.end(moment, "it credits less than it was paid", Outcome.OVERCHARGED)
        if lease.phase == Phase.SERVED:
            return self._pay(moment)
        is_paid = lease.phase == Phase.PAYING and was_pending and lease.pending is None
        if lease.phase != Phase.TRYING and not is_paid:
            return []  # the same once more
        ExitAccess.parse(grant.access).check()
        lease.access = dict(grant.access)
        lease.granted_at = lease.granted_at or int(moment.wall)
        lease.free_bytes = grant.free_bytes
        self._voice.due = None
        if lease.is_probed:
            return self._tried(moment)
        self._enter(Phase.PROBING, moment)
        self._probe_at = moment.now + patience.PROBE_SOON_S
        return [ServiceChanged(), Probe(lease.key)]

    def _is_answered(self, seq: int, paid_msat: int) -> bool:
        """Take an answer; False if the seller credits less than the payment is worth."""
        pending = self.lease.pending
        if pending is None or seq != pending.seq:
            return True
        self.told.credited(paid_msat)
        if self.lease.phase != Phase.CLOSING:
            self._voice.due = None
        return paying.answered(self.lease, paid_msat)

    def _answered_by_bill(self, paid_msat: int) -> None:
        """Take a bill for the answer to the last payment if that is in it: its own may be lost."""
        pending = self.lease.pending
        if pending is not None and paid_msat >= sum(p.credit_msat for p in self.lease.slices):
            self._is_answered(pending.seq, paid_msat)

    def _used(self, usage: Usage, moment: Moment) -> list[MarketEffect]:
        lease = self.lease
        if usage.number < lease.number_of_usage:
            return []
        if not is_signed_by(usage, lease.seller):
            self.counters["bad_signature"] += 1
            return []
        lease.number_of_usage = usage.number
        is_used = lease.phase in (Phase.PROBING, Phase.PAYING, Phase.SERVED)
        if lease.quote is None or not is_used or not self.count.agrees(usage):
            return []
        if lease.phase == Phase.SERVED:
            self._answered_by_bill(usage.paid_msat)
        self.told.billed(usage)
        return self._pay(moment)

    def _noticed(self, notice: Notice, moment: Moment) -> list[MarketEffect]:
        lease, code = self.lease, notice.code
        pending = lease.pending
        if lease.phase == Phase.ASKING and notice.level == "error":
            return self.end(moment, f"it refuses: {code}", Outcome.SERVED)
        if code == "trial-denied" and lease.phase in (Phase.TRYING, Phase.PROBING):
            self._enter(Phase.PAYING, moment)
            return self._pay(moment)
        if code == "unknown-lease":
            effects = self.end(moment, "it knows of no lease", Outcome.BROKE_OFF)
            return [*effects, *self._over(moment)]
        if code == "suspended":
            self.told.low(lease.paid_msat, is_suspended=True)
            return self._pay(moment)
        if code in ("price-changed", "ending"):
            self.wants_out = f"it says: {code}"
            return []
        asked = pending.seq if pending is not None else lease.seq if lease.is_asking else None
        if asked is not None and notice.seq == asked and notice.level != "info":
            self.counters["payment_refused"] += 1
            if notice.level == "error":
                return self.end(moment, f"it refuses the payment: {code}", Outcome.NO_SERVICE)
            self.wants_out = f"it says: {code}"  # its own trouble: the payment is sent again
        return []

    def _receipted(self, receipt: Receipt, moment: Moment) -> list[MarketEffect]:
        lease = self.lease
        if lease.quote is None or not is_signed_by(receipt, lease.seller):
            self.counters["bad_signature"] += 1
            return []
        hold_at_end(lease, self.pocket, receipt, moment)
        if lease.is_square or invoice_paying.can_be_paid(lease, moment):
            return []  # it is in the books, or asked for again once they know what was paid
        effects: list[MarketEffect] = []
        if lease.phase not in (Phase.CLOSING, Phase.OVER):
            effects = self.end(moment, f"it ended the lease: {receipt.reason}")
        try:
            take_receipt(self.count, self.pocket, receipt, moment)
        except PeerMisbehaved as exc:
            self.counters[exc.code] += 1
        self._answered_by_bill(receipt.paid_msat)
        if receipt.owed_sat and not receipt.token:
            return effects  # it is asked for again, until patience ends
        return [*effects, *self._over(moment)]

    def _tried(self, moment: Moment) -> list[MarketEffect]:
        """The tunnel works: pay if nothing was paid, else it serves."""
        lease = self.lease
        assert lease.quote is not None
        if not lease.paid_msat and lease.quote.price.due(1, 1):
            if lease.phase != Phase.PAYING:
                self._enter(Phase.PAYING, moment)
            return self._pay(moment)
        self._enter(Phase.SERVED, moment)
        self._probe_at = moment.now + patience.PROBE_S
        return [ServiceChanged(), *self._pay(moment)]

    def _pay(self, moment: Moment) -> list[MarketEffect]:
        """Make the next payment, if it is time for it and allowed."""
        lease = self.lease
        if lease.phase not in (Phase.PAYING, Phase.SERVED) or lease.is_waiting:
            return []
        if lease.phase == Phase.PAYING and lease.paid_msat:
            return []
        is_low = lease.has_paid or self.count.needs_more(self.told.is_low)
        if lease.phase == Phase.SERVED and not is_low:
            return []
        if show(lease, self.pocket, moment):
            self._since_shown = moment.now
            self._voice.begin()
            return self.say(moment)
        if lease.purse is not None:
            if not lease.purse.is_there:
                return []
            go_home(lease, lease.purse)  # used up, or no longer locked for long enough
        make = prepare_invoice if lease.mode.by_invoice else prepare
        asked = make(lease, self.pocket, moment)
        if asked is None:
            self._money_at = self._money_at or moment.now + patience.MONEY_AGAIN_S
            self.is_short = self.pocket.why_short(lease.mint, moment)
            return self.end(moment, self.is_short) if lease.phase == Phase.PAYING else []
        self._money_at, self._since_shown = moment.now + patience.MONEY_AGAIN_S, moment.now
        self._voice.begin()
        return [*asked, *self.say(moment)]

    def _give_up(self, moment: Moment) -> list[MarketEffect]:
        phase, lease = self.lease.phase, self.lease
        if phase == Phase.CLOSING:
            return self._over(moment)
        outcome = Outcome.SERVED if phase == Phase.QUOTED else Outcome.NO_SERVICE
        if phase == Phase.PAYING and lease.pending is None and not lease.is_asking:
            outcome = Outcome.SERVED  # it was our mint that did not answer
        return self.end(moment, f"no answer while {phase}", outcome)

    def _over(self, moment: Moment) -> list[MarketEffect]:
        self.lease.phase, self._voice.due = Phase.OVER, None
        paying.take_back(self.lease)
        return []

    def _enter(self, phase: str, moment: Moment) -> None:
        self.lease.phase, self._since = phase, moment.now
        self._voice.begin()

    def say(self, moment: Moment) -> list[MarketEffect]:
        """Say what is to be said in this phase, and again later."""
        return self._voice.say(self.lease, self.pocket.relays, moment.now)
