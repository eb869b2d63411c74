"""The buyer's side of escrow: payments the seller is let have once they were served for.

A payment is released when it is used up by the bill that both agree to, and a last one that was begun
when the lease ends in peace. The release is said until the seller knows it. What is never released is
had back after its locktime, or before by the arbiter's word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial

from nostrvpn.cashu.proof import Proof
from nostrvpn.machine import Moment, earliest
from nostrvpn.market.bought_lease import BoughtLease, Escrowed, Parcel, Phase
from nostrvpn.market.buying import Buying
from nostrvpn.market.effects import MarketEffect, Say, Tell
from nostrvpn.market.escrow import BUYER, OPEN, case_id, sign_secrets, signed
from nostrvpn.market.invoice_paying import preimage_of
from nostrvpn.market.messages import (
    Claim,
    LeaseMessage,
    Notice,
    Release,
    Return,
    Verdict,
    render_message,
)
from nostrvpn.market.patience import AGAIN_S
from nostrvpn.market.paying import CLOCKS_S
from nostrvpn.market.terms import PayMode
from nostrvpn.market.trust import Outcome

__all__ = ["BoughtEscrow", "disputable", "dispute"]

# How often an arbiter that has not decided is asked again.
ASK_S = 600.0


class BoughtEscrow:
    """What is said of payments in escrow, and when again; all else is in the leases' records."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, int, str], tuple[int, float]] = {}
        self._ends_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When something is said again, or a lock ends."""
        return earliest(self._ends_at, *(due for _, due in self._said.values()))

    def step(self, deals: Iterable[Buying], moment: Moment) -> list[MarketEffect]:
        """Release what is used, take home what is over, say what has no answer."""
        effects: list[MarketEffect] = []
        there: set[tuple[str, int, str]] = set()
        ends: list[float] = []
        for deal in deals:
            for one in deal.lease.escrow:
                self._advance(deal, one, moment)
                if deal.lease.mode is PayMode.HOLD:
                    left = one.locktime + 1 - moment.wall
                    ends += [moment.now + left] if one.state == "open" and left > 0 else []
                elif one.state == "freeing":
                    ends.append(moment.now + max(0.0, one.locktime + CLOCKS_S + 1 - moment.wall))
                for what, words in _sayings(deal, one):
                    key = (deal.lease.key, one.seq, what)
                    there.add(key)
                    effects += self._say(key, deal.lease, words, moment)
        self._said = {key: value for key, value in self._said.items() if key in there}
        self._ends_at = min(ends, default=None)
        return effects

    def _advance(self, deal: Buying, one: Escrowed, moment: Moment) -> None:
        lease = deal.lease
        if one.state == "open" and _is_served(deal, one, moment.wall):
            one.state = "freeing"
        if lease.mode is PayMode.HOLD:
            return  # where it goes, the wallet says
        over = moment.wall > one.locktime + CLOCKS_S
        unused = one.state == "open" and lease.phase == Phase.OVER
        if unused or (one.state == "freeing" and over):
            one.state, one.wants_back = "home", unused
            ref = _ref(lease, one)
            until = one.locktime + CLOCKS_S
            lease.parcels.append(Parcel(ref, "escrow", one.proofs, until))

    def _say(
        self,
        key: tuple[str, int, str],
        lease: BoughtLease,
        words: Callable[[], LeaseMessage],
        moment: Moment,
    ) -> list[MarketEffect]:
        times, due = self._said.get(key, (0, moment.now))
        if moment.now < due:
            return []
        is_claim = key[2] == "claim"
        wait = ASK_S if is_claim else AGAIN_S[min(times, len(AGAIN_S) - 1)]
        self._said[key] = times + 1, moment.now + wait
        to = lease.arbiter if is_claim else lease.seller
        text = render_message(words())
        return [Tell(to, text, lease.key, None, True, lease.offer.relays)]

    # What is heard

    def takes(
        self, deal: Buying, sender: str, message: LeaseMessage, moment: Moment
    ) -> list[MarketEffect] | None:
        """Take a message that is about escrow; None if it is about something else."""
        lease = deal.lease
        match message:
            case Verdict() if sender == lease.arbiter:
                return self._judged(lease, message, moment)
            case Notice(code="released", seq=seq) if sender == lease.seller:
                for one in lease.escrow:
                    if one.seq == seq and one.state == "freeing":
                        one.state = "freed"
                return []
            case Notice(code="release-refused", seq=seq) if sender == lease.seller:
                # Ours is said again, and comes home if he never takes it; what is his to return does.
                for one in lease.escrow:
                    one.wants_back = one.wants_back and one.seq != seq
                return []
            case Release(seq=seq, sigs=sigs) if sender == lease.seller:
                for one in lease.escrow:
                    if one.seq == seq and one.state == "home":
                        _come_home(lease, one, signed(one.proofs, sigs, lease.seller), moment)
                return []
        return None

    def _judged(self, lease: BoughtLease, message: Verdict, moment: Moment) -> list[MarketEffect]:
        one = next((e for e in lease.escrow if _case(e) == message.payment), None)
        if one is None or one.verdict not in ("", OPEN) or one.state == "freed":
            return []
        if message.state == OPEN:
            # The seller asked: our side, unless it was told.
            one.verdict, one.claim = OPEN, one.claim or ""
            return []
        if message.state != BUYER:
            one.verdict = message.state
            return [Say("warning", f"the arbiter gave {one.sat} sat in escrow to the seller")]
        ordered = sorted(one.proofs, key=lambda proof: proof.secret)
        ours = signed(ordered, message.sigs, lease.arbiter)
        if ours is None:
            return []
        one.verdict = BUYER
        _come_home(lease, one, ours, moment)
        return [Say("info", f"the arbiter gave {one.sat} sat in escrow back to us")]


def _ref(lease: BoughtLease, one: Escrowed) -> str:
    return f"{lease.key}/escrow/{one.seq}"


def _come_home(
    lease: BoughtLease, one: Escrowed, proofs: tuple[Proof, ...] | None, moment: Moment
) -> None:
    """Another signed for us: nothing has to be waited for, unless it was asked for by now."""
    if proofs is None:
        return
    ref = _ref(lease, one)
    parcel = next((p for p in lease.parcels if p.ref == ref), None)
    if parcel is None:
        parcel = Parcel(ref, "escrow", proofs)
        lease.parcels.append(parcel)
    elif not parcel.is_settled and moment.wall < parcel.not_before:
        parcel.proofs, parcel.not_before = proofs, 0
    one.state, one.wants_back = "home", False


def disputable(lease: BoughtLease) -> list[Escrowed]:
    """Return the payments in escrow that an arbiter can still decide about."""
    if not lease.arbiter:
        return []
    home = {p.ref for p in lease.parcels if p.is_settled}
    return [
        one
        for one in lease.escrow
        if one.state != "freed" and one.verdict in ("", OPEN) and _ref(lease, one) not in home
    ]


def dispute(lease: BoughtLease, text: str) -> None:
    """Have the arbiter asked, in the user's words."""
    for one in disputable(lease):
        one.claim = text


