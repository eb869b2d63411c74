"""The seller's till: which payments were shown before, when locked ones are swapped, what they became.

Plain tokens are swapped before they are credited. Locked ones are believed (``payment_check.py``),
written down, and redeemed later, many in one swap for each mint: at the half of their time, at a sum,
at the end of a lease. Whatever a swap did is written down before the books are, and they are made good
from it after a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from nostrvpn.cashu.amounts import swap_fee
from nostrvpn.cashu.proof import MintKeys, Proof
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.market.effects import Keep, MarketEffect, Redeem, Say
from nostrvpn.market.errands import Errands
from nostrvpn.market.ledger import Entry, Ledger
from nostrvpn.market.money_in import MONEY, Money, redeem_by

__all__ = ["BATCHES", "Till"]

BATCHES = "sold_batch"
# Proofs of one swap; Nutshell takes 1,000.
MAX_BATCH = 200
# How long the Ys of a proof are known beyond its locktime (seconds): our clock may be set back.
SEEN_S = 86_400


@dataclass(slots=True)
class _Batch:
    ref: str
    mint: str
    ids: tuple[str, ...]
    arrived_sat: int | None = None

    def keep(self) -> Keep:
        value = {"mint": self.mint, "ids": list(self.ids), "arrived_sat": self.arrived_sat}
        return Keep(BATCHES, self.ref, value)


class Till:
    """All money of a seller's leases between the buyers and the wallet.

    ``threshold_sat``: redeemed once a mint's unredeemed proofs come to this; ``most_sat``: beyond this
    no more is taken of a mint that does not redeem. ``mints``: set by the shell as it learns keysets.
    """

    def __init__(self, ledger: Ledger, errands: Errands) -> None:
        self.threshold_sat = 200
        self.most_sat = 2000
        self.mints: Mapping[str, MintKeys] = {}
        self._ledger, self._errands = ledger, errands
        self._money: dict[str, Money] = {}
        self._seen: dict[str, str] = {}
        self._pending: dict[str, Money] = {}
        self._held: dict[str, dict[str, Money]] = {}
        self._escrow: dict[tuple[str, int], Money] = {}
        self._batches: dict[str, _Batch] = {}
        self._in_batch: set[str] = set()
        self._ended: set[str] = set()

    def __iter__(self) -> Iterator[Money]:
        return iter(tuple(self._money.values()))

    @property
    def is_empty(self) -> bool:
        """Whether no payment is known."""
        return not self._money

    def held_sat(self, mint: str) -> int:
        """Return the face value of this mint's locked proofs that are not redeemed yet."""
        return sum(money.face_sat for money in self._held.get(mint, {}).values())

    def refuse(self, money: Money, now: float) -> str | None:
        """Return the code of a notice if a payment cannot be taken: shown before, or too much held."""
        if money.id in self._money or any(y in self._seen for y in money.ys):
            return "payment-error-token-spent"
        if money.state != "held" or self.held_sat(money.mint) < self.most_sat:
            return None
        swaps = [batch.ref for batch in self._batches.values() if batch.mint == money.mint]
        return "mint-down" if any(self._errands.is_late(ref, now) for ref in swaps) else None

    def take(self, money: Money) -> list[Keep]:
        """Write a payment down: it is known from now on."""
        self._know(money)
        return [money.keep()]

    def swap(self, money: Money, now: float) -> list[MarketEffect]:
        """Have a plain payment swapped."""
        return list(self._errands.ask(Redeem(money.ref, money.mint, money.proofs), now))

    def pending(self, ref: str) -> Money | None:
        """Return the plain payment that is swapped under this ref."""
        return self._pending.get(ref)

    def drop(self, money: Money) -> list[Keep]:
        """Forget a plain payment: it is credited, or refused; the mint knows its proofs from now on."""
        self._forget(money)
        return [Keep(MONEY, money.id, None)]

    # In escrow

    def unreleased(self, lease_id: str = "") -> list[Money]:
        """Return what is in escrow, of one lease or of all, the oldest payment of each first."""
        found = (m for key, m in self._escrow.items() if lease_id in ("", key[0]))
        return sorted(found, key=lambda money: money.seq)

    def in_escrow(self, lease_id: str, seq: int) -> Money | None:
        """Return a payment that is in escrow."""
        return self._escrow.get((lease_id, seq))

    def state_of(self, payment: str) -> str:
        """Return the state of a payment by its id, "" if it is not known."""
        money = self._money.get(payment)
        return "" if money is None else money.state

    def free(self, money: Money, proofs: tuple[Proof, ...], wall: float) -> list[Keep]:
        """A payment left the escrow and is ours: ``proofs`` carry all signatures."""
        latest, _ = redeem_by(proofs, self.mints[money.mint].keysets, wall)
        freed = replace(money, state="held", proofs=proofs, due=latest)
        self._know(freed)
        return [freed.keep()]

    def given_up(self, payment: str) -> Money | None:
        """Return a payment that was in escrow and is the buyer's, with its proofs."""
        money = self._money.get(payment)
        return money if money is not None and money.state == "lost" and money.proofs else None

    def forgo(self, money: Money, used_msat: int, wall: float) -> list[Keep]:
        """A payment in escrow is the buyer's; so much of it was served for."""
        lost = replace(money, state="lost", used=used_msat)
        self._know(lost)
        return [lost.keep(), *self._lose(lost, wall)]

    def is_redeeming(self, mint: str) -> bool:
        """Whether proofs of this mint are being swapped, or will be: the wallet has more in a moment."""
        if any(batch.mint == mint for batch in self._batches.values()):
            return True
        waiting = self._waiting(mint)
        return mint in self._ended and bool(waiting) and not self._is_eaten(mint, _as_many(waiting))

    def lease_ended(self, mint: str) -> None:
        """Redeem this mint's proofs at the next look."""
        self._ended.add(mint)

    # Batches

    def redeem(self, moment: Moment) -> list[MarketEffect]:
        """Return the swaps that are due: one at a time for each mint."""
        effects: list[MarketEffect] = []
        behind = set()
        for mint in self._held:
            waiting = self._waiting(mint)
            if not waiting:
                continue
            if any(batch.mint == mint for batch in self._batches.values()):
                behind.add(mint)
                continue
            forced = waiting[0].due <= moment.wall
            reached = self.held_sat(mint) >= self.threshold_sat or mint in self._ended
            chosen = _as_many(waiting)
            # A few so small that the fee takes all of them wait for more, as long as they can.
            if forced or (reached and not self._is_eaten(mint, chosen)):
                effects += self._begin(mint, chosen, moment.now)
                if len(chosen) < len(waiting):
                    behind.add(mint)
        # What waits behind a swap is looked at again after it.
        self._ended &= behind
        return effects

    @property
    def due_wall(self) -> int | None:
        """When something must be redeemed (Unix time)."""
        dues = [self._waiting(mint)[0].due for mint in self._held if self._waiting(mint)]
        return min(dues, default=None)

    def redeemed(self, ref: str, arrived_sat: int, wall: float) -> list[MarketEffect]:
        """A batch arrived: write it down, then into the books."""
        batch = self._batches[ref]
        batch.arrived_sat = arrived_sat
        self._errands.finish(ref)
        return [batch.keep(), *self._finish(batch, wall)]

    def failed(self, ref: str, why: str, moment: Moment) -> list[MarketEffect]:
        """A batch is refused for good: try its payments alone; what is refused alone is lost."""
        batch = self._batches.pop(ref)
        self._in_batch -= set(batch.ids)
        self._errands.finish(ref)
        effects: list[MarketEffect] = []
        if len(batch.ids) > 1:
            for one in batch.ids:
                effects += self._begin(batch.mint, [self._money[one]], moment.now)
            # Singles are kept before the whole goes, and carried out after.
            keeps = [effect for effect in effects if isinstance(effect, Keep)]
            others = [effect for effect in effects if not isinstance(effect, Keep)]
            return [*keeps, Keep(BATCHES, ref, None), *others]
        money = replace(self._money[batch.ids[0]], state="lost", proofs=())
        self._know(money)
        text = f"{money.mint} refuses {money.msat} msat that it had signed for: {why}"
        return [
            money.keep(),
            *self._lose(money, moment.wall),
            Keep(BATCHES, ref, None),
            Say("warning", text),
        ]

    def is_batch(self, ref: str) -> bool:
        """Whether an answer is of a batch."""
        return ref in self._batches

    def prune(self, wall: float) -> list[Keep]:
        """Forget redeemed payments whose locks are over: a copy is refused by the check of the lock."""
        old = [
            money
            for money in self._money.values()
            if money.state in ("done", "lost") and 0 < money.void < wall - SEEN_S
        ]
        for money in old:
            self._forget(money)
        return [Keep(MONEY, money.id, None) for money in old]

    # After a restart

    def restore(
        self, money: Mapping[str, object], batches: Mapping[str, object], wall: float
    ) -> list[MarketEffect]:
        """Take what was kept; return what makes the books good."""
        effects: list[MarketEffect] = []
        for key, stored in money.items():
            self._know(Money.from_json(key, stored))
        for batch in sorted(_parsed(batches), key=lambda batch: len(batch.ids)):
            known = [self._money[one] for one in batch.ids if one in self._money]
            whole = all(one.state == "held" and one.id not in self._in_batch for one in known)
            if batch.arrived_sat is None and not whole:
                effects.append(Keep(BATCHES, batch.ref, None))  # it was split, or lost
                continue
            self._batches[batch.ref] = batch
            self._in_batch |= set(batch.ids)
            if batch.arrived_sat is not None:
                effects += self._finish(batch, wall)
            else:
                self._errands.owe(Redeem(batch.ref, batch.mint, _proofs(known)))
        for one in self:
            if one.state == "lost":
                effects += self._lose(one, wall)
            if one.state == "pending":
                self._errands.owe(Redeem(one.ref, one.mint, one.proofs))
        return effects

    def _begin(self, mint: str, chosen: list[Money], now: float) -> list[MarketEffect]:
        ids = tuple(money.id for money in chosen)
        ref = "batch:" + hashlib.sha256("".join(sorted(ids)).encode()).hexdigest()[:32]
        batch = self._batches[ref] = _Batch(ref, mint, ids)
        self._in_batch |= set(ids)
        return [batch.keep(), *self._errands.ask(Redeem(ref, mint, _proofs(chosen)), now)]

    def _finish(self, batch: _Batch, wall: float) -> list[MarketEffect]:
        assert batch.arrived_sat is not None
        money = [self._money[one] for one in batch.ids if one in self._money]
        arrived, at = 1000 * batch.arrived_sat, int(wall)
        wallet, locked = f"wallet:{batch.mint}", f"locked:{batch.mint}"
        effects: list[MarketEffect] = []
        effects += self._ledger.post(Entry(batch.ref, at, wallet, locked, arrived, "redeemed"))
        # Rounding a fee up is the seller's; what was credited for the proofs knew the rest of it.
        rest = sum(one.msat for one in money) - arrived
        debit, credit = ("fees", locked) if rest >= 0 else (locked, "fees")
        fee = Entry(f"{batch.ref}:fee", at, debit, credit, abs(rest), "rounding")
        effects += self._ledger.post(fee)
        for one in money:
            done = replace(one, state="done", proofs=())
            self._know(done)
            effects.append(done.keep())
        self._batches.pop(batch.ref, None)
        self._in_batch -= set(batch.ids)
        return [*effects, Keep(BATCHES, batch.ref, None)]

    def _lose(self, money: Money, wall: float) -> list[Keep]:
        ref, locked = f"lost:{money.id}", f"locked:{money.mint}"
        at, used = int(wall), money.msat if money.used is None else money.used
        rest = Entry(f"back:{money.id}", at, "unused", locked, money.msat - used, "the buyer's")
        return [
            *self._ledger.post(Entry(ref, at, "lost", locked, used, "refused")),
            *self._ledger.post(rest),
        ]

    def _waiting(self, mint: str) -> list[Money]:
        free = [m for m in self._held[mint].values() if m.id not in self._in_batch]
        return sorted(free, key=lambda money: money.due)

    def _is_eaten(self, mint: str, chosen: list[Money]) -> bool:
        keys, proofs = self.mints.get(mint), _proofs(chosen)
        if keys is None or any(proof.keyset_id not in keys.keysets for proof in proofs):
            return False
        return sum(proof.amount for proof in proofs) <= swap_fee(proofs, keys.keysets)

    def _know(self, money: Money) -> None:
        self._money[money.id] = money
        self._seen.update(dict.fromkeys(money.ys, money.id))
        held = self._held.setdefault(money.mint, {})
        if money.state == "held":
            held[money.id] = money
        else:
            held.pop(money.id, None)
        if money.state == "escrow":
            self._escrow[money.lease_id, money.seq] = money
        else:
            self._escrow.pop((money.lease_id, money.seq), None)
        if money.state == "pending":
            self._pending[money.ref] = money

    def _forget(self, money: Money) -> None:
        self._money.pop(money.id, None)
        self._pending.pop(money.ref, None)
        for y in money.ys:
            self._seen.pop(y, None)


def _proofs(money: list[Money]) -> tuple[Proof, ...]:
    return tuple(proof for one in money for proof in one.proofs)


def _as_many(waiting: list[Money]) -> list[Money]:
    chosen: list[Money] = []
    inputs = 0
    for money in waiting:
        inputs += len(money.proofs)
        if chosen and inputs > MAX_BATCH:
            break
        chosen.append(money)
    return chosen


def _parsed(batches: Mapping[str, object]) -> Iterator[_Batch]:
    for ref, stored in batches.items():
        match stored:
            case {"mint": str(mint), "ids": list(ids), "arrived_sat": int() | None as arrived}:
                yield _Batch(ref, mint, tuple(str(one) for one in ids), arrived)
            case _:
                raise PeerMisbehaved("bad_record", f"not a batch: {ref}")
