"""Locks: who may spend a proof, and from when (NUT-10, NUT-11).

A secret that reads as ``[kind, {...}]`` is a condition. Only pay-to-public-key (P2PK) is known here:
a hash lock (NUT-14) and any other kind is refused, since whoever takes such money trusts a stranger.
Keys are compared by their x alone, as BIP-340 signs for x; :func:`lock_key` gives the even form that
others compare as text. Read as strictly as Nutshell 0.21 does, or more: what a mint may call malformed
can never be spent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from coincurve import PrivateKey, PublicKeyXOnly

from nostrvpn.cashu.blind import point, proof_holds
from nostrvpn.cashu.proof import BlindedMessage, Keyset, Proof
from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "Lock",
    "SigFlag",
    "check_lock",
    "check_money",
    "lock_key",
    "lock_secret",
    "may_spend",
    "parse_lock",
    "sign_all",
    "sign_all_message",
    "sign_inputs",
    "sign_secret",
    "signatures_of",
    "signed_by",
    "spendable_by",
    "with_signature",
]

# Unix time that every mint can hold.
MAX_LOCKTIME = (1 << 53) - 1
MAX_KEYS = 16
# Characters of a locked secret that a seller takes. Ours have 377; a mint may refuse longer ones only
# when they are spent.
MAX_LOCKED_SECRET = 700
_TAGS = ("sigflag", "n_sigs", "pubkeys", "locktime", "refund", "n_sigs_refund")


class SigFlag(Enum):
    """What a signature covers: one input, or all inputs and outputs of the request."""

    INPUTS = "SIG_INPUTS"
    ALL = "SIG_ALL"


@dataclass(frozen=True, slots=True)
class Lock:
    """Who may spend (NUT-11): ``n_sigs`` of ``key`` and ``pubkeys`` at any time; after ``locktime``
    (Unix time) also ``n_sigs_refund`` of ``refund``, and anybody if there is none.

    Keys are 66 lowercase hex digits.
    """

    key: str
    locktime: int | None = None
    refund: tuple[str, ...] = ()
    pubkeys: tuple[str, ...] = ()
    n_sigs: int = 1
    n_sigs_refund: int = 1
    sigflag: SigFlag = SigFlag.INPUTS

    @property
    def keys(self) -> tuple[str, ...]:
        """Who may sign at any time."""
        return (self.key, *self.pubkeys)


def lock_key(secret_key: bytes) -> str:
    """Return the public key to lock money to, of a 32-byte secret: ``02`` and x, whatever its y is."""
    return "02" + PrivateKey(secret_key).public_key.format(compressed=True)[1:].hex()


def lock_secret(lock: Lock, nonce: str) -> str:
    """Return the secret of a proof under this lock; ``nonce`` makes it the only one of its kind."""
    tags: list[list[str]] = [["sigflag", lock.sigflag.value]]
    if lock.pubkeys:
        tags += [["n_sigs", str(lock.n_sigs)], ["pubkeys", *lock.pubkeys]]
    if lock.locktime is not None:
        tags.append(["locktime", str(lock.locktime)])
        if lock.refund:
            tags.append(["refund", *lock.refund])
            if lock.n_sigs_refund != 1:
                tags.append(["n_sigs_refund", str(lock.n_sigs_refund)])
    return json.dumps(
        ["P2PK", {"nonce": nonce, "data": lock.key, "tags": tags}], separators=(",", ":")
    )


def parse_lock(secret: str) -> Lock | None:
    """Return the lock in a secret, or None for a plain one that whoever holds it may spend.

    PeerMisbehaved(``locked-token``): a condition of another kind, or one that is malformed: a tag
    twice or unknown, a key twice in a path (by x), more signatures asked for than there are keys.
    """
    if not secret.lstrip().startswith("["):
        return None
    try:
        found = json.loads(secret, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise PeerMisbehaved("locked-token", "the secret is no JSON") from None
    match found:
        case ["P2PK", {"nonce": str(nonce), "data": str(key), **rest}] if nonce:
            tags = rest.pop("tags", [])
            if not rest:
                return _lock(key, _tags(tags))
    raise PeerMisbehaved("locked-token", "a spending condition that is not known here")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field twice")
    return fields


def _tags(given: object) -> dict[str, list[str]]:
    tags: dict[str, list[str]] = {}
    for tag in given if isinstance(given, list) else [None]:
        match tag:
            case [str(name), *values] if name in _TAGS and name not in tags and values:
                if all(isinstance(value, str) for value in values):
                    tags[name] = values
                    continue
        raise PeerMisbehaved("locked-token", "a tag of a lock is malformed, unknown or there twice")
    return tags


def _lock(key: str, tags: dict[str, list[str]]) -> Lock:
    pubkeys, refund = (_keys(tags.get(name, [])) for name in ("pubkeys", "refund"))
    main = _keys([key, *pubkeys])
    n_sigs = _number(tags, "n_sigs", MAX_KEYS) or 1
    n_sigs_refund = _number(tags, "n_sigs_refund", MAX_KEYS)
    if n_sigs > len(main) or (n_sigs_refund or 0) > len(refund):
        raise PeerMisbehaved("locked-token", "a lock asks for more signatures than it has keys")
    try:
        [flag] = tags.get("sigflag", [SigFlag.INPUTS.value])
        sigflag = SigFlag(flag)
    except ValueError:
        raise PeerMisbehaved("locked-token", "a signature flag that is not known") from None
    locktime = _number(tags, "locktime", MAX_LOCKTIME)
    return Lock(main[0], locktime, refund, main[1:], n_sigs, n_sigs_refund or 1, sigflag)


def _keys(texts: Sequence[str]) -> tuple[str, ...]:
    keys = tuple(text.lower() for text in texts)
    if len(keys) > MAX_KEYS or len({key[2:] for key in keys}) != len(keys):
        raise PeerMisbehaved(
            "locked-token", "a key of a lock is there twice, or there are too many"
        )
    for key in keys:
        try:
            point(key)
        except PeerMisbehaved as error:
            raise PeerMisbehaved("locked-token", "a key of a lock is not one") from error
    return keys


def _number(tags: dict[str, list[str]], name: str, most: int) -> int | None:
    if name not in tags:
        return None
    text = tags[name][0]
    if len(tags[name]) == 1 and len(text) <= 16 and text.isdecimal():
        number = int(text)
        if text == str(number) and 0 < number <= most:
            return number
    raise PeerMisbehaved("locked-token", f"{name} of a lock is no number in its range")


def signatures_of(witness: str) -> tuple[str, ...]:
    """Return the signatures in a witness (128 hex digits each); what is none is left out."""
    try:
        found = json.loads(witness) if witness else None
    except (ValueError, RecursionError):
        return ()
    match found:
        case {"signatures": list(signatures)}:
            return tuple(each for each in signatures if _is_signature(each))
    return ()


def _is_signature(text: object) -> bool:
    return isinstance(text, str) and len(text) == 128 and _unhex(text) is not None


def _unhex(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def _sign(secret_key: bytes, message: bytes) -> str:
    # Without auxiliary randomness, so the same proof is signed the same way again (BIP-340).
    digest = hashlib.sha256(message).digest()
    return str(PrivateKey(secret_key).sign_schnorr(digest, bytes(32)).hex())


def _signers(keys: Iterable[str], message: bytes, signatures: Iterable[str]) -> int:
    """Return how many different keys signed a message."""
    digest, given = hashlib.sha256(message).digest(), [bytes.fromhex(text) for text in signatures]
    public = [PublicKeyXOnly(bytes.fromhex(key[2:])) for key in keys]
    return sum(any(key.verify(each, digest) for each in given) for key in public)


def signed_by(key: str, message: bytes, signature: str) -> bool:
    """Return whether a key (by its x) signed a message; any text may be given as signature."""
    return _is_signature(signature) and _signers([key], message, [signature]) == 1


def may_spend(lock: Lock, message: bytes, signatures: Sequence[str], now: float) -> bool:
    """Return whether a mint takes these signatures on ``message`` at Unix time ``now`` (NUT-11)."""
    if _signers(lock.keys, message, signatures) >= lock.n_sigs:
        return True
    if lock.locktime is None or now <= lock.locktime:
        return False
    return not lock.refund or _signers(lock.refund, message, signatures) >= lock.n_sigs_refund


def sign_secret(secret: str, secret_key: bytes) -> str:
    """Return our signature for a proof under SIG_INPUTS, of whom one knows the secret alone.

    It spends nothing without the proof itself (``C``), and the signatures of the others.
    """
    return _sign(secret_key, secret.encode())


def with_signature(proof: Proof, signature: str) -> Proof:
    """Return a proof with one more signature in its witness (128 hex digits)."""
    signatures = dict.fromkeys((*signatures_of(proof.witness), signature))
    return replace(proof, witness=json.dumps({"signatures": [*signatures]}, separators=(",", ":")))


def sign_inputs(proofs: Iterable[Proof], secret_key: bytes) -> tuple[Proof, ...]:
    """Return proofs with our signature on each that our key may help to spend (SIG_INPUTS).

    Others are left as they are; a witness of somebody else's is kept only where several sign.
    """
    x, signed = lock_key(secret_key)[2:], []
    for proof in proofs:
        lock = parse_lock(proof.secret)
        if lock is not None and lock.sigflag is SigFlag.INPUTS and _is_signer(x, lock):
            alone = lock.n_sigs == 1 and lock.n_sigs_refund == 1
            proof = replace(proof, witness="") if alone else proof
            proof = with_signature(proof, _sign(secret_key, proof.secret.encode()))
        signed.append(proof)
    return tuple(signed)


def _is_signer(x: str, lock: Lock) -> bool:
    return x in {key[2:] for key in (*lock.keys, *lock.refund)}


def sign_all_message(
    inputs: Iterable[Proof], outputs: Iterable[BlindedMessage], quote_id: str = ""
) -> bytes:
    """Return what a SIG_ALL signature covers; ``quote_id`` for a melt (NUT-11)."""
    spent = "".join(proof.secret + proof.c for proof in inputs)
    return (spent + "".join(f"{each.amount}{each.b}" for each in outputs) + quote_id).encode()


def sign_all(
    inputs: Sequence[Proof],
    outputs: Iterable[BlindedMessage],
    secret_key: bytes,
    quote_id: str = "",
) -> tuple[Proof, ...]:
    """Return inputs under SIG_ALL with our signature added to the first (NUT-11)."""
    signature = _sign(secret_key, sign_all_message(inputs, outputs, quote_id))
    return (with_signature(inputs[0], signature), *inputs[1:])


def spendable_by(secret: str, keys: Iterable[str], now: float) -> bool:
    """Return whether one of these keys alone, or nobody's, spends a proof at ``now`` (Unix time).

    False also for what is malformed and for SIG_ALL, which one does not mix with other money.
    """
    try:
        lock = parse_lock(secret)
    except PeerMisbehaved:
        return False
    if lock is None:
        return True
    ours = {key[2:] for key in keys}
    if lock.sigflag is SigFlag.ALL:
        return False
    if lock.n_sigs == 1 and ours & {key[2:] for key in lock.keys}:
        return True
    if lock.locktime is None or now <= lock.locktime:
        return False
    return not lock.refund or (
        lock.n_sigs_refund == 1 and bool(ours & {key[2:] for key in lock.refund})
    )


def check_money(
    proofs: Sequence[Proof], keysets: Mapping[str, Keyset], until: float, unit: str = "sat"
) -> None:
    """Check what can be known without the mint: that it signed each proof, with keys that are good
    beyond ``until`` (Unix time). It does not say that a proof is unspent.

    PeerMisbehaved: ``bad-proof`` (none), ``duplicate-proof``, ``unknown-keyset``, ``wrong-unit``,
    ``inactive-keyset``, ``expiring-keyset``, ``bad-amount`` (the mint has no such key), ``bad-dleq``.
    """
    if not proofs:
        raise PeerMisbehaved("bad-proof", "no proofs")
    if len({proof.secret for proof in proofs}) != len(proofs):
        raise PeerMisbehaved("duplicate-proof", "the same proof twice")
    for proof in proofs:
        keyset = keysets.get(proof.keyset_id)
        if keyset is None:
            raise PeerMisbehaved("unknown-keyset", "a keyset that this mint does not have")
        if keyset.unit != unit:
            raise PeerMisbehaved("wrong-unit", f"{unit} is taken")
        if not keyset.is_active:
            raise PeerMisbehaved("inactive-keyset", "the mint no longer signs with this keyset")
        if keyset.final_expiry is not None and keyset.final_expiry <= until:
            raise PeerMisbehaved("expiring-keyset", "the keyset ends too early")
        key = keyset.keys.get(proof.amount)
        if key is None:
            raise PeerMisbehaved("bad-amount", "the mint signs no such amount")
        if not proof_holds(proof, key):
            raise PeerMisbehaved("bad-dleq", "nothing proves that the mint signed this")


def check_lock(
    proofs: Sequence[Proof],
    keysets: Mapping[str, Keyset],
    receiver: str,
    now: float,
    margin: float,
) -> None:
    """Check that ``receiver`` ("02" and x) alone can spend proofs until ``now + margin`` at least.

    Such money needs no word to the mint before a service is given: nobody else can spend it before
    its locktime. The receiver must still know its own seen secrets, and redeem in time.
    PeerMisbehaved: ``unlocked-token``, ``locked-token`` (to somebody else, by another template),
    ``locktime-too-early``, and those of :func:`check_money`.
    """
    earliest = until = now + margin
    for proof in proofs:
        lock = parse_lock(proof.secret)
        if lock is None:
            raise PeerMisbehaved("unlocked-token", "it is not locked to the receiver")
        plain = lock.n_sigs == 1 and not lock.pubkeys and lock.sigflag is SigFlag.INPUTS
        if not plain or lock.key[2:] != receiver[2:]:
            raise PeerMisbehaved("locked-token", "it is not locked to the receiver alone")
        if len(proof.secret) > MAX_LOCKED_SECRET:
            raise PeerMisbehaved("locked-token", "the secret is longer than a mint may take")
        if lock.locktime is not None and lock.locktime < earliest:
            raise PeerMisbehaved("locktime-too-early", "the lock ends too early")
        until = max(until, lock.locktime or 0)
    check_money(proofs, keysets, until)
