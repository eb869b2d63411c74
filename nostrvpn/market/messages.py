"""The messages of a lease: versioned JSON, parsed with bounds; both sides share them.

They travel sealed (``docs/protocol/leases.md``). The sender is proven by the seal, so a message names
only its lease. Whoever gets no answer repeats the message with the same ``key`` or ``seq`` and is given
the same answer. Fields that are not known are skipped, so later versions can add some.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.terms import MAX_MSAT, PayMode, Price

__all__ = [
    "MAX_MESSAGE",
    "NOTICE_CODES",
    "RUMOR_KIND",
    "Claim",
    "Close",
    "Fund",
    "Grant",
    "Invoice",
    "InvoiceRequest",
    "LeaseMessage",
    "Low",
    "Notice",
    "Quote",
    "QuoteRequest",
    "Receipt",
    "Release",
    "Return",
    "TopUp",
    "Usage",
    "Verdict",
    "parse_message",
    "payment_id",
    "render_message",
]

RUMOR_KIND = 21900
# Twice sealed, a message grows by less than 2.4; NIP-44 takes 65,535 bytes.
MAX_MESSAGE = 24_576
VERSION = 1

Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hex64 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Point = Annotated[str, Meta(pattern=r"\A0[23][0-9a-f]{64}\Z")]
Signature = Annotated[str, Meta(pattern=r"\A([0-9a-f]{128})?\Z")]
WireGuardKey = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=\Z")]
Url = Annotated[str, Meta(min_length=1, max_length=255)]
Token = Annotated[str, Meta(max_length=20_000)]
Seed = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Msat = Annotated[int, Meta(ge=0, le=MAX_MSAT)]
Sat = Annotated[int, Meta(ge=0, le=MAX_MSAT // 1000)]
Number = Annotated[int, Meta(ge=0, le=1_000_000)]
Unix = Annotated[int, Meta(ge=0, le=2**40)]
Word = Annotated[str, Meta(pattern=r"\A[a-z0-9-]{1,40}\Z")]
Line = Annotated[str, Meta(max_length=200)]
Text = Annotated[str, Meta(max_length=1024)]

# What a notice can be about. Those that begin with "payment-error" are TollGate's.
NOTICE_CODES = frozenset(
    {
        *("payment-error-invalid-token", "payment-error-token-spent"),
        *("payment-error-mint-not-accepted", "payment-pending", "locked-token", "lock-too-short"),
        *("unknown-keyset", "inactive-keyset", "expiring-keyset"),
        *("fee-too-low", "slice-too-large", "mint-down", "mode-not-accepted", "stale-seq"),
        *("policy-denied", "price-changed", "work-needed", "trial-denied", "quote-expired"),
        *("slice-too-small", "lightning-down", "invoice-expired", "hash-refused"),
        *("channel-closed", "channel-refused"),
        *("arbiter-not-accepted", "release-needed", "released", "release-refused"),
        *("claim-refused", "too-many-claims"),
        *("too-busy", "unknown-lease", "suspended", "resumed", "closed", "ending", "grant-failed"),
    }
)


class QuoteRequest(Struct, frozen=True, tag="quote_req", kw_only=True):
    """The buyer asks for a price. ``key``: repeat with the same one.

    ``wg_pub``: the WireGuard key that the lease is bound to; ``refund``: where unused money goes, and
    who may have locked proofs back; ``want_bps``: bits per second hoped for, 0 for any; ``relays``:
    where the buyer listens; ``nonce``: the proof of work (``work.py``); ``who``: the buyer's lasting
    key, if it wants to be known, and ``who_sig`` its word (``introduction.py``); ``arbiter``: the third
    key, for escrow.
    """

    key: Hex32
    offer_id: Annotated[str, Meta(min_length=1, max_length=64)]
    offer_event: Hex64
    wg_pub: WireGuardKey
    refund: Point
    mode: PayMode
    mints: Annotated[tuple[Url, ...], Meta(max_length=16)] = ()
    relays: Annotated[tuple[Url, ...], Meta(max_length=4)] = ()
    want_bps: Count = 0
    nonce: Count = 0
    who: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    who_sig: Signature = ""
    arbiter: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""


class Quote(Struct, frozen=True, tag="quote", kw_only=True):
    """The seller's answer: what is frozen for the lease, if it is funded before ``expires_at`` (Unix).

    ``receiver``: the key that locked proofs must be locked to; ``lock_s``: for how many seconds they
    must be locked at least when they arrive; ``free_bytes``: what may be tried (0: nothing);
    ``request``: the same as a NUT-18 payment request, or empty.
    """

    key: Hex32
    lease_id: Hex32
    step_bytes: Annotated[int, Meta(gt=0, le=2**62)]
    step_msat: Msat
    hour_msat: Msat
    mode: PayMode
    mints: Annotated[tuple[Url, ...], Meta(min_length=1, max_length=16)]
    free_bytes: Count
    grace_bytes: Count
    max_slice_sat: Sat
    receiver: Point
    lock_s: Number
    expires_at: Unix
    policy: Annotated[str, Meta(max_length=64)] = ""
    request: Text = ""

    @property
    def price(self) -> Price:
        """The frozen price."""
        return Price(self.step_bytes, self.step_msat, self.hour_msat)


class Fund(Struct, frozen=True, tag="fund", kw_only=True):
    """The first payment (``seq`` 0 or more), or with an empty token the wish to try for nothing.

    ``token``: one Cashu token (V4 "cashuB…" with DLEQ proofs), plain or locked as the quote says. In a
    lease that is paid by channels it funds one, whose outputs follow from ``seed``; ``balance`` (sat)
    and ``signature`` are the payer's word of what the seller has of it.
    """

    lease_id: Hex32
    seq: Number
    token: Token = ""
    balance: Sat = 0
    signature: Signature = ""
    seed: Seed = ""


class TopUp(Struct, frozen=True, tag="topup", kw_only=True):
    """A later payment: each has a ``seq`` larger than all before it.

    The fields are those of :class:`Fund`; without a token it is an update of the lease's channel.
    """

    lease_id: Hex32
    seq: Number
    token: Token = ""
    balance: Sat = 0
    signature: Signature = ""
    seed: Seed = ""


class InvoiceRequest(Struct, frozen=True, tag="invoice_req", kw_only=True):
    """The buyer of a lease that is paid by invoices asks for one over ``sat``.

    Said again with its ``seq`` it asks whether that one is paid; the answer is then the grant.
    ``hash``: of the payment, where the buyer has the preimage (mode hold).
    """

    lease_id: Hex32
    seq: Number
    sat: Sat
    hash: Seed = ""


class Invoice(Struct, frozen=True, tag="invoice", kw_only=True):
    """The invoice (bolt11) that the payment ``seq`` is made by."""

    lease_id: Hex32
    seq: Number
    invoice: Annotated[str, Meta(min_length=1, max_length=4096)]


class Grant(Struct, frozen=True, tag="grant", kw_only=True):
    """The payment with ``seq`` is credited: here is the service, or still is.

    ``access``: how to reach it, by the kind of service (``exit_access.py``); ``payment``: the id of
    what was paid (:func:`payment_id`), empty for a trial.
    """

    lease_id: Hex32
    seq: Number
    payment: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    paid_msat: Msat
    free_bytes: Count
    access: Annotated[
        dict[Word, Line | int | Annotated[list[Line], Meta(max_length=8)]], Meta(max_length=24)
    ]


class Usage(Struct, frozen=True, tag="usage", kw_only=True):
    """What was used and is owed, signed by the seller (``attest.py``).

    ``rx`` and ``tx`` are what the seller received and sent, ``billable`` the part that costs;
    ``ms``: the time that costs; ``number`` grows by one.
    """

    lease_id: Hex32
    number: Count
    at: Unix
    rx: Count
    tx: Count
    billable: Count
    ms: Count
    due_msat: Msat
    paid_msat: Msat
    state: Word
    sig: Signature = ""


class Low(Struct, frozen=True, tag="low", kw_only=True):
    """Little is left (from the seller), or: how much is left? (from the buyer; answer: usage)."""

    lease_id: Hex32
    remaining_msat: Msat = 0


class Notice(Struct, frozen=True, tag="notice", kw_only=True):
    """Something to know: ``level`` is info, warning or error; ``code`` one of ``NOTICE_CODES``.

    With a ``seq`` it is the answer to that payment. An error says that nothing of it was consumed.
    ``key`` is that of a quote request, where there is no lease.
    """

    level: Word
    code: Word
    lease_id: Annotated[str, Meta(pattern=r"\A([0-9a-f]{32})?\Z")] = ""
    key: Annotated[str, Meta(pattern=r"\A([0-9a-f]{32})?\Z")] = ""
    seq: Number | None = None
    text: Line = ""


class Close(Struct, frozen=True, tag="close", kw_only=True):
    """The buyer has enough. Answer: a receipt, the same each time."""

    lease_id: Hex32
    reason: Word = "done"


class Receipt(Struct, frozen=True, tag="receipt", kw_only=True):
    """The end of a lease, signed by the seller; nothing in it tells where the traffic went.

    ``refund_sat`` is the face value of ``token``, which is locked to the buyer's refund key;
    ``owed_sat``: a refund that is still to come (ask again). The signature does not cover the token.
    """

    lease_id: Hex32
    buyer: Hex64
    offer_id: Annotated[str, Meta(max_length=64)]
    started_at: Unix
    ended_at: Unix
    rx: Count
    tx: Count
    billable: Count
    ms: Count
    due_msat: Msat
    paid_msat: Msat
    refund_sat: Sat
    owed_sat: Sat
    reason: Word
    token: Token = ""
    sig: Signature = ""


class Release(Struct, frozen=True, tag="release", kw_only=True):
    """One side lets the other have a payment that is in escrow: the buyer, who was served for it, or the
    seller, who served nothing for it.

    ``sigs``: its signature of each proof's secret (NUT-11), in the order of the token; ``preimage``: of
    a payment by Lightning. The answer to the buyer's: a notice ``released``, the same each time.
    """

    lease_id: Hex32
    seq: Number
    sigs: Annotated[tuple[Signature, ...], Meta(max_length=16)] = ()
    preimage: Seed = ""


class Return(Struct, frozen=True, tag="return", kw_only=True):
    """The buyer wants a payment back that is in escrow and was not used, once the lease is closed.

    Answer: the seller's release, the same each time, or the notice ``release-refused``.
    """

    lease_id: Hex32
    seq: Number


class Claim(Struct, frozen=True, tag="claim", kw_only=True):
    """What a seller or a buyer tells the arbiter of one payment in escrow. Answer: a verdict.

    ``secrets`` are those of its proofs: enough to sign, and not to spend. ``before_msat``: what was
    credited before this payment; the rest is the sender's count of the whole lease. ``receipt``: the
    seller's last signed word of it, if there is one; ``quote``: SHA-256 of the quote's JSON.
    ``relays``: where the sender listens, ``other_relays``: where the other side does.
    """

    lease_id: Hex32
    secrets: Annotated[
        tuple[Annotated[str, Meta(max_length=700)], ...], Meta(min_length=1, max_length=16)
    ]
    mint: Url
    sat: Sat
    before_msat: Msat
    credit_msat: Msat
    billable: Count
    ms: Count
    due_msat: Msat
    paid_msat: Msat
    quote: Hex64
    reason: Line = ""
    text: Text = ""
    receipt: Annotated[str, Meta(max_length=2048)] = ""
    relays: Annotated[tuple[Url, ...], Meta(max_length=4)] = ()
    other_relays: Annotated[tuple[Url, ...], Meta(max_length=4)] = ()


class Verdict(Struct, frozen=True, tag="verdict", kw_only=True):
    """What the arbiter says of a payment (its id, :func:`payment_id`).

    ``state``: ``open`` (it has to be decided), ``seller`` or ``buyer``: who may have it. The winner is
    told the arbiter's signatures, in the order of the sorted secrets.
    """

    lease_id: Hex32
    payment: Hex64
    state: Word
    sigs: Annotated[tuple[Signature, ...], Meta(max_length=16)] = ()


LeaseMessage = (
    QuoteRequest
    | Quote
    | Fund
    | TopUp
    | InvoiceRequest
    | Invoice
    | Grant
    | Usage
    | Low
    | Notice
    | Close
    | Receipt
    | Release
    | Return
    | Claim
    | Verdict
)
_DECODER: msgspec.json.Decoder[LeaseMessage] = msgspec.json.Decoder(LeaseMessage)


class _Version(Struct):
    v: int


_VERSION = msgspec.json.Decoder(_Version)


def parse_message(text: str) -> LeaseMessage:
    """Read a message; PeerMisbehaved "long_message", "malformed_message" or "unknown_version"."""
    if len(text) > MAX_MESSAGE:
        raise PeerMisbehaved("long_message", "a lease message is too long")
    try:
        version = _VERSION.decode(text).v
        if version != VERSION:
            raise PeerMisbehaved("unknown_version", f"a lease message of version {version}")
        return _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as exc:
        raise PeerMisbehaved("malformed_message", f"not a lease message: {exc}") from exc


def render_message(message: LeaseMessage) -> str:
    """Return a message as JSON text."""
    return '{"v":1,' + msgspec.json.encode(message).decode()[1:]


def payment_id(points: Iterable[str]) -> str:
    """Return the id of a payment: SHA-256 of the sorted Ys of its proofs (66 hex digits each).

    Y is ``hash_to_curve(secret)`` (NUT-00), what the mint itself knows a spent proof by.
    """
    return hashlib.sha256("".join(sorted(points)).encode()).hexdigest()
