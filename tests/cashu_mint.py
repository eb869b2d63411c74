"""A Cashu mint in memory: keysets, fees, spent proofs, locks, invoices, all on a clock that is given.

``handle(method, path, body)`` is the whole HTTP interface; ``keys`` is what a wallet knows of it;
``issue`` is money from nowhere. Switches for what goes wrong: ``down``, ``rate_limited``, ``pending``,
``rotate``, ``tamper``, ``pays``. The same calls give the same answers. That locks are read as a real
mint reads them is for the tests against a real mint to show.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from coincurve import PrivateKey

from nostrvpn.cashu.answers import keyset_id
from nostrvpn.cashu.blind import ORDER, dleq_challenge, hash_to_curve, point, y_of
from nostrvpn.cashu.conditions import (
    Lock,
    SigFlag,
    may_spend,
    parse_lock,
    sign_all_message,
    signatures_of,
)
from nostrvpn.cashu.operations import SecretSource, finish_outputs, prepare_outputs
from nostrvpn.cashu.proof import BlindedMessage, BlindSignature, Dleq, Keyset, MintKeys, Proof
from nostrvpn.cashu.secrets import LockedSource, SeedSource
from nostrvpn.cashu.wire import parse_proofs, parse_signature
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.lightning.bolt11 import parse_invoice

__all__ = ["MemoryMint", "MintDown", "blind_sign", "prove"]

AMOUNTS = tuple(1 << bit for bit in range(21))


class MintDown(ConnectionError):
    """The mint does not answer."""


class Refused(Exception):
    """A refusal with a code of NUT-00."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def blind_sign(b: str, secret_key: bytes) -> str:
    """Return C_ = k*B_."""
    return str(point(b).multiply(secret_key).format().hex())


def prove(b: str, secret_key: bytes) -> Dleq:
    """Return that C_ = k*B_ and K = k*G have the same k; the nonce is of NUT-12's derivation."""
    message, key = point(b), PrivateKey(secret_key).public_key
    signed = message.multiply(secret_key)
    data = b"".join(each.format(compressed=False) for each in (key, message, signed))
    for counter in range(256):
        nonce = hmac.digest(
            secret_key, b"Cashu_DLEQ_R_v1" + data + bytes([counter]), hashlib.sha256
        )
        if 0 < int.from_bytes(nonce, "big") < ORDER:
            break
    e = dleq_challenge(PrivateKey(nonce).public_key, message.multiply(nonce), key, signed)
    s = PrivateKey(secret_key).multiply(e).add(nonce).secret
    return Dleq(e.hex(), s.hex())


