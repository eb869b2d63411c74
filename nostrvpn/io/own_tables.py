"""Removing every nftables table that carries our mark, with what hangs on it."""

from __future__ import annotations

from nostrvpn.host.firewall import table_name
from nostrvpn.host.inbound import inbound_table
from nostrvpn.host.subnet_gateway import gateway_table
from nostrvpn.io.nftables import delete_table, own_tables

__all__ = ["delete_own_tables"]


def delete_own_tables(interface: str | None = None) -> tuple[str, ...]:
    """Delete our tables, or those of one interface; return their names.

    The tables of a relay and of a subnet router also remember routing settings of the host, which are
    put back.
    """
    found = own_tables()
    if not found:
        return ()
    from nostrvpn.io.relay_table import relay_table_name, remove_relay_table
    from nostrvpn.io.subnet_gateway import remove_gateway

    relay_suffix = relay_table_name("").removeprefix(table_name(""))
    gateway_suffix = gateway_table("").removeprefix(table_name(""))
    kinds = (table_name, inbound_table, relay_table_name, gateway_table)
    wanted = None if interface is None else [kind(interface) for kind in kinds]
    names = tuple(name for name in found if wanted is None or name in wanted)
    for name in names:
        if name.endswith(relay_suffix):
            remove_relay_table(name)
        elif name.endswith(gateway_suffix):
            remove_gateway(name)
        else:
            delete_table(name)
    return names
