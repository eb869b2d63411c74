"""Remove every object of ours from this network namespace, knowing nothing but our marks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from nostrvpn.errors import SystemRefused
from nostrvpn.host.links import own_links
from nostrvpn.host.shield import shield_table
from nostrvpn.io.booth_way import delete_booths, remove_booth_routing
from nostrvpn.io.exit_routing import remove_exit_routing
from nostrvpn.io.name_cleanup import forget_links, forget_names
from nostrvpn.io.netlink import Link, find_link, marked_interfaces, remove_limits
from nostrvpn.io.own_tables import tables_of
from nostrvpn.io.relay_routing import RoutingMemory
from nostrvpn.io.upstream import remove_upstream_routing
from nostrvpn.io.wireguard import Backend
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.io.wireguard_userspace import UserspaceBackend

__all__ = ["NotAllRemoved", "remove_marked"]

T = TypeVar("T")


class NotAllRemoved(SystemRefused):
    """Something could not be removed, for the reasons in the text; ``removed`` is what could."""

    def __init__(self, reasons: list[str], removed: tuple[str, ...]) -> None:
        text = f"not all could be removed: {'; '.join(reasons)}"
        super().__init__(text, "try again: sudo nostrvpn cleanup")
        self.removed = removed


class _Tries:
    """Goes on after what is refused."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def do(self, work: Callable[..., T], *arguments: object) -> T | None:
        """Return what ``work`` returns, None if it is refused."""
        try:
            return work(*arguments)
        except SystemRefused as exc:
            self.refused.append(str(exc))
            return None


def remove_marked(interface: str | None = None, *, keep_shield: bool = False) -> tuple[str, ...]:
    """Remove the links with our mark and the processes and sockets behind them; say what it was.

    The names of the links come first; then, in words, the tables and how many routes and rules.

    ``interface`` narrows it to the link of that name, which may lack the mark if nobody has put it to
    use: whoever made it may have been killed before he could mark it. Addresses and routes go with their
    link; the nftables tables and the routing rules go too, also those whose link has gone already, but
    with ``keep_shield`` not what holds traffic back. Blocks; NotAllRemoved at the end if something was
    refused.
    """
    tries = _Tries()
    # The links of commands first: what holds their packets back goes further down.
    removed = tries.do(delete_booths, interface) or []
    names = None if interface is None else own_links(interface)
    found_links = tries.do(marked_interfaces)
    links = [
        link
        for link in found_links or ()
        # A name beside ours may be that of another node's network.
        if names is None or link.name == interface or (link.name in names and not link.home)
    ]
    links += [left for name in names or () if (left := tries.do(_unmarked, name))]
    gone = [link.name for link in links if tries.do(_delete, link)]
    removed += gone
    # What comes out of a link that is left is judged: this host may forward for others.
    is_left = found_links is None or len(gone) < len(links)
    if interface is not None and tries.do(find_link, interface) is None:
        tries.do(UserspaceBackend().delete, interface)  # a socket, if its process was killed
    tries.do(forget_links, interface)
    found = tries.do(partial(tables_of, keep_judges=is_left), interface) or ()
    kept = shield_table(interface) if keep_shield and interface is not None else None
    tables = [name for name in found if name != kept and tries.do(_delete_table, name)]
    removals = (remove_limits, remove_exit_routing, remove_booth_routing, remove_upstream_routing)
    rules = sum(tries.do(remove, interface) or 0 for remove in removals)
    words = [*(tries.do(forget_names, interface) or ()), *(f"table inet {name}" for name in tables)]
    words += [f"{rules} routing rules and routes"] if rules else []
    if tries.refused:
        raise NotAllRemoved(list(dict.fromkeys(tries.refused)), (*removed, *words))
    return (*removed, *words)


def _unmarked(interface: str) -> Link | None:
    """Return the device of that name if nobody put it to use: so we leave it if we are killed
    between making and marking it."""
    link = find_link(interface)
    if link is None or link.is_ours or link.kind not in ("wireguard", "tun"):
        return None
    found = _backend(link).observe(interface)
    return link if found is not None and found.is_bare else None


def _backend(link: Link) -> Backend:
    return KernelBackend() if link.kind == "wireguard" else UserspaceBackend()


def _delete(link: Link) -> bool:
    _backend(link).delete(link.name)
    return True


def _delete_table(name: str) -> bool:
    RoutingMemory(name).put_back()
    return True
