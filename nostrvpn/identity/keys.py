"""The root secret and the keys derived from it.

The root *is* the node's Nostr secret key. Other keys come from it by HKDF-SHA256 (RFC 5869) under
labels of their own, so a key that leaks tells nothing about the root or about its sisters, and the
WireGuard key can be rotated (``epoch``) without a new npub. ``docs/protocol/identity.md`` states
the derivation; ``docs/protocol/vectors/identity.json`` holds examples.
"""

from __future__ import annotations

from base64 import b64encode
from hmac import compare_digest

from coincurve import PrivateKey, PublicKeyXOnly
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nostrvpn.errors import UserError
from nostrvpn.identity.bech32 import decode_key, encode_key

__all__ = ["BadKey", "RootSecret", "npub", "parse_npub", "parse_nsec", "wireguard_public_key"]

# The order of the secp256k1 group (SEC 2, section 2.4.1): a secret is 1 … order-1.
_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_SALT = b"nostrvpn"
_WIREGUARD_LABEL = b"nostrvpn/wireguard/v1/"
_PAYMENT_LABEL = b"nostrvpn/payment/v1/"
_RELAY_LABEL = b"nostrvpn/relay/v1/0"
_VOLUNTEER_LABEL = b"nostrvpn/volunteer/v1/0"
_MARKET_LABEL = b"nostrvpn/market/v1/"
_RATING_LABEL = b"nostrvpn/rating/v1/0"
_LEASE_LABEL = b"nostrvpn/lease/v1/"
_WALLET_LABEL = b"nostrvpn/wallet/v1/0"
_ARBITER_LABEL = b"nostrvpn/arbiter/v1/0"


class BadKey(UserError):
    """Text or bytes that should be a key are not one."""

    code = "bad_key"


class RootSecret:
    """The node's one secret, 32 bytes in 1 … n-1 of secp256k1; it never shows by accident."""

    __slots__ = ("_public_key", "_secret")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < _ORDER:
            raise BadKey("this is not a valid secret key", "a secret key is 32 bytes, nsec1…")
        self._secret = bytes(secret)
        self._public_key = PrivateKey(self._secret).public_key.format(compressed=True)[1:].hex()

    def __repr__(self) -> str:
        return "<RootSecret redacted>"

    def __reduce__(self) -> str:
        raise TypeError("a root secret is not pickled")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RootSecret) and compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self._public_key)

    @property
    def public_key(self) -> str:
        """The node's Nostr public key: x-only, 64 lowercase hex digits (BIP-340)."""
        return self._public_key

    @property
    def npub(self) -> str:
        """The node's Nostr public key as ``npub1…`` (NIP-19)."""
        return npub(self._public_key)

    def reveal(self) -> bytes:
        """Return the 32 secret bytes, for signing and key agreement; never log or store them."""
        return self._secret

    def nsec(self) -> str:
        """Return the secret as ``nsec1…`` (NIP-19); never log it."""
        return encode_key("nsec", self._secret)

    def wireguard_private_key(self, epoch: int = 0) -> bytes:
        """Return the WireGuard private key of an epoch: HKDF, then clamped (RFC 7748 section 5)."""
        return _clamped(self._derive(_label(_WIREGUARD_LABEL, epoch), 32))

    def payment_key(self, epoch: int = 0) -> bytes:
        """Return the secp256k1 secret that locks money, apart from the identity.

        48 bytes of HKDF reduced to 1 … n-1 (FIPS 186-5 appendix A.4.1: the bias is below 2**-64).
        """
        return self._scalar(_label(_PAYMENT_LABEL, epoch))

    def volunteer_key(self) -> bytes:
        """Return the secp256k1 secret that signs this node's public offers, apart from the identity."""
        return self._scalar(_VOLUNTEER_LABEL)

    def market_key(self) -> bytes:
        """Return the secp256k1 secret that signs what this node sells, apart from the identity."""
        return self._scalar(_label(_MARKET_LABEL, 0))

    def market_wireguard_key(self) -> bytes:
        """Return the WireGuard private key that strangers meet, clamped (RFC 7748 section 5)."""
        return _clamped(self._derive(_MARKET_LABEL + b"wireguard", 32))

    def rating_key(self) -> bytes:
        """Return the secp256k1 secret that signs this node's ratings, apart from the identity."""
        return self._scalar(_RATING_LABEL)

    def arbiter_key(self) -> bytes:
        """Return the secp256k1 secret by which this node decides others' disputes, apart from the rest.

        Its npub is what buyers and sellers name, and the third key of their locks.
        """
        return self._scalar(_ARBITER_LABEL)

    def lease_key(self, number: int) -> bytes:
        """Return the secp256k1 secret by which this node buys its lease of this number."""
        return self._scalar(_label(_LEASE_LABEL, number))

    def lease_wireguard_key(self, number: int) -> bytes:
        """Return the WireGuard private key of a lease that was bought, clamped."""
        return _clamped(self._derive(_label(_LEASE_LABEL, number) + b"/wireguard", 32))

    def wallet_entropy(self) -> bytes:
        """Return the 16 bytes that the words of this node's wallet stand for (BIP-39)."""
        return self._derive(_WALLET_LABEL, 16)

    def relay_secret(self) -> bytes:
        """Return the 32 bytes from which this node, as a relay, derives its clients' credentials.

        Derived, so that credentials given out before a restart go on to be good.
        """
        return self._derive(_RELAY_LABEL, 32)

    def _scalar(self, info: bytes) -> bytes:
        wide = int.from_bytes(self._derive(info, 48), "big")
        return (wide % (_ORDER - 1) + 1).to_bytes(32, "big")

    def _derive(self, info: bytes, length: int) -> bytes:
        return HKDF(algorithm=SHA256(), length=length, salt=_SALT, info=info).derive(self._secret)


