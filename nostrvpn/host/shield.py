"""What may leave this host while an exit is used or nothing may leave at all, and the nft table of it.

One table per interface, replaced in one transaction, and left where it is when the daemon dies: a crash
leaves traffic blocked. ``docs/security.md`` says for each state exactly what may leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.firewall import table_name
from nostrvpn.host.state import IPNetwork

__all__ = ["Bypass", "Shield", "ShieldKind", "shield_table"]

_SUFFIX = "_shield"


class ShieldKind(Enum):
    """``OPEN``: no table. ``BLOCKED``: only what always may leave. ``TUNNELLED``: the tunnel as well."""

    OPEN = "open"
    BLOCKED = "blocked"
    TUNNELLED = "tunnelled"


@dataclass(frozen=True, slots=True)
class Bypass:
    """Who goes around the exit: destinations (``networks``), users (uid ranges, both ends included),
    cgroups (paths of the v2 hierarchy without the leading slash). Of names the resolved addresses are in
    a set of the table that ``io`` fills (with a timeout each)."""

    networks: frozenset[IPNetwork] = frozenset()
    uids: frozenset[tuple[int, int]] = frozenset()
    cgroups: frozenset[str] = frozenset()
    domains: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nobody does."""
        return self == Bypass()


@dataclass(frozen=True, slots=True)
class Shield:
    """``overlay``: what goes into the tunnel in every state: members, and networks behind them.
    ``versions``: the IP versions that the exit carries (TUNNELLED). ``resolvers``: the only addresses
    that DNS (53, 853) may go to through the tunnel. ``allow_lan``: private ranges of local networks too.
    ``listen_port``: WireGuard's, whose packets come in marked (reverse-path filters)."""

    kind: ShieldKind = ShieldKind.OPEN
    overlay: frozenset[IPNetwork] = frozenset()
    versions: frozenset[int] = frozenset()
    resolvers: frozenset[IPAddress] = frozenset()
    allow_lan: bool = False
    bypass: Bypass = Bypass()
    listen_port: int = 0


def shield_table(interface: str) -> str:
    """Return the name of the table (family inet) for an interface."""
    return table_name(interface) + _SUFFIX
