"""Find the one peer a user meant by an npub, the beginning of one, or a name."""

from __future__ import annotations

from collections.abc import Mapping

from nostrvpn.errors import UserError
from nostrvpn.identity.keys import npub, parse_npub

__all__ = ["UnknownPeer", "find_peer"]

# Shorter beginnings match half the mesh; "npub1" itself is five.
_MIN_PREFIX = 6


class UnknownPeer(UserError):
    """No peer, or more than one, fits what the user wrote."""

    code = "unknown_peer"


def find_peer(reference: str, peers: Mapping[str, str]) -> str:
    """Return the public key of the peer meant by ``reference``; raise UnknownPeer or BadKey.

    ``peers`` maps public key (64 hex) to name. An exact name wins, then a whole npub, then the
    beginning of exactly one npub (with or without its ``npub1``).
    """
    wanted = reference.strip()
    named = [key for key, name in peers.items() if name and name.lower() == wanted.lower()]
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        raise UnknownPeer(f"{len(named)} peers are named {wanted!r}", "use the npub instead")
    if wanted.startswith("npub1") and len(wanted) == 63:
        key = parse_npub(wanted)
        if key in peers:
            return key
        raise UnknownPeer(f"{wanted} is not a peer of this network", "see: nostrvpn peers")
    prefix = wanted if wanted.startswith("npub1") else "npub1" + wanted
    if len(prefix) < _MIN_PREFIX:
        raise UnknownPeer(f"{wanted!r} is too short to name a peer", "see: nostrvpn peers")
    found = [key for key in peers if npub(key).startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownPeer(f"{len(found)} peers begin with {wanted!r}", "write more of the npub")
    raise UnknownPeer(f"no peer is called {wanted[:80]!r}", "see: nostrvpn peers")
