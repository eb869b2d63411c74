"""What an invoice asks for (BOLT 11): read before it is paid, never written.

The signature is checked: the payee's key comes out of it, or it must belong to the key that is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from bech32 import CHARSET, bech32_verify_checksum, convertbits
from coincurve import PublicKey

from nostrvpn.errors import PeerMisbehaved

__all__ = ["Invoice", "parse_invoice"]

# Longer ones carry pages of routing hints; nobody's wallet makes them.
_MAX_TEXT = 4096
_PREFIX = re.compile(r"ln(bcrt|bc|tbs|tb)(?:([1-9][0-9]{0,17})([munp]?))?\Z")
# Millisatoshi of one unit of each multiplier, as a fraction: "p" is a tenth.
_UNITS = {
    "": (100_000_000_000, 1),
    "m": (100_000_000, 1),
    "u": (100_000, 1),
    "n": (100, 1),
    "p": (1, 10),
}
_TIMESTAMP_WORDS, _SIGNATURE_WORDS = 7, 104
_HASH_WORDS, _KEY_WORDS = 52, 53
_DEFAULT_EXPIRY_S = 3600


@dataclass(frozen=True, slots=True)
class Invoice:
    """``amount_msat``: None where the payer chooses; ``payment_hash``: 64 hex digits; ``network``:
    ``bc``, ``tb``, ``tbs`` or ``bcrt``; ``payee``: the node's key, 66 hex digits; times in Unix seconds.
    """

    text: str = field(repr=False)
    network: str
    amount_msat: int | None
    payment_hash: str
    created_at: int
    expires_at: int
    payee: str
    description: str = ""
    description_hash: str = ""

    @property
    def amount_sat(self) -> int:
        """The amount in whole satoshi, rounded up; 0 where the payer chooses."""
        return -(-(self.amount_msat or 0) // 1000)


def parse_invoice(text: str) -> Invoice:
    """Return what an invoice asks for; PeerMisbehaved("bad_invoice") says what is wrong."""
    given = text.strip()
    if given.lower().startswith("lightning:"):
        given = given[len("lightning:") :]
    if len(given) > _MAX_TEXT or (given != given.lower() and given != given.upper()):
        raise _bad("it is too long, or mixes capitals")
    given = given.lower()
    prefix, _, data = given.rpartition("1")
    found = _PREFIX.match(prefix)
    if found is None or any(letter not in CHARSET for letter in data):
        raise _bad("it is no BOLT 11 invoice")
    words = [CHARSET.index(letter) for letter in data]
    if not bech32_verify_checksum(prefix, words):
        raise _bad("its checksum is wrong: a letter was mistyped or lost")
    words = words[:-6]
    if len(words) < _TIMESTAMP_WORDS + _SIGNATURE_WORDS:
        raise _bad("it is too short")
    body, signature = words[:-_SIGNATURE_WORDS], _bytes(words[-_SIGNATURE_WORDS:])
    fields = _fields(body[_TIMESTAMP_WORDS:])
    if "p" not in fields:
        raise _bad("it has no payment hash")
    created = _number(body[:_TIMESTAMP_WORDS])
    expiry = _number(fields["x"]) if "x" in fields else _DEFAULT_EXPIRY_S
    named = fields.get("n")
    return Invoice(
        given,
        found[1],
        _amount(found[2], found[3]),
        _bytes(fields["p"]).hex(),
        created,
        created + expiry,
        _payee(prefix, body, signature, None if named is None else _bytes(named)),
        _bytes(fields["d"]).decode("utf-8", "replace") if "d" in fields else "",
        _bytes(fields["h"]).hex() if "h" in fields else "",
    )


def _amount(digits: str | None, multiplier: str | None) -> int | None:
    if digits is None:
        return None
    times, parts = _UNITS[multiplier or ""]
    msat, rest = divmod(int(digits) * times, parts)
    if rest:
        raise _bad("its amount is a part of a millisatoshi")
    return msat


def _fields(words: Sequence[int]) -> dict[str, Sequence[int]]:
    """Return the tagged fields, the first of each; those of a wrong length are skipped (BOLT 11)."""
    found: dict[str, Sequence[int]] = {}
    lengths = {"p": _HASH_WORDS, "h": _HASH_WORDS, "s": _HASH_WORDS, "n": _KEY_WORDS}
    at = 0
    while at + 3 <= len(words):
        letter, length = CHARSET[words[at]], words[at + 1] * 32 + words[at + 2]
        value = words[at + 3 : at + 3 + length]
        if len(value) != length:
            raise _bad("a field is cut off")
        if length == lengths.get(letter, length) and (letter != "x" or length <= 8):
            found.setdefault(letter, value)
        at += 3 + length
    return found


def _payee(prefix: str, body: Sequence[int], signature: bytes, named: bytes | None) -> str:
    message = prefix.encode() + _bytes(body, padded=True)
    try:
        recovered = PublicKey.from_signature_and_message(signature, message).format()
    except Exception as exc:  # coincurve raises Exception itself
        raise _bad("its signature is none") from exc
    if named is not None and recovered != named:
        raise _bad("it is not signed by the node that it names")
    return recovered.hex()


def _number(words: Sequence[int]) -> int:
    value = 0
    for word in words:
        value = value * 32 + word
    return value


def _bytes(words: Sequence[int], *, padded: bool = False) -> bytes:
    """Return groups of five bits as bytes; what does not fill a byte is dropped, or padded with 0."""
    made = convertbits(words, 5, 8, True) or []
    return bytes(made if padded or len(words) * 5 % 8 == 0 else made[:-1])


def _bad(text: str) -> PeerMisbehaved:
    return PeerMisbehaved("bad_invoice", text)
