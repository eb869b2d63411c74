"""What a router's answer means, whichever protocol it came by."""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.endpoint import IPAddress
from nostrvpn.portmap.lease import Protocol

__all__ = ["Alive", "Answer", "Granted", "Refused"]


@dataclass(frozen=True, slots=True)
class Alive:
    """The router speaks the protocol. ``external_ip`` where the answer tells it.

    ``lost``: it has lost its mappings since it was last heard.
    """

    protocol: Protocol
    lost: bool = False
    external_ip: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """A mapping was made or renewed, or, with ``lease_s`` 0, removed. None is a lease without end."""

    protocol: Protocol
    ip: IPAddress
    port: int
    lease_s: int | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The router said no; ``why`` follows "the router". ``hold_s``: it will say no that long.

    ``of_map``: a mapping was refused, else the protocol as a whole. ``gone``: the mapping asked
    after is not there any more.
    """

    protocol: Protocol
    why: str
    of_map: bool = True
    hold_s: int = 0
    gone: bool = False


Answer = Alive | Granted | Refused
