"""nftables through its own command, in JSON or text: one atomic transaction a call.

Blocking; acts in the calling thread's network namespace. Tables of ours are ``inet nostrvpn…``, so
that cleaning up needs no record of them.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from nostrvpn.errors import SystemRefused

__all__ = ["OWN_TABLES", "apply_ruleset", "delete_table", "list_table", "own_tables"]

# Ours: the beginning of the name of every table we make, in family inet.
OWN_TABLES = "nostrvpn"
TIMEOUT_S = 10.0
_NO_NFT = "nftables is not installed"


def apply_ruleset(text: str) -> None:
    """Apply an nft script as one transaction; SystemRefused with nft's own words if it is refused."""
    _run("-f", "-", text=text)


def list_table(name: str) -> list[dict[str, Any]] | None:
    """Return the objects of table ``inet name`` as nft's JSON schema has them; None if it is absent."""
    if name not in own_tables():
        return None
    listed = json.loads(_run("-j", "list", "table", "inet", name))
    return [item for item in listed["nftables"] if "metainfo" not in item]


def own_tables() -> tuple[str, ...]:
    """Return the names of the tables that carry our mark; none where there is no nft."""
    try:
        listed = json.loads(_run("-j", "list", "tables", "inet"))
    except SystemRefused:
        return ()
    names = [item["table"]["name"] for item in listed["nftables"] if "table" in item]
    return tuple(name for name in names if name.startswith(OWN_TABLES))


def delete_table(name: str) -> None:
    """Delete table ``inet name``, present or not."""
    apply_ruleset(f"table inet {name} {{}}\ndelete table inet {name}\n")


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
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["no reason given"]
        raise SystemRefused(f"nft refused: {words[0]}")
    return done.stdout
