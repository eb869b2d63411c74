"""Removing every nftables table that carries our mark, with what hangs on it."""

from __future__ import annotations

from nostrvpn.errors import SystemRefused
from nostrvpn.host.booth import booth_table
from nostrvpn.host.bought import bought_table
from nostrvpn.host.exit_meter import meter_table
from nostrvpn.host.firewall import table_name
from nostrvpn.host.inbound import inbound_table
from nostrvpn.host.links import own_links
from nostrvpn.host.shield import shield_table
from nostrvpn.host.sold import sold_table
from nostrvpn.host.subnet_gateway import gateway_table
from nostrvpn.host.upstream import upstream_table
from nostrvpn.io.netlink import find_link
from nostrvpn.io.nftables import own_tables
from nostrvpn.io.relay_routing import RoutingMemory, relay_table_name

__all__ = ["delete_own_tables", "tables_of"]

_JUDGES = (inbound_table, sold_table, bought_table)


def delete_own_tables(
    interface: str | None = None, *, keep_shield: bool = False
) -> tuple[str, ...]:
    """Delete our tables, or those of one interface, and of that one's all but what holds traffic back
    if ``keep_shield``, and what judges its links while one is left; return their names.

    The tables of a relay, a subnet router and of that also remember routing settings of the host, which
    are put back. One that is refused does not keep the others; then SystemRefused is raised at the end.
    """
    found = () if interface is None else map(find_link, own_links(interface))
    links = (link for link in found if link is not None and link.is_ours)
    is_left = any(link.name == interface or not link.home for link in links)
    names = tables_of(interface, keep_judges=is_left)
    if keep_shield and interface is not None:
        names = tuple(name for name in names if name != shield_table(interface))
    refusals = []
    for name in names:
        try:
            RoutingMemory(name).put_back()
        except SystemRefused as exc:
            refusals.append(exc)
    if refusals:
        raise refusals[0]
    return names


def tables_of(interface: str | None, *, keep_judges: bool = False) -> tuple[str, ...]:
    """Return the names of our tables, or of those of one interface.

    ``keep_judges``: but those that judge what comes out of our links, as one of these is there.
    """
    kinds = (
        *(table_name, inbound_table, meter_table, booth_table),
        *(relay_table_name, gateway_table, shield_table, upstream_table, sold_table, bought_table),
    )
    wanted = None if interface is None else [kind(interface) for kind in kinds]
    judges = tuple(kind("").removeprefix(table_name("")) for kind in _JUDGES)
    return tuple(
        name
        for name in own_tables()
        if (wanted is None or name in wanted) and not (keep_judges and name.endswith(judges))
    )
