"""Does another firewall of this host drop what the host would forward?

In nftables a drop anywhere is final, so a table of ours cannot let through what another one drops:
Docker's, ufw's and firewalld's do so by default. Rules of iptables-legacy are not seen. Blocking.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from nostrvpn.io.nftables import OWN_TABLES, TIMEOUT_S

__all__ = ["forward_obstacle"]


def forward_obstacle(family: int) -> str | None:
    """Return what drops forwarded packets of IPv``family`` by default, in words; None for nothing."""
    families = ("inet", "ip" if family == 4 else "ip6")
    listed = [item for item in _ruleset() if "metainfo" not in item]
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
            ["nft", "-j", "list", "ruleset"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return []
    return found
