"""Handing a new network key to every remaining member: one entry of 48 bytes each.

An entry is the key's 32 bytes under ChaCha20-Poly1305 (RFC 8439), by a key that only the author and that
recipient have: their static conversation key mixed with the network key before, and with the pair's
secret where there is one. Recipient and key id are authenticated with it. Entries carry no name: whoever
is meant finds its own by trying, a few microseconds each.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.signaling.network_key import NetworkKey
from nostrvpn.signaling.ratchet import derive

__all__ = ["ENTRIES_PER_MESSAGE", "entry_key", "open_rekey", "rekey_bodies"]

_ENTRY = 48
# 64 characters each; a message holds 25,000, and operations may come with it.
ENTRIES_PER_MESSAGE = 320


def entry_key(conversation: bytes, salt: bytes, secret: bytes | None) -> bytes:
    """Return the key of one pair's entry; ``salt`` is of the board it is posted on."""
    info = b"nostrvpn/rekey/v1" if secret is None else b"nostrvpn/rekey-with-secret/v1"
    return derive(conversation + (secret or b""), salt, info)


def rekey_bodies(key: NetworkKey, recipients: Mapping[str, bytes]) -> Iterator[dict[str, object]]:
    """Yield the parts of a message that hands ``key`` to ``recipients`` (public key -> entry key)."""
    entries = [
        ChaCha20Poly1305(secret).encrypt(*_nonce_text_aad(key.secret, key.id, key.day, recipient))
        for recipient, secret in sorted(recipients.items())
    ]
    for start in range(0, len(entries), ENTRIES_PER_MESSAGE):
        packed = b"".join(entries[start : start + ENTRIES_PER_MESSAGE])
        yield {"id": key.id, "day": key.day, "entries": base64.b64encode(packed).decode()}


def open_rekey(body: object, me: str, secrets: Iterable[bytes]) -> NetworkKey | None:
    """Return the new key if one entry is for ``me`` (public key), None if none is.

    ``secrets`` are the entry keys that the author may have used, a few. PeerMisbehaved: no entries.
    """
    match body:
        case {"id": str(name), "day": int(day), "entries": str(text)}:
            # The same bounds as for a stored key.
            NetworkKey.from_json({"id": name, "day": day, "secret": "00" * 32})
        case _:
            raise PeerMisbehaved("bad_rekey", "no new key")
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise PeerMisbehaved("bad_rekey", "entries that are not base64") from exc
    if not packed or len(packed) % _ENTRY or len(packed) > ENTRIES_PER_MESSAGE * _ENTRY:
        raise PeerMisbehaved("bad_rekey", "entries of another size")
    nonce, _, aad = _nonce_text_aad(b"", name, day, me)
    for secret in secrets:
        cipher = ChaCha20Poly1305(secret)
        for start in range(0, len(packed), _ENTRY):
            try:
                found = cipher.decrypt(nonce, packed[start : start + _ENTRY], aad)
            except InvalidTag:
                continue
            return NetworkKey(name, day, found)
    return None


def _nonce_text_aad(
    secret: bytes, name: str, day: int, recipient: str
) -> tuple[bytes, bytes, bytes]:
    """Return nonce, plaintext and associated data of an entry.

    A pair's entry key may serve several new keys, or one of several days; each has its own nonce.
    """
    place = bytes.fromhex(name + recipient) + day.to_bytes(8, "big")
    nonce = derive(place, b"nostrvpn/rekey", b"nonce/v1")[:12]
    return nonce, secret, f"{name}/{day}/{recipient}".encode()
