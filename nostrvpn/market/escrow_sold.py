"""The seller's side of escrow: payments that wait for the buyer's signature, or for the arbiter's.

A payment in escrow is credited like any locked one and is in the books as ``locked``. It becomes the
seller's by the buyer's release or the arbiter's verdict, and is redeemed then; at its locktime, or by a
verdict for the buyer, it is lost. A dispute is written down whole before the arbiter hears of it, so it
goes on in the same words when the lease itself is forgotten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from nostrvpn.cashu.proof import Proof
from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.machine import Moment
from nostrvpn.market.effects import Keep, MarketEffect, Say, Tell
from nostrvpn.market.escrow import BUYER, OPEN, SELLER, parties_of, sign_secrets, signed, signed_all
from nostrvpn.market.lease import Lease, Phase
from nostrvpn.market.messages import Claim, Notice, Release, Return, Verdict, render_message
from nostrvpn.market.money_in import Money
from nostrvpn.market.stall import Stall

__all__ = ["DISPUTES", "SoldEscrow"]

DISPUTES = "sold_dispute"
# After the end of a lease the buyer has so long to release what was used (seconds).
RELEASE_S = 600
# How often an arbiter that has not decided is asked again.
ASK_S = 600.0


class _Dispute(msgspec.Struct, array_like=True):
    """``claim``: the message to the arbiter, as it is said each time, "" if there is nothing to claim;
    ``used_msat``: of the payment, what was served for; ``state``: asked, or a verdict's."""

    arbiter: str
    lease_id: str
    used_msat: int
    claim: str
    relays: tuple[str, ...]
    state: str = "asked"


