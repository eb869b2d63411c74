"""nftables: changed through its own command, one atomic transaction a call; tables listed over netlink.

Blocking; acts in the calling thread's network namespace. Tables of ours are ``inet nostrvpn…``, so
that cleaning up needs no record of them. Where there is no table of ours, no process is started and
nft need not be installed.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

from nostrvpn.errors import SystemRefused
from nostrvpn.host.firewall import Firewall, render_firewall, rule_marks, table_name
from nostrvpn.host.inbound import Inbound, inbound_marks, inbound_table, render_inbound

__all__ = [
    "OWN_TABLES",
    "apply_firewall",
    "apply_inbound",
    "apply_ruleset",
    "delete_table",
    "has_marks",
    "list_objects",
    "list_table",
    "own_tables",
]

# Ours: the beginning of the name of every table we make, in family inet.
OWN_TABLES = "nostrvpn"
TIMEOUT_S = 10.0
# Spec: NFPROTO_INET of linux/netfilter.h.
_INET = 1
# The kernel's answer where it was built without nftables, or its module is not there.
_NO_NFTABLES = (
    *(errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOENT, errno.EINVAL),
)
_NO_NFT = "nftables is not installed"


def apply_ruleset(text: str) -> None:
    """Apply an nft script as one transaction; SystemRefused with nft's own words if it is refused."""
    _run("-f", "-", text=text)


def list_table(name: str) -> list[dict[str, Any]] | None:
    """Return the objects of table ``inet name`` as nft's JSON schema has them; None if it is absent."""
    if name not in own_tables():
        return None
    return list_objects("table", f"inet {name}")


def list_objects(*what: str, terse: bool = False) -> list[dict[str, Any]]:
    """Return what ``nft list WHAT`` shows, in nft's JSON schema; SystemRefused if it is absent.

    ``terse``: without the elements of sets, of which there may be thousands.
    """
    options = ("-j", "-t") if terse else ("-j",)
    text = _run(*options, "list", *(word for words in what for word in words.split()))
    try:
        return [item for item in json.loads(text)["nftables"] if "metainfo" not in item]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise SystemRefused("nft lists its tables in no form that we know") from exc


def own_tables() -> tuple[str, ...]:
    """Return the names of the tables that carry our mark; none where the kernel has no nftables.

    SystemRefused if the kernel does not tell.
    """
    from nostrvpn.io.pyroute import NetlinkError, NFTables

    try:
        with NFTables(nfgen_family=_INET) as nftables:
            names = [item.get_attr("NFTA_TABLE_NAME") for item in nftables.get_tables()]
    except (NetlinkError, OSError) as exc:
        code = exc.code if isinstance(exc, NetlinkError) else exc.errno
        if code in _NO_NFTABLES:
            return ()
        raise SystemRefused(f"listing nftables: {os.strerror(code or 0)}") from exc
    return tuple(name for name in names if name.startswith(OWN_TABLES))


def delete_table(name: str) -> None:
    """Delete table ``inet name``, present or not."""
    if name in own_tables():
        # Created first, so that somebody else's deleting in between is no error.
        apply_ruleset(f"table inet {name} {{}}\ndelete table inet {name}\n")


def apply_firewall(firewall: Firewall, interface: str) -> bool:
    """Make our table what ``firewall`` says; return whether that took a change.

    Raises SystemRefused where nft is missing or refuses, but only if there is something to do.
    """
    name = table_name(interface)
    if firewall.is_empty:
        exists = name in own_tables()
        if exists:
            delete_table(name)
        return exists
    marks = rule_marks(firewall, interface)
    return _settle(name, marks, lambda: render_firewall(firewall, interface))


def apply_inbound(inbound: Inbound, interface: str) -> bool:
    """Let in from the tunnel what ``inbound`` says; return whether that took a change.

    Raises SystemRefused where nft is missing or refuses; then what was in force before still is.
    """
    marks = inbound_marks(inbound, interface)
    return _settle(inbound_table(interface), marks, lambda: render_inbound(inbound, interface))


def _settle(name: str, marks: tuple[str, ...], script: Callable[[], str]) -> bool:
    """Replace a table, unless its rules carry these marks; return whether it was replaced."""
    if has_marks(name, marks):
        return False
    apply_ruleset(script())
    return True


def has_marks(name: str, marks: tuple[str, ...]) -> bool:
    """Whether the rules of table ``inet name`` carry exactly these comments, in this order."""
    return _found_marks(name) == marks


def _found_marks(name: str) -> tuple[str, ...]:
    """Return the comments of the table's rules; read over netlink, as it is done again and again."""
    from nostrvpn.io.pyroute import NetlinkError, NFTables

    try:
        with NFTables(nfgen_family=_INET) as nftables:
            rules = [
                rule for rule in nftables.get_rules() if rule.get_attr("NFTA_RULE_TABLE") == name
            ]
    except (NetlinkError, OSError):
        return ()
    return tuple(rule.get_attr("NFTA_RULE_USERDATA") or "" for rule in rules)


def _run(*arguments: str, text: str | None = None) -> str:
    try:
        done = subprocess.run(
            ["nft", *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as exc:
        raise SystemRefused(_NO_NFT, "install the package nftables") from exc
    except subprocess.TimeoutExpired as exc:
        raise SystemRefused("nft did not finish in time") from exc
    except (OSError, ValueError) as exc:
        # No process or descriptor left; or words in no encoding.
        raise SystemRefused(f"nft could not be run: {exc}") from exc
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["no reason given"]
        raise SystemRefused(f"nft refused: {words[0]}")
    return done.stdout