def _case(one: Escrowed) -> str:
    return case_id(proof.secret for proof in one.proofs)


def _is_served(deal: Buying, one: Escrowed, wall: float) -> bool:
    """Whether the seller may have a payment: it is used up; or begun, if the lease ended in peace."""
    lease = deal.lease
    if lease.quote is None:
        return False
    due = max(deal.count.bill.due_msat, deal.count.agreed_msat)
    if lease.phase == Phase.SERVED:
        if lease.mode is PayMode.HOLD and wall > one.locktime:
            return True  # the network does not wait for ever
        return due >= one.before_msat + one.credit_msat
    if lease.phase not in (Phase.CLOSING, Phase.OVER):
        return False
    in_peace = lease.outcome is Outcome.SERVED
    if in_peace and lease.receipt is not None:
        due = max(due, lease.receipt.due_msat)
    return due > one.before_msat if in_peace else due >= one.before_msat + one.credit_msat


def _sayings(deal: Buying, one: Escrowed) -> list[tuple[str, Callable[[], LeaseMessage]]]:
    """Return what is to be said of a payment: to the seller, to the arbiter."""
    said: list[tuple[str, Callable[[], LeaseMessage]]] = []
    if one.state == "freeing":
        said.append(("release", partial(_release, deal, one)))
    ref = _ref(deal.lease, one)
    coming = any(p.ref == ref and not p.is_settled for p in deal.lease.parcels)
    if one.wants_back and coming:
        back = Return(lease_id=deal.lease.lease_id, seq=one.seq)
        said.append(("return", lambda: back))
    is_out = one.state in ("open", "freeing") or coming
    if one.claim is not None and one.verdict in ("", OPEN) and is_out:
        said.append(("claim", partial(_claim, deal, one, one.claim)))
    return said


def _release(deal: Buying, one: Escrowed) -> Release:
    lease = deal.lease
    if lease.mode is PayMode.HOLD:
        preimage = preimage_of(lease, deal.pocket.root, one.seq).hex()
        return Release(lease_id=lease.lease_id, seq=one.seq, preimage=preimage)
    key = deal.pocket.root.lease_key(lease.number)
    sigs = sign_secrets((proof.secret for proof in one.proofs), key)
    return Release(lease_id=lease.lease_id, seq=one.seq, sigs=sigs)


def _claim(deal: Buying, one: Escrowed, text: str) -> Claim:
    lease, bill = deal.lease, deal.count.bill
    assert lease.quote is not None
    receipt = render_message(lease.receipt) if lease.receipt is not None else ""
    return Claim(
        lease_id=lease.lease_id,
        secrets=tuple(sorted(proof.secret for proof in one.proofs)),
        mint=lease.mint,
        sat=one.sat,
        before_msat=one.before_msat,
        credit_msat=one.credit_msat,
        billable=bill.billable,
        ms=lease.ms,
        due_msat=bill.due_msat,
        paid_msat=lease.paid_msat,
        quote=hashlib.sha256(render_message(lease.quote).encode()).hexdigest(),
        reason=lease.label[:200],
        text=text,
        receipt=receipt if len(receipt) <= 2048 else "",
        relays=deal.pocket.relays,
        other_relays=lease.offer.relays[:4],
    )
