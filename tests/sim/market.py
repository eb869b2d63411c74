"""A market in virtual time: buyers and sellers (the product's machines), mints, tunnels, lost messages.

Everything follows from one seed. Wallets are balances at a mint that signs real proofs, so locks, double
spending and refunds are what they are outside; a request to a wallet is done once for each ref.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Interface, ip_address

from nostrvpn.cashu.blind import y_of
from nostrvpn.cashu.channel import channel_lock
from nostrvpn.cashu.conditions import Lock as LockOf
from nostrvpn.cashu.conditions import lock_key, may_spend, parse_lock, sign_inputs, signatures_of
from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.token import Token, render_token
from nostrvpn.endpoint import IPAddress, parse_endpoint
from nostrvpn.identity.keys import RootSecret, wireguard_public_key
from nostrvpn.lightning.bolt11 import parse_invoice
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.market.billing import bytes_left
from nostrvpn.market.buyer import Buyer
from nostrvpn.market.buying import Buying
from nostrvpn.market.channel_effects import CloseChannel, FundChannel, SettleChannel
from nostrvpn.market.effects import (
    Counted,
    Counters,
    EndHold,
    GiveBack,
    GivenBack,
    Heard,
    HoldEnded,
    InvoiceMade,
    InvoicePaid,
    InvoiceSeen,
    Keep,
    Lock,
    Locked,
    MakeInvoice,
    MarketEffect,
    PayInvoice,
    PaymentFailed,
    Probe,
    Probed,
    Reclaim,
    Redeem,
    Redeemed,
    TakenOut,
    TakeOut,
    Tell,
    WatchInvoice,
)
from nostrvpn.market.exit_service import ExitPlace, ExitService
from nostrvpn.market.offer import Offer
from nostrvpn.market.seller import Seller, SellerSettings
from nostrvpn.market.terms import LIGHTNING, PayMode, Price, Terms
from nostrvpn.market.wish import BuyerEvent, Candidate, Disputed, Funds, Ranked, Wanted, Wish
from nostrvpn.nostr.event import public_key
from tests.cashu_mint import MemoryMint
from tests.sim.channels import ChannelDesk
from tests.sim.lightning import LightningNetwork

__all__ = ["MINT", "START", "Bank", "BuyerParty", "Crash", "Market", "SellerParty"]

MINT = "https://mint.example"
START = 1_790_000_000
COUNT_S = 5.0


class Crash(Exception):
    """The process of a party ends here."""


class Bank:
    """A mint and the wallets at it. Whatever happens, ``total`` stays what was put in."""

    def __init__(self, fee_ppk: int = 0) -> None:
        self.mint = MemoryMint(MINT, fee_ppk=fee_ppk)
        self.balances: Counter[str] = Counter()
        self.fees = 0
        self.lightning = LightningNetwork()
        self.spent: set[str] = set()
        self.out: dict[str, Proof] = {}  # proofs that nobody spent yet, by secret
        self.done: dict[tuple[str, str], BuyerEvent] = {}
        self.is_down = False
        self.channels = ChannelDesk(self)

    @property
    def total(self) -> int:
        """All sat there are: in wallets, as proofs that are out, and what mint and nodes took."""
        out = sum(p.amount for p in self.out.values())
        lightning = self.lightning
        by_lightning = sum(lightning.balances.values()) + sum(lightning.held.values())
        by_lightning += lightning.fees
        return sum(self.balances.values()) + out + by_lightning + self.fees

    def do(
        self, owner: str, effect: MarketEffect, keys: tuple[bytes, ...], now: float
    ) -> BuyerEvent:
        """Carry out a request of ``owner``, who can sign with ``keys``; once for each ref."""
        ref = getattr(effect, "ref", "")
        known = self.done.get((owner, ref))
        if known is not None:
            return known
        if self.is_down:
            return PaymentFailed(ref, "unreachable", "it does not answer", True)
        match effect:
            case MakeInvoice(ref, msat, expiry, name):
                return InvoiceMade(ref, self.lightning.make(owner, msat, int(now), expiry, name))
            case WatchInvoice(ref, name, held):
                return InvoiceSeen(ref, self.lightning.is_paid(name, held=held))
            case EndHold(ref, name, preimage):
                return HoldEnded(ref, self.lightning.end(name, preimage))
        made = self._do(owner, effect, keys, now)
        # Who has too little now may have enough later.
        may_retry = isinstance(made, PaymentFailed) and (
            made.may_retry or made.code == "insufficient"
        )
        if not may_retry:
            self.done[owner, ref] = made
        return made

    def _do(
        self, owner: str, effect: MarketEffect, keys: tuple[bytes, ...], now: float
    ) -> BuyerEvent:
        match effect:
            case Lock(ref, _, amounts, receiver, locktime, refund, others):
                sigs = 2 if others else 1
                lock = LockOf(receiver, locktime, (refund,), others, n_sigs=sigs)
                proofs, fee = self._pay_out(owner, amounts, lock)
                if proofs is None:
                    return PaymentFailed(ref, "insufficient", "the wallet has too little", False)
                return Locked(ref, proofs, fee)
            case FundChannel(ref, _, amounts, payer, receiver, locktime):
                lock = channel_lock(payer, receiver, locktime, payer)
                proofs, fee = self._pay_out(owner, amounts, lock)
                if proofs is None:
                    return PaymentFailed(ref, "insufficient", "the wallet has too little", False)
                return Locked(ref, proofs, fee)
            case CloseChannel():
                return self.channels.close(owner, effect, keys, now)
            case SettleChannel():
                return self.channels.settle(owner, effect, keys, now)
            case TakeOut(ref, _, amount):
                proofs, fee = self._pay_out(owner, _bits(amount), None)
                if proofs is None:
                    return PaymentFailed(ref, "insufficient", "the wallet has too little", False)
                return TakenOut(ref, render_token(Token(MINT, proofs)), fee)
            case GiveBack(ref, _, amount, receiver):
                proofs, fee = self._pay_out(owner, _bits(amount), LockOf(receiver))
                if proofs is None:
                    return PaymentFailed(ref, "insufficient", "the wallet has too little", False)
                return GivenBack(ref, render_token(Token(MINT, proofs)), fee)
            case PayInvoice(ref, source, text, max_fee):
                return self._pay(owner, ref, source, (text, max_fee), now)
            case Redeem(ref, _, proofs) | Reclaim(ref, _, proofs):
                return self._pay_in(owner, ref, proofs, keys, now)
        raise AssertionError(effect)

    def _pay(
        self, owner: str, ref: str, source: str, what: tuple[str, int], now: float
    ) -> BuyerEvent:
        text, fee = what[0], self.lightning.fee_sat
        name, amount = parse_invoice(text).payment_hash, parse_invoice(text).amount_sat
        if name in self.lightning.paid and name in self.lightning.states:
            return self._of_hold(owner, ref, name, amount)
        wallet = self.lightning.balances if source == LIGHTNING else self.balances
        need = parse_invoice(text).amount_sat + fee
        if wallet[owner] < need or (fee > what[1] and source != LIGHTNING):
            return PaymentFailed(ref, "insufficient", "the wallet has too little", False)
        if not self.lightning.pay(text, int(now)):
            return PaymentFailed(ref, "refused", "paid before, or expired", False)
        wallet[owner] -= need
        if name in self.lightning.held:
            self.lightning.held[name] += fee  # it is on its way, as the rest is
            return PaymentFailed(ref, "pending", "it is being paid yet", True)
        self.fees += fee
        return InvoicePaid(ref, fee)

    def _of_hold(self, owner: str, ref: str, name: str, amount: int) -> BuyerEvent:
        """What became of a payment that was held."""
        lightning = self.lightning
        if lightning.states[name] == "settled":
            return InvoicePaid(ref, lightning.fee_sat)
        if lightning.states[name] == "accepted":
            return PaymentFailed(ref, "pending", "it is being paid yet", True)
        lightning.balances[owner] += lightning.held.pop(name, 0)
        return PaymentFailed(ref, PaymentFailed.FAILED, "it came back", False)

    def _pay_out(
        self, owner: str, amounts: tuple[int, ...], lock: LockOf | None
    ) -> tuple[tuple[Proof, ...] | None, int]:
        fee = self._fee(3)
        if self.balances[owner] < sum(amounts) + fee:
            return None, 0
        proofs = self.mint.issue(amounts, lock)
        self.balances[owner] -= sum(amounts) + fee
        self.fees += fee
        self.out |= {proof.secret: proof for proof in proofs}
        return proofs, fee

    def _pay_in(
        self, owner: str, ref: str, proofs: tuple[Proof, ...], keys: tuple[bytes, ...], now: float
    ) -> BuyerEvent:
        if any(y_of(proof.secret) in self.spent for proof in proofs):
            return PaymentFailed(ref, "11001", "already spent", False)
        for key in keys:
            proofs = sign_inputs(proofs, key)
        for proof in proofs:
            known = self.out.get(proof.secret)
            if known is None or (known.c, known.amount) != (proof.c, proof.amount):
                return PaymentFailed(ref, "10001", "not signed by this mint", False)
            lock, sigs = parse_lock(proof.secret), signatures_of(proof.witness)
            if lock and not may_spend(lock, proof.secret.encode(), sigs, now):
                return PaymentFailed(ref, "11000", "locked to somebody else", False)
        face = sum(proof.amount for proof in proofs)
        fee = self._fee(len(proofs))
        if fee >= face:  # a wallet does not even ask; it is as if the mint had it
            for proof in proofs:
                del self.out[proof.secret]
            self.fees += face
            return PaymentFailed(ref, "11005", "the fee takes all of it", False)
        for proof in proofs:
            self.spent.add(y_of(proof.secret))
            del self.out[proof.secret]
        self.balances[owner] += face - fee
        self.fees += fee
        return Redeemed(ref, face - fee, fee)

    def _fee(self, inputs: int) -> int:
        return -(-self.mint.keyset.fee_ppk * inputs // 1000)


def _bits(amount: int) -> tuple[int, ...]:
    return tuple(1 << bit for bit in range(amount.bit_length()) if amount >> bit & 1)


@dataclass
class Party:
    """A process with its disk: it can end at any write, and begins anew from what was written."""

    market: Market
    name: str
    store: dict[tuple[str, str], object] = field(default_factory=dict)
    writes: int = 0
    dies_at: frozenset[int] = frozenset()
    deaths: int = 0
    is_gone: bool = False
    life: int = 0
    public: str = ""

    def moment(self) -> Moment:
        """Now, with entropy of its own."""
        seed = self.market.random.randbytes(32)
        return Moment(self.market.now, START + self.market.now, Entropy(seed))

    def step(self, event: BuyerEvent) -> None:
        """Give the machine an event and carry out what it asks for."""
        if self.is_gone:
            return
        try:
            self.carry_out(self.machine_step(event))
        except Crash:
            self.deaths += 1
            self.life += 1
            self.begin()

    def machine_step(self, event: BuyerEvent) -> list[MarketEffect]:
        raise NotImplementedError

    def begin(self) -> None:
        raise NotImplementedError

    def carry_out(self, effects: list[MarketEffect]) -> None:
        """Carry out effects in their order; raise Crash right after a write that is the last."""
        for effect in effects:
            match effect:
                case Keep(space, key, value):
                    self.writes += 1
                    if value is None:
                        self.store.pop((space, key), None)
                    else:
                        self.store[space, key] = _plain(value)
                    if self.writes in self.dies_at:
                        raise Crash
                case Tell():
                    self.market.send(self, effect)
                case Lock() | TakeOut() | GiveBack() | Redeem() | Reclaim():
                    self.ask_wallet(effect)
                case MakeInvoice() | WatchInvoice() | PayInvoice() | EndHold():
                    self.ask_wallet(effect)
                case FundChannel() | CloseChannel() | SettleChannel():
                    self.ask_wallet(effect)
                case Probe(lease_id):
                    self.probe(lease_id)
                case _:
                    pass

    def ask_wallet(self, effect: MarketEffect) -> None:
        """Ask the mint; the answer takes a while, and is lost if this process ends before."""
        life = self.life

        def answer() -> None:
            if self.life == life:
                self.step(done)
                self.after_wallet()

        done = self.market.bank.do(self.name, effect, self.keys(effect), START + self.market.now)
        self.market.at(self.market.random.uniform(0.02, 0.3), answer)

    def after_wallet(self) -> None:
        """The balance changed."""

    def keys(self, effect: MarketEffect) -> tuple[bytes, ...]:
        raise NotImplementedError

    def probe(self, lease_id: str) -> None:
        raise NotImplementedError


def _plain(value: object) -> object:
    """What comes back from a disk."""
    return json.loads(json.dumps(value))


class SellerParty(Party):
    """A seller; subclasses misbehave. ``serves`` False: the tunnel is up and nothing comes through."""

    def __init__(self, market: Market, name: str, price: str = "20sat/GiB", **more: object) -> None:
        super().__init__(market, name)
        self.root = RootSecret(market.random.randbytes(32))
        self.secret = self.root.market_key()
        self.public = public_key(self.secret)
        self.wg_key = wireguard_public_key(self.root.market_wireguard_key())
        hourly = str(more.get("hourly", "0sat/h"))
        pay: tuple[PayMode, ...] = tuple(mode for mode in PayMode if mode is not PayMode.ESCROW)
        self.receiver = lock_key(self.root.payment_key())
        self.escrow = tuple(str(more.get("escrow", "")).split())
        pay = (*pay, PayMode.ESCROW) if self.escrow else pay
        self.terms = Terms(Price.parse(price, hourly), (MINT,), pay)
        self.country, self.true_country = "DE", "DE"
        self.serves = True
        self.counters: dict[str, list[int]] = {}
        self.sources: dict[str, IPAddress] = {}
        self.machine: Seller
        self.begin()

    @property
    def offer(self) -> Offer:
        """What it offers, always fresh."""
        expires = START + int(self.market.now) + 1800
        return Offer(
            self.public,
            "exit",
            self.terms,
            self.receiver,
            country=self.country,
            escrow=self.escrow,
            expires_at=expires,
            event_id="ab" * 32,
        )

    def begin(self) -> None:
        place = ExitPlace(
            (parse_endpoint("203.0.113.7:51821"),),
            self.wg_key,
            IPv4Interface("198.18.0.1/16"),
        )
        arbiters = frozenset(self.escrow)
        settings = SellerSettings("exit", self.terms, self.receiver, escrow=arbiters)
        self.machine = Seller(self.secret, settings, ExitService(4000, place))
        self.machine.mints = {MINT: self.market.bank.mint.keys}
        records = [Keep(space, key, value) for (space, key), value in self.store.items()]
        try:
            self.carry_out(self.machine.restore(records, self.moment()))
        except Crash:
            self.deaths += 1
            self.begin()
        self.service_changed()

    def service_changed(self) -> None:
        """What the tunnels of buyers find."""

    def machine_step(self, event: BuyerEvent) -> list[MarketEffect]:
        assert not isinstance(event, Wanted | Ranked | Funds | Disputed)
        return self.machine.step(event, self.moment())

    def keys(self, effect: MarketEffect) -> tuple[bytes, ...]:
        return (self.root.payment_key(),)

    def probe(self, lease_id: str) -> None:
        raise AssertionError("a seller probes nothing")

    def count(self) -> None:
        """Give the machine its counters, as its WireGuard has them."""
        wall = int(START + self.market.now)
        by_key = {
            key: Counters(
                rx, tx, wall if seen > self.market.now - 150 else None, self.sources.get(key)
            )
            for key, (rx, tx, seen) in self.counters.items()
        }
        self.step(Counted(by_key, self.name))

    def lets_out(self, wg_pub: str) -> bool:
        """Whether packets of this buyer go out: the kernel's view."""
        if self.is_gone or not self.serves:
            return False
        service = self.machine.service
        assert isinstance(service, ExitService)
        return any(one.key == wg_pub and one.serves for one in service.sold_leases())

    def has_peer(self, wg_pub: str) -> bool:
        """Whether WireGuard answers this buyer."""
        service = self.machine.service
        assert isinstance(service, ExitService)
        return not self.is_gone and any(one.key == wg_pub for one in service.sold_leases())


