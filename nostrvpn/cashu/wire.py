"""Proofs, outputs and signatures as JSON, and how strictly what comes from outside is read (NUT-00).

Whatever is wrong raises PeerMisbehaved with the code that the reader names; the text tells the place,
never a value.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

import cbor2
import msgspec
from msgspec import Meta

from nostrvpn.cashu.proof import BlindedMessage, BlindSignature, Dleq, Proof
from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "MAX_AMOUNT",
    "MAX_PROOFS",
    "MAX_SECRET",
    "Amount",
    "KeysetId",
    "Point",
    "base64_text",
    "cbor_value",
    "from_base64",
    "message_dict",
    "parse_proof",
    "parse_proofs",
    "parse_signature",
    "proof_dict",
    "read_form",
]

# A sum beyond this is no money: more sat than there will ever be, in any unit a mint may have.
MAX_AMOUNT = (1 << 62) - 1
# Inputs or outputs of one request; Nutshell takes 1,000.
MAX_PROOFS = 1000
# Characters of a secret and of a witness; Nutshell's MINT_MAX_SECRET_LENGTH is 1,024.
MAX_SECRET = 1024
MAX_WITNESS = 4096

Amount = Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]
Point = Annotated[str, Meta(pattern=r"\A0[23][0-9a-fA-F]{64}\Z")]
# 8 bytes (version 00, or the short form of 01), or all 33 of version 01 (NUT-02).
KeysetId = Annotated[str, Meta(pattern=r"\A0[01](?:[0-9a-f]{14}|[0-9a-f]{64})\Z")]
_Scalar = Annotated[str, Meta(pattern=r"\A[0-9a-fA-F]{64}\Z")]
_Secret = Annotated[str, Meta(min_length=1, max_length=MAX_SECRET)]

T = TypeVar("T")
# Both alphabets: the vectors of NUT-18 are written in the one that is not safe in URLs.
_BASE64 = re.compile(r"[A-Za-z0-9_+/-]*={0,2}")
# token > keysets > proofs > a proof's fields > DLEQ; a request's transports and tags are no deeper.
MAX_DEPTH = 8


class _NoTags(Mapping[int, Any]):
    """A reader for every CBOR tag, which refuses it: tags build dates, patterns, huge numbers."""

    def __getitem__(self, tag: int) -> Any:
        return _refuse

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _refuse(*_: object) -> Any:
    raise ValueError("a tag")


class _Dleq(msgspec.Struct):
    e: _Scalar
    s: _Scalar
    r: _Scalar | None = None

    def value(self) -> Dleq:
        return Dleq(self.e.lower(), self.s.lower(), (self.r or "").lower())


class _Proof(msgspec.Struct):
    id: KeysetId
    amount: Amount
    secret: _Secret
    C: Point
    dleq: _Dleq | None = None
    witness: Annotated[str, Meta(max_length=MAX_WITNESS)] | None = None


class _Signature(msgspec.Struct):
    id: KeysetId
    amount: Amount
    C_: Point
    dleq: _Dleq | None = None


def read_form(value: object, form: type[T], code: str) -> T:
    """Return a JSON value as a struct (msgspec, strict); PeerMisbehaved(``code``)."""
    try:
        return msgspec.convert(value, form)
    except (ValueError, RecursionError, OverflowError) as error:
        raise PeerMisbehaved(code, str(error)) from None


def parse_proof(value: object) -> Proof:
    """Return the proof in a JSON object, money or not; PeerMisbehaved(``bad-proof``)."""
    form = read_form(value, _Proof, "bad-proof")
    if not form.secret.isascii() or form.amount == 0:
        raise PeerMisbehaved("bad-proof", "a secret that is not ASCII, or no amount")
    dleq = form.dleq.value() if form.dleq else None
    return Proof(form.id, form.amount, form.secret, form.C.lower(), dleq, form.witness or "")


def parse_proofs(value: object, most: int = MAX_PROOFS) -> tuple[Proof, ...]:
    """Return 1 … ``most`` proofs in a JSON list, each only once; PeerMisbehaved(``bad-proof``)."""
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise PeerMisbehaved("bad-proof", "no proofs, or too many")
    proofs = tuple(parse_proof(each) for each in value)
    if len({proof.secret for proof in proofs}) != len(proofs):
        raise PeerMisbehaved("duplicate-proof", "the same proof twice")
    return proofs


def proof_dict(proof: Proof, *, dleq: bool) -> dict[str, Any]:
    """Return a proof as JSON; with its DLEQ for a person, never for the mint, which could tell by
    ``r`` whom it signed this for (NUT-12)."""
    form: dict[str, Any] = {"id": proof.keyset_id, "amount": proof.amount}
    form |= {"secret": proof.secret, "C": proof.c}
    if dleq and proof.dleq is not None:
        form["dleq"] = {"e": proof.dleq.e, "s": proof.dleq.s}
        if proof.dleq.r:
            form["dleq"]["r"] = proof.dleq.r
    if proof.witness:
        form["witness"] = proof.witness
    return form


def message_dict(message: BlindedMessage) -> dict[str, Any]:
    """Return an output as JSON."""
    return {"id": message.keyset_id, "amount": message.amount, "B_": message.b}


def parse_signature(value: object) -> BlindSignature:
    """Return the blind signature in a JSON object; PeerMisbehaved(``bad-answer``)."""
    form = read_form(value, _Signature, "bad-answer")
    dleq = form.dleq.value() if form.dleq else None
    return BlindSignature(form.id, form.amount, form.C_.lower(), dleq)


def from_base64(text: str, code: str) -> bytes:
    """Return what base64 stands for, URL-safe or not, padded or not; PeerMisbehaved(``code``)."""
    bare = text.rstrip("=")
    try:
        if _BASE64.fullmatch(text):
            return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except ValueError:
        pass
    raise PeerMisbehaved(code, "no base64")


def base64_text(data: bytes) -> str:
    """Return bytes as URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def cbor_value(data: bytes, code: str) -> Any:
    """Return one CBOR value of maps, lists, texts, bytes and numbers; PeerMisbehaved(``code``)."""
    try:
        return cbor2.loads(
            data,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            semantic_decoders=_NoTags(),
        )
    except (cbor2.CBORDecodeError, ValueError, OverflowError, MemoryError):
        raise PeerMisbehaved(code, "no CBOR as it is written here") from None
