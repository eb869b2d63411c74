"""What may leave beside an exit: the nft table of ``host/shield.py``, and a setting of the kernel.

With strict reverse-path filters an answer to a marked packet is looked up by its mark only where
``src_valid_mark`` says so (Documentation/networking/ip-sysctl.rst); the table remembers that it was off
(``relay_routing``). Blocking; acts in the calling thread's network namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.shield import Shield, named_set, render_shield, shield_marks, shield_table
from nostrvpn.io.nftables import apply_ruleset, has_marks, list_objects, list_table, own_tables
from nostrvpn.io.relay_routing import (
    RoutingBefore,
    RoutingMemory,
    marks_sources,
    turn_on_marked_sources,
)

__all__ = ["add_bypassed", "apply_shield", "read_held", "remove_shield"]

_CGROUPS = Path("/sys/fs/cgroup")
_VERSIONS = (4, 6)


def apply_shield(shield: Shield, interface: str, memory: RoutingMemory | None = None) -> bool:
    """Make the table what ``shield`` says; return whether that took a change.

    ``memory``: of this table, kept between calls. SystemRefused if nft or the kernel refuses; then what
    was in force before still is.
    """
    name = shield_table(interface)
    memory = memory or RoutingMemory(name)
    if shield.is_empty:
        is_needed = memory.is_needed
        if is_needed:
            memory.put_back()
        return is_needed
    there = _with_cgroups_there_are(shield)

    def make(before: RoutingBefore) -> None:
        text = render_shield(there, interface, before.unmarked, _named(name))
        apply_ruleset(text)

    memory.learn()
    changed = not has_marks(name, shield_marks(there, interface))
    if changed:
        make(memory.recall())
    if not marks_sources():
        turn_on_marked_sources(memory, make)
    return changed


def remove_shield(interface: str) -> bool:
    """Remove the table, and put the kernel's setting back; return whether there was something to do."""
    return apply_shield(Shield(), interface)


def add_bypassed(interface: str, addresses: Mapping[IPAddress, int]) -> None:
    """Let packets to these addresses of names go around the exit, each for so many seconds.

    SystemRefused if the table is not there, or not asked to let any name go around.
    """
    table = f"inet {shield_table(interface)}"
    lines = []
    for version in _VERSIONS:
        mine = sorted(
            (str(ip), s) for ip, s in addresses.items() if ip.version == version and s > 0
        )
        if mine:
            keys = ", ".join(ip for ip, _ in mine)
            timed = ", ".join(f"{ip} timeout {seconds}s" for ip, seconds in mine)
            what = f"element {table} {named_set(version)}"
            # An element that is there keeps its time; so it is made anew, in the same transaction.
            lines += [f"add {what} {{ {keys} }}", f"delete {what} {{ {keys} }}"]
            lines.append(f"add {what} {{ {timed} }}")
    if lines:
        apply_ruleset("\n".join(lines) + "\n")


def read_held(interface: str) -> dict[str, int]:
    """Return how many packets were held back since the table was made, by counter; none without one."""
    name = shield_table(interface)
    if name not in own_tables():
        return {}
    listed = (item.get("counter") for item in list_objects("counters", "table", f"inet {name}"))
    return {item["name"]: int(item["packets"]) for item in listed if item}


def _named(name: str) -> dict[IPAddress, int]:
    """Return the addresses of names that go around, with the seconds that each is good for."""
    listed: dict[str, list[Any]] = {
        item["set"]["name"]: item["set"].get("elem", ())
        for item in list_table(name) or ()
        if "set" in item
    }
    return {
        ip_address(element["elem"]["val"]): max(1, int(element["elem"].get("expires", 1)))
        for version in _VERSIONS
        for element in listed.get(named_set(version), ())
        if isinstance(element, dict)
    }


def _with_cgroups_there_are(shield: Shield) -> Shield:
    """nft refuses a whole table for one cgroup that is not there; nobody is in it, either."""
    there = frozenset(path for path in shield.bypass.cgroups if (_CGROUPS / path).is_dir())
    if there == shield.bypass.cgroups:
        return shield
    return replace(shield, bypass=replace(shield.bypass, cgroups=there))
