"""Where a lightning address leads and what it takes (LUD-16, LUD-06): two questions by HTTPS."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from nostrvpn.errors import PeerMisbehaved, UserError, one_line
from nostrvpn.lightning.bolt11 import Invoice, parse_invoice

__all__ = ["PayTerms", "address_url", "check_invoice", "invoice_url", "parse_pay_terms"]

_ADDRESS = re.compile(r"([a-z0-9._+-]{1,64})@([a-z0-9.-]{1,253}(?::[0-9]{1,5})?)\Z")
_MAX_URL = 2000


@dataclass(frozen=True, slots=True)
class PayTerms:
    """``callback``: where an invoice is asked for; amounts in msat; ``metadata``: as it was sent."""

    callback: str
    least_msat: int
    most_msat: int
    metadata: str


def address_url(address: str) -> str:
    """Return the URL behind ``name@host`` (LUD-16); UserError. Plain HTTP only on onion and loopback."""
    found = _ADDRESS.match(address.strip().lower())
    if found is None:
        raise UserError(
            f"{one_line(address)!r} is no lightning address", "for example: me@wallet.example"
        )
    name, host = found[1], found[2]
    return f"{_scheme(host)}://{host}/.well-known/lnurlp/{name}"


def parse_pay_terms(body: object) -> PayTerms:
    """Return the terms of a LUD-06 answer; UserError with its reason if it is an error."""
    values: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    if values.get("status") == "ERROR":
        raise UserError(f"the address takes nothing: {one_line(str(values.get('reason', '')))}")
    callback, metadata = values.get("callback"), values.get("metadata")
    least, most = values.get("minSendable"), values.get("maxSendable")
    if (
        values.get("tag") != "payRequest"
        or not isinstance(callback, str)
        or not isinstance(metadata, str)
        or type(least) is not int
        or type(most) is not int
        or not 0 < least <= most
        or not _is_callback(callback)
    ):
        raise PeerMisbehaved("bad_lnurl", "the address answered with no terms of payment")
    return PayTerms(callback, least, most, metadata)


def invoice_url(terms: PayTerms, amount_msat: int) -> str:
    """Return where to ask for an invoice over an amount; UserError if it takes no such amount."""
    if not terms.least_msat <= amount_msat <= terms.most_msat:
        raise UserError(
            f"the address takes {terms.least_msat // 1000} to {terms.most_msat // 1000} sat at once"
        )
    parts = urlsplit(terms.callback)
    query = "&".join(filter(None, (parts.query, urlencode({"amount": amount_msat}))))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


def check_invoice(terms: PayTerms, amount_msat: int, body: object) -> Invoice:
    """Return the invoice of an answer, if it is over what was asked and for these terms."""
    values: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    if values.get("status") == "ERROR":
        raise UserError(f"the address gave no invoice: {one_line(str(values.get('reason', '')))}")
    text = values.get("pr")
    if not isinstance(text, str):
        raise PeerMisbehaved("bad_lnurl", "the address answered with no invoice")
    invoice = parse_invoice(text)
    if invoice.amount_msat != amount_msat:
        raise PeerMisbehaved("bad_lnurl", "the invoice is over another amount")
    told = hashlib.sha256(terms.metadata.encode("utf-8", "replace")).hexdigest()
    if invoice.description_hash and invoice.description_hash != told:
        raise PeerMisbehaved("bad_lnurl", "the invoice is for something else")
    return invoice


def _is_callback(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (ValueError for one that is none)
    except ValueError:
        return False
    # With a user name in front, what looks like the host is none.
    is_plain = bool(parts.netloc) and "@" not in parts.netloc
    return len(url) <= _MAX_URL and is_plain and parts.scheme == _scheme(parts.netloc)


def _scheme(host: str) -> str:
    name = host.partition(":")[0].lower()
    return "http" if name.endswith(".onion") or name in ("localhost", "127.0.0.1") else "https"