def _label(prefix: bytes, epoch: int) -> bytes:
    if epoch < 0:
        raise ValueError("an epoch is 0 or more")
    return prefix + str(epoch).encode()


def _clamped(secret: bytes) -> bytes:
    clamped = bytearray(secret)
    clamped[0] &= 248
    clamped[31] = (clamped[31] & 127) | 64
    return bytes(clamped)


def wireguard_public_key(private_key: bytes) -> str:
    """Return the public key of a WireGuard private key as base64, 44 characters."""
    public = X25519PrivateKey.from_private_bytes(private_key).public_key()
    return b64encode(public.public_bytes_raw()).decode()


def npub(public_key: str) -> str:
    """Return an x-only public key (64 hex digits) as ``npub1…`` (NIP-19)."""
    return encode_key("npub", bytes.fromhex(public_key))


def parse_npub(text: str) -> str:
    """Return the x-only public key, 64 lowercase hex digits, of ``npub1…``; raise BadKey.

    The key must be a point of the curve. A secret given by mistake is refused without repeating it.
    """
    text = text.strip()
    if text.lower().startswith("nsec1"):
        raise BadKey(
            "this is a secret key (nsec1…), a public key (npub1…) is needed",
            "do not share an nsec with anybody; ask the peer for the output of: nostrvpn id",
        )
    try:
        key = decode_key("npub", text)
        PublicKeyXOnly(key)
    except ValueError as error:
        reason = str(error) if text.lower().startswith("npub1") else "it must start with npub1"
        raise BadKey(
            f"{text[:80]!r} is not an npub: {reason}", "copy it from: nostrvpn id"
        ) from error
    return key.hex()


def parse_nsec(text: str) -> RootSecret:
    """Return the secret of ``nsec1…`` or of 64 hex digits; raise BadKey, which never repeats it."""
    text = text.strip()
    if text.lower().startswith("npub1"):
        raise BadKey(
            "this is a public key (npub1…), a secret key (nsec1…) is needed",
            "export the nsec from the program that holds the key",
        )
    try:
        if len(text) == 64 and text.isascii():
            return RootSecret(bytes.fromhex(text))
        return RootSecret(decode_key("nsec", text))
    except ValueError as error:
        reason = str(error) if text.lower().startswith("nsec1") else "it must start with nsec1"
        raise BadKey(f"this is not an nsec: {reason}", "copy it again, whole") from error