class MemoryMint:
    """A mint of unit sat; ``now`` is its clock (Unix time), set by the test."""

    def __init__(
        self,
        url: str = "https://mint.example",
        *,
        fee_ppk: int = 0,
        now: float = 0.0,
        version: int = 1,
    ) -> None:
        self.url = url
        self.now = now
        self.version = version
        self.keysets: dict[str, Keyset] = {}
        self.spent: set[str] = set()  # Y
        self.pending: set[str] = set()  # Y; proofs that another request holds
        self.signed: dict[str, dict[str, Any]] = {}  # B_ -> signature
        self.quotes: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.down = False
        self.rate_limited = False
        self.pays = "PAID"  # what becomes of a melt: PAID, PENDING, UNPAID
        self.pays_at_once = True  # invoices of mint quotes
        self.reserve, self.paid_fee = 2, 1
        self.tamper: Callable[[str, dict[str, Any]], Any] | None = None
        self._secrets: dict[str, dict[int, bytes]] = {}
        self._waiting: dict[str, tuple[Sequence[Proof], list[BlindedMessage]]] = {}
        self._issued = 0
        self.keyset = self.rotate(fee_ppk)

    @property
    def keys(self) -> MintKeys:
        """What a wallet knows of this mint."""
        return MintKeys(self.url, dict(self.keysets))

    def rotate(self, fee_ppk: int = 0, final_expiry: int | None = None) -> Keyset:
        """Sign with a new keyset from now on; those before go on to be spent."""
        self.keysets = {name: replace(each, is_active=False) for name, each in self.keysets.items()}
        seed = f"{self.url}/{len(self.keysets)}/".encode()
        secrets = {
            amount: hashlib.sha256(seed + str(amount).encode()).digest() for amount in AMOUNTS
        }
        keys = {
            amount: PrivateKey(key).public_key.format().hex() for amount, key in secrets.items()
        }
        made = Keyset("", "sat", True, fee_ppk, keys, final_expiry)
        self.keyset = replace(made, id=keyset_id(made, self.version))
        self.keysets[self.keyset.id] = self.keyset
        self._secrets[self.keyset.id] = secrets
        return self.keyset

    def issue(self, amounts: Sequence[int], lock: Lock | None = None) -> tuple[Proof, ...]:
        """Return new proofs of the keyset of now, plain or locked, as another wallet would hold them."""
        source: SecretSource = SeedSource(b"another wallet at " + self.url.encode())
        outputs = prepare_outputs(
            amounts, self.keyset, LockedSource(source, lock) if lock else source, self._issued
        )
        self._issued += len(outputs)
        made = self._sign([each.message for each in outputs])
        return finish_outputs(outputs, [parse_signature(each) for each in made], self.keyset)

    def pay(self, quote: str) -> None:
        """Let an invoice be paid: that of new money, or one that the mint is about to pay."""
        if quote in self._waiting:
            self._settle(quote, *self._waiting.pop(quote))
        self.quotes[quote]["state"] = "PAID"

    def fail(self, quote: str) -> None:
        """Let a payment that the mint is about to make fail: its inputs are free again."""
        self.pending -= {y_of(each.secret) for each in self._waiting.pop(quote)[0]}
        self.quotes[quote]["state"] = "UNPAID"

    def handle(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Answer a request: HTTP status and JSON. MintDown if it does not answer at all."""
        self.calls.append(f"{method} {path}")
        if self.down:
            raise MintDown(self.url)
        if self.rate_limited:
            return 429, {"detail": "Rate limit exceeded"}
        try:
            answer = self._answer(method, path.removeprefix("/v1/"), body or {})
        except Refused as error:
            return 400, {"detail": str(error), "code": error.code}
        except PeerMisbehaved as error:
            return 422, {"detail": str(error), "code": 10000}
        return 200, self.tamper(path, answer) if self.tamper else answer

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        match method, path.split("/"):
            case "GET", ["info"]:
                nuts: dict[str, Any] = {
                    str(nut): {"supported": True} for nut in (7, 8, 9, 10, 11, 12)
                }
                nuts |= {"4": {"methods": [], "disabled": False}}
                return {"name": "memory", "version": "memory/1", "nuts": nuts}
            case "GET", ["keysets"]:
                return {"keysets": [self._info(each) for each in self.keysets.values()]}
            case "GET", ["keys", name] if name in self.keysets:
                keyset = self.keysets[name]
                keys = {str(amount): key for amount, key in keyset.keys.items()}
                return {"keysets": [{"id": name, "unit": "sat", "keys": keys}]}
            case "POST", ["swap"]:
                inputs, outputs = self._inputs(body), self._outputs(body)
                if self._worth(inputs) != sum(each.amount for each in outputs):
                    raise Refused(11005, "inputs and outputs are not balanced")
                self._unlock(inputs, outputs, "")
                signatures = self._sign(outputs)
                self.spent |= {y_of(each.secret) for each in inputs}
                return {"signatures": signatures}
            case "POST", ["checkstate"]:
                return {"states": [{"Y": y, "state": self._state(y)} for y in body["Ys"]]}
            case "POST", ["restore"]:
                known = [each for each in body["outputs"] if each["B_"] in self.signed]
                return {"outputs": known, "signatures": [self.signed[each["B_"]] for each in known]}
            case "GET", [("mint" | "melt"), "quote", "bolt11", quote] if quote in self.quotes:
                return self.quotes[quote]
            case "POST", [("mint" | "melt") as kind, *rest]:
                return self._quote(kind, body) if rest[0] == "quote" else self._paid(kind, body)
        raise Refused(10000, "no such path")

    def _info(self, keyset: Keyset) -> dict[str, Any]:
        form = {"id": keyset.id, "unit": "sat", "active": keyset.is_active}
        form |= {"input_fee_ppk": keyset.fee_ppk}
        return form | ({"final_expiry": keyset.final_expiry} if keyset.final_expiry else {})

    def _state(self, y: str) -> str:
        return "SPENT" if y in self.spent else "PENDING" if y in self.pending else "UNSPENT"

    def _inputs(self, body: dict[str, Any]) -> tuple[Proof, ...]:
        inputs = parse_proofs(body["inputs"])
        for proof in inputs:
            key = self._secrets.get(proof.keyset_id, {}).get(proof.amount)
            expiry = self.keysets[proof.keyset_id].final_expiry if key else None
            if key is None or (expiry is not None and expiry <= self.now):
                raise Refused(12001, "keyset not found")
            if hash_to_curve(proof.secret.encode()).multiply(key).format().hex() != proof.c:
                raise Refused(10001, "proofs could not be verified")
            if self._state(y_of(proof.secret)) != "UNSPENT":
                spent = self._state(y_of(proof.secret)) == "SPENT"
                raise Refused(*((11001, "already spent") if spent else (11002, "pending")))
        return inputs

    def _outputs(self, body: dict[str, Any]) -> list[BlindedMessage]:
        given = body.get("outputs") or []
        outputs = [BlindedMessage(each["id"], each["amount"], each["B_"]) for each in given]
        if any(each.keyset_id != self.keyset.id for each in outputs):
            raise Refused(12002, "keyset is inactive")
        if any(each.b in self.signed for each in outputs):
            raise Refused(11003, "outputs already signed")
        if len({each.b for each in outputs}) != len(outputs):
            raise Refused(11008, "duplicate outputs")
        return outputs

    def _worth(self, inputs: Sequence[Proof]) -> int:
        """What inputs are worth beyond their fee."""
        fee = -(-sum(self.keysets[each.keyset_id].fee_ppk for each in inputs) // 1000)
        return sum(each.amount for each in inputs) - fee

    def _unlock(
        self, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage], quote: str
    ) -> None:
        try:
            locks = [parse_lock(each.secret) for each in inputs]
        except PeerMisbehaved as error:
            raise Refused(11000, str(error)) from error
        first = locks[0]
        if any(lock is not None and lock.sigflag is SigFlag.ALL for lock in locks):
            message = sign_all_message(inputs, outputs, quote)
            if first is None or len(set(locks)) != 1:
                raise Refused(11000, "not all secrets are equal")
            if not may_spend(first, message, signatures_of(inputs[0].witness), self.now):
                raise Refused(11000, "signature threshold not met")
            return
        for proof, lock in zip(inputs, locks, strict=True):
            signatures = signatures_of(proof.witness)
            if lock and not may_spend(lock, proof.secret.encode(), signatures, self.now):
                raise Refused(11000, "signature threshold not met")

    def _sign(self, outputs: Sequence[BlindedMessage]) -> list[dict[str, Any]]:
        made = []
        for each in outputs:
            key = self._secrets[each.keyset_id].get(each.amount)
            if key is None:
                raise Refused(11006, "amount outside of limit")
            signature = BlindSignature(each.keyset_id, each.amount, blind_sign(each.b, key))
            dleq = prove(each.b, key)
            form = {"id": signature.keyset_id, "amount": each.amount, "C_": signature.c}
            made.append(form | {"dleq": {"e": dleq.e, "s": dleq.s}})
            self.signed[each.b] = made[-1]
        return made

    def _quote(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        name = f"{kind}-{len(self.quotes)}"
        if kind == "mint":
            invoice, amount = f"lnbc-{body['amount']}-{name}", body["amount"]
            made: dict[str, Any] = {
                "request": invoice,
                "state": "PAID" if self.pays_at_once else "UNPAID",
            }
        else:  # lnbc-21-… is an invoice over 21 sat, too
            text = body["request"]
            is_short = text.startswith("lnbc-")
            amount = int(text.split("-")[1]) if is_short else parse_invoice(text).amount_sat
            made = {"fee_reserve": self.reserve, "state": "UNPAID", "request": body["request"]}
        made |= {"quote": name, "amount": amount, "unit": "sat", "expiry": int(self.now) + 3600}
        self.quotes[name] = made
        return made

    def _paid(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        quote, outputs = self.quotes[body["quote"]], self._outputs(body)
        if kind == "mint":
            if quote["state"] != "PAID":
                issued = quote["state"] == "ISSUED"
                raise Refused(*((20002, "already issued") if issued else (20001, "not paid")))
            if sum(each.amount for each in outputs) != quote["amount"]:
                raise Refused(11005, "not the amount of the quote")
            quote["state"] = "ISSUED"
            return {"signatures": self._sign(outputs)}
        if quote["state"] != "UNPAID":
            raise Refused(20006 if quote["state"] == "PAID" else 20005, "paid or being paid")
        inputs = self._inputs(body)
        if self._worth(inputs) < quote["amount"] + quote["fee_reserve"]:
            raise Refused(11005, "not enough for amount and fee reserve")
        self._unlock(inputs, outputs, quote["quote"])
        if self.pays == "UNPAID":
            raise Refused(20004, "Lightning payment failed")
        quote["state"] = self.pays
        if self.pays == "PENDING":
            self.pending |= {y_of(each.secret) for each in inputs}
            self._waiting[quote["quote"]] = (inputs, outputs)
        else:
            self._settle(quote["quote"], inputs, outputs)
        return quote

    def _settle(self, name: str, inputs: Sequence[Proof], outputs: list[BlindedMessage]) -> None:
        quote, ys = self.quotes[name], {y_of(each.secret) for each in inputs}
        self.pending, self.spent = self.pending - ys, self.spent | ys
        back = self._worth(inputs) - quote["amount"] - self.paid_fee
        bits = [1 << bit for bit in range(back.bit_length()) if back >> bit & 1]
        change = [replace(each, amount=bit) for each, bit in zip(outputs, bits, strict=False)]
        quote |= {"payment_preimage": "00" * 32, "change": self._sign(change)}
