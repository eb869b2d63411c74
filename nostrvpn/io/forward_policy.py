"""Does another firewall of this host drop what the host would forward?

In nftables a drop anywhere is final, so a table of ours cannot let through what another one drops:
Docker's, ufw's and firewalld's do so by default. Rules of iptables-legacy are not seen. Blocking.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from nostrvpn.io.nftables import OWN_TABLES, TIMEOUT_S

__all__ = ["forward_obstacles"]


def forward_obstacles() -> dict[int, str]:
    """Return what drops forwarded packets by default, in words, for each IP version that it drops."""
    listed = [item for item in _ruleset() if "metainfo" not in item]
    found = {version: _obstacle(version, listed) for version in (4, 6)}
    return {version: words for version, words in found.items() if words is not None}


def _obstacle(version: int, listed: list[dict[str, Any]]) -> str | None:
    families = ("inet", "ip" if version == 4 else "ip6")
    for item in listed:
        chain = item.get("chain")
        if chain is None or chain.get("hook") != "forward" or chain["family"] not in families:
            continue
        if chain["table"].startswith(OWN_TABLES):
            continue
        if chain.get("policy") == "drop" or _ends_in_drop(chain, listed):
            where = f"{chain['family']} {chain['table']} {chain['name']}"
            return f"the firewall chain {where} drops what this host would forward"
    return None


def _ends_in_drop(chain: dict[str, Any], listed: list[dict[str, Any]]) -> bool:
    """Say whether the chain's last rule drops or rejects whatever reaches it."""
    place = (chain["family"], chain["table"], chain["name"])
    rules = [item["rule"] for item in listed if "rule" in item]
    mine = [rule for rule in rules if (rule["family"], rule["table"], rule["chain"]) == place]
    if not mine:
        return False
    said = [one for one in mine[-1].get("expr", ()) if "counter" not in one]
    return len(said) == 1 and bool({"drop", "reject"} & said[0].keys())


def _ruleset() -> list[dict[str, Any]]:
    try:
        done = subprocess.run(
            # Terse: without the elements of sets, of which ours and others' may have thousands.
            ["nft", "-j", "-t", "list", "ruleset"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        found = [item for item in json.loads(done.stdout)["nftables"] if "metainfo" not in item]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError, RecursionError):
        return []
    return found
