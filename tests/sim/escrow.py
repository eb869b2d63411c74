"""An arbiter in the market of virtual time, and a market that has one."""

from __future__ import annotations

from nostrvpn.identity.keys import RootSecret
from nostrvpn.market.arbiter import Arbiter
from nostrvpn.market.effects import MarketEffect
from nostrvpn.market.terms import PayMode
from nostrvpn.market.wish import BuyerEvent, Wish
from nostrvpn.nostr.event import public_key
from tests.sim.market import BuyerParty, Crash, Market, Party, SellerParty

__all__ = ["ArbiterParty", "escrow_market"]


class ArbiterParty(Party):
    """Whoever decides; its machine is the product's."""

    def __init__(self, market: Market, name: str) -> None:
        super().__init__(market, name)
        self.secret = RootSecret(market.random.randbytes(32)).arbiter_key()
        self.public = public_key(self.secret)
        self.machine: Arbiter
        self.begin()

    def begin(self) -> None:
        self.machine = Arbiter(self.secret)
        self.machine.restore({key: value for (_, key), value in self.store.items()})

    def machine_step(self, event: BuyerEvent) -> list[MarketEffect]:
        return self.machine.step(event, self.moment())

    def decide(self, side: str) -> None:
        """Decide all that is open."""
        for case in self.machine.cases:
            if case.state == "open":
                try:
                    self.carry_out(self.machine.decide(case.id, side, self.moment()))
                except Crash:
                    self.deaths += 1
                    self.begin()


def escrow_market(seed: int, sat: int, fee_ppk: int = 0) -> tuple[Market, ArbiterParty]:
    """Return a market of one seller, one buyer who wants escrow, and the arbiter both name."""
    made = Market(seed, fee_ppk)
    arbiter = ArbiterParty(made, "arbiter")
    made.others[arbiter.public] = arbiter
    made.sellers.append(SellerParty(made, "seller", escrow=arbiter.public))
    wish = Wish(modes=(PayMode.ESCROW,), arbiters=(arbiter.public,))
    buyer = BuyerParty(made, "buyer", sat, wish)
    buyer.bps = 4_000_000
    made.buyers.append(buyer)
    return made, arbiter
