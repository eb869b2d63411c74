"""Tokens: links by which several nodes may join, each admitted by whichever member hears it.

A token is a secret of 16 random bytes. From it derive the mailbox of the first contact, which members
may know, and a signing key that only holders of the link have. The roster names the signer's public
key, so a member without the link can admit nobody by it: each admission carries a proof, a BIP-340
signature over the network and the newcomer's key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from coincurve import PrivateKey, PublicKeyXOnly
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nostrvpn.errors import UserError
from nostrvpn.mesh.links import LINK_HINT, LINK_SECRET_SIZE, LinkParts
from nostrvpn.nostr.event import public_key

__all__ = [
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

TOKEN_SECRET_SIZE = LINK_SECRET_SIZE
_HOST = "join"
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
    return LinkParts(_HOST, link.secret, link.network_id, link.expires, link.relays).render()


def parse_token_link(text: str) -> TokenLink:
    """Parse what :func:`render_token_link` wrote; UserError naming what is wrong otherwise."""
    parts = LinkParts.parse(text, "token")
    if parts.host != _HOST:
        raise UserError(f"a token link begins with nostrvpn://{_HOST}/", LINK_HINT)
    return TokenLink(parts.secret, parts.network_id, parts.expires, parts.relays)


def _claim(network_id: str, applicant: str) -> bytes:
    material = bytes.fromhex(network_id) + bytes.fromhex(applicant)
    return hashlib.sha256(b"nostrvpn/admit/v1" + material).digest()


def _signing_key(secret: bytes) -> bytes:
    # 48 bytes reduced to 1 … n-1 (FIPS 186-5 appendix A.4.1: the bias is below 2**-64).
    wide = int.from_bytes(_derive(secret, b"nostrvpn/token-signer/v1", 48), "big")
    return (wide % (_ORDER - 1) + 1).to_bytes(32, "big")


def _derive(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=b"nostrvpn", info=info).derive(secret)
