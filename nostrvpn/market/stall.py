"""What all parts of a seller share: its terms, its leases, its books, and how it writes and speaks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from nostrvpn.machine import Moment
from nostrvpn.market.attest import signed
from nostrvpn.market.channel_till import ChannelTill
from nostrvpn.market.effects import Keep, MarketEffect, Tell
from nostrvpn.market.errands import Errands
from nostrvpn.market.introduction import introduced
from nostrvpn.market.lease import LEASES, METERS, Lease, Payment, Phase
from nostrvpn.market.ledger import Entry, Ledger
from nostrvpn.market.messages import LeaseMessage, Notice, QuoteRequest, Usage, render_message
from nostrvpn.market.sale import Sale
from nostrvpn.market.service import Service
from nostrvpn.market.terms import Terms
from nostrvpn.market.till import Till
from nostrvpn.market.trials import TrialBudget, Trials
from nostrvpn.nostr.event import public_key

__all__ = ["ENTRIES", "SellerSettings", "Stall", "settings_of"]

ENTRIES = "sold_entry"
# A handshake this old (seconds) says that the tunnel is down: WireGuard makes one every two minutes.
ALIVE_S = 180


@dataclass(frozen=True, slots=True)
class SellerSettings:
    """What is sold, to whom. ``receiver``: the key ("02" and x) that money is locked to.

    ``policy``: the hash of what buyers may do; ``allow``: only these buyers, if any; ``deny``: never
    these (x-only keys). ``pow_bits``: work asked for with a request, for one of the offer's ``events``
    (ids) of late, if they are known. ``escrow``: arbiters that are agreed to (x-only keys);
    ``relays``: where they answer to.
    """

    offer_id: str
    terms: Terms
    receiver: str
    policy: str = ""
    pow_bits: int = 0
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    trials: TrialBudget = field(default_factory=TrialBudget)
    events: frozenset[str] = frozenset()
    escrow: frozenset[str] = frozenset()
    relays: tuple[str, ...] = ()


def settings_of(
    sale: Sale,
    terms: Terms,
    offer_id: str,
    receiver: str,
    lists: tuple[Iterable[str], Iterable[str]] = ((), ()),
) -> SellerSettings:
    """Return what follows from what the user decided; ``lists``: whom he refuses everywhere, and the ids
    of the offer's events of late."""
    policy = hashlib.sha256(repr(sale.policy.to_json()).encode()).hexdigest()
    return SellerSettings(
        offer_id,
        terms,
        receiver,
        policy,
        sale.pow_bits,
        frozenset(sale.only),
        frozenset(sale.never) | frozenset(lists[0]),
        events=frozenset(lists[1]),
        escrow=frozenset(sale.escrow),
    )


