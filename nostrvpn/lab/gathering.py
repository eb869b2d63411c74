"""Many nodes become one mesh: identities, daemons and joins, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from nostrvpn.lab.node import LabNode

__all__ = ["gather"]

AT_ONCE = 4
"""Commands that run side by side: each is a whole process, and CPUs are few."""
START_TIMEOUT = 60.0


def gather(owner: LabNode, guests: Iterable[LabNode], *, timeout: float = START_TIMEOUT) -> None:
    """Start every node and let ``owner`` admit all ``guests``; return when all are members."""
    others = tuple(guests)
    _each(_launch, (owner, *others))
    owner.wait_for_relay(timeout=timeout)

    def admit(guest: LabNode) -> None:
        guest.wait_for_relay(timeout=timeout)
        guest.query("join", owner.query("invite", guest.npub)["link"])
        guest.wait_for_peer(owner.npub, timeout=timeout)

    _each(admit, others)


def _launch(node: LabNode) -> None:
    node.init()
    node.start()


def _each(work: Callable[[LabNode], None], nodes: Iterable[LabNode]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(work, node) for node in nodes]:
            done.result()
