"""The commands that this host runs through an exit, each in a booth of its own: which, and how long.

A booth belongs to a link that the command line makes once it has been given a number here. It ends with
that link, or when its exit may not be used any more: a command never goes on through another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import UserError
from nostrvpn.exits.kill_switch import ExitState
from nostrvpn.exits.settings import AUTO, BOUGHT
from nostrvpn.host.booth import MAX_BOOTHS, Booth, BoothWay
from nostrvpn.machine import Moment
from nostrvpn.node.events import NodeEffect, Reconcile, ReconcileFinished
from nostrvpn.node.exits import offer_of, overlay_networks, resolvers_of

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["Booths"]

# The command line makes the link right after it was answered.
PATIENCE_S = 15.0


@dataclass(slots=True)
class _Lease:
    exit: str
    until: float | None  # when the link has to be there; None once it was
    looks: int = 0  # so many reports may be of a look before it was there


class Booths:
    """``way``: what the kernel is to do for the booths."""

    def __init__(self) -> None:
        self._leases: dict[Booth, _Lease] = {}
        self._seen: str | None = None  # the exit that the kernel's desired state has, as ``way``
        self.way = BoothWay()
        self._present: frozenset[str] | None = None

    @property
    def exit(self) -> str | None:
        """The one exit of all booths: a host has one at a time."""
        return next((lease.exit for lease in self._leases.values()), None)

    @property
    def links(self) -> frozenset[str]:
        """The names of the links of all booths."""
        return frozenset(booth.link for booth in self._leases)

    @property
    def deadline(self) -> float | None:
        """When :meth:`review` is due (Moment.now's seconds)."""
        return min((x.until for x in self._leases.values() if x.until is not None), default=None)

    def begin(self, node: Node, key: str, taken: Iterable[int], moment: Moment) -> Booth:
        """Return a booth that leads to the exit ``key``; UserError if there can be none.

        ``taken``: numbers that others on this host have.
        """
        if (objection := _objection(node, key, moment)) is not None:
            raise UserError(*objection)
        other = self.exit
        if other is not None and other != key:
            raise UserError(
                f"a command runs through {node.peer_name(other)}, and there is one exit at a time",
                f"wait until it has ended, or use --exit {node.peer_name(other)}",
            )
        used = {booth.number for booth in self._leases} | set(taken)
        number = next((n for n in range(MAX_BOOTHS) if n not in used), None)
        if number is None:
            raise UserError(f"{MAX_BOOTHS} commands run through an exit already", "end one of them")
        booth = Booth(number)
        self._leases[booth] = _Lease(key, moment.now + PATIENCE_S)
        return booth

    def made(self, link: str) -> None:
        """Take note that the link of a booth is there: from now on the booth ends with it."""
        for booth, lease in self._leases.items():
            if booth.link == link:
                # One look may be under way.
                lease.until, lease.looks = None, 1

    def end(self, link: str) -> None:
        """Take a booth back; one that has ended is fine."""
        self._leases = {b: lease for b, lease in self._leases.items() if b.link != link}

    def applied(self, event: ReconcileFinished) -> None:
        """Take note of which links there are; the review at the step's end decides."""
        self._present = event.booths

    def review(self, node: Node, moment: Moment) -> list[NodeEffect]:
        """End what has no link any more, or no exit; cheap without booths."""
        if not self._leases and self._seen is None:
            return []
        effects: list[NodeEffect] = []
        present, self._present = self._present, None
        for booth, lease in list(self._leases.items()):
            gone = lease.until is not None and moment.now >= lease.until
            if present is not None and booth.link in present:
                lease.until, lease.looks = None, 0
            elif present is not None and lease.until is None:
                gone, again = not lease.looks, bool(lease.looks)
                lease.looks = 0
                effects += [Reconcile()] if again else []
            if gone or _objection(node, lease.exit, moment) is not None:
                del self._leases[booth]
        way = self._way(node, moment.wall)
        if (way, self.exit) == (self.way, self._seen):
            return effects
        self.way, self._seen = way, self.exit
        return [Reconcile()]

    def versions(self, node: Node, wall: float) -> frozenset[int]:
        """Return the IP versions that booths get out by."""
        offer = offer_of(node, self.exit, wall) if self.exit is not None else None
        if offer is None:
            return frozenset()
        # Without an IPv4 address of the mesh there is no source that the exit would take.
        return offer.versions & ({4, 6} if node.overlap is None else {6})

    def resolvers(self, node: Node, wall: float) -> tuple[IPAddress, ...]:
        """Return whom commands in booths may ask for names; empty if nobody answers."""
        key = self.exit
        return () if key is None else resolvers_of(node, key, offer_of(node, key, wall))

    def _way(self, node: Node, wall: float) -> BoothWay:
        if not self._leases:
            return BoothWay()
        asked = frozenset(self.resolvers(node, wall))
        overlay = overlay_networks(node)
        return BoothWay(frozenset(self._leases), self.versions(node, wall), asked, overlay)


def _objection(node: Node, key: str, moment: Moment) -> tuple[str, str] | None:
    """Return why nothing may go through the exit ``key``, and what helps; None if it may."""
    exits, name = node.exits, node.peer_name(key)
    if offer_of(node, key, moment.wall) is None:
        return (
            f"{name} does not offer this node to be its exit",
            f"see `nostrvpn exit list`; {name} has to run `nostrvpn exit offer`",
        )
    if exits.state is ExitState.OFF or exits.used == key:
        return None
    if exits.state is ExitState.LOCKDOWN:
        return "in lockdown nothing leaves while no exit is used", f"nostrvpn exit use {name}"
    used = exits.used or exits.settings.exit
    other = node.peer_name(used) if used not in ("", AUTO, BOUGHT) else "another exit"
    if exits.damage is not None:
        other = "no exit, as what was decided is damaged"
    return (
        f"this host uses {other}, and there is one exit at a time",
        f"nostrvpn exit use {name}, or nostrvpn exit off",
    )
