"""What is asked before an interface is touched: is it ours, and this node's; is the port free?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from nostrvpn.config.options import NETWORKS, Options
from nostrvpn.errors import SystemRefused
from nostrvpn.io.lock import lock_holder
from nostrvpn.io.netlink import Link, marked_interfaces
from nostrvpn.wireguard.device import ObservedDevice
from nostrvpn.wireguard.diff import Op, SetDevice

__all__ = ["require_free_port", "require_no_other_node", "require_ours"]


def require_ours(link: Link | None, observed: ObservedDevice | None) -> None:
    """Raise SystemRefused unless the link is ours (None: it has gone, so it is nobody else's).

    A WireGuard device without mark, key and peers counts as ours: it is what we leave behind when
    we are killed between making a link and marking it, and nobody has put it to use.
    """
    if link is None or link.is_ours or (observed is not None and observed.is_bare):
        return
    raise SystemRefused(
        f"the interface {link.name} exists and is not nostrvpn's",
        "Choose another name with --interface, or remove that interface.",
    )


def require_no_other_node(interface: str | None, home: str | None) -> None:
    """Raise SystemRefused if a living daemon of another home has the interface (None: any of ours).

    Its alias says whose an interface is. ``home`` is the state directory of the network that asks.
    """
    for link in marked_interfaces():
        owner = link.home
        if interface not in (None, link.name) or not owner or owner == home:
            continue
        holder = lock_holder(Options(state_dir=owner).lock_path)
        if holder is not None:
            stop = f"stop it with: nostrvpn --state-dir {_base(owner)} down"
            other = "or name one --interface" if interface is None else "or use another --interface"
            raise SystemRefused(f"a daemon runs on {link.name} (pid {holder})", f"{stop}; {other}")


def _base(home: str) -> str:
    """Return the state directory of the node whose network lives in ``home``."""
    above, _, profile = home.rpartition(f"/{NETWORKS}/")
    return above if above and "/" not in profile else home


def require_free_port(ops: Iterable[Op], observed: ObservedDevice | None) -> None:
    """Raise SystemRefused if an operation asks for a UDP port that another socket has.

    WireGuard takes its port when the link comes up, and implementations differ in what they tell
    when it is taken by then (wireguard-go tells nothing and stays deaf). So it is asked for
    beforehand.
    """
    current = observed.listen_port if observed is not None else 0
    for op in ops:
        if isinstance(op, SetDevice) and op.listen_port not in (None, 0, current):
            assert op.listen_port is not None
            _try_port(op.listen_port)


def _try_port(port: int) -> None:
    for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            probe = socket.socket(family, socket.SOCK_DGRAM)
        except OSError:
            continue  # a host without this family has nobody on the port either
        with probe:
            try:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((wildcard, port))
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE:
                    raise SystemRefused(
                        f"UDP port {port} is in use by another program",
                        "Choose another wireguard.listen_port.",
                    ) from exc
