"""What we told this host's resolver, taken back without saved state. Blocking.

systemd-resolved forgets by itself, with the link.
"""

from __future__ import annotations

from nostrvpn.io.resolv_conf import take_blocks
from nostrvpn.io.resolvconf import remove_records

__all__ = ["forget_names"]


def forget_names(interface: str | None) -> list[str]:
    """Take back what was told for an interface (None: for all of ours); say in words what it was."""
    found = [f"resolvconf's record {name}" for name in remove_records(interface)]
    if take_blocks(interface):
        found.append("lines in /etc/resolv.conf")
    return found
