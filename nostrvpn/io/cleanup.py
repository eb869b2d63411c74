"""Remove every object of ours from this network namespace, knowing nothing but our marks."""

from __future__ import annotations

from nostrvpn.io.name_cleanup import forget_names
from nostrvpn.io.netlink import marked_interfaces, remove_limits
from nostrvpn.io.own_tables import delete_own_tables
from nostrvpn.io.wireguard import Backend
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.io.wireguard_userspace import UserspaceBackend

__all__ = ["remove_marked"]


def remove_marked(alias_prefix: str = "", interface: str | None = None) -> tuple[str, ...]:
    """Remove the links with our mark and the processes and sockets behind them; say what it was.

    The names of the links come first; then, in words, the tables and how many routes and rules.

    ``alias_prefix`` narrows it to links whose alias starts so (one node among several on a host).
    ``interface`` narrows it to the link of that name. Addresses and routes go with their link; the
    nftables tables and the routing rules of each go too, and unless it is narrowed also those whose
    link has gone already. Blocks; SystemRefused if the kernel will not.
    """
    removed = []
    for link in marked_interfaces():
        if not link.alias.startswith(alias_prefix) or interface not in (None, link.name):
            continue
        backend: Backend = KernelBackend() if link.kind == "wireguard" else UserspaceBackend()
        backend.delete(link.name)
        removed.append(link.name)
    tables: list[str] = []
    rules = 0
    for name in [*removed, *([] if alias_prefix else [interface])]:
        tables += delete_own_tables(name)
        rules += remove_limits(name)
    names = forget_names(interface) if not alias_prefix else []
    words = [*names, *(f"table inet {table}" for table in tables)]
    words += [f"{rules} routing rules and routes"] if rules else []
    return (*removed, *words)
