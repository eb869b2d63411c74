"""Rosters for tests that need one and are about something else."""

from __future__ import annotations

from nostrvpn.identity.keys import RootSecret
from nostrvpn.mesh.roster import Roster, create_network

__all__ = ["admit", "network_of"]


def network_of(owner: RootSecret, name: str = "owner", *, wall: float = 1000) -> Roster:
    """Return a network that has one member: its owner, of that name."""
    return create_network(
        owner.reveal(),
        "home",
        name,
        wall=wall,
        nonce=b"n" * 16,
        key_id="0" * 16,
        aux=bytes(32),
    )


def admit(roster: Roster, owner: RootSecret, key: str, name: str, *, wall: float = 1001) -> Roster:
    """Return the roster after its owner admitted a key as a plain member."""
    fields: dict[str, object] = {
        "who": key,
        "name": name,
        "role": "member",
        "tags": [],
        "owner": key,
        "expires": None,
        "ephemeral": False,
    }
    return roster.sign(owner.reveal(), "add", fields, wall=wall, aux=b"\1" * 32)
