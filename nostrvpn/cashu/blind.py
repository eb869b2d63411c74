"""Blind signatures: hash to the curve, blind, unblind, the proof of equal logarithms (NUT-00, 12).

Points are 66 lowercase hex digits (compressed), scalars 64. What is not a point of secp256k1, or ends
in the point at infinity, raises PeerMisbehaved(``bad-point``). The mint's side is not here: this
project never signs money.
"""

from __future__ import annotations

import hashlib

from coincurve import PrivateKey, PublicKey

from nostrvpn.cashu.proof import Dleq, Proof
from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "ORDER",
    "blind",
    "dleq_challenge",
    "dleq_holds",
    "hash_to_curve",
    "point",
    "proof_holds",
    "unblind",
    "y_of",
]

# The order of the secp256k1 group (SEC 2, section 2.4.1).
ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_DOMAIN = b"Secp256k1_HashToCurve_Cashu_"


def point(text: str) -> PublicKey:
    """Return the point that 66 hex digits stand for; PeerMisbehaved(``bad-point``)."""
    try:
        if len(text) != 66 or text[:2] not in ("02", "03"):
            raise ValueError
        return PublicKey(bytes.fromhex(text))
    except ValueError:
        raise PeerMisbehaved("bad-point", "not a compressed point of secp256k1") from None


def hash_to_curve(message: bytes) -> PublicKey:
    """Return the point Y of a message (NUT-00); half of all tries hit the curve."""
    seed = hashlib.sha256(_DOMAIN + message).digest()
    for counter in range(1 << 16):
        digest = hashlib.sha256(seed + counter.to_bytes(4, "little")).digest()
        try:
            return PublicKey(b"\x02" + digest)
        except ValueError:
            continue
    raise PeerMisbehaved("bad-point", "no point found for a secret")


def y_of(secret: str) -> str:
    """Return Y of a proof's secret: how a mint knows the proof (NUT-07)."""
    return _hex(hash_to_curve(secret.encode()))


def blind(secret: str, r: bytes) -> str:
    """Return B_ = Y + r*G; ``r``: 32 bytes in 1 … n-1 (NUT-00)."""
    return _hex(_sum(hash_to_curve(secret.encode()), PrivateKey(r).public_key))


def unblind(signed: str, r: bytes, key: str) -> str:
    """Return C = C_ - r*K, K being the mint's key of the amount (NUT-00)."""
    return _hex(_sum(point(signed), point(key).multiply(_negated(r))))


def dleq_challenge(*points: PublicKey) -> bytes:
    """Return the hash ``e`` over points in their uncompressed form (NUT-12)."""
    text = "".join(each.format(compressed=False).hex() for each in points)
    return hashlib.sha256(text.encode()).digest()


def dleq_holds(message: str, signed: str, dleq: Dleq, key: str) -> bool:
    """Return whether C_ was made from B_ with the secret of K: what the wallet asks (NUT-12)."""
    return _holds(point(message), point(signed), dleq, point(key))


def proof_holds(proof: Proof, key: str) -> bool:
    """Return whether the mint signed this proof, by its DLEQ with ``r``; no word to the mint (NUT-12).

    A proof without DLEQ, or without ``r``, does not hold. It may be spent all the same.
    """
    if proof.dleq is None or not proof.dleq.r:
        return False
    r, mint_key = _scalar(proof.dleq.r), point(key)
    if r is None:
        return False
    signed = _sum(point(proof.c), mint_key.multiply(r))
    message = _sum(hash_to_curve(proof.secret.encode()), PrivateKey(r).public_key)
    return _holds(message, signed, proof.dleq, mint_key)


def _holds(message: PublicKey, signed: PublicKey, dleq: Dleq, key: PublicKey) -> bool:
    e, s = _scalar(dleq.e), _scalar(dleq.s)
    if e is None or s is None:
        return False
    minus_e = _negated(e)
    try:
        r1 = _sum(PrivateKey(s).public_key, key.multiply(minus_e))
        r2 = _sum(message.multiply(s), signed.multiply(minus_e))
    except PeerMisbehaved:  # infinity: it proves nothing
        return False
    return dleq_challenge(r1, r2, key, signed) == e


def _scalar(text: str) -> bytes | None:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    return value if len(value) == 32 and 0 < int.from_bytes(value, "big") < ORDER else None


def _negated(scalar: bytes) -> bytes:
    return (ORDER - int.from_bytes(scalar, "big")).to_bytes(32, "big")


def _sum(one: PublicKey, other: PublicKey) -> PublicKey:
    try:
        return PublicKey.combine_keys([one, other])
    except ValueError:
        raise PeerMisbehaved("bad-point", "points cancel each other out") from None


def _hex(value: PublicKey) -> str:
    return str(value.format(compressed=True).hex())
