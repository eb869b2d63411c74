"""A booth, made by the process that becomes the command: namespaces, a veth pair, its own resolver.

The process leaves the host's network for an empty one and never comes back, so there is nothing to clean
up: network, links and mounts go with the last process in there. Linux only; takes root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.host.booth import booth_alias, booth_number
from nostrvpn.host.state import IPInterface
from nostrvpn.io.netlink import find_link, links, set_link
from nostrvpn.io.rtnetlink import refused

if TYPE_CHECKING:
    from pwd import struct_passwd

    from nostrvpn.io.pyroute import IPRoute

__all__ = [
    "BoothPlan",
    "become_user",
    "booths_taken",
    "enter_booth",
    "resolver_text",
    "run_command",
]

# Spec: linux/sched.h, linux/mount.h, linux/if_addr.h.
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19
_MNT_DETACH = 2
_IFA_F_NODAD = 0x02
_INSIDE = "eth0"
_OWN_NETWORK = "/proc/thread-self/ns/net"
_RESOLV_CONF, _NSSWITCH = Path("/etc/resolv.conf"), Path("/etc/nsswitch.conf")
# Programs ask these for names by a socket in the file system, and they ask from the host's network.
_ANSWERERS = ("/run/systemd/resolve", "/run/nscd", "/run/avahi-daemon")
# Hidden for a moment.
_SCRATCH = "/tmp"
_PING_GROUPS = Path("/proc/sys/net/ipv4/ping_group_range")


@dataclass(frozen=True, slots=True)
class BoothPlan:
    """``link``: the name of the host's end; ``tunnel``: the link that it is led into. ``outside`` and
    ``inside``: the addresses of the two ends. ``resolvers``: whom the command asks for names."""

    link: str
    tunnel: str
    outside: tuple[IPInterface, ...]
    inside: tuple[IPInterface, ...]
    resolvers: tuple[IPAddress, ...]


def booths_taken() -> list[int]:
    """Return the numbers that booths of this host have, whosever they are."""
    numbers = (booth_number(link.name) for link in links())
    return sorted(number for number in numbers if number is not None)


def enter_booth(plan: BoothPlan) -> None:
    """Move this process into a booth, with its own network and resolver; SystemRefused.

    The process must have one thread. What fails halfway leaves it without a network.
    """
    tunnel = find_link(plan.tunnel)
    if tunnel is None:
        raise SystemRefused(f"the tunnel {plan.tunnel} is gone", "see: nostrvpn status")
    host = os.open(_OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", _CLONE_NEWNET | _CLONE_NEWNS)
        booth = os.open(_OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
        try:
            ping_groups = _in_network(host, booth, lambda: _make_link(plan, booth, tunnel.mtu))
        finally:
            os.close(booth)
    finally:
        os.close(host)
    _configure_inside(plan)
    if ping_groups is not None:
        with suppress(OSError):
            _PING_GROUPS.write_text(ping_groups)
    _use_resolvers(plan.resolvers)


def resolver_text(resolvers: Iterable[IPAddress]) -> str:
    """Return the resolv.conf of a booth; without a resolver names fail at once."""
    lines = [f"nameserver {address}" for address in resolvers]
    return "\n".join(["# nostrvpn exec: names are asked for through the exit", *lines, ""])


def become_user(user: struct_passwd) -> None:
    """Turn this process of root's into one of ``user``'s, for good; SystemRefused."""
    try:
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except OSError as exc:
        raise refused(f"becoming {user.pw_name}", exc.errno or errno.EPERM) from exc


def run_command(command: tuple[str, ...], environment: dict[str, str]) -> int:
    """Become ``command``; return only if that fails, with the exit code that shells give for it."""
    # What Python ignores would stay ignored.
    for one in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(one, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        return 127
    except OSError:
        return 126


def _in_network(host: int, booth: int, work: Any) -> Any:
    """Do ``work`` in the host's network; return what it returns, back in the booth's."""
    _call("setns", host, _CLONE_NEWNET)
    try:
        return work()
    finally:
        _call("setns", booth, _CLONE_NEWNET)


def _make_link(plan: BoothPlan, booth: int, mtu: int) -> str | None:
    """Make the pair, with the host's end ready; return who may send echoes on the host."""
    from nostrvpn.io.pyroute import IPRoute, NetlinkError

    peer = {"ifname": _INSIDE, "net_ns_fd": booth, "mtu": mtu}
    try:
        with IPRoute() as route:
            route.link("add", ifname=plan.link, kind="veth", mtu=mtu, peer=peer)
            set_link(plan.link, mtu=None, alias=booth_alias(plan.tunnel))
            _enable(plan.link, forwarding=True)
            _address(route, plan.link, plan.outside)
    except NetlinkError as exc:
        raise refused(f"making the link {plan.link}", exc.code) from exc
    except OSError as exc:
        raise refused(f"making the link {plan.link}", exc.errno or errno.EIO) from exc
    with suppress(OSError):
        return _PING_GROUPS.read_text()
    return None


