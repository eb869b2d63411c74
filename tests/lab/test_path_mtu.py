"""Narrow paths: what is measured, set as routes, and lets a tunnel carry everything nevertheless.

Two hosts across a core that drops what is too long without a word. The prober measures it with real
packets, ``desired_state`` makes routes of the result, and two wireguard-go carry data over them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.host.diff import diff
from nostrvpn.host.state import FWMARK
from nostrvpn.identity.keys import RootSecret
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.netlink import observe_host
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.lab.topology import Host, Lab
from nostrvpn.lab.transfer import transfer
from nostrvpn.machine import Entropy, Moment
from nostrvpn.mesh.addressing import OverlayAddress
from nostrvpn.mesh.roster import Roster
from nostrvpn.node.desired import TunnelSettings, desired_state
from nostrvpn.node.peers import Peer
from nostrvpn.paths.path_mtu import HEADERS, MtuProber, inner_mtu
from nostrvpn.wireguard.device import SecretKey
from tests.networks import admit, network_of

pytestmark = pytest.mark.lab

PORT = 5000
SIZE = 1 << 20
# Linux: ip(7), ipv6(7), socket(7).
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_PROBE = 3
# An answer takes well below a millisecond here; the prober's own patience passes in virtual time.
ANSWER_S = 0.05


@dataclass
class End:
    """One host with its tunnel."""

    host: Host
    secret: RootSecret
    key: SecretKey
    roster: Roster
    interface: str
    generation: int = 0
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.reconciler = Reconciler(UserspaceBackend(), self.interface, 1280)

    @property
    def inside(self) -> OverlayAddress:
        return self.roster.address(self.secret.public_key)

    def outside(self, version: int) -> IPAddress:
        address = self.host.address if version == 4 else self.host.address6
        assert address is not None
        return address

    def reach(self, other: End, version: int, mtu: int | None) -> None:
        """Reconcile to a tunnel to ``other``, whose path carries ``mtu``."""
        self.generation += 1
        peer = Peer(
            other.secret.public_key,
            other.key.public_key,
            endpoint=Endpoint(other.outside(version), PORT),
            endpoint_generation=self.generation,
            mtu=mtu,
        )
        settings = TunnelSettings(
            self.interface, "nostrvpn lab", 1280, self.key, self.key.public_key, PORT, 25
        )
        me = self.secret.public_key
        desired = desired_state(settings, me, self.roster, [peer], ipv4=True, now=0.0)
        with self.host.namespace.enter():
            self.reconciler.reconcile_now(desired)
            assert diff(observe_host(self.interface), desired.host) == [], (
                "a second run does nothing"
            )

    def carries(self, address: IPAddress, size: int) -> bool:
        """Whether a packet of ``size`` bytes, and its echo, pass the tunnel."""
        payload = size - (28 if address.version == 4 else 48)
        words = ("ping", "-c1", "-W0.3", "-Mdont", f"-s{payload}", str(address))
        return self.host.namespace.run(*words, check=False).returncode == 0


def set_limit(lab: Lab, limit: int | None) -> None:
    """Have the core drop longer packets; fragments are packets of their own to this rule."""
    core = lab.core.namespace
    core.nft("table inet narrow {}\ndelete table inet narrow\n")
    if limit is not None:
        core.nft(
            "table inet narrow {\nchain c {\ntype filter hook prerouting priority -500;\n"
            f"meta length > {limit} drop\n}}\n}}\n"
        )


def measure(source: End, target: End, version: int) -> int | None:
    """Run the prober over the real path, each probe a datagram that the other end echoes."""
    ipv6 = version == 6
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with target.host.namespace.enter():
        echo = socket.socket(family, socket.SOCK_DGRAM)
    with source.host.namespace.enter():
        asking = socket.socket(family, socket.SOCK_DGRAM)
    option = (
        (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if ipv6 else (socket.IPPROTO_IP, IP_MTU_DISCOVER)
    )
    with echo, asking:
        asking.setsockopt(*option, PMTUDISC_PROBE)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
        asking.settimeout(ANSWER_S)
        echo.bind((str(target.outside(version)), 0))
        asking.connect(echo.getsockname()[:2])

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, back = echo.recvfrom(2048)
                    if not data:
                        return
                    echo.sendto(data[:12], back)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        prober = MtuProber()
        prober.start(0.0, ipv6=ipv6)
        while prober.deadline is not None:
            now = prober.deadline
            probe = prober.due(Moment(now, now, Entropy(os.urandom(32))))
            if probe is None:
                continue
            with contextlib.suppress(OSError):  # no answer, or too large for our own link
                asking.send(probe.transaction + bytes(probe.size - HEADERS[ipv6] - 12))
                prober.answered(asking.recv(2048), now)
        asking.send(b"")
        thread.join(5)
    return prober.mtu


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def ends(lab: Lab) -> Iterator[tuple[End, End]]:
    secrets = [RootSecret(bytes([n]) * 32) for n in (1, 2)]
    roster = admit(network_of(secrets[0], "a"), secrets[0], secrets[1].public_key, "b")
    a, b = (
        End(
            lab.host(f"host-{n}"), secret, SecretKey(os.urandom(32)), roster, f"nvm{os.getpid()}{n}"
        )
        for n, secret in enumerate(secrets)
    )
    yield a, b
    for end in (a, b):
        with end.host.namespace.enter():
            remove_marked()


def both(ends: tuple[End, End], version: int, mtu: int | None) -> None:
    a, b = ends
    a.reach(b, version, mtu)
    b.reach(a, version, mtu)
    deadline = time.monotonic() + 20
    while not a.carries(b.inside.ipv6, 100):
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("version", "limit", "measured"), [(4, 1280, 1276), (4, 1124, 1116), (6, 1280, 1280)]
)
def test_a_narrow_path_carries_everything(
    lab: Lab, ends: tuple[End, End], version: int, limit: int, measured: int
) -> None:
    a, b = ends
    set_limit(lab, limit)
    both(ends, version, None)
    assert not a.carries(b.inside.ipv4, 1280)
    assert not a.carries(b.inside.ipv6, 1280)

    mtu = measure(a, b, version)
    assert mtu == measured
    both(ends, version, mtu)
    assert measure(a, b, version) == mtu, "our own routes must not blind the prober"
    for address in (b.inside.ipv4, b.inside.ipv6):
        assert a.carries(address, inner_mtu(mtu, ipv6=version == 6))
        assert a.carries(address, 1280)
        assert transfer(a.host.namespace, b.host.namespace, address, size=SIZE).intact

    both(ends, version, None)
    assert not a.carries(b.inside.ipv6, 1280)
    rules = a.host.run("ip", "rule") + a.host.run("ip", "-6", "rule")
    assert "0xa50000" not in rules


def test_a_wide_path_is_used(lab: Lab, ends: tuple[End, End]) -> None:
    a, b = ends
    set_limit(lab, None)
    both(ends, 4, None)
    mtu = measure(a, b, 4)
    assert mtu == 1500
    both(ends, 4, mtu)
    set_limit(lab, 1500)
    for address in (b.inside.ipv4, b.inside.ipv6):
        assert a.carries(address, 1440)
        assert "mtu 1440" in a.host.run("ip", "route", "get", str(address))
    both(ends, 4, None)
    assert "mtu 1280" in a.host.run("ip", "link", "show", a.interface)


def test_a_limit_follows_the_hosts_routes(lab: Lab, ends: tuple[End, End]) -> None:
    a, b = ends
    both(ends, 4, 1116)
    target = str(b.outside(4))
    marked = ("ip", "route", "get", target, "mark", str(FWMARK))
    assert "mtu lock 1116" in a.host.run(*marked)
    a.host.namespace.ip("addr add 11.0.1.77/24 dev eth0", f"route add {target} dev eth0")
    a.reach(b, 4, 1116)
    assert "via" not in a.host.run(*marked)
    a.host.namespace.ip(f"route del {target} dev eth0", "rule del pref 4600")
    a.reach(b, 4, 1116)
    assert "mtu lock 1116" in a.host.run(*marked)
    assert "via" in a.host.run(*marked)


def test_cleanup_leaves_nothing(lab: Lab, ends: tuple[End, End]) -> None:
    """Also where the link has gone already, as after a kill and a reboot of its process."""
    a, _ = ends
    both(ends, 4, 1116)
    with a.host.namespace.enter():
        UserspaceBackend().delete(a.interface)
        assert "0xa50000" in a.host.run("ip", "rule")
        remove_marked()
    assert "0xa50000" not in a.host.run("ip", "rule")
    assert a.host.run("ip", "route", "show", "table", "all", "proto", "157") == ""
