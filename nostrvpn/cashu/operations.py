"""Everything between a wish and the JSON to send to a mint, and between its answer and proofs.

The paths (a wallet's I/O adds the host)::

    GET  /v1/info                  parse_info         NUT-06
    GET  /v1/keysets               parse_keysets      NUT-02
    GET  /v1/keys/{id}             parse_keys         NUT-01
    POST /v1/mint/quote/bolt11     mint_quote_body    parse_mint_quote  NUT-04, 23 (GET …/{quote})
    POST /v1/mint/bolt11           mint_body          parse_signatures, finish_outputs
    POST /v1/melt/quote/bolt11     melt_quote_body    parse_melt_quote  NUT-05, 23 (GET …/{quote})
    POST /v1/melt/bolt11           melt_body          parse_melt_quote, finish_change  NUT-08
    POST /v1/swap                  swap_body          parse_signatures, finish_outputs NUT-03
    POST /v1/checkstate            check_body         parse_states      NUT-07
    POST /v1/restore               restore_body       finish_restored   NUT-09

Outputs are made again from the same source and counter, so a wallet writes down the counter before it
asks, and asks again after a crash. Any answer that is not what was asked for raises PeerMisbehaved:
``bad-answer`` (shape, counts), ``wrong-keyset``, ``wrong-amount``, ``no-dleq``, ``bad-dleq``,
``bad-point``; answers that are errors are read by :func:`parse_refusal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nostrvpn.cashu.blind import blind, dleq_holds, unblind, y_of
from nostrvpn.cashu.proof import BlindedMessage, BlindSignature, Dleq, Keyset, Proof
from nostrvpn.cashu.wire import (
    MAX_PROOFS,
    message_dict,
    parse_signature,
    proof_dict,
    read_form,
)
from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "Output",
    "Outputs",
    "SecretSource",
    "blank_outputs",
    "check_body",
    "finish_change",
    "finish_outputs",
    "finish_restored",
    "make_output",
    "melt_body",
    "melt_quote_body",
    "mint_body",
    "mint_quote_body",
    "parse_signatures",
    "prepare_outputs",
    "restore_body",
    "swap_body",
]


class SecretSource(Protocol):
    """Where the secrets of new proofs come from: the same ones for the same keyset and counter."""

    def output(self, keyset_id: str, counter: int) -> tuple[str, bytes]:
        """Return the secret, and the blinding factor ``r`` (32 bytes in 1 … n-1)."""


@dataclass(frozen=True, slots=True)
class Output:
    """A proof to be: what the mint is asked to sign, and what opens its answer."""

    keyset_id: str
    amount: int
    b: str
    secret: str = field(repr=False)
    r: bytes = field(repr=False)

    @property
    def message(self) -> BlindedMessage:
        """What the mint sees of it."""
        return BlindedMessage(self.keyset_id, self.amount, self.b)


# In the order of the request, which is that of the answer. Groups (locked, change) are joined with +.
Outputs = tuple[Output, ...]


def prepare_outputs(
    amounts: Iterable[int], keyset: Keyset, source: SecretSource, counter: int
) -> Outputs:
    """Return an output for each amount; uses the counters ``counter`` … ``counter + len(amounts) - 1``.

    ``wrong-amount`` for an amount that the keyset has no key for.
    """
    made = []
    for number, amount in enumerate(amounts, counter):
        if amount not in keyset.keys:
            raise PeerMisbehaved("wrong-amount", f"the mint has no key for {amount}")
        made.append(make_output(keyset.id, amount, *source.output(keyset.id, number)))
    return tuple(made)


def make_output(keyset_id: str, amount: int, secret: str, r: bytes) -> Output:
    """Return an output with a secret and blinding factor that are known already (from a journal)."""
    return Output(keyset_id, amount, blind(secret, r), secret, r)


def blank_outputs(reserve: int, keyset: Keyset, source: SecretSource, counter: int) -> Outputs:
    """Return outputs without amount, enough for the mint to give back up to ``reserve`` (NUT-08).

    ``reserve``: what a melt's inputs are worth beyond the amount to pay and their own fee.
    """
    count = max(reserve - 1, 1).bit_length() if reserve > 0 else 0
    given = (source.output(keyset.id, number) for number in range(counter, counter + count))
    return tuple(make_output(keyset.id, 0, secret, r) for secret, r in given)


def finish_outputs(
    outputs: Outputs,
    signatures: Sequence[BlindSignature],
    keyset: Keyset,
    *,
    dleq_needed: bool = True,
) -> tuple[Proof, ...]:
    """Return the proofs of outputs that were signed, in their order, each with its DLEQ and ``r``.

    A missing DLEQ is ``no-dleq`` unless ``dleq_needed`` is false (money of a mint that lost NUT-12 is
    better than none); a wrong one is always ``bad-dleq``.
    """
    if len(signatures) != len(outputs):
        raise PeerMisbehaved("bad-answer", "not as many signatures as outputs")
    for output, signature in zip(outputs, signatures, strict=True):
        if signature.amount != output.amount:
            raise PeerMisbehaved("wrong-amount", "the mint signed another amount than asked for")
    return tuple(
        _proof(output, signature, keyset, dleq_needed)
        for output, signature in zip(outputs, signatures, strict=True)
    )


def finish_change(
    outputs: Outputs, signatures: Sequence[BlindSignature], keyset: Keyset
) -> tuple[Proof, ...]:
    """Return the change of a melt: the first blank outputs, in amounts of the mint's (NUT-08)."""
    if len(signatures) > len(outputs):
        raise PeerMisbehaved("bad-answer", "more change than outputs")
    return tuple(
        _proof(output, signature, keyset, False)
        for output, signature in zip(outputs, signatures, strict=False)
    )


