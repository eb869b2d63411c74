"""A day of a market, honest and not: who gained what, and by how much that passes what was served.

``python -m tests.sim.market_day`` runs it at full scale and prints the figures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

from nostrvpn.market.attest import signed
from nostrvpn.market.ceilings import HOUR
from nostrvpn.market.effects import GiveBack, Lock, MarketEffect, Reclaim, Tell
from nostrvpn.market.messages import Fund, TopUp, Usage, parse_message, render_message
from nostrvpn.market.wish import BuyerEvent, Wish
from tests.sim.market import BuyerParty, Market, SellerParty

__all__ = ["Figures", "market_day"]

BEAT_S = 60.0


class Keeper(SellerParty):
    """Gives nothing back, and so has no receipt to show."""

    def carry_out(self, effects: list[MarketEffect]) -> None:
        super().carry_out([effect for effect in effects if not isinstance(effect, GiveBack)])


class Overcharger(Keeper):
    """Doubles what it counted."""

    def carry_out(self, effects: list[MarketEffect]) -> None:
        super().carry_out([self._doubled(effect) for effect in effects])

    def _doubled(self, effect: MarketEffect) -> MarketEffect:
        if not isinstance(effect, Tell) or '"type":"usage"' not in effect.text:
            return effect
        usage = parse_message(effect.text)
        assert isinstance(usage, Usage)
        told = {name: getattr(usage, name) for name in usage.__struct_fields__}
        told |= {"billable": 2 * usage.billable, "due_msat": 2 * usage.due_msat, "sig": ""}
        lie = signed(Usage(**told), self.secret, bytes(32))
        return replace(effect, text=render_message(lie))


class NonServer(Keeper):
    """Serves until it is paid, and nothing after that."""

    def lets_out(self, wg_pub: str) -> bool:
        paid = [one for one in self.machine.leases if one.request.wg_pub == wg_pub]
        return super().lets_out(wg_pub) and not any(one.paid_msat for one in paid)


class DoubleSpender(BuyerParty):
    """Shows each seller what it showed to one before."""

    first: str = ""

    def carry_out(self, effects: list[MarketEffect]) -> None:
        super().carry_out([self._again(effect) for effect in effects])

    def _again(self, effect: MarketEffect) -> MarketEffect:
        message = parse_message(effect.text) if isinstance(effect, Tell) else None
        if not isinstance(effect, Tell) or not isinstance(message, Fund | TopUp):
            return effect
        if not message.token:
            return effect
        self.first = self.first or message.token
        again = type(message)(lease_id=message.lease_id, seq=message.seq, token=self.first)
        return replace(effect, text=render_message(again))


class TrialFarmer(BuyerParty):
    """Takes trials and never pays; all farmers share one address."""

    def carry_out(self, effects: list[MarketEffect]) -> None:
        super().carry_out([effect for effect in effects if not isinstance(effect, Lock)])

    def use(self, seconds: float) -> None:
        super().use(seconds)
        for link in self.machine.links():
            deal = next(d for d in self.machine.deals if d.lease.key == link.key)
            seller = self.market.seller_of(deal.lease.seller)
            if seller is not None and seller.lets_out(deal.lease.wg_pub):
                size = self.allowed(seller, deal.lease.wg_pub, 10**9)
                self._carry(deal, seller, size)
                self.moved[seller.name] += size


class RefundRacer(BuyerParty):
    """Tries to have back what it showed, when the lock is over."""

    gained = 0

    def step(self, event: BuyerEvent) -> None:
        super().step(event)
        for deal in self.machine.deals:
            lease = deal.lease
            if lease.pending is None or lease.pending.seq in self.raced:
                continue
            until = max(money.locktime for money in lease.money)
            if not until:
                continue
            self.raced.add(lease.pending.seq)
            ref = f"{lease.key}/race/{lease.pending.seq}"
            race = Reclaim(ref, lease.mint, lease.pending.proofs, until)
            self.market.at(until + 1 - self.moment().wall, partial(self._race, race))

    @property
    def raced(self) -> set[int]:
        """Payments that were raced for."""
        found: set[int] = self.__dict__.setdefault("_raced", set())
        return found

    def _race(self, race: Reclaim) -> None:
        wall = self.moment().wall
        before = self.market.bank.balances[self.name]
        self.market.bank.do(self.name, race, self.keys(race), wall)
        self.gained += self.market.bank.balances[self.name] - before


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums of a day. ``unserved_msat``: paid by honest buyers for nothing, by the kind of the seller."""

    total_before: int
    total_after: int
    leases: int
    gib: float
    earned_sat: dict[str, int]
    unserved_msat: dict[str, int]
    worst_unserved_msat: int
    worst_unpaid_bytes: int
    farmed_bytes: int
    raced_sat: int
    ledgers_wrong: int
    worst_over_budget: int


