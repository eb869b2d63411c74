"""What a mint says of itself, of its keys and of quotes, as values (NUT-01, 02, 04 … 08, 23).

Whatever is not as the NUTs have it raises PeerMisbehaved: ``bad-answer``, ``bad-keyset`` (an id that
is not the hash of its keys, so that a mint cannot swap keys under a known name).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nostrvpn.cashu.blind import point, y_of
from nostrvpn.cashu.operations import parse_signatures
from nostrvpn.cashu.proof import BlindSignature, Keyset, Proof
from nostrvpn.cashu.wire import Amount, KeysetId, Point, read_form
from nostrvpn.errors import PeerMisbehaved, one_line

__all__ = [
    "KeysetInfo",
    "MeltQuote",
    "MintInfo",
    "MintQuote",
    "ProofState",
    "QuoteState",
    "keyset_id",
    "parse_info",
    "parse_keys",
    "parse_keysets",
    "parse_melt_quote",
    "parse_mint_quote",
    "parse_refusal",
    "parse_states",
]

MAX_KEYSETS = 1000
# Thousandths of a unit for each input: beyond it, a proof costs a whole unit and more.
MAX_FEE_PPK = 100_000
_NUTSHELL = re.compile(r"Nutshell/([0-9]{1,4})\.([0-9]{1,4})")
_Text = Annotated[str, Meta(min_length=1, max_length=512)]
_Invoice = Annotated[str, Meta(min_length=1, max_length=4096)]
_Time = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class QuoteState(Enum):
    """How far a quote is: of new money (ISSUED is the end) or of a payment (PAID is the end)."""

    UNPAID = "UNPAID"
    PENDING = "PENDING"
    PAID = "PAID"
    ISSUED = "ISSUED"


class ProofState(Enum):
    """What a mint says of a proof (NUT-07)."""

    UNSPENT = "UNSPENT"
    PENDING = "PENDING"
    SPENT = "SPENT"


@dataclass(frozen=True, slots=True)
class MintInfo:
    """What a mint says of itself (NUT-06): ``nuts``: the numbers of those that it supports."""

    name: str
    version: str
    nuts: frozenset[int]

    @property
    def signs_all(self) -> bool:
        """Whether it knows signatures over whole swaps as NUT-11 has them now (SIG_ALL).

        No number says so. Nutshell before 0.21 signs an older message: money that is locked so there
        could never be spent.
        """
        found = _NUTSHELL.match(self.version)
        is_old = found is not None and (int(found[1]), int(found[2])) < (0, 21)
        return self.nuts >= {7, 9, 10, 11, 12} and not is_old


@dataclass(frozen=True, slots=True)
class KeysetInfo:
    """A keyset without its keys (NUT-02)."""

    id: str
    unit: str
    is_active: bool
    fee_ppk: int = 0
    final_expiry: int | None = None


@dataclass(frozen=True, slots=True)
class MintQuote:
    """An invoice to pay for new money (NUT-04); who knows ``quote`` can take that money."""

    quote: str = field(repr=False)
    invoice: str
    state: QuoteState
    expiry: int | None


@dataclass(frozen=True, slots=True)
class MeltQuote:
    """What a payment costs (NUT-05): ``amount`` and at most ``fee_reserve``; ``change`` once PAID."""

    quote: str = field(repr=False)
    amount: int
    fee_reserve: int
    state: QuoteState
    expiry: int | None
    preimage: str = field(repr=False)
    change: tuple[BlindSignature, ...]


class _KeysetInfo(msgspec.Struct):
    id: str
    unit: _Text
    active: bool
    input_fee_ppk: Annotated[int, Meta(ge=0, le=MAX_FEE_PPK)] | None = None
    final_expiry: _Time | None = None


class _Keys(msgspec.Struct):
    id: KeysetId
    unit: _Text
    keys: Annotated[dict[str, Point], Meta(min_length=1, max_length=64)]


class _MintQuote(msgspec.Struct):
    quote: _Text
    request: _Invoice
    state: QuoteState
    expiry: _Time | None = None


class _MeltQuote(msgspec.Struct):
    quote: _Text
    amount: Amount
    fee_reserve: Amount
    state: QuoteState
    expiry: _Time | None = None
    payment_preimage: Annotated[str, Meta(max_length=128)] | None = None


class _State(msgspec.Struct):
    Y: Point
    state: ProofState


def parse_info(answer: object) -> MintInfo:
    """Read ``/v1/info``; ``bad-answer``. What it says of a NUT is a claim."""
    form = read_form(answer, dict[str, Any], "bad-answer")
    nuts, found = form.get("nuts"), set()
    for name, said in nuts.items() if isinstance(nuts, dict) else ():
        supported = said.get("supported", True) if isinstance(said, dict) else bool(said)
        if isinstance(said, dict) and said.get("disabled") is True:
            supported = False
        if isinstance(name, str) and name.isascii() and name.isdecimal() and supported:
            found.add(int(name[:4]))
    texts = (form.get(name) for name in ("name", "version"))
    name, version = (one_line(text) if isinstance(text, str) else "" for text in texts)
    return MintInfo(name, version, frozenset(found))


def parse_keysets(answer: object) -> tuple[KeysetInfo, ...]:
    """Read ``/v1/keysets``; ``bad-answer``. Ids of a kind that is not known here are left out."""
    form = read_form(answer, dict[str, Any], "bad-answer")
    entries = read_form(form.get("keysets"), list[_KeysetInfo], "bad-answer")
    if len(entries) > MAX_KEYSETS:
        raise PeerMisbehaved("bad-answer", "too many keysets")
    found = {}
    for each in entries:
        if _is_full_id(each.id) and each.id not in found:
            fee, expiry = each.input_fee_ppk or 0, each.final_expiry
            found[each.id] = KeysetInfo(each.id, each.unit, each.active, fee, expiry)
    return tuple(found.values())


def _is_full_id(text: str) -> bool:
    return (len(text), text[:2]) in ((16, "00"), (66, "01")) and not set(text) - set(
        "0123456789abcdef"
    )


def parse_keys(answer: object, info: KeysetInfo) -> Keyset:
    """Read ``/v1/keys/{id}`` as the keyset of ``info``; ``bad-answer``, ``bad-keyset``."""
    form = read_form(answer, dict[str, Any], "bad-answer")
    for entry in read_form(form.get("keysets"), list[_Keys], "bad-answer"):
        if entry.id != info.id:
            continue
        keys = {_key_amount(text): key.lower() for text, key in entry.keys.items()}
        for key in keys.values():
            point(key)
        if len(keys) != len(entry.keys) or entry.unit != info.unit:
            raise PeerMisbehaved("bad-keyset", "an amount twice, or another unit")
        made = Keyset(info.id, info.unit, info.is_active, info.fee_ppk, keys, info.final_expiry)
        if keyset_id(made, int(info.id[:2])) != info.id:
            raise PeerMisbehaved("bad-keyset", "the keyset's id is not that of its keys")
        return made
    raise PeerMisbehaved("bad-answer", "the mint did not give the keys asked for")


def _key_amount(text: str) -> int:
    if len(text) <= 20 and text.isascii() and text.isdecimal():
        amount = int(text)
        if text == str(amount) and 0 < amount <= 1 << 63:
            return amount
    raise PeerMisbehaved("bad-keyset", "a key for something that is no amount")


def keyset_id(keyset: Keyset, version: int) -> str:
    """Return the id that follows from a keyset's keys (NUT-02), of version 0 or 1."""
    keys: Mapping[int, str] = dict(sorted(keyset.keys.items()))
    if version == 0:
        together = bytes.fromhex("".join(keys.values()))
        return "00" + hashlib.sha256(together).hexdigest()[:14]
    text = ",".join(f"{amount}:{key}" for amount, key in keys.items()) + f"|unit:{keyset.unit}"
    if keyset.fee_ppk:
        text += f"|input_fee_ppk:{keyset.fee_ppk}"
    if keyset.final_expiry is not None:
        text += f"|final_expiry:{keyset.final_expiry}"
    return "01" + hashlib.sha256(text.encode()).hexdigest()


