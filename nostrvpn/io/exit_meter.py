"""The nft table that measures and holds back an exit's guests: made, and its counters read. Blocking."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.exits.limits import Volume
from nostrvpn.host.exit_meter import COUNTERS, ExitMeter, meter_marks, meter_table, render_meter
from nostrvpn.io.nftables import apply_ruleset, delete_table, has_marks, list_table, own_tables

__all__ = ["apply_meter", "read_usage"]


def apply_meter(meter: ExitMeter, interface: str, *, anew: bool) -> bool:
    """Measure as ``meter`` says, nothing with the empty one; return whether that took a change.

    ``anew``: a table that was left by an earlier run is replaced. SystemRefused if nft refuses; then
    what was in force before still is.
    """
    name = meter_table(interface)
    if not meter.guests:
        exists = name in own_tables()
        if exists:
            delete_table(name)
        return exists
    if not anew and has_marks(name, meter_marks(meter, interface)):
        return False
    apply_ruleset(render_meter(meter, interface, anew=anew))
    return True


def read_usage(interface: str) -> dict[IPAddress, Volume]:
    """Return what each guest's address had since the table was made; nothing without a table."""
    found: dict[IPAddress, Volume] = {}
    for item in list_table(meter_table(interface)) or ():
        counted = item.get("set", {})
        way = COUNTERS.get(counted.get("name", ""))
        if way is None:
            continue
        for element in counted.get("elem", ()):
            address, count = _counted(element)
            volume = Volume(up=count) if way == "up" else Volume(down=count)
            found[address] = found.get(address, Volume()) + volume
    return found


def _counted(element: Any) -> tuple[IPAddress, int]:
    """Return the address and the bytes of an element, as nft's JSON schema has it."""
    inner = element["elem"] if isinstance(element, dict) else {"val": element}
    return ip_address(inner["val"]), int(inner.get("counter", {}).get("bytes", 0))