class BuyerParty(Party):
    """A buyer with a wish. ``bps``: bytes a second that it moves while it is connected."""

    def __init__(self, market: Market, name: str, sat: int, wish: Wish | None = None) -> None:
        super().__init__(market, name)
        self.root = RootSecret(market.random.randbytes(32))
        self.wish = wish or Wish()
        self.bps = 1_000_000
        self.is_looking = False  # reads the offers, as long as something is wanted
        self.pays_by_wallet = False  # what it has is in its Lightning wallet
        self.moved: Counter[str] = Counter()
        self.address = ip_address(market.random.randbytes(4))
        self.lists: list[list[MarketEffect]] | None = None  # all effects, if somebody looks
        self._tick_at: float | None = None
        self.counters: dict[str, list[int]] = {}
        self.boots = 0
        self.keys_by_lease: dict[str, int] = {}
        self.senders: dict[str, str] = {}
        self.last_slice: dict[str, int] = {}
        market.bank.balances[name] += sat
        self.machine: Buyer
        self.begin()

    def begin(self) -> None:
        records: dict[str, dict[str, object]] = {}
        for (space, key), value in self.store.items():
            records.setdefault(space, {})[key] = value
        self._tick_at = None
        self.machine = Buyer(self.root, self.moment(), "boot", records, ("wss://relay.example",))
        self.machine.mints = {MINT: self.market.bank.mint.keys}

        def go_on() -> None:
            self.step(self.funds())
            self.step(Ranked(self.market.ranking(self)))
            self.step(Tick())

        self.market.at(0.1, go_on)

    def want(self, wish: Wish | None) -> None:
        """The user says what he wants."""
        self.is_looking = wish is not None
        if self.is_looking:
            self.step(Ranked(self.market.ranking(self)))
        self.step(Wanted(wish))

    def after_wallet(self) -> None:
        self.step(self.funds())

    def funds(self) -> Funds:
        """What its wallets have."""
        bank = self.market.bank
        return Funds(
            {MINT: bank.balances[self.name], LIGHTNING: bank.lightning.balances[self.name]}
        )

    def machine_step(self, event: BuyerEvent) -> list[MarketEffect]:
        effects = self.machine.step(event, self.moment())
        if self.lists is not None:
            self.lists.append(effects)
        for deal in self.machine.deals:
            number, key = deal.lease.number, deal.lease.key
            if deal.lease.slices:
                self.last_slice[key] = deal.lease.slices[-1].sat
            if key not in self.keys_by_lease:
                self.keys_by_lease[key] = number
                self.senders[key] = public_key(self.root.lease_key(number))
                self.market.buyers_by_key[self.senders[key]] = self
        self._wake()
        return effects

    def _wake(self) -> None:
        """Have a Tick when the machine wants one."""
        due = self.machine.deadline
        if due is None or (self._tick_at is not None and self._tick_at <= due):
            return
        self._tick_at = due

        def tick() -> None:
            if self._tick_at == due:
                self._tick_at = None
                self.step(Tick())

        self.market.at(max(0.0, due - self.market.now), tick)

    def keys(self, effect: MarketEffect) -> tuple[bytes, ...]:
        number = self.keys_by_lease[str(getattr(effect, "ref", "")).partition("/")[0]]
        return (self.root.lease_key(number), self.root.payment_key())

    def probe(self, lease_id: str) -> None:
        self.market.at(0.2, lambda: self.step(self._probed(lease_id)))

    def _probed(self, lease_id: str) -> Probed:
        found = next((d for d in self.machine.deals if d.lease.key == lease_id), None)
        seller = self.market.seller_of(found.lease.seller) if found else None
        if found is None or seller is None or not seller.lets_out(found.lease.wg_pub):
            return Probed(lease_id, False, None, None, "nothing came back")
        self._carry(found, seller, 2000)
        return Probed(lease_id, True, 40, seller.true_country)

    def _carry(self, deal: Buying, seller: SellerParty, size: int) -> None:
        """Move bytes through a tunnel: both ends count."""
        now = self.market.now
        seller.sources[deal.lease.wg_pub] = self.address
        theirs = seller.counters.setdefault(deal.lease.wg_pub, [0, 0, 0])
        ours = self.counters.setdefault(deal.lease.key, [0, 0, 0])
        theirs[0], theirs[1] = theirs[0] + size // 10, theirs[1] + size - size // 10
        ours[0], ours[1] = ours[0] + size - size // 10, ours[1] + size // 10
        theirs[2] = ours[2] = int(now)

    def use(self, seconds: float) -> None:
        """Use the link for so long, then read the counters."""
        for link in self.machine.links():
            deal = next(d for d in self.machine.deals if d.lease.key == link.key)
            seller = self.market.seller_of(deal.lease.seller)
            if seller is not None and seller.has_peer(deal.lease.wg_pub):
                self._carry(deal, seller, 64)  # a keepalive
                if link.carries and seller.lets_out(deal.lease.wg_pub):
                    size = self.allowed(seller, deal.lease.wg_pub, int(self.bps * seconds))
                    self._carry(deal, seller, size)
                    self.moved[seller.name] += size
            self.count(deal)

    def count(self, deal: Buying) -> None:
        """Give the machine what the device of a lease counted."""
        access, found = deal.lease.exit_access, self.counters.get(deal.lease.key)
        assert access is not None
        by_key = {access.key: Counters(0, 0, None)}
        if found is not None:
            wall, (rx, tx, seen) = int(START + self.market.now), found
            shaken = wall if seen > self.market.now - 150 else wall - 900
            by_key = {access.key: Counters(rx, tx, shaken)}
        self.step(Counted(by_key, self.name, deal.lease.wg_pub))

    def allowed(self, seller: SellerParty, wg_pub: str, size: int) -> int:
        """What the seller's kernel lets through of it: what is paid for, beyond what it has counted."""
        leases = [one for one in seller.machine.leases if one.request.wg_pub == wg_pub]
        uncounted = sum(seller.counters[wg_pub][:2]) - sum(one.meter.total for one in leases)
        left = max((bytes_left(one.bill) for one in leases), default=0)
        return max(0, min(size, left - uncounted))


