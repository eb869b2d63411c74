"""A payment channel from locks alone: Spilman's, with the mint as chain (NUT-11, SIG_ALL).

The payer locks money to both (two of two; after ``locktime`` to the payer again). For each payment the
payer signs the swap that would split it anew: ``balance`` to the receiver, the rest back. The receiver
keeps the last, adds its own signature and closes before ``locktime``; no word to the mint in between.
Both make the outputs from a seed that the payer chose, so an update is a number and a signature.
Outputs are locked to their owners, since both know the secrets.

What it does not protect from: a payer who had the mint sign one of these outputs before (for the price
of the smallest proof) makes the closing swap fail, as no mint signs an output twice. Outputs differ with
each balance, so an older update may still close. The receiver's loss is bounded by what it lets the
balance grow to before it closes: keep a capacity small for a payer without a history.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nostrvpn.cashu.amounts import fee, split
from nostrvpn.cashu.blind import ORDER, y_of
from nostrvpn.cashu.conditions import (
    Lock,
    SigFlag,
    check_money,
    lock_secret,
    parse_lock,
    sign_all,
    sign_all_message,
    signatures_of,
    signed_by,
)
from nostrvpn.cashu.operations import Outputs, finish_outputs, make_output, swap_body
from nostrvpn.cashu.proof import BlindSignature, Keyset, Proof
from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "Channel",
    "Update",
    "channel_lock",
    "channel_outputs",
    "check_update",
    "close_body",
    "finish_close",
    "open_channel",
    "sign_update",
]

# Proofs that fund a channel: each costs a fee at the end.
MAX_FUNDING = 16
_LABEL = b"nostrvpn/channel/v1/"


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel: the proofs that fund it, their lock, and the seed of its outputs (32 bytes)."""

    lock: Lock
    capacity: int
    funding: tuple[Proof, ...] = field(repr=False)
    seed: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """SHA-256 of the funding proofs' Ys in order, as hex."""
        ys = sorted(y_of(proof.secret) for proof in self.funding)
        return hashlib.sha256("".join(ys).encode()).hexdigest()

    @property
    def receiver(self) -> str:
        """The key of who is paid."""
        return self.lock.pubkeys[0]

    @classmethod
    def known(cls, funding: tuple[Proof, ...], capacity: int, seed: bytes) -> Channel:
        """Return a channel that was checked before, from what was kept of it."""
        return cls(_channel_lock_of(funding), capacity, funding, seed)

    def margin_sat(self, fee_ppk: int) -> int:
        """Return what bringing any balance home costs the receiver at most: an input for each bit.

        The same for all balances, so that each is worth more than the one before.
        """
        return fee(fee_ppk, self.capacity.bit_length())


@dataclass(frozen=True, slots=True)
class Update:
    """What the receiver has so far (sat), signed by the payer: 128 hex digits."""

    balance: int
    signature: str


def channel_lock(payer: str, receiver: str, locktime: int, refund: str) -> Lock:
    """Return the lock of the money that funds a channel; keys are "02" and x, ``locktime`` Unix time."""
    return Lock(payer, locktime, (refund,), (receiver,), 2, 1, SigFlag.ALL)


def open_channel(
    funding: Sequence[Proof],
    seed: bytes,
    keysets: Mapping[str, Keyset],
    receiver: str,
    until: float,
) -> Channel:
    """Return a channel after every check of its funding that needs no word to the mint; for both sides.

    ``until``: Unix time before which the payer must have no way back. PeerMisbehaved:
    ``bad-channel``, ``locktime-too-early``, and those of :func:`conditions.check_money`.
    """
    if not 0 < len(funding) <= MAX_FUNDING or len(seed) != 32:
        raise PeerMisbehaved("bad-channel", "no funding, too many proofs, or no seed")
    lock = _channel_lock_of(funding)
    if lock.pubkeys[0][2:] != receiver[2:]:
        raise PeerMisbehaved("bad-channel", "the channel is for somebody else")
    locktime = lock.locktime or 0
    if locktime < until:
        raise PeerMisbehaved("locktime-too-early", "the payer could take the money back too early")
    check_money(funding, keysets, locktime)
    [name, *others] = {proof.keyset_id for proof in funding}
    if others:
        raise PeerMisbehaved("bad-channel", "the funding is of more than one keyset")
    paid = fee(keysets[name].fee_ppk, len(funding))
    capacity = sum(proof.amount for proof in funding) - paid
    if capacity <= 0:
        raise PeerMisbehaved("bad-channel", "the funding is worth less than closing it costs")
    return Channel(lock, capacity, tuple(replace(proof, witness="") for proof in funding), seed)


