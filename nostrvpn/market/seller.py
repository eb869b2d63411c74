"""The seller: all leases sold, from the quote to the receipt, as one machine.

What is promised was written down before: each list of effects has its Keeps before the messages, the
service and the wallet that depend on them. What was kept is enough to go on from after any crash:
requests to the wallet are made again by the same ref, repeated messages get the same answers, and the
books follow from the records. One machine takes one event after the other, so a payment and an end of
the same lease never cross.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from nostrvpn.cashu.proof import MintKeys
from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, Tick, earliest
from nostrvpn.market.channel_effects import ChannelClosed
from nostrvpn.market.effects import (
    Counted,
    GivenBack,
    Heard,
    HoldEnded,
    InvoiceMade,
    InvoiceSeen,
    Keep,
    MarketEffect,
    MarketEvent,
    PaymentFailed,
    Redeemed,
    ServiceChanged,
    Tell,
    Undelivered,
)
from nostrvpn.market.ending import Ending
from nostrvpn.market.escrow_sold import DISPUTES, SoldEscrow
from nostrvpn.market.holds import SoldHolds
from nostrvpn.market.invoices import Invoices
from nostrvpn.market.lease import LEASES, METERS, Lease, Phase
from nostrvpn.market.ledger import Ledger
from nostrvpn.market.messages import (
    Close,
    Fund,
    InvoiceRequest,
    Low,
    Notice,
    QuoteRequest,
    Release,
    Return,
    TopUp,
    Verdict,
    parse_message,
    render_message,
)
from nostrvpn.market.money_in import MONEY
from nostrvpn.market.payments import Payments
from nostrvpn.market.quoting import Quoting
from nostrvpn.market.service import Service
from nostrvpn.market.serving import Serving
from nostrvpn.market.sold_channel import CHANNELS, SoldChannel
from nostrvpn.market.stall import ENTRIES, SellerSettings, Stall, settings_of
from nostrvpn.market.terms import LIGHTNING
from nostrvpn.market.till import BATCHES
from nostrvpn.market.trials import TRIALS

__all__ = ["SPACES", "Seller", "SellerSettings", "settings_of"]

SPACES = (LEASES, METERS, MONEY, BATCHES, CHANNELS, DISPUTES, TRIALS, ENTRIES)
"""What :meth:`Seller.restore` needs of the store; leases, money and channels hold secrets."""

# Between two looks at what is due, while there are leases.
LOOK_S = 5.0


class Seller:
    """``secret``: the market key. The shell sets ``settings`` and ``mints`` as they change."""

    def __init__(self, secret: bytes, settings: SellerSettings, service: Service) -> None:
        self._stall = Stall(secret, settings, service)
        self._quoting = Quoting(self._stall)
        self._serving = Serving(self._stall)
        self._ending = Ending(self._stall)
        self._payments = Payments(self._stall, self._serving, self._ending)
        self._invoices = Invoices(self._stall, self._payments, self._ending)
        self._escrow = SoldEscrow(self._stall)
        self._holds = SoldHolds(self._stall, self._ending)
        self._looked_at: float | None = None

    @property
    def pubkey(self) -> str:
        """The market's public key."""
        return self._stall.pubkey

    @property
    def service(self) -> Service:
        """What is sold."""
        return self._stall.service

    @property
    def settings(self) -> SellerSettings:
        """The terms of leases to come; those that run keep theirs."""
        return self._stall.settings

    @settings.setter
    def settings(self, settings: SellerSettings) -> None:
        self._stall.settings = settings
        self._stall.trials.budget = settings.trials

    @property
    def mints(self) -> Mapping[str, MintKeys]:
        """The known keysets of the mints that are taken, by URL."""
        return self._stall.till.mints

    @mints.setter
    def mints(self, mints: Mapping[str, MintKeys]) -> None:
        self._stall.till.mints = mints
        self._payments.stale_mints.clear()

    @property
    def stale_mints(self) -> frozenset[str]:
        """Mints of which somebody showed a keyset that is not known here: ask them anew."""
        return frozenset(self._payments.stale_mints)

    @property
    def leases(self) -> tuple[Lease, ...]:
        """All leases that are known, quotes included; to look at."""
        return tuple(self._stall.leases.values())

    @property
    def channels(self) -> tuple[SoldChannel, ...]:
        """All channels that are known; to look at."""
        return tuple(self._stall.channels)

    @property
    def ledger(self) -> Ledger:
        """The books; to look at."""
        return self._stall.ledger

    @property
    def counters(self) -> Counter[str]:
        """What happened how often."""
        return self._stall.counters

    def reserved_sat(self) -> dict[str, int]:
        """Return by mint what may have to be given back: the wallet's owner must not take it out."""
        sums: dict[str, int] = {}
        for lease in self._stall.leases.values():
            owed = lease.refund in ("wanted", "owed")
            unused = lease.bill.remaining_msat if lease.phase in (Phase.OPEN, Phase.ENDING) else 0
            for mint, paid in lease.paid_by.items():
                left = 1000 * lease.refund_sat * (mint == lease.refund_mint) if owed else unused
                sums[mint] = sums.get(mint, 0) - (-min(paid, left) // 1000)
        return {mint: sat for mint, sat in sums.items() if sat and mint != LIGHTNING}

    @property
    def deadline(self) -> float | None:
        """When to look for what is due."""
        if self._looked_at is None:
            return float("-inf")
        look = (
            self._looked_at + LOOK_S
            if self._stall.leases
            or not (self._stall.till.is_empty and self._stall.channels.is_empty)
            else None
        )
        return earliest(look, self._stall.errands.deadline)

    def step(self, event: MarketEvent, moment: Moment) -> list[MarketEffect]:
        """Take one event; return what to do, in this order: all Keeps are first, for one transaction."""
        return _keeps_first(self._step(event, moment))

    def _step(self, event: MarketEvent, moment: Moment) -> list[MarketEffect]:
        match event:
            case Heard(sender, text, at_tunnel):
                return self._heard(sender, text, at_tunnel, moment)
            case Redeemed(ref, amount, _):
                return self._payments.redeemed(ref, amount, moment)
            case GivenBack(ref, token, fee):
                lease = self._owed(ref)
                if lease is None or not self._stall.errands.finish(ref):
                    return []
                return self._ending.given(lease, token, fee, moment)
            case ChannelClosed():
                return self._stall.channels.closed(event, moment.wall)
            case InvoiceMade(ref, text):
                return self._invoices.made(ref, text, moment)
            case InvoiceSeen(ref, is_paid):
                return self._invoices.seen(ref, is_paid, moment)
            case HoldEnded():
                return self._holds.ended(event, moment)
            case PaymentFailed(ref) if self._holds.is_one(ref):
                return self._holds.failed(event, moment)
            case PaymentFailed(ref) if ref in self._stall.channels:
                return self._stall.channels.failed(event, moment)
            case PaymentFailed(ref) if ref in self._invoices:
                return self._invoices.failed(event, moment)
            case PaymentFailed(ref):
                lease = self._owed(ref)
                if lease is None or event.may_retry:
                    return self._payments.failed(event, moment)
                if self._ending.is_early(lease, event.code):
                    return self._payments.failed(replace(event, may_retry=True), moment)
                return self._ending.not_given(lease, moment)
            case Counted():
                return [*self._serving.count(event, moment), *self._look(moment)]
            case Undelivered():
                self.counters["undelivered"] += 1  # who wants it asks again
            case Tick():
                return self._look(moment)
            case _:
                pass
        return []

    def end(self, lease_id: str, reason: str, moment: Moment) -> list[MarketEffect]:
        """End a lease ourselves; "policy-denied", "price-changed", "stopped" give back all unused."""
        lease = self._stall.leases.get(lease_id)
        return [] if lease is None else _keeps_first(self._ending.end(lease, reason, moment))

    def dispute(self, lease_id: str, text: str, moment: Moment) -> list[MarketEffect]:
        """Have the arbiter asked about what a lease's buyer did not release; UserError if nothing is."""
        lease = self._stall.leases[lease_id]
        return _keeps_first(self._escrow.dispute(lease, text, moment))

    def unreleased_sat(self) -> dict[str, int]:
        """Return by mint the face value of what is in escrow."""
        sums: Counter[str] = Counter()
        for money in self._stall.till.unreleased():
            sums[money.mint] += money.face_sat
        return dict(sums)

    def tell_all(self, level: str, code: str, moment: Moment) -> list[MarketEffect]:
        """Send a notice to all who are served."""
        served = (lease for lease in self.leases if lease.is_live and not lease.suspended_at)
        return [self._stall.notice(lease, level, code, moment.wall) for lease in served]

    def end_all(self, moment: Moment) -> list[MarketEffect]:
        """Serve nobody any more; all that is unused is given back."""
        there = [x for x in self.leases if x.phase in (Phase.QUOTED, Phase.OPEN)]
        return [effect for one in there for effect in self.end(one.id, "stopped", moment)]

    def end_unwelcome(self, moment: Moment) -> list[MarketEffect]:
        """End the leases of buyers who are not welcome any more; all that is unused is given back."""
        unwelcome = [
            lease
            for lease in self.leases
            if lease.phase in (Phase.QUOTED, Phase.OPEN)
            and not self._stall.welcomes(lease.buyer, lease.request)
        ]
        return [e for one in unwelcome for e in self.end(one.id, "policy-denied", moment)]

    def restore(self, records: Iterable[Keep], moment: Moment) -> list[MarketEffect]:
        """Go on from what was kept (``SPACES``): first thing in a run; PeerMisbehaved if damaged.

        Returns what makes the books good and the service known; what else is due follows at the next
        Tick. Call :meth:`problems` after it.
        """
        stall, found = self._stall, defaultdict[str, dict[str, object]](dict)
        for record in records:
            found[record.space][record.key] = record.value
        stall.ledger.restore(found[ENTRIES])
        stall.trials.restore(found[TRIALS])
        effects = stall.till.restore(found[MONEY], found[BATCHES], moment.wall)
        effects += stall.channels.restore(found[CHANNELS], moment.wall)
        for key, stored in found[LEASES].items():
            lease = stall.leases[key] = Lease.from_json(stored, found[METERS].get(key))
            effects += stall.post(lease, moment.wall)
        for money in stall.till:
            effects += self._payments.adopt(money, moment)
        effects += self._escrow.restore(found[DISPUTES])
        for lease in stall.leases.values():
            effects += stall.count_trial(lease)
            effects += self._payments.adopt_channels(lease, moment)
            self._invoices.adopt(lease)
            self._holds.adopt(lease)
            effects += self._resume(lease, moment)
        return _keeps_first([*effects, ServiceChanged()])

    def problems(self) -> list[str]:
        """Return what is wrong with books and leases, in words: nothing, or do not sell."""
        wrong = self.ledger.check()
        for lease in self.leases:
            held = -self.ledger.balance(f"lease:{lease.id}")
            owed = 1000 * lease.refund_sat if lease.refund == "owed" else 0
            expected = owed if lease.phase == Phase.CLOSED else lease.paid_msat
            if held != expected:
                wrong.append(f"lease {lease.id} has {held} msat, {expected} are owed")
        return wrong

    # Messages

    def _heard(
        self, sender: str, text: str, at_tunnel: IPAddress | None, moment: Moment
    ) -> list[MarketEffect]:
        try:
            message = parse_message(text)
        except PeerMisbehaved as exc:
            self.counters[exc.code] += 1
            return []
        match message:
            case QuoteRequest():
                return self._quoting.answer(sender, message, moment)
            case Release() if not message.preimage:
                return self._escrow.released(sender, message, moment)
            case Return():
                return self._escrow.returned(sender, message, moment)
            case Verdict():
                return self._escrow.judged(sender, message, moment)
            case Fund() | TopUp() | InvoiceRequest() | Close() | Low() | Release():
                lease = self._stall.leases.get(message.lease_id)
            case _:
                self.counters["not for a seller"] += 1
                return []
        if lease is None:
            seq = getattr(message, "seq", None)
            answer = Notice(level="error", code="unknown-lease", lease_id=message.lease_id, seq=seq)
            return [Tell(sender, render_message(answer), message.lease_id)]
        inside = at_tunnel is None or self._stall.service.owns(lease.id, at_tunnel)
        if lease.buyer != sender or not inside:
            self.counters["lease of somebody else"] += 1
            return []
        if at_tunnel is not None:
            # Counters come later: without this the first answers would go by relays, which may be gone.
            lease.seen_at = max(lease.seen_at, int(moment.wall))
        match message:
            case Fund() | TopUp():
                return self._payments.paid(lease, message, moment)
            case Release():
                return self._holds.released(lease, message, moment)
            case InvoiceRequest():
                return self._invoices.asked(lease, message, moment)
            case Close(reason=reason):
                if lease.phase in (Phase.ENDING, Phase.CLOSED):
                    return self._ending.repeat(lease, moment)
                return self._ending.end(lease, reason, moment)
            case Low():
                # Each answer is a signature and a write: one a second.
                asked = lease.phase == Phase.OPEN and moment.now - lease.told_at >= 1.0
                return self._stall.usage(lease, moment) if asked else []

    def _owed(self, ref: str) -> Lease | None:
        return self._stall.leases.get(ref.removeprefix("back:")) if ref[:5] == "back:" else None

    # Time, and a new run

    def _look(self, moment: Moment) -> list[MarketEffect]:
        stall = self._stall
        self._looked_at = moment.now
        return [
            *self._quoting.expire(moment.wall),
            *self._escrow.look(moment),
            *self._ending.expire(moment),
            *self._holds.look(moment),
            *stall.till.redeem(moment),
            *stall.channels.close(stall.leases, moment),
            *stall.errands.due(moment.now),
            *self._invoices.look(moment),
            *stall.trials.prune(moment.wall),
            *stall.till.prune(moment.wall),
            *stall.channels.prune(moment.wall),
        ]

    def _resume(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        if lease.is_live:
            assert lease.access is not None
            self.service.restore(lease.id, lease.request.wg_pub, lease.access)
            return self._serving.credited(lease, moment)
        if lease.refund == "wanted":
            self._stall.errands.owe(self._ending.request(lease))
        if lease.phase == Phase.ENDING:
            return self._ending.advance(lease, moment)
        if lease.phase == Phase.CLOSED and lease.refund == "given":
            return self._ending.repeat(lease, moment)
        return []


def _keeps_first(effects: list[MarketEffect]) -> list[MarketEffect]:
    # What is decided may be written down at once: nothing else of a step comes before it.
    keeps: list[MarketEffect] = [effect for effect in effects if isinstance(effect, Keep)]
    return [*keeps, *(effect for effect in effects if not isinstance(effect, Keep))]
