"""The buyer: one wish of the user, kept true by buying from one seller after another.

A pure machine. At most one lease is in use and one being prepared; the next is tried and paid before the
old one is left, where the old one still works. Records are stored before anything that follows from them
leaves, so whatever stops this process, what was paid is known, and nothing is paid twice. A wish ends
only by the user; if nothing can be bought, the machine says why and looks again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from nostrvpn.cashu.conditions import lock_key
from nostrvpn.cashu.proof import MintKeys
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret, wireguard_public_key
from nostrvpn.machine import Moment, earliest
from nostrvpn.market.bought_lease import BoughtLease, Phase
from nostrvpn.market.bought_link import BoughtLink, link_of
from nostrvpn.market.buyer_records import BUYER, Records
from nostrvpn.market.buyer_state import document
from nostrvpn.market.buying import Buying
from nostrvpn.market.ceilings import Spending
from nostrvpn.market.channel_effects import ChannelClosed
from nostrvpn.market.channel_paying import channel_came
from nostrvpn.market.choosing import TURNED_AWAY, Choice
from nostrvpn.market.deal import arbiter_of, way_to_pay
from nostrvpn.market.effects import (
    Counted,
    GivenBack,
    Heard,
    InvoicePaid,
    Locked,
    MarketEffect,
    PaymentFailed,
    Probed,
    Redeemed,
    TakenOut,
    Tick,
    Undelivered,
)
from nostrvpn.market.escrow_bought import BoughtEscrow, dispute
from nostrvpn.market.homing import Homing
from nostrvpn.market.introduction import prepare_request
from nostrvpn.market.invoice_paying import came_back, invoice_paid, is_open
from nostrvpn.market.ledger import Ledger
from nostrvpn.market.messages import LeaseMessage, parse_message
from nostrvpn.market.paying import Pocket, parcel_came, parcel_lost, took
from nostrvpn.market.terms import PayMode
from nostrvpn.market.trust import Outcome
from nostrvpn.market.wish import BuyerEvent, Candidate, Disputed, Funds, Ranked, Wanted, Wish

__all__ = ["Buyer"]

# For how long the best is waited for once one seller answered (seconds).
BEST_S = 2
# How soon after a step the next one may be (seconds).
SOONEST_S = 0.25

_WalletAnswer = Locked | TakenOut | InvoicePaid | Redeemed | ChannelClosed | PaymentFailed


class Buyer:
    """All leases that are bought. ``boot``: see :class:`Spending`; ``records``: by space and key, what
    was kept; ``relays``: where sellers may answer. ``mints`` is set by the shell as it learns keysets.
    """

    def __init__(
        self,
        root: RootSecret,
        moment: Moment,
        boot: str,
        records: Mapping[str, Mapping[str, object]] | None = None,
        relays: tuple[str, ...] = (),
    ) -> None:
        kept = records or {}
        spent = kept.get(BUYER, {}).get("spending")
        spending = Spending(moment, boot, spent if isinstance(spent, Mapping) else None)
        self.pocket = Pocket(root, spending, relays=relays)
        self.counters: Counter[str] = Counter()
        self.why = ""  # nothing is bought because of this
        self._choice = Choice()
        self._records = Records()
        self._deals: dict[str, Buying] = {}
        self._using = ""
        self._parted: set[str] = set()
        self._look_at: float | None = None
        self._first_quote_at: float | None = None
        self._homing = Homing()
        self._escrow = BoughtEscrow()
        for lease in self._records.read(kept, self.pocket, moment):
            self._deals[lease.key] = Buying(lease, self.pocket, self.counters, moment.now)
            if lease.phase == Phase.SERVED:
                self._using = lease.key
        self._is_resumed = False
        self._stepped_at = float("-inf")
        self._told_sat: dict[str, int] = {}

    # What it shows

    @property
    def mints(self) -> Mapping[str, MintKeys]:
        """What is known of mints."""
        return self.pocket.mints

    @mints.setter
    def mints(self, mints: Mapping[str, MintKeys]) -> None:
        self.pocket.mints = mints

    @property
    def wish(self) -> Wish | None:
        """What the user wants."""
        return self.pocket.wish

    @property
    def ledger(self) -> Ledger:
        """The books."""
        return self._records.ledger

    @property
    def using(self) -> Buying | None:
        """The purchase that carries traffic."""
        found = self._deals.get(self._using)
        return found if found is not None and found.is_serving else None

    @property
    def deals(self) -> tuple[Buying, ...]:
        """All purchases that are not settled."""
        return tuple(self._deals.values())

    def links(self) -> tuple[BoughtLink, ...]:
        """Return the tunnels that are to be up: the one that carries first, then one being tried."""
        found = [
            link
            for deal in self._deals.values()
            if (link := link_of(deal.lease, deal.slot, self.pocket.root, self._is_used(deal)))
        ]
        return tuple(sorted(found, key=lambda link: not link.carries))

    def link(self) -> BoughtLink | None:
        """Return the first of :meth:`links`."""
        return next(iter(self.links()), None)

    def number_of(self, name: str) -> int | None:
        """Return the number of the keys (``RootSecret.lease_key``) of a lease, by its key or any ref."""
        deal = self._deals.get(name.partition("/")[0])
        return deal.lease.number if deal is not None else None

    def document(self, moment: Moment) -> dict[str, object]:
        """Return what ``exit status`` says of the purchase."""
        return document(self, moment)

    @property
    def deadline(self) -> float | None:
        """When ``step`` is due with a Tick."""
        busy = any(deal.lease.is_choosing or deal.lease.is_preparing for deal in self.deals)
        look = None if busy or self.wish is None else self._look_at
        best = self._first_quote_at + BEST_S if self._first_quote_at is not None else None
        deals = (deal.deadline for deal in self._deals.values())
        due = earliest(look, best, *deals, self._homing.deadline, self._escrow.deadline)
        # What was due at the last step was looked at then: never again at once, whatever it is.
        return None if due is None else max(due, self._stepped_at + SOONEST_S)

    # What it is told

    def step(self, event: BuyerEvent, moment: Moment) -> list[MarketEffect]:
        """Take an event; every record comes before whatever follows from it."""
        self._stepped_at = moment.now
        doing: list[MarketEffect] = []
        if not self._is_resumed:
            self._is_resumed = True
            self._look_at = moment.now
            for deal in self.deals:
                doing += deal.resume(moment)
        doing += self._take(event, moment)
        for deal in self.deals:
            if deal.deadline is not None and deal.deadline <= moment.now:
                doing += deal.tick(moment)
        doing += self._pilot(moment)
        doing += self._escrow.step(self.deals, moment)
        doing += self._homing.step((deal.lease for deal in self.deals), moment)
        return [*self._keep(moment), *doing]

    def _take(self, event: BuyerEvent, moment: Moment) -> list[MarketEffect]:
        match event:
            case Wanted(wish):
                return self._wanted(wish, moment)
            case Disputed(key, text) if key in self._deals:
                dispute(self._deals[key].lease, text)
            case Ranked(candidates):
                known = {c.offer.ref for c in self._choice.candidates}
                if any(c.offer.ref not in known for c in candidates):
                    self._look_at = moment.now
                self._choice.candidates = candidates
            case Funds(sat):
                out = Counter[str]()
                for deal in self.deals:
                    money = deal.lease.purse
                    if money is not None and not money.is_there:
                        out[deal.lease.mint] += money.sat
                # Against what was said before, not what is left of it while a request is under way.
                more = any(value > self._told_sat.get(mint, 0) for mint, value in sat.items())
                self._told_sat = dict(sat)
                self.pocket.sat = {mint: max(0, value - out[mint]) for mint, value in sat.items()}
                if more:
                    self._look_at = moment.now
                    for deal in self.deals:
                        deal.try_money(moment)
            case Heard():
                return self._heard(event, moment)
            case Counted(_, _, device):
                return [
                    effect
                    for deal in self.deals
                    if deal.lease.wg_pub == device
                    and (deal.lease.is_live or deal.lease.phase == Phase.CLOSING)
                    for effect in deal.counted(event, moment)
                ]
            case Probed(lease_id) if lease_id in self._deals:
                return self._deals[lease_id].probed(event, moment)
            case _ if isinstance(event, _WalletAnswer):
                return self._wallet(event, moment)
            case Undelivered() | GivenBack() | Probed() | Disputed() | Tick():
                pass
        return []

    def _wanted(self, wish: Wish | None, moment: Moment) -> list[MarketEffect]:
        self.pocket.wish = wish
        self._look_at, self.why = moment.now if wish is not None else None, ""
        if wish is not None:
            self._choice.forgive(wish.choice)
        for deal in self.deals:
            deal.try_money(moment)
        return []

    def _heard(self, heard: Heard, moment: Moment) -> list[MarketEffect]:
        try:
            message = parse_message(heard.text)
        except PeerMisbehaved as exc:
            self.counters[exc.code] += 1
            return []
        deal = self._named(message)
        if deal is not None:
            told = self._escrow.takes(deal, heard.sender, message, moment)
            if told is not None:
                return told
        if deal is None or deal.lease.seller != heard.sender:
            self.counters["unknown_lease"] += 1
            return []
        return deal.heard(message, moment)

    def _named(self, message: LeaseMessage) -> Buying | None:
        key = getattr(message, "key", "")
        if key:
            return self._deals.get(key)
        lease_id = getattr(message, "lease_id", "")
        found = (d for d in self._deals.values() if lease_id and d.lease.lease_id == lease_id)
        return next(found, None)

    def _wallet(self, event: _WalletAnswer, moment: Moment) -> list[MarketEffect]:
        deal = self._deals.get(event.ref.partition("/")[0])
        if deal is None:
            self.counters["unknown_ref"] += 1
            return []
        lease = deal.lease
        match event:
            case Locked(ref, proofs, fee):
                took(lease, self.pocket, moment, (ref, proofs, fee))
                return deal.money_came(moment)
            case TakenOut(ref, token, fee):
                took(lease, self.pocket, moment, (ref, token, fee))
                return deal.money_came(moment)
            case InvoicePaid(ref, fee):
                invoice_paid(lease, self.pocket, moment, (ref, fee))
                return deal.money_came(moment)
            case Redeemed(ref, sat, fee):
                parcel_came(lease, self.pocket, moment, (ref, sat, fee))
            case ChannelClosed():
                channel_came(lease, self.pocket, moment, event)
            case PaymentFailed(ref, code, text, may_retry):
                if any(parcel.ref == ref for parcel in lease.parcels):
                    if not may_retry:
                        self.counters["parcel_lost"] += 1
                        parcel_lost(lease, self.pocket, moment, ref)
                elif not came_back(lease, self.pocket, event, moment):
                    return deal.no_money(ref, text or code, is_open(lease, event, moment), moment)
        return []

    # Choosing

    def _is_used(self, deal: Buying) -> bool:
        return deal.is_serving and deal.lease.key == self._using

    def _pilot(self, moment: Moment) -> list[MarketEffect]:
        """Bring about the next lease, if one is needed."""
        doing: list[MarketEffect] = []
        # Not only when the user speaks: this process may have ended while it did what he said.
        for deal in self.deals:
            wish = self.wish
            why = "the user wants none" if wish is None else wish.refuse(deal.lease.offer)
            if why is not None:
                doing += deal.end(moment, why)
        self._part(moment)
        if self.wish is None:
            return doing
        doing += self._switch(moment)
        using = self.using
        if any(deal.lease.is_preparing and deal.lease.key != self._using for deal in self.deals):
            return doing
        if using is not None and not using.wants_out:
            self._look_at = None
            return doing
        quoted = [deal for deal in self.deals if deal.lease.phase == Phase.QUOTED]
        asking = [deal for deal in self.deals if deal.lease.phase == Phase.ASKING]
        if quoted:
            return [*doing, *self._choose(quoted, bool(asking), moment)]
        self._first_quote_at = None
        if asking or (self._look_at is not None and moment.now < self._look_at):
            return doing
        self._look_at = self._choice.look_at(moment.now)
        return [*doing, *self._ask(moment)]

    def _choose(self, quoted: list[Buying], is_waiting: bool, moment: Moment) -> list[MarketEffect]:
        if self._first_quote_at is None:
            self._first_quote_at = moment.now
        if is_waiting and moment.now < self._first_quote_at + BEST_S:
            return []
        self._first_quote_at = None
        best = max(quoted, key=lambda deal: self._choice.score(deal.lease.offer.ref))
        best.slot = 1 if any(d.slot == 0 and d.lease.is_live for d in self.deals) else 0
        return best.begin(moment)

    def _switch(self, moment: Moment) -> list[MarketEffect]:
        """Use the lease that began to serve, and leave the others."""
        fresh = [d for d in self.deals if d.is_serving and d.lease.key != self._using]
        if not fresh:
            return []
        self._using = fresh[-1].lease.key
        self._choice.served(fresh[-1].lease.seller)
        self.why = ""
        others = [d for d in self.deals if d.lease.key != self._using]
        return [e for deal in others for e in deal.end(moment, "another exit is used")]

    def _part(self, moment: Moment) -> None:
        """Notice leases that ended since; a seller that failed is left alone for a while."""
        for deal in self.deals:
            lease = deal.lease
            if lease.phase not in (Phase.CLOSING, Phase.OVER) or lease.key in self._parted:
                continue
            self._parted.add(lease.key)
            if lease.outcome is not Outcome.SERVED:
                paid_msat, served_msat = 1000 * lease.shown_sat, deal.count.served_msat
                self._choice.failed(lease.seller, paid_msat, served_msat, moment.now)
            elif lease.label.startswith(TURNED_AWAY):
                self._choice.turned_away(lease.seller, moment.now)
            if lease.key == self._using:
                self._using = ""
            self._look_at = moment.now

    def _ask(self, moment: Moment) -> list[MarketEffect]:
        """Ask the best sellers that the wish allows for quotes."""
        in_use = {deal.lease.seller for deal in self.deals if deal.lease.is_live}
        found, why = self._choice.best(self.pocket, in_use, moment)
        if not found:
            self.why = why
        return [effect for one in found for effect in self._request(one, moment)]

    def _request(self, candidate: Candidate, moment: Moment) -> list[MarketEffect]:
        offer, root = candidate.offer, self.pocket.root
        assert self.wish is not None
        way = way_to_pay(offer, self.wish, self.pocket.sat)
        assert way is not None
        number = self._records.next_number
        self._records.next_number += 1
        secret = root.lease_key(number)
        lease = BoughtLease(
            moment.entropy.take(16).hex(),
            number,
            offer,
            wireguard_public_key(root.lease_wireguard_key(number)),
            lock_key(secret),
            *way,
            int(moment.wall),
        )
        if lease.mode is PayMode.ESCROW:
            lease.arbiter = arbiter_of(offer, self.wish)
        prepare_request(lease, root, self.pocket.relays, as_me=self.wish.as_me)
        deal = Buying(lease, self.pocket, self.counters, moment.now)
        self._deals[lease.key] = deal
        return deal.say(moment)

    # Records

    def _keep(self, moment: Moment) -> list[MarketEffect]:
        leases = [deal.lease for deal in self.deals]
        keeps, settled = self._records.keep(leases, self.pocket, moment)
        for key in settled:
            del self._deals[key]
        return list(keeps)