def _proof(output: Output, signature: BlindSignature, keyset: Keyset, dleq_needed: bool) -> Proof:
    if signature.keyset_id != output.keyset_id or output.keyset_id != keyset.id:
        raise PeerMisbehaved("wrong-keyset", "the mint signed with another keyset than asked for")
    key = keyset.keys.get(signature.amount)
    if key is None:
        raise PeerMisbehaved("wrong-amount", "the mint signed an amount that it has no key for")
    dleq = None
    if signature.dleq is not None:
        if not dleq_holds(output.b, signature.c, signature.dleq, key):
            raise PeerMisbehaved("bad-dleq", "the mint signed with a key that it does not publish")
        dleq = Dleq(signature.dleq.e, signature.dleq.s, output.r.hex())
    elif dleq_needed:
        raise PeerMisbehaved("no-dleq", "the mint does not prove its signatures (NUT-12)")
    c = unblind(signature.c, output.r, key)
    return Proof(keyset.id, signature.amount, output.secret, c, dleq)


def finish_restored(outputs: Outputs, answer: object, keyset: Keyset) -> tuple[Proof, ...]:
    """Return the proofs of those of our outputs that a mint once signed (NUT-09), in its order.

    They may be spent: ask their state. Amounts are the mint's, as it alone remembers them.
    """
    form = read_form(answer, dict[str, Any], "bad-answer")
    messages, signatures = form.get("outputs"), parse_signatures(form)
    if not isinstance(messages, list) or len(messages) != len(signatures):
        raise PeerMisbehaved("bad-answer", "not as many signatures as outputs")
    ours = {output.b: output for output in outputs}
    found = []
    for message, signature in zip(messages, signatures, strict=True):
        b = message.get("B_") if isinstance(message, dict) else None
        output = ours.pop(b.lower(), None) if isinstance(b, str) else None
        if output is None:
            raise PeerMisbehaved("bad-answer", "an output that was not asked for, or twice")
        found.append(_proof(output, signature, keyset, False))
    return tuple(found)


def parse_signatures(answer: object, name: str = "signatures") -> tuple[BlindSignature, ...]:
    """Return the blind signatures in an answer; ``bad-answer``."""
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, list) or len(found) > MAX_PROOFS:
        raise PeerMisbehaved("bad-answer", f"no {name}, or too many")
    return tuple(parse_signature(each) for each in found)


def _messages(outputs: Outputs) -> list[dict[str, Any]]:
    return [message_dict(output.message) for output in outputs]


def swap_body(inputs: Iterable[Proof], outputs: Outputs) -> dict[str, Any]:
    """Return the body of a swap: worth of inputs = worth of outputs + fee of the inputs (NUT-03)."""
    return {"inputs": [proof_dict(each, dleq=False) for each in inputs]} | restore_body(outputs)


def mint_quote_body(amount: int, unit: str = "sat") -> dict[str, Any]:
    """Return the body that asks for an invoice, to be paid for new money (NUT-04)."""
    return {"amount": amount, "unit": unit}


def mint_body(quote_id: str, outputs: Outputs) -> dict[str, Any]:
    """Return the body that asks for the money of a quote that was paid (NUT-04)."""
    return {"quote": quote_id} | restore_body(outputs)


def melt_quote_body(invoice: str, unit: str = "sat") -> dict[str, Any]:
    """Return the body that asks what paying a bolt11 invoice would cost (NUT-05)."""
    return {"request": invoice, "unit": unit}


def melt_body(quote_id: str, inputs: Iterable[Proof], blanks: Outputs) -> dict[str, Any]:
    """Return the body that pays an invoice; ``blanks``: for the change (NUT-05, NUT-08)."""
    body: dict[str, Any] = {"quote": quote_id}
    body["inputs"] = [proof_dict(each, dleq=False) for each in inputs]
    return body | (restore_body(blanks) if blanks else {})


def check_body(proofs: Iterable[Proof]) -> dict[str, Any]:
    """Return the body that asks for the state of proofs (NUT-07)."""
    return {"Ys": [y_of(proof.secret) for proof in proofs]}


def restore_body(outputs: Outputs) -> dict[str, Any]:
    """Return the body that asks which outputs were ever signed (NUT-09)."""
    return {"outputs": _messages(outputs)}
