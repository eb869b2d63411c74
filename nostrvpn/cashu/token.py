"""Tokens: money as text, to hand to somebody (NUT-00). V3 is read, V4 is read and written.

One token is of one mint. V4 names a keyset of version 1 by its first 8 bytes only: the reader knows the
mint's keysets and expands the names (:func:`expand_ids`) before the proofs are of any use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import cbor2
import msgspec

from nostrvpn.cashu.mint_url import BadMintUrl, parse_mint_url
from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.wire import base64_text, cbor_value, from_base64, parse_proofs
from nostrvpn.errors import PeerMisbehaved

__all__ = ["MAX_TOKEN", "Token", "expand_ids", "parse_token", "render_token"]

# Characters of a token: several hundred proofs with all they may carry.
MAX_TOKEN = 1 << 19
MAX_MEMO = 1024
SHORT_ID = 16
_PREFIXES = ("web+cashu://", "cashu://", "cashu:")


@dataclass(frozen=True, slots=True)
class Token:
    """Proofs of one mint; ``memo`` is somebody's text: show it by :func:`errors.one_line` only."""

    mint: str
    proofs: tuple[Proof, ...] = field(repr=False)
    unit: str = "sat"
    memo: str = field(default="", repr=False)

    @property
    def amount(self) -> int:
        """The sum of the proofs, as they claim."""
        return sum(proof.amount for proof in self.proofs)


def parse_token(text: str) -> Token:
    """Read ``cashuA…`` or ``cashuB…``; keyset ids as they are written, perhaps short.

    PeerMisbehaved: ``bad-token``, ``bad-mint`` (more than one, or a URL that is none), ``bad-proof``,
    ``duplicate-proof``. That the text is a token does not say that it is money.
    """
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    if len(text) > MAX_TOKEN:
        raise PeerMisbehaved("bad-token", "the token is too long")
    version, data = text[:6], text[6:]
    if version == "cashuA":
        return _of_v3(from_base64(data, "bad-token"))
    if version == "cashuB":
        return _of_v4(cbor_value(from_base64(data, "bad-token"), "bad-token"))
    raise PeerMisbehaved("bad-token", "a token starts with cashuA or cashuB")


def _of_v3(data: bytes) -> Token:
    try:
        form = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        raise PeerMisbehaved("bad-token", "no JSON") from None
    match form:
        case {"token": [*entries], **rest} if entries:
            mints, proofs = set(), []
            for entry in entries:
                match entry:
                    case {"mint": str(mint), "proofs": [*given]}:
                        mints.add(mint)
                        proofs += given
                    case _:
                        raise PeerMisbehaved("bad-token", "an entry without mint or proofs")
            return _token(mints, proofs, rest.get("unit"), rest.get("memo"))
    raise PeerMisbehaved("bad-token", "no entries")


def _of_v4(form: object) -> Token:
    match form:
        case {"m": str(mint), "u": str(unit), "t": [*entries], **rest}:
            proofs = []
            for entry in entries:
                match entry:
                    case {"i": bytes(name), "p": [*given]}:
                        proofs += [_json_of(name.hex(), each) for each in given]
                    case _:
                        raise PeerMisbehaved("bad-token", "an entry without keyset or proofs")
            return _token({mint}, proofs, unit, rest.get("d"))
    raise PeerMisbehaved("bad-token", "no mint, unit or entries")


def _json_of(keyset_id: str, given: object) -> object:
    """A proof of V4 as it would be in JSON."""
    if not isinstance(given, dict):
        return given
    form: dict[str, Any] = {"id": keyset_id, "amount": given.get("a"), "secret": given.get("s")}
    form |= {"C": _hex(given.get("c")), "witness": given.get("w")}
    if isinstance(dleq := given.get("d"), dict):
        form["dleq"] = {name: _hex(dleq.get(name)) for name in ("e", "s", "r")}
    return form


def _hex(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else None


def _token(mints: set[str], proofs: list[Any], unit: object, memo: object) -> Token:
    try:
        [mint] = {parse_mint_url(url) for url in mints}
    except (BadMintUrl, ValueError):
        raise PeerMisbehaved("bad-mint", "not one mint that money can be sent to") from None
    unit = "sat" if unit is None else unit
    memo = "" if memo is None else memo
    if not isinstance(unit, str) or not 0 < len(unit) <= 16 or not unit.isascii():
        raise PeerMisbehaved("bad-token", "no unit")
    if not isinstance(memo, str) or len(memo) > MAX_MEMO:
        raise PeerMisbehaved("bad-token", "the memo is no text, or too long")
    return Token(mint, parse_proofs(proofs), unit, memo)


def expand_ids(token: Token, known: Iterable[str]) -> Token:
    """Return a token with whole keyset ids, found among those of its mint.

    PeerMisbehaved: ``unknown-keyset``, ``ambiguous-keyset`` (two start with these 8 bytes).
    """
    ids = tuple(known)
    names = {proof.keyset_id for proof in token.proofs}
    whole = {name: [each for each in ids if _is_named(each, name)] for name in names}
    for found in whole.values():
        if not found:
            raise PeerMisbehaved("unknown-keyset", "a keyset that this mint does not have")
        if len(found) > 1:
            raise PeerMisbehaved("ambiguous-keyset", "two keysets have this short name")
    proofs = (replace(proof, keyset_id=whole[proof.keyset_id][0]) for proof in token.proofs)
    return replace(token, proofs=tuple(proofs))


def _is_named(keyset_id: str, name: str) -> bool:
    return keyset_id == name or (len(name) == SHORT_ID and keyset_id.startswith(name))


def render_token(token: Token) -> str:
    """Return ``cashuB…``, with DLEQ and witnesses, keyset ids in their short form (NUT-00, NUT-02)."""
    entries: dict[str, list[dict[str, Any]]] = {}
    for proof in token.proofs:
        entries.setdefault(proof.keyset_id[:SHORT_ID], []).append(_cbor_of(proof))
    form: dict[str, Any] = {
        "t": [{"i": bytes.fromhex(name), "p": given} for name, given in entries.items()]
    }
    form |= {"d": token.memo} if token.memo else {}
    return "cashuB" + base64_text(cbor2.dumps(form | {"m": token.mint, "u": token.unit}))


def _cbor_of(proof: Proof) -> dict[str, Any]:
    form: dict[str, Any] = {"a": proof.amount, "s": proof.secret, "c": bytes.fromhex(proof.c)}
    if proof.dleq is not None and proof.dleq.r:
        dleq = {"e": proof.dleq.e, "s": proof.dleq.s, "r": proof.dleq.r}
        form["d"] = {name: bytes.fromhex(text) for name, text in dleq.items()}
    return form | ({"w": proof.witness} if proof.witness else {})
