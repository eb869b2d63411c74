"""NIP-44 version 2: encryption between two Nostr keys.

The conversation key is worth caching by the caller (the ECDH costs about a millisecond, everything
else a few microseconds). The exchange runs in OpenSSL because libsecp256k1's plain point
multiplication, as its Python binding exposes it, is not constant-time.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "MAX_PLAINTEXT",
    "conversation_key",
    "decrypt",
    "encrypt",
    "message_keys",
    "padded_length",
]

# Spec constants (NIP-44, "Encryption" and "Decryption").
MAX_PLAINTEXT = 65_535
_SALT = b"nip44-v2"
_VERSION = 2
_NONCE_SIZE = 32
_MAC_SIZE = 32
_MIN_PAYLOAD, _MAX_PAYLOAD = 132, 87_472
_MIN_DATA, _MAX_DATA = 99, 65_603

_CURVE = ec.SECP256K1()


def conversation_key(secret: bytes, pubkey_hex: str) -> bytes:
    """Return the 32-byte key two parties share, in constant time; PeerMisbehaved("bad_key")."""
    try:
        private = ec.derive_private_key(int.from_bytes(secret, "big"), _CURVE)
        point = b"\x02" + bytes.fromhex(pubkey_hex)
        public = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, point)
        shared_x = private.exchange(ec.ECDH(), public)
    except ValueError as exc:
        raise PeerMisbehaved("bad_key", "no shared key: a key is not on the curve") from exc
    return hmac.digest(_SALT, shared_x, "sha256")


def message_keys(key: bytes, nonce: bytes) -> tuple[bytes, bytes, bytes]:
    """Return (ChaCha20 key, ChaCha20 nonce, HMAC key) of one message: HKDF-Expand to 76 bytes."""
    if len(key) != 32 or len(nonce) != _NONCE_SIZE:
        raise ValueError("conversation key and nonce must be 32 bytes each")
    first = hmac.digest(key, nonce + b"\x01", "sha256")
    second = hmac.digest(key, first + nonce + b"\x02", "sha256")
    third = hmac.digest(key, second + nonce + b"\x03", "sha256")
    return first, second[:12], second[12:] + third[:12]


def padded_length(size: int) -> int:
    """Return the padded length in bytes of a plaintext of ``size`` bytes."""
    if size <= 32:
        return 32
    next_power = 1 << (size - 1).bit_length()
    chunk = 32 if next_power <= 256 else next_power // 8
    return chunk * ((size - 1) // chunk + 1)


def encrypt(key: bytes, plaintext: bytes, nonce: bytes) -> str:
    """Encrypt 1 to 65,535 bytes under a conversation key; ``nonce`` is 32 fresh random bytes."""
    size = len(plaintext)
    if not 1 <= size <= MAX_PLAINTEXT:
        raise ValueError(f"plaintext of {size} bytes; NIP-44 takes 1 to {MAX_PLAINTEXT}")
    cipher_key, cipher_nonce, mac_key = message_keys(key, nonce)
    padded = size.to_bytes(2, "big") + plaintext.ljust(padded_length(size), b"\0")
    ciphertext = _chacha20(cipher_key, cipher_nonce, padded)
    mac = hmac.digest(mac_key, nonce + ciphertext, "sha256")
    return base64.b64encode(bytes([_VERSION]) + nonce + ciphertext + mac).decode()


def decrypt(key: bytes, payload: str) -> bytes:
    """Open a payload; PeerMisbehaved "unknown_encryption" or "bad_payload" if it is not genuine."""
    if payload.startswith("#"):
        raise PeerMisbehaved("unknown_encryption", "payload has an encryption version not known")
    if not _MIN_PAYLOAD <= len(payload) <= _MAX_PAYLOAD:
        raise PeerMisbehaved("bad_payload", "payload length out of range")
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise PeerMisbehaved("bad_payload", "payload is not base64") from exc
    if data[:1] != bytes([_VERSION]):
        raise PeerMisbehaved("unknown_encryption", "payload has an encryption version not known")
    if not _MIN_DATA <= len(data) <= _MAX_DATA:
        raise PeerMisbehaved("bad_payload", "payload length out of range")
    nonce = data[1 : 1 + _NONCE_SIZE]
    ciphertext, mac = data[1 + _NONCE_SIZE : -_MAC_SIZE], data[-_MAC_SIZE:]
    cipher_key, cipher_nonce, mac_key = message_keys(key, nonce)
    if not hmac.compare_digest(hmac.digest(mac_key, nonce + ciphertext, "sha256"), mac):
        raise PeerMisbehaved("bad_payload", "payload was not made with this key")
    padded = _chacha20(cipher_key, cipher_nonce, ciphertext)
    size = int.from_bytes(padded[:2], "big")
    plaintext = padded[2 : 2 + size]
    genuine = 1 <= size == len(plaintext) and len(padded) == 2 + padded_length(size)
    if not genuine or any(padded[2 + size :]):
        raise PeerMisbehaved("bad_payload", "payload has invalid padding")
    return plaintext


def _chacha20(key: bytes, nonce: bytes, data: bytes) -> bytes:
    # RFC 8439 section 2.4: OpenSSL takes the 32-bit counter (here 0) in front of the nonce.
    return Cipher(ChaCha20(key, bytes(4) + nonce), mode=None).encryptor().update(data)
