"""Buyers and sellers whose processor time is counted: the product's machines, disk, wallet and seals.

The world is that of ``tests/sim/market.py``: virtual time, tunnels that are numbers, a mint in memory.
What a party does itself counts (:class:`Account`); what the mint, the other side and the world do, not.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nostrvpn.cashu.amounts import split
from nostrvpn.cashu.conditions import Lock, lock_key
from nostrvpn.cashu.token import Token, render_token
from nostrvpn.daemon.market_cashier import Cashier, Request
from nostrvpn.daemon.market_machine import Machine, MarketMachine
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.endpoint import IPAddress
from nostrvpn.io.mint import MintClient
from nostrvpn.io.store import Store
from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.effects import Heard, Keep, MarketEffect, Probe, Tell
from nostrvpn.market.messages import (
    Fund,
    Grant,
    LeaseMessage,
    Quote,
    QuoteRequest,
    TopUp,
    parse_message,
    render_message,
)
from nostrvpn.market.sealing import (
    Opened,
    open_sealed,
    open_wrapped,
    seal_message,
    sealed_text,
    wrap_message,
)
from nostrvpn.market.terms import PayMode, Price, Terms
from nostrvpn.market.trials import TrialBudget
from nostrvpn.market.wish import BuyerEvent, Wish
from nostrvpn.nostr.event import Event, public_key, verify_event
from tests.cashu_mint import MemoryMint
from tests.sim.market import MINT, START, BuyerParty, Market, Party, SellerParty

__all__ = ["Account", "CountedBuyer", "CountedMarket", "CountedSeller", "Payer"]

# As the daemon's: what is in the backup (market_service.py).
PRECIOUS = (
    "counter",
    "mint",
    "wallet",
    "sale",
    "buyer",
    "sold_lease",
    "sold_money",
    "sold_channel",
)


class Account:
    """CPU time of this process, all threads, by what it was spent on; and how often that was done."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.times: Counter[str] = Counter()
        self._left_out = 0.0

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count what is done within; :meth:`but_for` within it is left out."""
        before, left_out = time.process_time(), self._left_out
        try:
            yield
        finally:
            spent = time.process_time() - before - (self._left_out - left_out)
            self.seconds[what] += int(spent * 1e9)
            self.times[what] += 1

    @contextmanager
    def but_for(self) -> Iterator[None]:
        """Leave out what is done within."""
        before, left_out = time.process_time(), self._left_out
        try:
            yield
        finally:
            self._left_out = left_out + time.process_time() - before

    def milliseconds(self, *but: str) -> float:
        """Return all that was counted, without some things."""
        return sum(ns for what, ns in self.seconds.items() if what not in but) / 1e6

    def clear(self) -> None:
        """Begin anew."""
        self.seconds.clear()
        self.times.clear()


class _Client(MintClient):
    """A client of the mint in memory, whose work is the mint's."""

    mint: MemoryMint
    account: Account

    async def _ask(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        with self.account.but_for():
            status, answer = self.mint.handle(method, path, body)
        assert status == 200, answer
        return answer


class _Counted(Party):
    """The half that buyer and seller share; ``open`` before the machine is made."""

    account: Account
    wallet: Wallet
    disk: Store
    machine: Any

    def open(self, directory: Path, wallet_entropy: bytes, loop: asyncio.AbstractEventLoop) -> None:
        """Make disk, wallet and account."""
        self.account, self._loop = Account(), loop
        self.disk = Store.open(str(directory / f"{self.name}.db"), PRECIOUS, ["lightning"])

        def connect(url: str) -> MintClient:
            client = _Client(url)
            client.mint, client.account = self.market.bank.mint, self.account
            return client

        self.wallet = Wallet(
            self.disk, wallet_entropy, connect=connect, now=lambda: START + self.market.now
        )
        self._cashier = Cashier(self.wallet)
        self._run(self.wallet.trust(MINT))
        self._running: MarketMachine | None = None

    def close(self) -> None:
        """Close the database."""
        self._run(self.wallet.stop())
        self.disk.close()

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def carry_out(self, effects: list[MarketEffect]) -> None:
        if not hasattr(self, "disk"):  # the sim makes its machine before there is a disk
            super().carry_out(effects)
            return
        if self._running is None:
            machine: Machine[object] = self.machine
            self._running = MarketMachine(machine, self.disk, self.moment, self._perform)
        with self.account.of("disk"):
            self._running.carry_out(effects)

    def _perform(self, effect: MarketEffect) -> None:
        with self.account.but_for():
            match effect:
                case Tell():
                    self.market.send(self, effect)
                case Probe(lease_id):
                    self.probe(lease_id)
                case Keep():
                    raise AssertionError("the disk has it")
                case _ if isinstance(effect, Request):
                    self.ask_wallet(effect)
                case _:
                    pass

    def ask_wallet(self, effect: MarketEffect) -> None:
        key = self.keys(effect)[0]
        with self.account.of("wallet"):
            answer: BuyerEvent = self._run(self._cashier._event(effect, key))  # type: ignore[arg-type]
        self.market.at(0.05, partial(self._answered, answer))

    def _answered(self, answer: BuyerEvent) -> None:
        self.step(answer)
        self.after_wallet()

    def hear(self, sealed: str | Event, secret: bytes, at: IPAddress | None) -> None:
        """Open a message and take it."""
        with self.account.of("seals"):
            opened: Opened
            if isinstance(sealed, str):
                opened = open_sealed(sealed, secret)
            else:
                verify_event(sealed)
                opened = open_wrapped(sealed, secret)
        self.step(Heard(opened.sender, opened.text, at))


class CountedSeller(_Counted, SellerParty):
    """A seller at a price of a sat a MiB, who swaps at the rate that the daemon does."""

    def __init__(self, market: CountedMarket, name: str, slice_sat: int) -> None:
        SellerParty.__init__(self, market, name, "1024sat/GiB")
        pay = (PayMode.LOCKED, PayMode.PLAIN, PayMode.CHANNEL)
        self.terms = Terms(Price.parse("1024sat/GiB"), (MINT,), pay, max_slice_sat=slice_sat)
        self.open(market.directory, self.root.wallet_entropy(), market.loop)
        self.begin()
        everybody = TrialBudget(10, 1_000_000, 1_000_000)
        self.machine.settings = type(self.machine.settings)(
            "exit", self.terms, self.machine.settings.receiver, trials=everybody
        )

    def machine_step(self, event: BuyerEvent) -> list[MarketEffect]:
        with self.account.of(f"step {type(event).__name__}"):
            return super().machine_step(event)


class CountedBuyer(_Counted, BuyerParty):
    """A buyer with a wallet of its own, and 16,383 sat in it."""

    def __init__(self, market: CountedMarket, name: str, wish: Wish) -> None:
        BuyerParty.__init__(self, market, name, 0, wish)
        self.open(market.directory, self.root.wallet_entropy(), market.loop)
        proofs = market.bank.mint.issue([1 << bit for bit in range(14)])
        self._run(self.wallet.redeem("fund", MINT, proofs, None))
        market.bank.balances[name] = self.wallet.balance()[MINT][0]
        self.begin()

    def after_wallet(self) -> None:
        self.market.bank.balances[self.name] = self.wallet.balance()[MINT][0]
        super().after_wallet()

    def machine_step(self, event: BuyerEvent) -> list[MarketEffect]:
        with self.account.of(f"step {type(event).__name__}"):
            return super().machine_step(event)


class CountedMarket(Market):
    """``send`` seals for parties that are counted, and opens at those."""

    def __init__(self, directory: Path) -> None:
        super().__init__(7)
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self.payers: dict[str, Payer] = {}

    def send(self, party: Party, tell: Tell) -> None:
        if isinstance(party, BuyerParty):
            secret = party.root.lease_key(party.keys_by_lease[tell.lease_id])
            to: Party | None = self.seller_of(tell.to)
        else:
            assert isinstance(party, SellerParty)
            secret, to = party.secret, self.buyers_by_key.get(tell.to)
        payer = self.payers.get(tell.to)
        if to is None and payer is None:
            return
        sealed: str | Event
        with party.account.of("seals") if isinstance(party, _Counted) else _nothing():
            seal = seal_message(tell.text, secret, tell.to, party.moment())
            if tell.via is not None:
                sealed = sealed_text(seal)
            else:
                sealed = wrap_message(seal, tell.to, party.moment(), stored=tell.stored)
        delay = self.random.uniform(*self.delay)
        if payer is not None:
            self.at(delay, partial(payer.hear, tell.text))
        elif to is not None:
            self.at(delay, partial(self._arrive, to, tell.to, sealed, seal))

    def _arrive(self, to: Party, key: str, sealed: str | Event, seal: Event) -> None:
        if isinstance(to, SellerParty):
            secret = to.secret
        else:
            assert isinstance(to, BuyerParty)
            lease = next(lease for lease, public in to.senders.items() if public == key)
            secret = to.root.lease_key(to.keys_by_lease[lease])
        if isinstance(to, _Counted):
            to.hear(sealed, secret, None)
        else:
            to.step(Heard(seal.pubkey, open_sealed(sealed_text(seal), secret).text))

    def close(self) -> None:
        """Close all databases."""
        for party in (*self.sellers, *self.buyers):
            if isinstance(party, _Counted):
                party.close()
        self.loop.close()


class Payer:
    """A buyer by hand, for there are many: it pays ``sat`` at a time, every ``every`` seconds."""

    def __init__(self, market: CountedMarket, seller: CountedSeller, name: str, sat: int) -> None:
        self._market, self._seller, self._sat = market, seller, sat
        self.secret = sha256(name.encode()).digest()
        self.public = public_key(self.secret)
        self.wg_pub = b64encode(sha256(b"wg" + name.encode()).digest()).decode()
        self._refund = lock_key(sha256(b"refund" + name.encode()).digest())
        self._lease, self._receiver, self._seq = "", "", 0
        self._at: IPAddress | None = None
        market.payers[self.public] = self

    @property
    def is_served(self) -> bool:
        """Whether it has its lease."""
        return self._at is not None

    def begin(self) -> None:
        """Ask for a quote; the rest follows."""
        request = QuoteRequest(
            key=self.public[:32],
            offer_id="exit",
            offer_event="ab" * 32,
            wg_pub=self.wg_pub,
            refund=self._refund,
            mode=PayMode.LOCKED,
        )
        self._say(request)

    def hear(self, text: str) -> None:
        """Take what the seller said."""
        match parse_message(text):
            case Quote(lease_id=lease, receiver=receiver) if not self._lease:
                self._lease, self._receiver = lease, receiver
                self._say(Fund(lease_id=lease, seq=0, token=self._token()))
            case Grant(access=access) if self._at is None:
                self._at = ip_address(str(access["ipv4"]))
                self._seller.counters[self.wg_pub] = [0, 0, 0]
            case _:
                pass

    def pay(self) -> None:
        """Pay for more, through the tunnel."""
        self._seq += 1
        self._say(TopUp(lease_id=self._lease, seq=self._seq, token=self._token()))

    def use(self, size: int) -> None:
        """Move bytes, if there is a tunnel."""
        if self._at is not None:
            counter = self._seller.counters[self.wg_pub]
            counter[0], counter[1] = counter[0] + size // 10, counter[1] + size - size // 10
            counter[2] = int(self._market.now)

    def _token(self) -> str:
        market = self._market
        until = START + int(market.now) + 5400
        lock = Lock(self._receiver, locktime=until, refund=(self._refund,))
        proofs = market.bank.mint.issue(split(self._sat), lock)
        return render_token(Token(MINT, proofs))

    def _say(self, message: LeaseMessage) -> None:
        seed = self._market.random.randbytes(32)
        moment = Moment(self._market.now, START + self._market.now, Entropy(seed))
        seller = self._seller
        seal = seal_message(render_message(message), self.secret, seller.public, moment)
        if self._at is not None:
            seller.hear(sealed_text(seal), seller.secret, self._at)
        else:
            wrap = wrap_message(seal, seller.public, moment, stored=True)
            seller.hear(wrap, seller.secret, None)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
