"""One lease that was bought, as a record: all that a restart needs to go on with it, and its books."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nostrvpn.cashu.proof import Proof
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.market.billing import Bill, Meter
from nostrvpn.market.exit_access import ExitAccess
from nostrvpn.market.ledger import Entry
from nostrvpn.market.messages import Quote, Receipt
from nostrvpn.market.offer import Offer
from nostrvpn.market.terms import PayMode
from nostrvpn.market.trust import Outcome

__all__ = ["BOUGHT", "BOUGHT_METER", "BoughtLease", "Escrowed", "Money", "Parcel", "Phase", "Slice"]

# Spaces of records, by the lease's own key: leases, and their meters.
BOUGHT, BOUGHT_METER = "bought_lease", "bought_meter"
_METERED = ("meter", "ms", "counted_at")
# Kinds of parcels whose money is still in our account: the seller has no part of it.
_OURS = ("reclaim", "channel")


class Phase:
    """Where a purchase stands. ``OVER``: money may still be on its way home."""

    ASKING = "asking"  # a quote was asked for
    QUOTED = "quoted"  # and is good; others may be better
    TRYING = "trying"  # the tunnel is asked for, for nothing
    PROBING = "probing"  # it should be up
    PAYING = "paying"  # it was tried, or nothing may be tried; the first slice is on its way
    SERVED = "served"
    CLOSING = "closing"  # the receipt is waited for
    OVER = "over"


class Money(msgspec.Struct):
    """Money set aside for one lease by one request to the wallet (``ref``), at the mint of the lease.

    ``plan``: the amounts of each payment; ``slices``: proofs not shown yet, payment by payment;
    ``locktime``: after that they can be had back, 0 for plain money. ``invoice``: the seller's, if that
    is how it is paid; then it is there once it is paid, or with
    ``hash`` (of a preimage of ours) once the seller says that it is held; ``is_held``: the wallet does
    not know what becomes of it. Of a channel ``seed`` (hex) makes its outputs, ``capacity`` is what it
    can pay, and ``margin_sat`` what of that is not credited (sat).
    """

    ref: str
    plan: list[tuple[int, ...]]
    locktime: int = 0
    is_there: bool = False
    fee_sat: int = 0
    shown_sat: int = 0
    slices: list[tuple[Proof, ...]] = []
    is_over: bool = False  # nothing of it will be shown any more
    invoice: str = ""
    hash: str = ""
    is_held: bool = False
    seed: str = ""
    capacity: int = 0
    margin_sat: int = 0

    @property
    def sat(self) -> int:
        """The face value of all of it."""
        return sum(map(sum, self.plan))


class Parcel(msgspec.Struct):
    """Money on its way home: ``kind`` is "reclaim" (own lock), "unpaid" (what a seller saw and did not
    answer for), "escrow" (what he was shown and not let have), "channel" (what he leaves of one) or
    "refund"; ``not_before``: Unix time. ``shown_sat``: the seller's part of a channel, of which it did
    not take ``untaken_sat``."""

    ref: str
    kind: str
    proofs: tuple[Proof, ...]
    not_before: int = 0
    token: str = ""
    is_settled: bool = False
    came_sat: int = 0
    fee_sat: int = 0
    shown_sat: int = 0
    untaken_sat: int = 0

    @property
    def sat(self) -> int:
        """The face value of what is ours."""
        return max(0, sum(proof.amount for proof in self.proofs) - self.shown_sat)


class Slice(msgspec.Struct):
    """A payment that was shown; ``token`` is there until the seller answered for it; ``balance`` (sat)
    and ``signature``: of a channel."""

    seq: int
    sat: int
    credit_msat: int
    ref: str = ""  # of the money it is from
    token: str = ""
    proofs: tuple[Proof, ...] = ()
    shown_at: int = 0
    balance: int = 0
    signature: str = ""
    is_unanswered: bool = False  # for good: how the channel closes says whether it was taken


class Escrowed(msgspec.Struct):
    """A payment in escrow: ``before_msat`` was paid before it. ``state``: "open", "freeing" (the seller
    may have it, and is told so), "freed" (he knows), or "home" (it is a parcel). ``claim``: what the
    arbiter is told in the user's words, None if nothing; ``verdict``: what it said, "" if nothing;
    ``wants_back``: the seller is asked to let it go, as it was not used."""

    seq: int
    proofs: tuple[Proof, ...]
    locktime: int
    before_msat: int
    credit_msat: int
    state: str = "open"
    claim: str | None = None
    verdict: str = ""
    wants_back: bool = False

    @property
    def sat(self) -> int:
        """The face value."""
        return sum(proof.amount for proof in self.proofs) or self.credit_msat // 1000


class BoughtLease(msgspec.Struct):
    """A lease bought. Bytes, msat, milliseconds, Unix seconds; 0 for not yet.

    ``key`` is what we call it (the key of the request), ``number`` that of its keys
    (``RootSecret.lease_key``); ``slices`` are all payments, the last one perhaps not answered for.
    """

    key: str
    number: int
    offer: Offer
    wg_pub: str
    refund: str
    mode: PayMode
    mint: str
    asked_at: int
    phase: str = Phase.ASKING
    nonce: int = 0
    who: str = ""  # our lasting key, if it was to be said, and its signature
    who_sig: str = ""
    quote: Quote | None = None
    access: dict[str, str | int | list[str]] | None = None
    free_bytes: int = 0
    granted_at: int = 0
    started_at: int = 0
    ended_at: int = 0
    is_probed: bool = False
    seq: int = 1  # of the next payment; 0 is the trial
    paid_msat: int = 0
    money: list[Money] = []
    slices: list[Slice] = []
    parcels: list[Parcel] = []
    meter: list[int | str] = []
    ms: int = 0
    counted_at: int = 0
    label: str = ""
    outcome: Outcome = Outcome.SERVED
    receipt: Receipt | None = None
    number_of_usage: int = 0
    arbiter: str = ""
    escrow: list[Escrowed] = []

    @property
    def seller(self) -> str:
        """Who sells it (x-only key, hex)."""
        return self.offer.seller

    @property
    def correspondents(self) -> tuple[str, str]:
        """Whose messages are about it: the seller, and the arbiter if there is one."""
        return self.offer.seller, self.arbiter

    @property
    def lease_id(self) -> str:
        """What the seller calls it, empty before the quote."""
        return self.quote.lease_id if self.quote is not None else ""

    @property
    def is_choosing(self) -> bool:
        """Whether it is only asked what it would cost."""
        return self.phase in (Phase.ASKING, Phase.QUOTED)

    @property
    def is_preparing(self) -> bool:
        """Whether it was chosen and does not serve yet."""
        return self.phase in (Phase.TRYING, Phase.PROBING, Phase.PAYING)

    @property
    def pending(self) -> Slice | None:
        """The payment that was shown and not answered for."""
        return self.slices[-1] if self.slices and self.slices[-1].token else None

    @property
    def is_waiting(self) -> bool:
        """Whether no payment is shown now: one has no answer, or two are in escrow."""
        out = sum(one.state in ("open", "freeing") for one in self.escrow)
        return self.pending is not None or out > 1

    @property
    def purse(self) -> Money | None:
        """The money that is being used, or asked for."""
        return self.money[-1] if self.money and not self.money[-1].is_over else None

    @property
    def is_asking(self) -> bool:
        """Whether the seller's invoice is waited for."""
        purse = self.purse
        return self.mode.by_invoice and purse is not None and not (purse.is_there or purse.invoice)

    @property
    def has_paid(self) -> bool:
        """Whether an invoice is paid and the seller was not told."""
        purse = self.purse
        return purse is not None and purse.is_there and bool(purse.invoice and purse.slices)

    @property
    def is_paying(self) -> bool:
        """Whether an invoice may be paid at any moment."""
        return any(money.invoice and not (money.is_there or money.is_over) for money in self.money)

    @property
    def is_holding(self) -> bool:
        """Whether a payment is made that waits for the seller's word, and then for ours."""
        return self.mode is PayMode.HOLD and self.is_paying

    @property
    def is_live(self) -> bool:
        """Whether there is a tunnel that is not to be taken down."""
        return self.access is not None and self.phase in (
            *(Phase.TRYING, Phase.PROBING, Phase.PAYING, Phase.SERVED),
        )

    @property
    def exit_access(self) -> ExitAccess | None:
        """How the exit is reached, once granted."""
        return ExitAccess.parse(self.access) if self.access is not None else None

    def counted(self) -> Meter:
        """Return the own meter as it was kept."""
        return Meter.from_json(self.meter) if self.meter else Meter()

    def bill(self, used: int) -> Bill:
        """Return what is owed by the own count of ``used`` bytes."""
        assert self.quote is not None
        quote = self.quote
        return Bill(quote.price, self.free_bytes, quote.grace_bytes, used, self.ms, self.paid_msat)

    @property
    def shown_sat(self) -> int:
        """Face value of everything that the seller was shown."""
        return sum(payment.sat for payment in self.slices)

    def entries(self, moment: Moment) -> Iterator[Entry]:
        """Yield all that is to be in the ledger about this lease; each ref's sum never changes."""
        at, key, wallet = int(moment.wall), self.key, f"wallet:{self.mint}"
        locked, lease = f"locked:{key}", f"lease:{key}"
        for money in self.money:
            if money.is_there:
                yield Entry(money.ref, at, locked, wallet, 1000 * money.sat, "set aside")
                if not money.is_held:  # else it is not known yet
                    yield Entry(f"{money.ref}/fee", at, "fees", wallet, 1000 * money.fee_sat)
        for paid in self.slices:
            yield Entry(f"{key}/pay/{paid.seq}", at, lease, locked, 1000 * paid.sat, "paid")
        for parcel in self.parcels:
            if parcel.is_settled:
                source = locked if parcel.kind in _OURS else lease
                came, fee = 1000 * parcel.came_sat, 1000 * parcel.fee_sat
                yield Entry(parcel.ref, at, wallet, source, came, parcel.kind)
                yield Entry(f"{parcel.ref}/fee", at, "fees", source, fee)
                if self.phase == Phase.OVER:
                    unseen, left = self._untaken(parcel)
                    yield Entry(f"{parcel.ref}/untaken", at, locked, lease, unseen, "not taken")
                    yield Entry(f"{parcel.ref}/left", at, locked, "lost", left, "left to us")
        if self.is_square or (self.is_final and self.receipt is not None):
            yield from self._served(at)
        if self.is_final:
            home = sum(p.came_sat + p.fee_sat for p in self.parcels if p.kind in _OURS)
            had = sum(money.sat for money in self.money if money.is_there)
            stuck = had - self.shown_sat + sum(p.untaken_sat for p in self.parcels) - home
            yield Entry(f"{key}/stuck", at, "lost", locked, 1000 * max(0, stuck))
            taken = 1000 * self._unanswered_sat - self._home_msat("unpaid")
            taken -= sum(self._untaken(parcel)[0] for parcel in self.parcels)
            yield Entry(f"{key}/taken", at, "lost", lease, taken, "taken, and no word of it")
            if self.receipt is None:
                gone = self._gone_msat
                yield Entry(f"{key}/lost", at, "lost", lease, gone, "no receipt")

    def _served(self, at: int) -> Iterator[Entry]:
        """Yield what became of what the seller was shown, by his receipt."""
        assert self.receipt is not None
        key, lease, gone = self.key, f"lease:{self.key}", self._gone_msat
        # Of escrow it is known which payments the seller has, and what the mint took of those.
        least = min(gone, self._fees_in_escrow)
        due = min(gone - least, self.receipt.due_msat, self.receipt.paid_msat)
        # What the seller was not credited, the mint took from it.
        shown = gone + self._home_msat("refund")
        beyond = shown - self.receipt.paid_msat
        fees = min(gone - due, max(0, least if self.arbiter else beyond))
        yield Entry(f"{key}/spent", at, "spent", lease, due, "service")
        yield Entry(f"{key}/fees", at, "fees", lease, fees, "of the mint, for the seller")
        yield Entry(f"{key}/unused", at, "unused", lease, gone - due - fees, "not used")

    @property
    def _gone_msat(self) -> int:
        """What the seller took and did not give back."""
        home = self._home_msat("refund") + self._home_msat("escrow")
        return 1000 * (self.shown_sat - self._unanswered_sat) - home

    def _untaken(self, parcel: Parcel) -> tuple[int, int]:
        """Return what of a channel was signed for and not taken (msat): unanswered for, and else."""
        ref = parcel.ref.removesuffix("/home")
        unseen = sum(one.sat for one in self.slices if one.ref == ref and one.is_unanswered)
        mine = min(unseen, parcel.untaken_sat)
        return 1000 * mine, 1000 * (parcel.untaken_sat - mine)

    @property
    def _fees_in_escrow(self) -> int:
        """What the mint takes of payments that left escrow for the seller."""
        home = {p.ref for p in self.parcels if p.kind == "escrow" and p.came_sat + p.fee_sat}
        left = (e for e in self.escrow if f"{self.key}/escrow/{e.seq}" not in home)
        return sum(1000 * one.sat - one.credit_msat for one in left)

    @property
    def _unanswered_sat(self) -> int:
        """What the seller was shown and did not answer for: it is had back, if he did not take it."""
        refs = {parcel.ref for parcel in self.parcels if parcel.kind == "unpaid"}
        return sum(
            one.sat
            for one in self.slices
            if one.is_unanswered or f"{self.key}/unpaid/{one.seq}" in refs
        )

    def _home_msat(self, kind: str) -> int:
        return 1000 * sum(p.came_sat + p.fee_sat for p in self.parcels if p.kind == kind)

    @property
    def is_square(self) -> bool:
        """Whether all is said and done with the seller; money locked to him may still come home."""
        if self.phase != Phase.OVER or self.receipt is None or self.is_paying:
            return False
        owes = self.receipt.owed_sat and not self.receipt.token
        kinds = ("refund", "escrow")
        coming = any(not p.is_settled for p in self.parcels if p.kind in kinds)
        return not (owes or coming or self._is_in_escrow or any(m.is_held for m in self.money))

    @property
    def _is_in_escrow(self) -> bool:
        return any(one.state in ("open", "freeing") for one in self.escrow)

    @property
    def is_final(self) -> bool:
        """Whether nothing more can come of it."""
        return (
            self.phase == Phase.OVER
            and not self._is_in_escrow
            and all(money.is_over and not money.is_held for money in self.money)
            and all(parcel.is_settled for parcel in self.parcels)
        )

    def to_json(self) -> dict[str, object]:
        """Return what is stored, but the meter."""
        stored: dict[str, object] = msgspec.to_builtins(self)
        return {name: value for name, value in stored.items() if name not in _METERED}

    def meter_json(self) -> list[object]:
        """Return what is stored of the meter, far more often."""
        return [self.meter, self.ms, self.counted_at]

    @classmethod
    def from_json(cls, stored: object, meter: object) -> BoughtLease:
        """Rebuild from :meth:`to_json` and :meth:`meter_json`; PeerMisbehaved if damaged."""
        try:
            lease = msgspec.convert(stored, cls)
            if isinstance(meter, list):
                lease.meter, lease.ms, lease.counted_at = meter
            lease.counted()
            return lease
        except ValueError as exc:  # msgspec's errors are ValueErrors too
            raise PeerMisbehaved("bad_record", f"not a lease bought: {exc}") from exc
