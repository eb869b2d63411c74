"""The one setting of the host that the kernel's WireGuard changes, remembered and put back.

When a WireGuard link comes up, the kernel turns off ICMP redirects for the whole network namespace
(``net.ipv4.conf.all.send_redirects``; drivers/net/wireguard/device.c, ``wg_open``) and never turns
them on again. That they were on is remembered in the group of the link itself: it needs no file,
outlives a killed agent, and goes with the link.
"""

from __future__ import annotations

import errno
from pathlib import Path

from nostrvpn.io.netlink import Link, links, set_link_group
from nostrvpn.io.rtnetlink import refused

__all__ = ["group_for_new_link", "restore_redirects"]

_SETTING = Path("/proc/sys/net/ipv4/conf/all/send_redirects")
_ON = "1"

# Ours: the number of our routes' protocol too. 0 is every other link's group.
_REDIRECTS_WERE_ON = 157


def group_for_new_link() -> int:
    """Return the group that a link which is about to be made has to remember the setting by."""
    try:
        is_on = _SETTING.read_text().strip() == _ON
    except OSError:
        return 0  # a kernel without IPv4 has nothing to put back
    return _REDIRECTS_WERE_ON if is_on else 0


def restore_redirects(deleted: Link) -> None:
    """Turn redirects on again if they were before this link, which is gone now.

    As long as other WireGuard links are there, they stay off: one of ours remembers it from now on.
    SystemRefused if the kernel will not.
    """
    if deleted.group != _REDIRECTS_WERE_ON:
        return
    others = [link for link in links() if link.kind == "wireguard"]
    if others:
        heir = next((link for link in others if link.is_ours), None)
        if heir is not None:
            set_link_group(heir, _REDIRECTS_WERE_ON)
        return
    try:
        _SETTING.write_text(_ON)
    except OSError as exc:
        raise refused(f"setting {_SETTING} back to {_ON}", exc.errno or errno.EIO) from exc
