"""A WireGuard device as a value: the one we want, and the one that was found."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from nostrvpn.endpoint import Endpoint

__all__ = [
    "KEY_BYTES",
    "MAX_ALLOWED_IPS",
    "Device",
    "IPNetwork",
    "ObservedDevice",
    "ObservedPeer",
    "Peer",
    "SecretKey",
    "is_peer_key",
    "key_bytes",
]

IPNetwork = IPv4Network | IPv6Network

# Spec: every WireGuard key (public, private, preshared) has this size.
KEY_BYTES = 32

# Ours: about 40 bytes each in netlink, so one peer's list stays below the 64 KiB an attribute may
# have.
MAX_ALLOWED_IPS = 1000

_P = 2**255 - 19
# Spec: the points of small order of Curve25519 and their other spellings (RFC 7748, sections 6.1, 7;
# https://cr.yp.to/ecdh.html#validate).
_SMALL_ORDER = frozenset(
    {
        *(0, 1, _P - 1, _P, _P + 1),
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)


class SecretKey:
    """32 secret bytes (a private or a preshared key) that show in no repr, log or traceback."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a WireGuard key has {KEY_BYTES} bytes, not {len(raw)}")
        self._raw = bytes(raw)

    def __repr__(self) -> str:
        return "<redacted>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash((SecretKey, self._raw))

    @property
    def raw(self) -> bytes:
        """The 32 bytes themselves."""
        return self._raw

    @property
    def base64(self) -> str:
        """The key as wg-quick files write it (44 characters)."""
        return b64encode(self._raw).decode("ascii")

    @property
    def public_key(self) -> str:
        """The public key of this private key (X25519), base64."""
        public = X25519PrivateKey.from_private_bytes(self._raw).public_key()
        return b64encode(public.public_bytes_raw()).decode("ascii")


def key_bytes(key: str) -> bytes:
    """Return the 32 bytes of a base64 key in its canonical spelling; raise ValueError otherwise."""
    try:
        raw = b64decode(key, validate=True)
    except (Base64Error, ValueError) as exc:
        raise ValueError("not a WireGuard key: not base64") from exc
    if len(raw) != KEY_BYTES or b64encode(raw).decode("ascii") != key:
        raise ValueError("not a WireGuard key: not 32 bytes of canonical base64")
    return raw


def is_peer_key(key: str, own: str = "") -> bool:
    """Whether somebody's word can be a peer's public key: canonical base64, not ``own``, and a key.

    Points of small order are nobody's: whatever the secret, they agree on the same few secrets.
    """
    try:
        raw = key_bytes(key)
    except ValueError:
        return False
    # The highest bit is not looked at (RFC 7748, section 5).
    point = int.from_bytes(raw, "little") & (1 << 255) - 1
    return key != own and point not in _SMALL_ORDER


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer we want. ``persistent_keepalive`` is in seconds, 0 is off.

    ``endpoint_generation`` counts the path engine's decisions: the endpoint is written when it
    differs from the generation written last, so what WireGuard learned by roaming in between is
    left alone, but for an ``endpoint_held`` one, which is always put back. An ``endpoint`` of None
    never clears one (WireGuard cannot): the learned one stays.
    """

    public_key: str
    allowed_ips: frozenset[IPNetwork]
    persistent_keepalive: int = 0
    endpoint: Endpoint | None = None
    endpoint_generation: int = 0
    preshared_key: SecretKey | None = None
    endpoint_held: bool = False

    def __post_init__(self) -> None:
        if not any(key_bytes(self.public_key)):
            raise ValueError("a peer's public key is all zero")
        if not 0 <= self.persistent_keepalive <= 0xFFFF:
            raise ValueError(f"keepalive out of range: {self.persistent_keepalive}")
        if len(self.allowed_ips) > MAX_ALLOWED_IPS:
            raise ValueError(f"more than {MAX_ALLOWED_IPS} allowed addresses for one peer")


@dataclass(frozen=True, slots=True)
class Device:
    """The device we want. ``listen_port`` 0 lets the implementation choose; ``fwmark`` 0 is none.

    Raises ValueError where WireGuard could not hold it: a peer listed twice, one prefix given to
    two peers (the last would silently win), or our own key as a peer (silently ignored).
    """

    private_key: SecretKey
    listen_port: int = 0
    fwmark: int = 0
    peers: tuple[Peer, ...] = ()
    public_key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "public_key", self.private_key.public_key)
        if not 0 <= self.listen_port <= 0xFFFF:
            raise ValueError(f"port out of range: {self.listen_port}")
        if not 0 <= self.fwmark <= 0xFFFFFFFF:
            raise ValueError(f"fwmark out of range: {self.fwmark}")
        keys = {peer.public_key for peer in self.peers}
        if len(keys) != len(self.peers):
            raise ValueError("a peer is listed twice")
        if self.public_key in keys:
            raise ValueError("a peer has this node's own key")
        prefixes = [prefix for peer in self.peers for prefix in peer.allowed_ips]
        if len(set(prefixes)) != len(prefixes):
            raise ValueError("two peers have the same allowed address")

    def preshared_key_of(self, public_key: str) -> SecretKey:
        """Return a peer's preshared key; raise ValueError if the peer is unknown or has none."""
        for peer in self.peers:
            if peer.public_key == public_key and peer.preshared_key is not None:
                return peer.preshared_key
        raise ValueError("this peer has no preshared key")


@dataclass(frozen=True, slots=True)
class ObservedPeer:
    """A peer as found. ``last_handshake_wall`` is Unix time in seconds, None before the first."""

    public_key: str
    allowed_ips: frozenset[IPNetwork] = frozenset()
    persistent_keepalive: int = 0
    endpoint: Endpoint | None = None
    last_handshake_wall: float | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    preshared_key: SecretKey | None = None

    @property
    def has_preshared_key(self) -> bool:
        """Whether a preshared key is set."""
        return self.preshared_key is not None


@dataclass(frozen=True, slots=True)
class ObservedDevice:
    """A device as found. ``public_key`` is None while no private key is set."""

    public_key: str | None = None
    listen_port: int = 0
    fwmark: int = 0
    peers: tuple[ObservedPeer, ...] = ()

    @property
    def is_bare(self) -> bool:
        """Whether nobody has configured this device yet: no key and no peer."""
        return self.public_key is None and not self.peers
