"""Removing every nftables table that carries our mark, with what hangs on it."""

from __future__ import annotations

from nostrvpn.host.firewall import table_name
from nostrvpn.io.nftables import delete_table, own_tables

__all__ = ["delete_own_tables"]


def delete_own_tables(interface: str | None = None) -> tuple[str, ...]:
    """Delete our tables, or those of one interface; return their names.

    A relay's table also remembers the routing settings of the host, which are put back.
    """
    found = own_tables()
    if not found:
        return ()
    from nostrvpn.io.relay_table import relay_table_name, remove_relay_table

    relay_suffix = relay_table_name("").removeprefix(table_name(""))
    wanted = None if interface is None else (table_name(interface), relay_table_name(interface))
    names = tuple(name for name in found if wanted is None or name in wanted)
    for name in names:
        if name.endswith(relay_suffix):
            remove_relay_table(name)
        else:
            delete_table(name)
    return names