class Market:
    """Time, the post, who is there. ``loss``, ``doubled``: shares of messages; ``delay``: seconds."""

    def __init__(self, seed: int, fee_ppk: int = 0) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.bank = Bank(fee_ppk)
        self.sellers: list[SellerParty] = []
        self.buyers: list[BuyerParty] = []
        self.buyers_by_key: dict[str, BuyerParty] = {}
        self.scores: dict[str, float] = {}
        self.has_opinions = False
        self.others: dict[str, Party] = {}  # neither buy nor sell, by key
        self.loss, self.doubled, self.delay = 0.0, 0.0, (0.01, 0.2)
        self._ranked_at = 0.0
        self._by_key: dict[str, SellerParty] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, after: float, do: Callable[[], None]) -> None:
        """Do something after so many seconds."""
        heapq.heappush(self._queue, (self.now + after, next(self._numbers), do))

    def seller_of(self, public: str) -> SellerParty | None:
        """Return who sells under this key."""
        if len(self._by_key) != len(self.sellers):
            self._by_key = {seller.public: seller for seller in self.sellers}
        return self._by_key.get(public)

    def offers(self) -> list[Offer]:
        """All offers; those of sellers that are gone leave the list."""
        return [seller.offer for seller in self.sellers if not seller.is_gone]

    def ranking(
        self, buyer: BuyerParty, offers: list[Offer] | None = None
    ) -> tuple[Candidate, ...]:
        """Return the offers (all of them), as this buyer scores them."""
        offers = self.offers() if offers is None else offers
        return tuple(Candidate(offer, self.score(buyer, offer.seller)) for offer in offers)

    def score(self, buyer: BuyerParty, seller: str) -> float:
        """How far a buyer trusts a seller: as ``scores`` says, or as he likes himself."""
        if not self.has_opinions:
            return self.scores.get(seller, 0.5)
        return zlib.crc32(f"{buyer.name}/{seller}".encode()) / 2**32

    def send(self, party: Party, tell: Tell) -> None:
        """Post a message: perhaps not at all, perhaps twice, perhaps later than the next one."""
        if isinstance(party, BuyerParty):
            sender = party.senders[tell.lease_id]
            to: Party | None = self.seller_of(tell.to) or self.others.get(tell.to)
        else:
            to = self.buyers_by_key.get(tell.to) or self.seller_of(tell.to)
            sender, to = party.public, to or self.others.get(tell.to)
        if to is None:
            return
        receiver = to
        copies = 2 if self.random.random() < self.doubled else 1
        for _ in range(copies):
            if self.random.random() >= self.loss:
                heard = Heard(sender, tell.text)
                self.at(self.random.uniform(*self.delay), partial(receiver.step, heard))

    def run(self, seconds: float, every: float = COUNT_S) -> None:
        """Let time pass: messages, deadlines, traffic."""
        end = self.now + seconds
        self._beat(every, end)
        while self._queue and self._queue[0][0] <= end:
            self.now, _, do = heapq.heappop(self._queue)
            do()
        self.now = end

    def _beat(self, every: float, end: float) -> None:
        self.bank.mint.now = START + self.now
        if self.now >= self._ranked_at + 600:
            self._ranked_at = self.now
            offers = self.offers()
            for buyer in self.buyers:
                if buyer.is_looking or buyer.machine.deals:
                    buyer.step(Ranked(self.ranking(buyer, offers)))
        for buyer in self.buyers:
            if buyer.machine.deals:
                buyer.use(every)
        for seller in self.sellers:
            if seller.machine.leases:
                seller.count()
            else:
                seller.step(Tick())
        for other in self.others.values():
            other.step(Tick())
        if self.now + every <= end:
            self.at(every, lambda: self._beat(every, end))