def _configure_inside(plan: BoothPlan) -> None:
    from nostrvpn.io.pyroute import IPRoute, NetlinkError

    try:
        with IPRoute() as route:
            route.link("set", index=socket.if_nametoindex("lo"), state="up")
            _enable(_INSIDE, forwarding=False)
            _address(route, _INSIDE, plan.inside)
            for gateway in plan.outside:
                if gateway.version == 4 or Path("/proc/sys/net/ipv6").exists():
                    route.route(
                        "add",
                        family=_family(gateway),
                        dst="0.0.0.0/0" if gateway.version == 4 else "::/0",
                        gateway=str(gateway.ip),
                        oif=socket.if_nametoindex(_INSIDE),
                    )
    except NetlinkError as exc:
        raise refused("setting up the command's network", exc.code) from exc
    except OSError as exc:
        raise refused("setting up the command's network", exc.errno or errno.EIO) from exc


def _address(route: IPRoute, link: str, addresses: Iterable[IPInterface]) -> None:
    """Give a link its addresses and set it up."""
    index = socket.if_nametoindex(link)
    for address in addresses:
        if address.version == 6 and not Path("/proc/sys/net/ipv6").exists():
            continue
        # There is nobody else on the link to have the address too.
        flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
        route.addr(
            "add",
            index=index,
            family=_family(address),
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            **flags,
        )
    route.link("set", index=index, state="up")


def _enable(link: str, *, forwarding: bool) -> None:
    """Let a link have IPv6 and no router's word for it, and forward what comes in there."""
    v6 = Path("/proc/sys/net/ipv6/conf") / link
    settings = [(v6 / "disable_ipv6", "0"), (v6 / "accept_ra", "0")]
    if forwarding:
        settings.append((Path("/proc/sys/net/ipv4/conf") / link / "forwarding", "1"))
    for path, value in settings:
        with suppress(FileNotFoundError):
            path.write_text(value)


def _use_resolvers(resolvers: Iterable[IPAddress]) -> None:
    """Let this process, and whatever it starts, ask only ``resolvers`` for names."""
    _mount("none", "/", "", _MS_REC | _MS_SLAVE)
    for place in _ANSWERERS:
        if os.path.isdir(place):
            _mount("tmpfs", place, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=755")
    texts = {os.path.realpath(_RESOLV_CONF): resolver_text(resolvers)}
    with suppress(FileNotFoundError):
        texts[os.path.realpath(_NSSWITCH)] = _plain_names(_NSSWITCH.read_text("utf-8"))
    for target in texts:
        # A link into a directory that is empty now.
        if target.startswith(tuple(f"{place}/" for place in _ANSWERERS)):
            Path(target).touch()
        if not os.path.isfile(target):
            raise SystemRefused(f"there is no {target} that another could take the place of")
    _cover(texts)


def _plain_names(text: str) -> str:
    """Return nsswitch.conf with no other way to a host's address than files and DNS."""
    lines = text.splitlines()
    kept = [line for line in lines if line.partition(":")[0].strip() != "hosts"]
    return "\n".join([*kept, "hosts: files dns", ""])


def _cover(texts: Mapping[str, str]) -> None:
    """Put files with these texts in the place of others, for this process and its children."""
    # In a file system that only this process sees: there is nothing to remove, whatever happens.
    _mount("tmpfs", _SCRATCH, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=755")
    for number, (target, text) in enumerate(texts.items()):
        source = Path(_SCRATCH) / str(number)
        source.write_text(text, encoding="utf-8")
        source.chmod(0o644)
        _mount(str(source), target, "", _MS_BIND)
    _call("umount2", _SCRATCH.encode(), _MNT_DETACH)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    texts = [text.encode() or None for text in (source, target, kind)]
    _call("mount", *texts, ctypes.c_ulong(flags), data.encode() or None)


def _call(function: str, *arguments: Any) -> None:
    """Call into libc; SystemRefused by the kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        raise refused(f"{function} for the command's own network", ctypes.get_errno())


def _family(address: IPInterface) -> int:
    return int(socket.AF_INET if isinstance(address.ip, IPv4Address) else socket.AF_INET6)