class Stall:
    """The parts, and what several of them do. ``secret`` is the market key."""

    def __init__(self, secret: bytes, settings: SellerSettings, service: Service) -> None:
        self.secret, self.pubkey = secret, public_key(secret)
        self.settings = settings
        self.service = service
        self.ledger = Ledger(ENTRIES)
        self.errands = Errands()
        self.till = Till(self.ledger, self.errands)
        self.channels = ChannelTill(self.ledger, self.errands)
        self.trials = Trials(settings.trials)
        self.leases: dict[str, Lease] = {}
        self.counters: Counter[str] = Counter()

    def welcomes(self, buyer: str, request: QuoteRequest) -> bool:
        """Whether a buyer, by its lease's key or the one that vouches for it, may buy here."""
        allow, deny = self.settings.allow, self.settings.deny
        if not allow and not deny:
            return True
        names = {buyer, introduced(request, buyer, self.pubkey)}
        return names.isdisjoint(deny) and (not allow or not names.isdisjoint(allow))

    # Writing

    def keep(self, lease: Lease, wall: float) -> list[MarketEffect]:
        """Write a lease down, then whatever follows from it into the books."""
        return [Keep(LEASES, lease.id, lease.to_json()), *self.post(lease, wall)]

    def keep_meter(self, lease: Lease, now: float) -> list[MarketEffect]:
        """Write a lease's counters down."""
        lease.kept_at, lease.kept_bytes, lease.kept_ms = now, lease.meter.total, lease.ms
        return [Keep(METERS, lease.id, lease.meter_json())]

    def post(self, lease: Lease, wall: float) -> list[MarketEffect]:
        """Post what a lease's record says, once: after a restart this makes the books good."""
        at, owes = int(wall), f"lease:{lease.id}"
        entries = []
        for seq, paid in lease.payments.items():
            if paid.state == "credited":
                ref, account = f"paid:{lease.id}:{seq}", f"{lease.mode.account}:{paid.mint}"
                entries.append(Entry(ref, at, account, owes, paid.msat, "payment"))
            entries += _of_hold(lease, seq, paid, at)
        if lease.phase == Phase.CLOSED:
            entries += self._closing(lease, at, owes)
        return [keep for entry in entries for keep in self.ledger.post(entry)]

    def _closing(self, lease: Lease, at: int, owes: str) -> list[Entry]:
        wallet = f"wallet:{lease.refund_mint}"
        earned = min(lease.bill.due_msat, lease.paid_msat)
        given = 1000 * lease.refund_sat if lease.refund in ("given", "owed") else 0
        entries = [Entry(f"earned:{lease.id}", at, owes, "earned", earned, "service")]
        if lease.refund == "given":
            fee = 1000 * lease.refund_fee_sat
            entries.append(Entry(f"refund:{lease.id}", at, owes, wallet, given, "given back"))
            entries.append(Entry(f"refund-fee:{lease.id}", at, "fees", wallet, fee, "mint's fee"))
        rest = lease.paid_msat - earned - given
        entries.append(Entry(f"unused:{lease.id}", at, owes, "unused", rest, "not used"))
        return entries

    def count_trial(self, lease: Lease) -> list[MarketEffect]:
        """Count what a lease's record says was tried, once."""
        if not lease.tried_at:
            return []
        effects: list[MarketEffect] = []
        effects += self.trials.begin(lease.buyer, lease.id, lease.tried_at)
        if lease.network:
            effects += self.trials.came_from(lease.network, lease.id, lease.tried_at)
        return effects

    # Speaking

    def tell(
        self, lease: Lease, message: LeaseMessage, wall: float, *, stored: bool = False
    ) -> Tell:
        """Send a message to a lease's buyer: through the tunnel while that is up."""
        return self.tell_text(lease, render_message(message), wall, stored=stored)

    def tell_text(self, lease: Lease, text: str, wall: float, *, stored: bool) -> Tell:
        """Send what was rendered before."""
        alive = lease.is_live and lease.seen_at > wall - ALIVE_S
        via = self.service.address(lease.id) if alive else None
        return Tell(lease.buyer, text, lease.id, via, stored, lease.request.relays)

    def notice(
        self, lease: Lease, level: str, code: str, wall: float, *, seq: int | None = None
    ) -> Tell:
        """Send a notice to a lease's buyer."""
        message = Notice(level=level, code=code, lease_id=lease.id, seq=seq)
        return self.tell(lease, message, wall)

    def usage(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        """Send the bill as it stands, signed; the counters it rests on are on disk before."""
        lease.number += 1
        lease.told_at = moment.now
        bill = lease.bill
        message = Usage(
            lease_id=lease.id,
            number=lease.number,
            at=int(moment.wall),
            rx=lease.meter.rx,
            tx=lease.meter.tx,
            billable=bill.billable,
            ms=lease.ms,
            due_msat=bill.due_msat,
            paid_msat=lease.paid_msat,
            state=lease.state.value,
        )
        word = signed(message, self.secret, moment.entropy.take(32))
        return [*self.keep_meter(lease, moment.now), self.tell(lease, word, moment.wall)]

    def drop(self, lease: Lease) -> list[MarketEffect]:
        """Forget a lease that nothing came of, or whose end is long ago."""
        was_kept = lease.phase != Phase.QUOTED
        del self.leases[lease.id]
        if not was_kept:
            return []
        return [Keep(LEASES, lease.id, None), Keep(METERS, lease.id, None)]


def _of_hold(lease: Lease, seq: int, paid: Payment, at: int) -> list[Entry]:
    """Return what became of a payment that was held, once that is sure."""
    name, locked = f"{lease.id}:{seq}", f"locked:{paid.mint}"
    if paid.hold == "settled":
        return [Entry(f"held:{name}", at, f"wallet:{paid.mint}", locked, paid.msat, "released")]
    if paid.hold == "cancelled" and lease.phase == Phase.CLOSED:
        used = lease.used_of(seq)
        rest = Entry(f"back:{name}", at, "unused", locked, paid.msat - used, "the buyer's")
        return [Entry(f"lost:{name}", at, "lost", locked, used, "not released"), rest]
    return []
