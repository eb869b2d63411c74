"""Tokens: links by which several nodes may join, each admitted by whichever member hears it.

A token is a secret of 16 random bytes. From it derive the mailbox of the first contact, which members
may know, and a signing key that only holders of the link have. The roster names the signer's public
key, so a member without the link can admit nobody by it: each admission carries a proof, a BIP-340
signature over the network and the newcomer's key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from coincurve import PrivateKey, PublicKeyXOnly
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nostrvpn.config.addresses import check_relay_url
from nostrvpn.errors import UserError
from nostrvpn.nostr.event import public_key

__all__ = [
    "MAX_TOKEN_LINK",
    "TOKEN_SECRET_SIZE",
    "TokenLink",
    "parse_token_link",
    "prove",
    "render_token_link",
    "token_id",
    "token_mailbox",
    "token_signer",
    "verify_proof",
]

TOKEN_SECRET_SIZE = 16
MAX_TOKEN_LINK = 2_000  # what fits a QR code of version 40 at medium error correction
MAX_TOKEN_RELAYS = 6
_HOST = "join"
_HINT = "copy the whole link again, from nostrvpn:// to its end, in quotes"
# The order of the secp256k1 group (SEC 2, section 2.4.1).
_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


def token_id(secret: bytes) -> str:
    """Return the public name of a token, 16 hex digits: it can be told without telling the secret."""
    return hashlib.sha256(b"nostrvpn/token/v1" + secret).hexdigest()[:16]


def token_mailbox(secret: bytes) -> bytes:
    """Return the 32 bytes from which the mailbox of the first contact is derived."""
    return _derive(secret, b"nostrvpn/token-mailbox/v1", 32)


def token_signer(secret: bytes) -> str:
    """Return the public key (64 hex digits) under which proofs of this token verify."""
    return public_key(_signing_key(secret))


def prove(secret: bytes, network_id: str, applicant: str, aux: bytes) -> str:
    """Return the proof (128 hex digits) that ``applicant`` holds the token; ``aux``: 32 random bytes."""
    key = PrivateKey(_signing_key(secret))
    return key.sign_schnorr(_claim(network_id, applicant), aux).hex()


def verify_proof(signer: str, network_id: str, applicant: str, proof: str) -> bool:
    """Whether ``proof`` was made for this applicant and network by a holder of the token."""
    try:
        key = PublicKeyXOnly(bytes.fromhex(signer))
        return bool(key.verify(bytes.fromhex(proof), _claim(network_id, applicant)))
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class TokenLink:
    """What ``nostrvpn://join/…`` says. ``expires`` is Unix time in seconds."""

    secret: bytes
    network_id: str
    expires: int
    relays: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<TokenLink {self.token_id} redacted>"

    @property
    def token_id(self) -> str:
        """See :func:`token_id`."""
        return token_id(self.secret)


def render_token_link(link: TokenLink) -> str:
    """Return the link's text: ``nostrvpn://join/SECRET?net=…&exp=…&relay=…``."""
    query = [("net", _b64(bytes.fromhex(link.network_id))), ("exp", str(link.expires))]
    query += [("relay", relay) for relay in link.relays[:MAX_TOKEN_RELAYS]]
    text = urlencode(query, quote_via=quote, safe=":/[].")
    return f"nostrvpn://{_HOST}/{_b64(link.secret)}?{text}"


def parse_token_link(text: str) -> TokenLink:
    """Parse what :func:`render_token_link` wrote; UserError naming what is wrong otherwise."""
    text = text.strip()
    if len(text) > MAX_TOKEN_LINK:
        raise UserError("this token link is too long to be one of ours", _HINT)
    try:
        parts = urlsplit(text)
        if parts.scheme != "nostrvpn" or parts.netloc != _HOST:
            raise UserError(f"a token link begins with nostrvpn://{_HOST}/", _HINT)
        query = parse_qs(parts.query, strict_parsing=True, max_num_fields=16)
        secret, network = _unb64(parts.path.removeprefix("/")), _unb64(query["net"][0])
        expires = int(query["exp"][0])
        link = TokenLink(secret, network.hex(), expires, tuple(query.get("relay", ())))
    except (ValueError, KeyError, binascii.Error) as exc:
        raise UserError("this token link is damaged or incomplete", _HINT) from exc
    if len(secret) != TOKEN_SECRET_SIZE or len(network) != 32 or not 0 < expires < 1 << 40:
        raise UserError("this token link is damaged or incomplete", _HINT)
    if len(link.relays) > MAX_TOKEN_RELAYS:
        raise UserError("this token link names too many relays", _HINT)
    try:
        return replace(link, relays=tuple(check_relay_url(relay) for relay in link.relays))
    except ValueError as exc:
        raise UserError(f"this token link names a relay that is none: {exc}", _HINT) from exc


def _claim(network_id: str, applicant: str) -> bytes:
    material = bytes.fromhex(network_id) + bytes.fromhex(applicant)
    return hashlib.sha256(b"nostrvpn/admit/v1" + material).digest()


def _signing_key(secret: bytes) -> bytes:
    # 48 bytes reduced to 1 … n-1 (FIPS 186-5 appendix A.4.1: the bias is below 2**-64).
    wide = int.from_bytes(_derive(secret, b"nostrvpn/token-signer/v1", 48), "big")
    return (wide % (_ORDER - 1) + 1).to_bytes(32, "big")


def _derive(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=b"nostrvpn", info=info).derive(secret)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
