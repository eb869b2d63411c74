"""Who decides about money in escrow: cases as they are told, bounded, and signatures for who wins.

An arbiter never has the money: it knows the secrets of proofs and not the proofs, and one signature of
the two that the mint wants. A case begins with the claim of a seller or a buyer, who are known by the
lock itself; both are asked for their side; a person decides. Whoever asks again is told the same again,
so nothing but the cases and the decisions is written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.machine import Moment
from nostrvpn.market.effects import Heard, Keep, MarketEffect, Tell, Tick
from nostrvpn.market.escrow import (
    BUYER,
    LONGEST_ESCROW_S,
    OPEN,
    SELLER,
    Parties,
    case_id,
    parties_of,
    sign_secrets,
)
from nostrvpn.market.messages import (
    Claim,
    Notice,
    Verdict,
    parse_message,
    render_message,
)
from nostrvpn.nostr.event import public_key

__all__ = ["CASES", "Arbiter", "Case"]

CASES = "arbiter_case"
# Cases on disk, of all and of one seller or buyer: each has two claims of 24 KiB at most.
MAX_CASES, MAX_OF_ONE = 512, 16
# Somebody who tells another story each time is heard so often (seconds).
TELL_AGAIN_S = 30
# A case is shown for so long when its lock is over (seconds).
KEEP_S = 7 * 86_400
LOOK_S = 600.0


class Case(msgspec.Struct):
    """One payment: ``claims`` by side ("seller", "buyer"), ``state`` as in a verdict. Unix seconds."""

    id: str
    seller: str
    buyer: str
    locktime: int
    lease_id: str
    secrets: tuple[str, ...]
    opened_at: int
    claims: dict[str, Claim] = {}
    told_at: dict[str, int] = {}
    state: str = OPEN
    decided_at: int = 0

    def verdict_for(self, side: str, secret_key: bytes) -> Verdict:
        """Return what a side is told."""
        sigs = sign_secrets(self.secrets, secret_key) if side == self.state else ()
        return Verdict(lease_id=self.lease_id, payment=self.id, state=self.state, sigs=sigs)


class Arbiter:
    """``secret``: the arbiter's key. ``only``: the sellers whose cases are taken, empty for any."""

    def __init__(self, secret: bytes, only: Iterable[str] = ()) -> None:
        self._secret, self.pubkey = secret, public_key(secret)
        self.only = frozenset(only)
        self.counters: Counter[str] = Counter()
        self._cases: dict[str, Case] = {}
        self._look_at: float | None = None

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases, the newest first; to look at."""
        return tuple(sorted(self._cases.values(), key=lambda case: (-case.opened_at, case.id)))

    @property
    def deadline(self) -> float | None:
        """When to look for cases that are over."""
        return self._look_at if self._cases else None

    def step(self, event: object, moment: Moment) -> list[MarketEffect]:
        """Take one event; every record comes before what follows from it."""
        match event:
            case Heard(sender, text):
                return self._heard(sender, text, moment)
            case Tick():
                return self._look(moment)
            case _:
                return []

    def restore(self, records: Mapping[str, object]) -> None:
        """Take what was kept; PeerMisbehaved if a record is damaged."""
        for key, stored in records.items():
            try:
                self._cases[key] = msgspec.convert(stored, Case)
            except msgspec.ValidationError as exc:
                raise PeerMisbehaved("bad_record", f"not a case: {exc}") from exc
        self._look_at = float("-inf")

    def decide(self, name: str, side: str, moment: Moment) -> list[MarketEffect]:
        """Give a payment to ``side``, for good; UserError if that cannot be."""
        case = self.find(name)
        if case.state != OPEN and case.state != side:
            raise UserError(f"case {case.id[:16]} was decided for the {case.state}: that stands")
        if case.state == OPEN and moment.wall >= case.locktime:
            raise UserError(
                f"case {case.id[:16]} is over", "the buyer may have the money back by himself now"
            )
        effects: list[MarketEffect] = []
        if case.state == OPEN:
            case.state, case.decided_at = side, int(moment.wall)
            effects.append(_keep(case))
        return [*effects, *(self._tell(case, one) for one in (SELLER, BUYER))]

    def find(self, name: str) -> Case:
        """Return the case whose id begins so, if it is one; UserError."""
        found = [case for case in self._cases.values() if case.id.startswith(name)]
        if not name or len(found) != 1:
            raise UserError(
                f"{name!r} is no case here, or several", "see: nostrvpn market arbitrate list"
            )
        return found[0]

    # What is heard

    def _heard(self, sender: str, text: str, moment: Moment) -> list[MarketEffect]:
        try:
            message = parse_message(text)
            if not isinstance(message, Claim):
                raise PeerMisbehaved("not_for_an_arbiter", "another message than a claim")
            parties = self._parties(sender, message, moment.wall)
        except PeerMisbehaved as exc:
            self.counters[exc.code] += 1
            return []
        side = parties.side_of(sender)
        assert side is not None
        case = self._cases.get(case_id(message.secrets))
        if case is not None:
            return self._told(case, side, message, moment)
        if not self._has_room(parties):
            self.counters["too-many-claims"] += 1
            notice = Notice(level="error", code="too-many-claims", lease_id=message.lease_id)
            return [Tell(sender, render_message(notice), "", None, False, message.relays)]
        return self._begin(parties, side, message, moment)

    def _parties(self, sender: str, claim: Claim, wall: float) -> Parties:
        parties = parties_of(claim.secrets)
        if parties.arbiter != self.pubkey:
            raise PeerMisbehaved("not_our_case", "another arbiter is to decide")
        if parties.side_of(sender) is None:
            raise PeerMisbehaved("not_a_party", "a claim about others' money")
        if not wall < parties.locktime <= wall + LONGEST_ESCROW_S:
            known = case_id(claim.secrets) in self._cases
            if not known or parties.locktime > wall + LONGEST_ESCROW_S:
                raise PeerMisbehaved("not_in_time", "the lock is over, or far too long")
        if self.only and parties.seller not in self.only:
            raise PeerMisbehaved("not_our_seller", "a seller whose cases are not taken")
        if len(set(claim.secrets)) != len(claim.secrets):
            raise PeerMisbehaved("malformed_message", "a secret twice")
        return parties

    def _has_room(self, parties: Parties) -> bool:
        undecided = [case for case in self._cases.values() if case.state == OPEN]
        of_seller = sum(case.seller == parties.seller for case in undecided)
        of_buyer = sum(case.buyer == parties.buyer for case in undecided)
        return len(self._cases) < MAX_CASES and max(of_seller, of_buyer) < MAX_OF_ONE

    def _begin(
        self, parties: Parties, side: str, claim: Claim, moment: Moment
    ) -> list[MarketEffect]:
        case = Case(
            case_id(claim.secrets),
            parties.seller,
            parties.buyer,
            parties.locktime,
            claim.lease_id,
            tuple(sorted(claim.secrets)),
            int(moment.wall),
            {side: claim},
            {side: int(moment.wall)},
        )
        self._cases[case.id] = case
        self._look_at = self._look_at or moment.now + LOOK_S
        self.counters["cases"] += 1
        return [_keep(case), *(self._tell(case, one) for one in (SELLER, BUYER))]

    def _told(self, case: Case, side: str, claim: Claim, moment: Moment) -> list[MarketEffect]:
        answer = self._tell(case, side)
        known = case.claims.get(side)
        since = moment.wall - case.told_at.get(side, 0)
        if claim == known or case.state != OPEN or 0 <= since < TELL_AGAIN_S:
            return [answer]
        case.claims[side], case.told_at[side] = claim, int(moment.wall)
        return [_keep(case), answer]

    def _tell(self, case: Case, side: str) -> Tell:
        own, others = case.claims.get(side), case.claims.get(BUYER if side == SELLER else SELLER)
        relays = own.relays if own is not None else others.other_relays if others else ()
        to = case.seller if side == SELLER else case.buyer
        text = render_message(case.verdict_for(side, self._secret))
        return Tell(to, text, case.id, None, True, relays)

    def _look(self, moment: Moment) -> list[MarketEffect]:
        self._look_at = moment.now + LOOK_S
        old = [c.id for c in self._cases.values() if c.locktime + KEEP_S < moment.wall]
        for key in old:
            del self._cases[key]
        return [Keep(CASES, key, None) for key in old]


def _keep(case: Case) -> Keep:
    stored: dict[str, Any] = msgspec.to_builtins(case)
    return Keep(CASES, case.id, stored)