def parse_mint_quote(answer: object) -> MintQuote:
    """Read a quote of new money; ``bad-answer``. The invoice's amount is for the reader to check."""
    form = read_form(answer, _MintQuote, "bad-answer")
    return MintQuote(form.quote, form.request, form.state, form.expiry)


def parse_melt_quote(answer: object) -> MeltQuote:
    """Read a quote of a payment, also what paying it answers; ``bad-answer``."""
    form = read_form(answer, _MeltQuote, "bad-answer")
    given = isinstance(answer, dict) and answer.get("change") is not None
    change = parse_signatures(answer, "change") if given else ()
    preimage = form.payment_preimage or ""
    return MeltQuote(
        form.quote, form.amount, form.fee_reserve, form.state, form.expiry, preimage, change
    )


def parse_states(answer: object, proofs: Sequence[Proof]) -> tuple[ProofState, ...]:
    """Read what ``/v1/checkstate`` says of proofs, in their order; ``bad-answer`` if one is missing."""
    form = read_form(answer, dict[str, Any], "bad-answer")
    said = {
        each.Y.lower(): each.state
        for each in read_form(form.get("states"), list[_State], "bad-answer")
    }
    try:
        return tuple(said[y_of(proof.secret)] for proof in proofs)
    except KeyError:
        raise PeerMisbehaved("bad-answer", "the mint says nothing of a proof") from None


def parse_refusal(answer: object) -> tuple[int | None, str]:
    """Return code and text of an error (NUT-00), as far as they are there: 11001 spent, 11002 pending,
    11003 outputs already signed, 12002 keyset inactive, 20001 quote not paid, 20002 already issued,
    20005 quote pending."""
    if not isinstance(answer, dict):
        return None, ""
    code, text = answer.get("code"), answer.get("detail")
    known = type(code) is int and 0 <= code < 1_000_000
    return code if known else None, one_line(text) if isinstance(text, str) else ""