def market_day(seed: int, buyers: int, sellers: int, hours: int) -> Figures:
    """Run a day: a fifth of each side is dishonest, each in one of the ways above."""
    made = Market(seed)
    made.delay = (0.02, 0.5)
    made.loss = 0.02
    made.has_opinions = True  # each buyer his own: all sellers are tried, cheats too
    kinds = (Overcharger, NonServer)
    for n in range(sellers):
        kind = kinds[n // 5 % 2] if n % 5 == 4 else SellerParty
        made.sellers.append(kind(made, f"seller{n}", f"{made.random.randrange(15, 60)}sat/GiB"))
    cheats = (DoubleSpender, TrialFarmer, RefundRacer)
    for n in range(buyers):
        one = cheats[n // 5 % 3] if n % 5 == 4 else BuyerParty
        buyer = one(made, f"buyer{n}", made.random.randrange(100, 1000))
        buyer.bps = made.random.choice([20_000, 200_000, 1_000_000])
        if one is TrialFarmer:
            buyer.address = made.buyers[0].address
        made.buyers.append(buyer)
        start = made.random.uniform(1, hours * HOUR * 0.8)
        made.at(start, partial(buyer.want, Wish()))
        made.at(start + made.random.uniform(600, 7200), partial(buyer.want, None))
    before = made.bank.total
    made.run(hours * HOUR, BEAT_S)
    for buyer in made.buyers:
        buyer.want(None)
    made.run(3 * HOUR, 600)
    return _figures(made, before)


def _figures(made: Market, before: int) -> Figures:
    kind_of = {seller.public: type(seller).__name__ for seller in made.sellers}
    honest = [buyer for buyer in made.buyers if type(buyer) is BuyerParty]
    unserved: Counter[str] = Counter()
    worst = over = leases = 0
    for buyer in honest:
        ledger = buyer.machine.ledger
        rows = [v for (space, _), v in buyer.store.items() if space == "bought_history"]
        leases += len(rows)
        for (space, key), row in buyer.store.items():
            if space != "bought_history" or not isinstance(row, dict):
                continue
            lines = [e for e in ledger if e.ref.startswith(key)]
            lost = sum(e.msat for e in lines if e.debit in ("lost", "unused"))
            unserved[kind_of[str(row["seller"])]] += lost
            worst = max(worst, lost)
        spent = sum(e.msat for e in ledger if e.ref.split("/")[1:2] == ["pay"])
        over = max(over, spent // 1000 - Wish().ceilings.day_sat)
    unpaid, earned = 0, Counter[str]()
    for seller in made.sellers:
        earned[type(seller).__name__] += made.bank.balances[seller.name]
        for lease in seller.machine.leases:
            paid_for = lease.free_bytes + lease.price.bytes_for(lease.paid_msat)
            unpaid = max(unpaid, lease.meter.total - paid_for)
    wrong = sum(len(p.machine.ledger.check()) for p in made.buyers)
    wrong += sum(len(s.machine.problems()) for s in made.sellers)
    return Figures(
        before,
        made.bank.total,
        leases,
        round(sum(sum(b.moved.values()) for b in honest) / (1 << 30), 1),
        dict(earned),
        dict(unserved),
        worst,
        unpaid,
        sum(sum(b.moved.values()) for b in made.buyers if isinstance(b, TrialFarmer)),
        sum(b.gained for b in made.buyers if isinstance(b, RefundRacer)),
        wrong,
        over,
    )


def main() -> None:
    """Print the figures of a day."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--buyers", type=int, default=1000)
    parser.add_argument("--sellers", type=int, default=100)
    parser.add_argument("--hours", type=int, default=24)
    given = parser.parse_args()
    began = time.process_time()
    figures = market_day(given.seed, given.buyers, given.sellers, given.hours)
    sys.stdout.write(f"{figures}\n{time.process_time() - began:.0f} s of CPU\n")


if __name__ == "__main__":
    main()
