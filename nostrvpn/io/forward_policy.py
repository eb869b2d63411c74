"""Does another firewall of this host drop what the host would forward, or what the tunnel brings?

In nftables a drop anywhere is final, so a table of ours cannot let through what another one drops:
Docker's, ufw's and firewalld's do so by default. Rules of iptables-legacy are not seen. Blocking.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from nostrvpn.errors import SystemRefused
from nostrvpn.io.nftables import OWN_TABLES, list_objects

__all__ = ["Obstacle", "forward_obstacle", "forward_obstacles", "input_obstacle"]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A chain of somebody else's that drops the tunnel's packets, and the command that helps."""

    where: str
    remedy: str


def forward_obstacles() -> dict[int, str]:
    """Return what drops forwarded packets by default, in words, for each IP version that it drops."""
    listed = _listed()
    found = {version: _dropping_chain("forward", version, listed) for version in (4, 6)}
    return {
        version: f"the firewall chain {_where(chain)} drops what this host would forward"
        for version, chain in found.items()
        if chain is not None
    }


def input_obstacle(interface: str) -> Obstacle | None:
    """Return a firewall that drops what comes in by default and says nothing of ``interface``."""
    listed = _listed()
    for version in (6, 4):
        chain = _dropping_chain("input", version, listed)
        if chain is not None and not _speaks_of(interface, chain, listed):
            return Obstacle(_where(chain), _remedy(interface, chain, listed))
    return None


def forward_obstacle(interface: str, versions: Collection[int]) -> Obstacle | None:
    """Return a firewall that drops what is forwarded by default and says nothing of ``interface``."""
    listed = _listed()
    for version in sorted(versions):
        chain = _dropping_chain("forward", version, listed)
        if chain is not None and not _speaks_of(interface, chain, _about_forwarding(listed)):
            return Obstacle(_where(chain), _forward_remedy(interface, chain, listed))
    return None


def _about_forwarding(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out rules of chains that are for what comes in, as ufw's and Docker's are named."""
    words = ("forward", "docker", "route")
    return [
        item
        for item in listed
        if "rule" not in item or any(w in item["rule"]["chain"].lower() for w in words)
    ]


def _forward_remedy(interface: str, chain: dict[str, Any], listed: list[dict[str, Any]]) -> str:
    if chain["table"] == "firewalld":
        return _remedy(interface, chain, listed)
    chains = [item["chain"] for item in listed if "chain" in item]
    names = {one["name"] for one in chains if one["table"] == chain["table"]}
    if any(name.startswith("ufw") for name in names):
        return f"sudo ufw route allow in on {interface} && sudo ufw route allow out on {interface}"
    if "DOCKER-USER" in names:
        way = "iptables" if chain["family"] == "ip" else "ip6tables"
        return " && ".join(
            f"sudo {way} -I DOCKER-USER {to} {interface} -j ACCEPT" for to in ["-i", "-o"]
        )
    place = _where(chain)
    return " && ".join(
        f"sudo nft insert rule {place} {to} {interface} accept" for to in ("iifname", "oifname")
    )


def _listed() -> list[dict[str, Any]]:
    try:
        return list_objects("ruleset", terse=True)
    except SystemRefused:
        return []


def _dropping_chain(hook: str, version: int, listed: list[dict[str, Any]]) -> dict[str, Any] | None:
    families = ("inet", "ip" if version == 4 else "ip6")
    for item in listed:
        chain = item.get("chain")
        if chain is None or chain.get("hook") != hook or chain["family"] not in families:
            continue
        if chain["table"].startswith(OWN_TABLES):
            continue
        if chain.get("policy") == "drop" or _ends_in_drop(chain, listed):
            found: dict[str, Any] = chain
            return found
    return None


def _ends_in_drop(chain: dict[str, Any], listed: list[dict[str, Any]]) -> bool:
    """Say whether the chain's last rule drops or rejects whatever reaches it."""
    place = (chain["family"], chain["table"], chain["name"])
    rules = [item["rule"] for item in listed if "rule" in item]
    mine = [rule for rule in rules if (rule["family"], rule["table"], rule["chain"]) == place]
    if not mine:
        return False
    said = [one for one in _statements(mine[-1]) if "counter" not in one]
    return len(said) == 1 and bool({"drop", "reject"} & said[0].keys())


def _speaks_of(interface: str, chain: dict[str, Any], listed: list[dict[str, Any]]) -> bool:
    """Whether a rule of the chain's table names the interface: then somebody thought of it."""
    for item in listed:
        rule = item.get("rule")
        if rule is None or (rule["family"], rule["table"]) != (chain["family"], chain["table"]):
            continue
        for match in (one["match"] for one in _statements(rule) if "match" in one):
            left, right = match.get("left"), match.get("right")
            meta = left.get("meta") if isinstance(left, dict) else None
            key = meta.get("key") if isinstance(meta, dict) else None
            if key in ("iif", "iifname") and match.get("op") == "==":
                names = right.get("set", []) if isinstance(right, dict) else [right]
                if any(_fits(name, interface) for name in names):
                    return True
    return False


def _statements(rule: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a rule's statements; nft writes those without arguments ("notrack") as bare words."""
    return [one if isinstance(one, dict) else {str(one): None} for one in rule.get("expr", ())]


def _fits(pattern: object, interface: str) -> bool:
    text = str(pattern)
    return interface.startswith(text[:-1]) if text.endswith("*") else interface == text


def _remedy(interface: str, chain: dict[str, Any], listed: list[dict[str, Any]]) -> str:
    chains = [item["chain"] for item in listed if "chain" in item]
    if chain["table"] == "firewalld":
        put = f"sudo firewall-cmd --permanent --zone=trusted --add-interface={interface}"
        return f"{put} && sudo firewall-cmd --reload"
    if any(one["table"] == chain["table"] and one["name"].startswith("ufw") for one in chains):
        return f"sudo ufw allow in on {interface}"
    return f"sudo nft insert rule {_where(chain)} iifname {interface} accept"


def _where(chain: dict[str, Any]) -> str:
    return f"{chain['family']} {chain['table']} {chain['name']}"