class SoldEscrow:
    """What is in escrow is the till's to know; here are the disputes, by the payment's id."""

    def __init__(self, stall: Stall) -> None:
        self._stall = stall
        self._disputes: dict[str, _Dispute] = {}
        self._ask_at: dict[str, float] = {}

    def state_of(self, payment: str) -> str:
        """Return how a payment's dispute stands: "", asked, or what the arbiter said."""
        found = self._disputes.get(payment)
        return "" if found is None else found.state

    # What is heard

    def released(self, sender: str, message: Release, moment: Moment) -> list[MarketEffect]:
        """The buyer signed: the payment is ours. The same again is answered again."""
        stall, lease = self._stall, self._stall.leases.get(message.lease_id)
        money = stall.till.in_escrow(message.lease_id, message.seq)
        if money is None:
            paid = lease.payments.get(message.seq) if lease and lease.buyer == sender else None
            is_ours = paid is not None and stall.till.state_of(paid.id) in ("held", "done")
            return self._answer(sender, message, is_ours, moment)
        parties = parties_of(proof.secret for proof in money.proofs)
        by_buyer = signed(money.proofs, message.sigs, parties.buyer)
        if sender != parties.buyer or by_buyer is None or money.mint not in stall.till.mints:
            stall.counters["release refused"] += 1
            return self._answer(sender, message, False, moment)
        stall.counters["released"] += 1
        told = self._answer(sender, message, True, moment)
        return [*self._free(money, by_buyer, moment), *told]

    def returned(self, sender: str, message: Return, moment: Moment) -> list[MarketEffect]:
        """The buyer wants back what was not used: it is the buyer's at once, and not after its lock."""
        stall, lease = self._stall, self._stall.leases.get(message.lease_id)
        if lease is None or lease.buyer != sender or lease.phase != Phase.CLOSED:
            return []  # the end comes first, and it is asked again
        paid = lease.payments.get(message.seq)
        known = stall.till.given_up(paid.id) if paid is not None else None
        money = stall.till.in_escrow(lease.id, message.seq) or known
        if money is None or (money is not known and _used(lease, money)):
            return self._answer(sender, message, False, moment)
        kept = [] if money is known else self._lose(money, moment)
        sigs = sign_secrets((proof.secret for proof in money.proofs), stall.secret)
        release = Release(lease_id=lease.id, seq=message.seq, sigs=sigs)
        return [*kept, stall.tell(lease, release, moment.wall, stored=True)]

    def judged(self, sender: str, message: Verdict, moment: Moment) -> list[MarketEffect]:
        """The arbiter spoke of a payment that it was asked about."""
        stall, dispute = self._stall, self._disputes.get(message.payment)
        money = next((m for m in stall.till.unreleased() if m.id == message.payment), None)
        if dispute is None or money is None or dispute.arbiter != sender:
            stall.counters["verdict on nothing"] += 1
            return []
        if message.state == OPEN:
            if dispute.state == OPEN:
                return []
            dispute.state = OPEN
            return [self._keep(money.id)]
        if message.state == BUYER:
            text = (
                f"the arbiter gave {money.face_sat} sat of lease {money.lease_id[:8]} to the buyer"
            )
            return [*self._lose(money, moment), Say("warning", text)]
        ordered = tuple(sorted(money.proofs, key=lambda proof: proof.secret))
        by_arbiter = signed(ordered, message.sigs, sender)
        if message.state != SELLER or by_arbiter is None:
            stall.counters["bad verdict"] += 1
            return []
        text = f"the arbiter gave us {money.face_sat} sat of lease {money.lease_id[:8]}"
        return [*self._free(money, by_arbiter, moment), Say("info", text)]

    # What is due

    def look(self, moment: Moment) -> list[MarketEffect]:
        """Dispute what should have been released, ask again, and give up what is over."""
        effects: list[MarketEffect] = []
        for money in self._stall.till.unreleased():
            lease = self._stall.leases.get(money.lease_id)
            if moment.wall > money.void:
                text = f"{money.face_sat} sat in escrow are the buyer's again: the lock is over"
                effects += [*self._lose(money, moment), Say("info", text)]
            elif money.id in self._disputes:
                effects += self._ask(money.id, moment)
            elif lease is not None and self._is_late(lease, moment.wall):
                effects += self._begin(lease, money, "", moment)
        return effects

    @staticmethod
    def _is_late(lease: Lease, wall: float) -> bool:
        """Whether the lease is over, and the buyer had time to release what was used."""
        return lease.phase == Phase.CLOSED and wall > lease.ended_at + RELEASE_S

    def dispute(self, lease: Lease, text: str, moment: Moment) -> list[MarketEffect]:
        """Ask the arbiter now, in the user's words; UserError if there is nothing to ask."""
        if lease.phase != Phase.CLOSED:
            raise UserError("the lease is in use yet: it is disputed once it has ended")
        kept_back = self._stall.till.unreleased(lease.id)
        found = [money for money in kept_back if _used(lease, money)]
        if not found:
            raise UserError("nothing of that lease is in escrow that was used")
        return [e for money in found for e in self._begin(lease, money, text, moment)]

    def _begin(self, lease: Lease, money: Money, text: str, moment: Moment) -> list[MarketEffect]:
        parties, used = parties_of(proof.secret for proof in money.proofs), _used(lease, money)
        own, others = self._stall.settings.relays[:4], lease.request.relays
        claim = Claim(
            lease_id=lease.id,
            secrets=tuple(sorted(proof.secret for proof in money.proofs)),
            mint=money.mint,
            sat=money.face_sat,
            before_msat=_before(lease, money),
            credit_msat=money.msat,
            billable=lease.bill.billable,
            ms=lease.ms,
            due_msat=lease.bill.due_msat,
            paid_msat=lease.paid_msat,
            quote=hashlib.sha256(render_message(lease.quote).encode()).hexdigest(),
            reason=lease.reason,
            text=text,
            receipt=lease.receipt,
            relays=own,
            other_relays=others,
        )
        said = render_message(claim) if used else ""
        self._disputes[money.id] = _Dispute(parties.arbiter, lease.id, used, said, own)
        self._ask_at[money.id] = moment.now
        self._stall.counters["disputes"] += bool(used)
        return [self._keep(money.id), *self._ask(money.id, moment)]

    def _ask(self, payment: str, moment: Moment) -> list[MarketEffect]:
        found = self._disputes[payment]
        if not found.claim or moment.now < self._ask_at.get(payment, moment.now):
            return []
        self._ask_at[payment] = moment.now + ASK_S
        return [Tell(found.arbiter, found.claim, found.lease_id, None, True, found.relays)]

    # What becomes of it

    def _free(self, money: Money, proofs: tuple[Proof, ...], moment: Moment) -> list[MarketEffect]:
        till = self._stall.till
        effects = till.free(money, signed_all(proofs, self._stall.secret), moment.wall)
        lease = self._stall.leases.get(money.lease_id)
        if lease is None or lease.phase != Phase.OPEN:
            till.lease_ended(money.mint)
        return [*effects, *self._settle(money)]

    def _lose(self, money: Money, moment: Moment) -> list[MarketEffect]:
        stall = self._stall
        lease, known = stall.leases.get(money.lease_id), self._disputes.get(money.id)
        used = _used(lease, money) if lease is not None else money.msat
        used = known.used_msat if known is not None else used
        stall.counters["lost in escrow" if used else "not used in escrow"] += 1
        return [*stall.till.forgo(money, used, moment.wall), *self._settle(money)]

    def _settle(self, money: Money) -> list[MarketEffect]:
        self._ask_at.pop(money.id, None)
        known = self._disputes.pop(money.id, None)
        return [] if known is None else [Keep(DISPUTES, money.id, None)]

    def _answer(
        self, to: str, message: Release | Return, is_ours: bool, moment: Moment
    ) -> list[MarketEffect]:
        level, code = ("info", "released") if is_ours else ("error", "release-refused")
        lease = self._stall.leases.get(message.lease_id)
        if lease is not None and lease.buyer == to:
            return [self._stall.notice(lease, level, code, moment.wall, seq=message.seq)]
        notice = Notice(level=level, code=code, lease_id=message.lease_id, seq=message.seq)
        return [Tell(to, render_message(notice), message.lease_id)]

    def _keep(self, payment: str) -> Keep:
        return Keep(DISPUTES, payment, msgspec.to_builtins(self._disputes[payment]))

    def restore(self, records: Mapping[str, object]) -> list[MarketEffect]:
        """Take what was kept; call once the till knows its money. PeerMisbehaved if damaged."""
        there = {money.id for money in self._stall.till.unreleased()}
        gone: list[MarketEffect] = []
        for payment, stored in records.items():
            try:
                found = msgspec.convert(stored, _Dispute)
            except msgspec.ValidationError as exc:
                raise PeerMisbehaved("bad_record", f"not a dispute: {exc}") from exc
            if payment in there:
                self._disputes[payment] = found
            else:
                gone.append(Keep(DISPUTES, payment, None))
        return gone


def _before(lease: Lease, money: Money) -> int:
    """Return what was credited before a payment (msat)."""
    later = (paid for seq, paid in lease.payments.items() if seq >= money.seq)
    return lease.paid_msat - sum(paid.msat for paid in later if paid.state == "credited")


def _used(lease: Lease, money: Money) -> int:
    """Return how much of a payment was served for (msat)."""
    return max(0, min(money.msat, lease.bill.due_msat - _before(lease, money)))
