"""What we told this host's resolver, taken back without saved state. Blocking.

systemd-resolved forgets by itself, with the link. Only where a link of ours could not be removed it
is told: else every question of this host would go on to a server that is gone.
"""

from __future__ import annotations

from nostrvpn.io.netlink import marked_interfaces
from nostrvpn.io.resolv_conf import take_blocks
from nostrvpn.io.resolvconf import remove_records
from nostrvpn.io.resolved import is_running, revert_link

__all__ = ["forget_links", "forget_names"]


def forget_names(interface: str | None) -> list[str]:
    """Take back what was told for an interface (None: for all of ours); say in words what it was."""
    found = [f"resolvconf's record {name}" for name in remove_records(interface)]
    if take_blocks(interface):
        found.append("lines in /etc/resolv.conf")
    return found


def forget_links(interface: str | None) -> None:
    """Let systemd-resolved forget what it was told of our links that are there (None: of every one)."""
    links = [link for link in marked_interfaces() if interface in (None, link.name)]
    if links and is_running():
        for link in links:
            revert_link(link.index)
