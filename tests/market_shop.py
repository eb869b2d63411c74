"""A seller with all it needs in memory: disk, mint, wallet, kernel, clock; and a buyer by hand.

``Shop`` carries effects out as the daemon does, and can be killed before any of them (``crash_at``):
then only what was on disk, in the wallet and in the kernel is left, and :meth:`Shop.start` goes on.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import deque
from hashlib import sha256
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from types import SimpleNamespace
from typing import Any

from nostrvpn.cashu.amounts import split, swap_fee
from nostrvpn.cashu.blind import y_of
from nostrvpn.cashu.channel import (
    channel_lock,
    close_body,
    finish_close,
    open_channel,
    sign_update,
)
from nostrvpn.cashu.conditions import Lock, lock_key, sign_inputs
from nostrvpn.cashu.operations import (
    Outputs,
    finish_outputs,
    parse_signatures,
    prepare_outputs,
    swap_body,
)
from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.secrets import LockedSource, SeedSource
from nostrvpn.cashu.token import Token, parse_token, render_token
from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.channel_effects import ChannelClosed, CloseChannel
from nostrvpn.market.effects import (
    Counted,
    Counters,
    EndHold,
    GiveBack,
    GivenBack,
    Heard,
    HoldEnded,
    InvoiceMade,
    InvoiceSeen,
    Keep,
    MakeInvoice,
    MarketEvent,
    PaymentFailed,
    Redeem,
    Redeemed,
    ServiceChanged,
    Tell,
    Tick,
    WatchInvoice,
)
from nostrvpn.market.exit_service import ExitPlace, ExitService
from nostrvpn.market.messages import (
    Close,
    Fund,
    Grant,
    Invoice,
    InvoiceRequest,
    Notice,
    Quote,
    QuoteRequest,
    Receipt,
    TopUp,
    parse_message,
    render_message,
)
from nostrvpn.market.seller import Seller, SellerSettings
from nostrvpn.market.terms import LIGHTNING, MIB, PayMode, Price, Terms
from nostrvpn.nostr.event import public_key
from tests.cashu_mint import MemoryMint, MintDown
from tests.sim.lightning import LightningNetwork

URL = "https://mint.example"
START = 1_790_000_000.0
PRICE = Price(MIB, 1000)  # a sat a MiB
TERMS = Terms(PRICE, (URL,), tuple(PayMode), max_slice_sat=64)
SELLER, PAYMENT = sha256(b"seller").digest(), sha256(b"payment").digest()
PLACE = ExitPlace(
    (Endpoint(ip_address("203.0.113.5"), 51821),),
    b64encode(b"\x09" * 32).decode(),
    IPv4Interface("198.18.0.1/16"),
    IPv6Interface("fd00:5::1/64"),
)
SETTINGS = SellerSettings("home", TERMS, lock_key(PAYMENT))


class Crash(Exception):
    """The daemon is killed."""


class MemoryWallet:
    """What the seller's wallet does, by the mint's own words; what it did for a ref it does once."""

    def __init__(self, mints, key):
        self.mints, self.key = mints, key
        self.proofs: dict[str, tuple[Proof, ...]] = dict.fromkeys(mints, ())
        self.done = {}
        self.asked = []
        self.made = 0
        self.closes = []  # balances at which channels closed
        self.lightning = LightningNetwork(fee_sat=0)
        self.now = 0.0

    def balance(self, url=URL):
        return sum(proof.amount for proof in self.proofs[url])

    def carry_out(self, effect):
        self.asked.append(effect.ref)
        if isinstance(effect, MakeInvoice | WatchInvoice | EndHold):
            return self._by_lightning(effect)
        if effect.ref not in self.done:
            try:
                event = self._do(effect)
            except MintDown:
                return PaymentFailed(effect.ref, "unreachable", "no answer", True)
            if isinstance(event, PaymentFailed):
                return event
            self.done[effect.ref] = event
        return self.done[effect.ref]

    def _by_lightning(self, effect):
        """Nothing here is done once only: no wallet promises that."""
        if self.lightning.is_down:
            return PaymentFailed(effect.ref, "unreachable", "no answer", True)
        if isinstance(effect, WatchInvoice):
            paid = self.lightning.is_paid(effect.payment_hash, held=effect.held)
            return InvoiceSeen(effect.ref, paid)
        if isinstance(effect, EndHold):
            return HoldEnded(effect.ref, self.lightning.end(effect.payment_hash, effect.preimage))
        now = int(START + self.now)
        asked = (effect.msat, now, effect.expiry_s, effect.payment_hash)
        text = self.lightning.make("seller", *asked)
        return InvoiceMade(effect.ref, text)

    def _do(self, effect):
        mint = self.mints[effect.mint]
        if isinstance(effect, CloseChannel):
            return self._close(mint, effect)
        if isinstance(effect, Redeem):
            inputs = sign_inputs(effect.proofs, self.key)
            fee = swap_fee(inputs, mint.keysets)
            arrived = sum(proof.amount for proof in inputs) - fee
            if arrived <= 0:
                return PaymentFailed(effect.ref, "refused", "the fee takes it all", False)
            swapped = self._swap(mint, inputs, [(split(arrived), None)])
            if isinstance(swapped, tuple):
                return PaymentFailed(effect.ref, str(swapped[0]), swapped[1], swapped[2])
            self.proofs[mint.url] += tuple(swapped)
            return Redeemed(effect.ref, arrived, fee)
        inputs = self.proofs[mint.url]
        fee = swap_fee(inputs, mint.keysets)
        rest = self.balance(mint.url) - fee - effect.amount_sat
        if rest < 0:
            return PaymentFailed(effect.ref, "insufficient", "not enough", False)
        lock = Lock(effect.receiver)
        amounts = split(effect.amount_sat)
        swapped = self._swap(mint, inputs, [(amounts, lock), (split(rest), None)])
        if isinstance(swapped, tuple):
            return PaymentFailed(effect.ref, str(swapped[0]), swapped[1], swapped[2])
        self.proofs[mint.url] = tuple(swapped[len(amounts) :])
        return GivenBack(
            effect.ref, render_token(Token(mint.url, tuple(swapped[: len(amounts)]))), fee
        )

    def _close(self, mint, effect):
        """Close a channel, or find how it was closed, and take in our part."""
        channel = effect.channel
        for update in effect.updates:
            body = close_body(channel, update, self.key, mint.keyset)
            status, answer = mint.handle("POST", "/v1/swap", body)
            if status == 200:
                self.closes.append(update.balance)
            elif answer["code"] != 11003:
                return PaymentFailed(effect.ref, str(answer["code"]), answer["detail"], False)
            else:
                continue
            ours, _ = finish_close(channel, update.balance, parse_signatures(answer), mint.keyset)
            inputs = sign_inputs(ours, self.key)
            arrived = update.balance - swap_fee(inputs, mint.keysets)
            self.proofs[mint.url] += tuple(self._swap(mint, inputs, [(split(arrived), None)]))
            return ChannelClosed(effect.ref, update.balance, arrived, update.balance - arrived)
        return PaymentFailed(effect.ref, "11003", "all are signed before", False)

    def _swap(self, mint, inputs, groups):
        """Return proofs as a list, or (code, text, may retry)."""
        outputs: Outputs = ()
        for amounts, lock in groups:
            source = SeedSource(b"the seller's wallet")
            chosen = source if lock is None else LockedSource(source, lock)
            outputs += prepare_outputs(amounts, mint.keyset, chosen, self.made)
            self.made += len(amounts)
        status, answer = mint.handle("POST", "/v1/swap", swap_body(inputs, outputs))
        if status == 429:
            return ("busy", "too many requests", True)
        if status != 200:
            return (answer["code"], answer["detail"], answer["code"] == 11002)
        return list(finish_outputs(outputs, parse_signatures(answer), mint.keyset))


class Shop:
    """``mode``: how the buyer pays. Time moves by :meth:`wait` only."""

    def __init__(self, mode=PayMode.LOCKED, *, settings=SETTINGS, fee_ppk=0, urls=(URL,)):
        self.mode, self.settings = mode, settings
        self.mints = {url: MemoryMint(url, fee_ppk=fee_ppk, now=START) for url in urls}
        self.mint = self.mints[urls[0]]
        self.wallet = MemoryWallet(self.mints, PAYMENT)
        self.disk = {}
        self.inbox = []
        self.kernel = {}  # key -> [rx, tx]
        self.applied = {}
        self.now, self.crash_at, self.effects = 0.0, None, 0
        self.skew = 0.0
        self.epoch = "boot-1"
        self.crashes = 0
        self.source = ip_address("192.0.2.7")
        self.steps = 0
        self.start()

    def make_service(self) -> Any:
        """What is sold."""
        return ExitService(100, PLACE)

    # The daemon

    @property
    def moment(self):
        self.steps += 1
        seed = f"{self.steps}".encode()
        return Moment(self.now, START + self.now + self.skew, Entropy(seed))

    def start(self):
        self.service = self.make_service()
        self.seller = Seller(SELLER, self.settings, self.service)
        self.seller.mints = {url: mint.keys for url, mint in self.mints.items()}
        records = [Keep(space, key, value) for (space, key), value in self.disk.items()]
        self.perform(self.seller.restore(records, self.moment))
        assert self.seller.problems() == []
        self.step(Tick())
        self.count()

    def step(self, event):
        self.perform(self.seller.step(event, self.moment))

    def perform(self, effects):
        """Carry out; the answers of the wallet come after, one by one."""
        answers: deque[MarketEvent] = deque()
        for effect in effects:
            if self.crash_at is not None and self.effects >= self.crash_at:
                self.crash_at = None
                self.crashes += 1
                raise Crash
            self.effects += 1
            match effect:
                case Keep(space, key, None):
                    self.disk.pop((space, key), None)
                case Keep(space, key, value):
                    self.disk[space, key] = json.loads(json.dumps(value))
                case Tell(to, text):
                    self.inbox.append((to, parse_message(text)))
                case Redeem() | GiveBack() | CloseChannel() | MakeInvoice():
                    answers.append(self.wallet.carry_out(effect))
                case WatchInvoice() | EndHold():
                    answers.append(self.wallet.carry_out(effect))
                case ServiceChanged():
                    self.apply()
        for answer in answers:
            self.step(answer)

    def alive(self, act):
        """Do something; if the daemon is killed meanwhile, start it again. Whether it was not."""
        try:
            act()
        except Crash:
            while True:
                try:
                    self.start()
                    return False
                except Crash:
                    pass
        return True

    # The kernel

    def apply(self):
        wanted = {one.key: one for one in self.service.sold_leases()}
        self.kernel = {key: self.kernel.get(key, [0, 0]) for key in wanted}
        self.applied = wanted

    def count(self):
        seen = int(START + self.now)
        counted = {
            key: Counters(rx, tx, seen if rx or tx else None, self.source)
            for key, (rx, tx) in self.kernel.items()
        }
        self.step(Counted(counted, self.epoch))

    def wait(self, seconds):
        self.now += seconds
        self.wallet.now = self.now
        for mint in self.mints.values():
            mint.now = START + self.now
        self.alive(self.count)
        self.alive(lambda: self.step(Tick()))

    def move(self, buyer, size, *, chunk=128 * 1024):
        """Let the buyer use its tunnel; return how many bytes went through."""
        moved = 0
        while moved < size:
            lease = self.applied.get(buyer.wg_pub)
            if lease is None or not lease.is_open:
                break
            part = min(chunk, size - moved)
            self.kernel[buyer.wg_pub][0] += part // 4
            self.kernel[buyer.wg_pub][1] += part - part // 4
            moved += part
            self.wait(1)
        buyer.used += moved
        return moved

    def reboot(self):
        """Counters begin anew; the daemon too."""
        self.kernel = {key: [0, 0] for key in self.kernel}
        self.epoch += "'"
        self.start()


class Buyer:
    """A buyer by hand: it repeats what was not answered, with the same key and seq."""

    def __init__(self, shop, name="buyer"):
        self.shop = shop
        self.secret = sha256(name.encode()).digest()
        self.pubkey = public_key(self.secret)
        self.wg_pub = b64encode(sha256(b"wg" + name.encode()).digest()).decode()
        self.refund = lock_key(sha256(b"refund" + name.encode()).digest())
        self.name, self.asked, self.used = name, 0, 0
        self.shown = 0
        self.channel: Any = None
        self.lease_id = ""
        self.quote: Any = None

    def request(self, **changes):
        self.asked += 1
        fields = {
            "key": sha256(f"{self.name}{self.asked}".encode()).hexdigest()[:32],
            "offer_id": "home",
            "offer_event": "0" * 64,
            "wg_pub": self.wg_pub,
            "refund": self.refund,
            "mode": self.shop.mode,
        }
        return QuoteRequest(**{**fields, **changes})

    def say(self, message, *, at_tunnel=None):
        """Send once; return what came back for us."""
        before = len(self.shop.inbox)
        text = render_message(message)
        heard = Heard(self.pubkey, text, at_tunnel)
        self.shop.alive(lambda: self.shop.step(heard))
        return [m for to, m in self.shop.inbox[before:] if to == self.pubkey]

    def until(self, message, wanted, tries=8):
        """Repeat a message until an answer of a kind is there."""
        said = []
        for _ in range(tries):
            said = self.say(message)
            for answer in said:
                if isinstance(answer, wanted):
                    return answer
            if any(isinstance(m, Notice) and m.code == "unknown-lease" for m in said):
                return None
            self.shop.wait(2)
        raise AssertionError(f"no {wanted.__name__}, but {said}")

    def ask(self, **changes):
        self.quote = self.until(self.request(**changes), Quote)
        self.lease_id = self.quote.lease_id
        return self.quote

    def token(self, *amounts, mint=None, **changes):
        mint = mint or self.shop.mint
        lock = None
        if self.shop.mode is PayMode.LOCKED:
            until = int(START + self.shop.now) + 3600
            fields = {"key": self.quote.receiver, "locktime": until, "refund": (self.refund,)}
            lock = Lock(**{**fields, **changes})
        return render_token(Token(mint.url, mint.issue(amounts, lock)))

    def fund(self, token, seq=0):
        """Pay for the first time; ask for another quote if a crash took ours."""
        for _ in range(4):
            grant = self.until(Fund(lease_id=self.lease_id, seq=seq, token=token), Grant)
            if grant is not None:
                return grant
            self.ask()
        raise AssertionError("never funded")

    def top_up(self, token, seq):
        return self.until(TopUp(lease_id=self.lease_id, seq=seq, token=token), Grant)

    def open_channel(self, capacity, **changes):
        """Fund a channel by one proof; return the fields that open it in a payment."""
        mint, until = self.shop.mint, int(START + self.shop.now) + 4000
        own = lock_key(self.secret)
        fields = {"payer": own, "receiver": self.quote.receiver, "locktime": until, "refund": own}
        funding = mint.issue(split(capacity), channel_lock(**{**fields, **changes}))
        seed = sha256(f"{self.name}{self.shown}".encode()).digest()
        self.shown += 1
        self.channel = open_channel(funding, seed, mint.keys.keysets, self.quote.receiver, 0)
        return {"token": render_token(Token(mint.url, funding)), "seed": seed.hex()}

    def token_of(self, proofs):
        """Return proofs as text."""
        return render_token(Token(self.shop.mint.url, proofs))

    def update(self, balance):
        """Return the fields of a payment that say what the seller has of the channel."""
        signed = sign_update(self.channel, balance, self.secret)
        return {"balance": balance, "signature": signed.signature}

    def by_channel(self, balance, seq, **opening):
        """Pay by a channel; ask for another quote if a crash took ours."""
        fields = {"seq": seq, **opening, **self.update(balance)}
        for _ in range(4):
            kind = Fund if seq == 1 else TopUp
            grant = self.until(kind(lease_id=self.lease_id, **fields), Grant)
            if grant is not None:
                return grant
            self.ask()
        raise AssertionError("never paid")

    def invoice(self, sat, seq):
        """Ask for an invoice; for another quote first if a crash took ours."""
        for _ in range(4):
            request = InvoiceRequest(lease_id=self.lease_id, seq=seq, sat=sat)
            found = self.until(request, Invoice)
            if found is not None:
                return found.invoice
            self.ask()
        raise AssertionError("no invoice")

    def pay_invoice(self, sat, seq):
        """Pay by Lightning, and ask until the seller has seen it."""
        self.shop.wallet.lightning.pay(self.invoice(sat, seq), int(START + self.shop.now))
        return self.until(InvoiceRequest(lease_id=self.lease_id, seq=seq, sat=sat), Grant)

    def close(self):
        return self.until(Close(lease_id=self.lease_id), Receipt)

    def notice(self, message):
        """Send once; return the codes of the notices."""
        return [m.code for m in self.say(message) if isinstance(m, Notice)]

    def pay(self, token, seq=0):
        """A payment that is refused: return the codes."""
        kind = Fund if seq == 0 else TopUp
        return self.notice(kind(lease_id=self.lease_id, seq=seq, token=token))


def lease_of(shop, buyer):
    """The seller's record of a buyer's lease."""
    return next(x for x in shop.seller.leases if x.id == buyer.lease_id)


def books(shop):
    """What must agree at the end, whatever happened between."""
    ledger = shop.seller.ledger
    assert shop.seller.problems() == []
    money = [value for (space, _), value in shop.disk.items() if space == "sold_money"]
    for url in shop.mints:
        held = [
            one["msat"]
            for one in money
            if one["state"] in ("held", "escrow") and one["mint"] == url
        ]
        assert ledger.balance(f"locked:{url}") == sum(held)
        open_ones = [one for one in shop.seller.channels if one.mint == url and one.is_unclosed]
        has = sum(one.worth_msat(one.balance_sat) for one in open_ones)
        assert ledger.balance(f"channel:{url}") == has
        assert ledger.balance(f"wallet:{url}") == 1000 * shop.wallet.balance(url)
        spent = shop.mints[url].spent
        assert not any(y_of(proof.secret) in spent for proof in shop.wallet.proofs[url])
    by_lightning = shop.wallet.lightning.balances["seller"]
    paid = (p for lease in shop.seller.leases for p in lease.payments.values())
    waits = sum(p.msat for p in paid if p.hold in ("held", "settling", "cancelling"))
    assert ledger.balance(f"locked:{LIGHTNING}") == waits
    assert ledger.balance(f"wallet:{LIGHTNING}") == 1000 * by_lightning
    return SimpleNamespace(
        earned=-ledger.balance("earned"),
        unused=-ledger.balance("unused"),
        fees=ledger.balance("fees"),
        lost=ledger.balance("lost"),
        wallet=sum(shop.wallet.balance(url) for url in shop.mints) + by_lightning,
        accounts=ledger.accounts(),
    )


def amount_of(token):
    """The face value of a token."""
    return parse_token(token).amount if token else 0


__all__ = [
    "PLACE",
    "SETTINGS",
    "START",
    "TERMS",
    "URL",
    "Buyer",
    "MemoryWallet",
    "Shop",
    "amount_of",
    "books",
    "lease_of",
]