def _channel_lock_of(funding: Sequence[Proof]) -> Lock:
    """Return the one lock of all funding; a mint compares the tags as they are written."""
    locks = {parse_lock(proof.secret) for proof in funding}
    lock = locks.pop()
    if locks or lock is None or len(lock.pubkeys) != 1 or len(lock.refund) != 1:
        raise PeerMisbehaved("bad-channel", "the funding is not under one lock of a channel")
    if lock != channel_lock(lock.key, lock.pubkeys[0], lock.locktime or 0, lock.refund[0]):
        raise PeerMisbehaved("bad-channel", "the funding is not under the lock of a channel")
    for proof in funding:
        nonce = json.loads(proof.secret)[1]["nonce"]
        if proof.secret != lock_secret(lock, nonce):
            raise PeerMisbehaved("bad-channel", "the lock is not written as ours are")
    return lock


def channel_outputs(channel: Channel, balance: int, keyset: Keyset) -> tuple[Outputs, Outputs]:
    """Return what receiver and payer get at a balance, each ascending; ``keyset``: one that signs."""
    sides = (
        (b"receiver", balance, channel.receiver),
        (b"payer", channel.capacity - balance, channel.lock.refund[0]),
    )
    made = []
    for side, worth, key in sides:
        group = []
        for amount in split(worth):
            data = side + balance.to_bytes(8, "big") + amount.to_bytes(8, "big")
            nonce = hmac.digest(channel.seed, _LABEL + b"nonce/" + data, "sha256").hex()
            wide = hmac.digest(channel.seed, _LABEL + b"blind/" + data, "sha512")
            r = (int.from_bytes(wide, "big") % (ORDER - 1) + 1).to_bytes(32, "big")
            group.append(make_output(keyset.id, amount, lock_secret(Lock(key), nonce), r))
        made.append(tuple(group))
    return made[0], made[1]


def _ordered(channel: Channel, balance: int, keyset: Keyset) -> Outputs:
    receiver, payer = channel_outputs(channel, balance, keyset)
    return tuple(sorted(receiver + payer, key=lambda output: output.amount))


def _message(channel: Channel, balance: int) -> bytes:
    # The keyset is not part of what is signed, so a mint may change it before the channel closes.
    outputs = _ordered(channel, balance, Keyset("", "", True, 0, {}))
    return sign_all_message(channel.funding, [each.message for each in outputs])


def sign_update(channel: Channel, balance: int, payer_secret: bytes) -> Update:
    """Return the payer's word that the receiver has ``balance``; ValueError beyond the capacity."""
    if not 0 < balance <= channel.capacity:
        raise ValueError("a balance is 1 … capacity")
    outputs = _ordered(channel, balance, Keyset("", "", True, 0, {}))
    signed = sign_all(channel.funding, [each.message for each in outputs], payer_secret)
    return Update(balance, signatures_of(signed[0].witness)[0])


def check_update(channel: Channel, update: Update, last: int) -> None:
    """Check an update by the receiver; ``last``: the balance so far, which never falls.

    PeerMisbehaved: ``balance-fell``, ``over-capacity``, ``bad-signature``.
    """
    if update.balance < max(last, 1):
        raise PeerMisbehaved("balance-fell", "the balance is less than before")
    if update.balance > channel.capacity:
        raise PeerMisbehaved("over-capacity", "the balance is more than the channel has")
    if not signed_by(channel.lock.key, _message(channel, update.balance), update.signature):
        raise PeerMisbehaved("bad-signature", "the payer did not sign this balance")


def close_body(
    channel: Channel, update: Update, receiver_secret: bytes, keyset: Keyset
) -> dict[str, Any]:
    """Return the swap that closes a channel at an update; ``keyset``: one that signs now."""
    outputs = _ordered(channel, update.balance, keyset)
    witness = json.dumps({"signatures": [update.signature]})
    first = replace(channel.funding[0], witness=witness)
    messages = [each.message for each in outputs]
    return swap_body(sign_all((first, *channel.funding[1:]), messages, receiver_secret), outputs)


def finish_close(
    channel: Channel, balance: int, signatures: Sequence[BlindSignature], keyset: Keyset
) -> tuple[tuple[Proof, ...], tuple[Proof, ...]]:
    """Return the proofs of receiver and payer from the mint's answer to :func:`close_body`.

    The payer's may be sent to it, or it restores them itself: its outputs are
    :func:`channel_outputs` at the balance of the close.
    """
    proofs = finish_outputs(_ordered(channel, balance, keyset), signatures, keyset)
    receiver, _ = channel_outputs(channel, balance, keyset)
    ours = {output.secret for output in receiver}
    return (
        tuple(proof for proof in proofs if proof.secret in ours),
        tuple(proof for proof in proofs if proof.secret not in ours),
    )
