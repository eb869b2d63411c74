"""Secrets that a wallet can make again from twelve words (NUT-13, BIP-39, BIP-32)."""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

from coincurve import PrivateKey
from mnemonic import Mnemonic

from nostrvpn.cashu.blind import ORDER
from nostrvpn.cashu.conditions import Lock, lock_secret
from nostrvpn.cashu.operations import SecretSource
from nostrvpn.errors import UserError

__all__ = ["BadWords", "LockedSource", "SeedSource", "entropy_of", "seed_of", "words_of"]

_HARDENED = 1 << 31
_KDF = b"Cashu_KDF_HMAC_SHA256"


class BadWords(UserError):
    """Text that should be the words of a wallet is not."""

    code = "bad_words"


class SeedSource:
    """Plain secrets from a wallet's seed (64 bytes): one for each keyset and counter (NUT-13)."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    def __repr__(self) -> str:
        return "<SeedSource redacted>"

    def output(self, keyset_id: str, counter: int) -> tuple[str, bytes]:
        """Return secret (64 hex digits) and blinding factor; ValueError for an unknown id version."""
        if keyset_id.startswith("00"):
            return self._of_path(keyset_id, counter)
        if not keyset_id.startswith("01"):
            raise ValueError("a keyset id of a version that is not known")
        data = _KDF + bytes.fromhex(keyset_id) + counter.to_bytes(8, "big")
        secret = hmac.digest(self._seed, data + b"\0", "sha256")
        r = int.from_bytes(hmac.digest(self._seed, data + b"\1", "sha256"), "big") % ORDER
        return secret.hex(), r.to_bytes(32, "big")

    def _of_path(self, keyset_id: str, counter: int) -> tuple[str, bytes]:
        """m/129372'/0'/{keyset}'/{counter}'/0 for the secret, /1 for the blinding factor."""
        number = int.from_bytes(bytes.fromhex(keyset_id), "big") % (_HARDENED - 1)
        key, chain = _child(*_master(self._seed), _HARDENED + 129_372)
        for index in (0, number, counter):
            key, chain = _child(key, chain, _HARDENED + index)
        return _child(key, chain, 0)[0].hex(), _child(key, chain, 1)[0]


class LockedSource:
    """Secrets under a lock, whose nonces come from another source: as easy to make again."""

    def __init__(self, source: SecretSource, lock: Lock) -> None:
        self._source = source
        self._lock = lock

    def output(self, keyset_id: str, counter: int) -> tuple[str, bytes]:
        """Return a locked secret, and its blinding factor."""
        nonce, r = self._source.output(keyset_id, counter)
        return lock_secret(self._lock, nonce), r


def _master(seed: bytes) -> tuple[bytes, bytes]:
    made = hmac.digest(b"Bitcoin seed", seed, "sha512")
    return made[:32], made[32:]


def _child(key: bytes, chain: bytes, index: int) -> tuple[bytes, bytes]:
    """Return the private child key and its chain code (BIP-32); the index says whether hardened."""
    known = b"\0" + key if index >= _HARDENED else PrivateKey(key).public_key.format()
    made = hmac.digest(chain, known + index.to_bytes(4, "big"), "sha512")
    number = (int.from_bytes(made[:32], "big") + int.from_bytes(key, "big")) % ORDER
    return number.to_bytes(32, "big"), made[32:]


@lru_cache(maxsize=1)
def _english() -> Mnemonic:
    return Mnemonic("english")


def words_of(entropy: bytes) -> str:
    """Return the words for 16 bytes (BIP-39, English): twelve, parted by spaces."""
    return str(_english().to_mnemonic(entropy))


def entropy_of(words: str) -> bytes:
    """Return the bytes that words stand for; BadWords, which never repeats them."""
    try:
        return bytes(_english().to_entropy(" ".join(words.lower().split())))
    except (ValueError, LookupError):
        raise BadWords(
            "these are not the words of a wallet: a word is misspelt, missing or out of order",
            "write them again in their order, parted by spaces",
        ) from None


def seed_of(words: str) -> bytes:
    """Return the 64 bytes from which a wallet's secrets come (BIP-39, no passphrase); BadWords."""
    text = words_of(entropy_of(words))
    return hashlib.pbkdf2_hmac("sha512", text.encode(), b"mnemonic", 2048)
