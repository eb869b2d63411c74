"""Payment requests: what somebody wants to be paid, as text ``creqA…`` (NUT-18)."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Any

import cbor2
import msgspec
from msgspec import Meta

from nostrvpn.cashu.wire import Amount, cbor_value, from_base64, read_form
from nostrvpn.errors import PeerMisbehaved

__all__ = ["LockWish", "PaymentRequest", "Transport", "parse_request", "render_request"]

MAX_REQUEST = 8192
_PREFIX = "creqA"
_Word = Annotated[str, Meta(max_length=64)]
_Text = Annotated[str, Meta(max_length=1024)]
_Tags = Annotated[
    list[Annotated[list[_Text], Meta(min_length=1, max_length=16)]], Meta(max_length=16)
]
Tags = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Transport:
    """Where to send the money: ``kind`` nostr (``target`` an nprofile) or post (a URL)."""

    kind: str
    target: str
    tags: Tags = ()


@dataclass(frozen=True, slots=True)
class LockWish:
    """The lock that the money must have (NUT-10): ``P2PK``, the key, tags that it must carry."""

    kind: str
    data: str
    tags: Tags = ()


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """What is asked for. ``mints``: whose money is taken, any if empty; ``single_use``: once only."""

    id: str = ""
    amount: int | None = None
    unit: str = ""
    mints: tuple[str, ...] = ()
    lock: LockWish | None = None
    transports: tuple[Transport, ...] = ()
    description: str = ""
    single_use: bool = False


class _Transport(msgspec.Struct):
    t: _Word
    a: _Text
    g: _Tags | None = None


class _Lock(msgspec.Struct):
    k: _Word
    d: _Text
    t: _Tags | None = None


class _Request(msgspec.Struct):
    i: _Word | None = None
    a: Amount | None = None
    u: _Word | None = None
    s: bool | None = None
    m: Annotated[list[_Text], Meta(max_length=64)] | None = None
    d: _Text | None = None
    t: Annotated[list[_Transport], Meta(max_length=16)] | None = None
    nut10: _Lock | None = None


def parse_request(text: str) -> PaymentRequest:
    """Read ``creqA…``; PeerMisbehaved(``bad-request``). Mints and keys in it are as they are written."""
    text = text.strip()
    if len(text) > MAX_REQUEST or not text.startswith(_PREFIX):
        raise PeerMisbehaved("bad-request", "a payment request starts with creqA")
    value = cbor_value(from_base64(text[len(_PREFIX) :], "bad-request"), "bad-request")
    form = read_form(_defined(value), _Request, "bad-request")
    if form.a is not None and not form.u:
        raise PeerMisbehaved("bad-request", "an amount of nothing")
    lock = form.nut10
    return PaymentRequest(
        id=form.i or "",
        amount=form.a,
        unit=form.u or "",
        mints=tuple(form.m or ()),
        lock=LockWish(lock.k, lock.d, _tags(lock.t)) if lock else None,
        transports=tuple(Transport(each.t, each.a, _tags(each.g)) for each in form.t or ()),
        description=form.d or "",
        single_use=bool(form.s),
    )


def _defined(value: Any) -> Any:
    """What CBOR calls undefined is null here; some wallets write it."""
    if isinstance(value, dict):
        return {key: _defined(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_defined(each) for each in value]
    return None if value is cbor2.undefined else value


def _tags(given: list[list[str]] | None) -> Tags:
    return tuple(tuple(tag) for tag in given or ())


def render_request(request: PaymentRequest) -> str:
    """Return ``creqA…``; what is empty is left out."""
    form: dict[str, Any] = {}
    if request.transports:
        form["t"] = [
            {"t": each.kind, "a": each.target, "g": [list(tag) for tag in each.tags]}
            for each in request.transports
        ]
    form |= {"i": request.id} if request.id else {}
    form |= {"a": request.amount} if request.amount is not None else {}
    form |= {"u": request.unit} if request.unit else {}
    form |= {"m": list(request.mints)} if request.mints else {}
    form |= {"d": request.description} if request.description else {}
    form |= {"s": True} if request.single_use else {}
    if request.lock:
        tags = [list(tag) for tag in request.lock.tags]
        form["nut10"] = {"k": request.lock.kind, "d": request.lock.data, "t": tags}
    return _PREFIX + base64.urlsafe_b64encode(cbor2.dumps(form)).decode()
