"""Rosters for decisions: members, rules and settings, without the operations behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from nostrvpn.identity.keys import RootSecret
from nostrvpn.mesh.addressing import OverlayAddress, overlay_address
from nostrvpn.mesh.members import Member, NetworkSettings, Role
from nostrvpn.mesh.permissions import Rule

__all__ = ["KEYS", "TestLaw", "member"]

KEYS = tuple(RootSecret(sha256(bytes([number])).digest()).public_key for number in range(8))
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
NETWORK = "5" * 64


def member(
    key: str,
    name: str = "",
    *,
    tags: str = "",
    owner: str = "",
    expires: int | None = None,
) -> Member:
    """Return a member; ``tags`` are words, ``owner`` is the member itself by default."""
    number = KEYS.index(key)
    return Member(
        key,
        name or NAMES[number],
        Role.MEMBER,
        frozenset(tags.split()),
        owner or key,
        expires,
        False,
        number,
        frozenset(),
    )


@dataclass(init=False)
class TestLaw:
    """What decisions ask of a roster."""

    __test__ = False

    members: dict[str, Member] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    settings: NetworkSettings = field(default_factory=lambda: NetworkSettings(""))

    def __init__(
        self,
        *members: Member,
        rules: tuple[Rule, ...] = (),
        inbound: str = "ping",
        same_owner: bool = True,
    ) -> None:
        self.members = {member.public_key: member for member in members}
        self.rules = rules
        self.settings = NetworkSettings("", inbound, same_owner)

    def address(self, public_key: str) -> OverlayAddress:
        return overlay_address(NETWORK, public_key, self.members[public_key].host)
