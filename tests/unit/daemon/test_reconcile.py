"""The reconciler never has a tunnel without its filter."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nostrvpn.daemon import exit_way, reconcile, settled
from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.errors import SystemRefused
from nostrvpn.host.inbound import EVERYTHING, Inbound
from nostrvpn.host.state import HostState
from nostrvpn.host.subnet_gateway import Gateway
from nostrvpn.io.forward_policy import Obstacle
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard.device import Device, ObservedDevice, SecretKey

OTHER = Inbound(sources={ip_address("10.64.0.2"): EVERYTHING})


class Kernel:
    """Notes what is done, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[object] = []
        self.refusal: str | None = None
        self.obstacle: Obstacle | None = None
        monkeypatch.setattr(reconcile, "apply_inbound", self._filter)
        monkeypatch.setattr(reconcile, "observe_host", lambda _name: None)
        monkeypatch.setattr(reconcile, "apply_host", lambda _ops: self.done.append("link up"))
        monkeypatch.setattr(reconcile, "input_obstacle", self._look)
        for others in ("apply_firewall", "apply_gateway"):
            monkeypatch.setattr(reconcile, others, lambda *_: False)
        for others in ("apply_shield", "apply_exit_routing"):
            monkeypatch.setattr(exit_way, others, lambda *_: False)
        monkeypatch.setattr("nostrvpn.host.diff.diff", lambda *_: [])

    def _filter(self, inbound: Inbound, _interface: str) -> bool:
        if self.refusal:
            raise SystemRefused(self.refusal)
        self.done.append(inbound)
        return True

    def _look(self, _interface: str) -> Obstacle | None:
        self.done.append("look")
        return self.obstacle

    def create(self, _name: str, _mtu: int) -> None:
        self.done.append("create")

    def observe(self, _name: str) -> ObservedDevice | None:
        return None

    def apply(self, *_: Any) -> None:
        self.done.append("peers")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def desired(inbound: Inbound | None) -> Desired:
    return Desired(
        Device(SecretKey(b"\1" * 32), 1234, 1, ()), HostState("nv0", 1280), inbound=inbound
    )


def made(kernel: Kernel, *, must_filter: bool = True) -> Reconciler:
    backend: Any = kernel
    return Reconciler(backend, "nv0", 1280, must_filter=must_filter)


def test_the_filter_is_there_before_the_tunnel(kernel: Kernel) -> None:
    made(kernel).reconcile_now(desired(Inbound()))
    assert kernel.done[:2] == [Inbound(), "create"]
    assert kernel.done.index("link up") > kernel.done.index("peers")


def test_a_change_of_the_filter_keeps_no_tunnel_waiting(kernel: Kernel) -> None:
    """The filter of before drops what is new, and the other side's handshake does not wait."""
    reconciler = made(kernel)
    reconciler.reconcile_now(desired(Inbound()))
    kernel.done.clear()
    reconciler.reconcile_now(desired(OTHER))
    assert kernel.done[-3:] == ["peers", "link up", OTHER]
    kernel.refusal = "nft refused"
    with pytest.raises(SystemRefused):
        reconciler.reconcile_now(desired(Inbound()))


def test_a_filter_that_stands_is_not_looked_at_again_for_a_while(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler = made(kernel)
    for inbound in (Inbound(), Inbound(), OTHER, OTHER):
        reconciler.reconcile_now(desired(inbound))
    assert [step for step in kernel.done if isinstance(step, Inbound)] == [Inbound(), OTHER]
    assert kernel.done.count("look") == 1
    monkeypatch.setattr(settled, "TRUSTED_S", 0.0)
    monkeypatch.setattr(reconcile, "LOOK_EVERY_S", 0.0)
    reconciler.reconcile_now(desired(OTHER))
    assert kernel.done.count(OTHER) == 2
    assert kernel.done.count("look") == 2


def test_where_permissions_cannot_be_enforced_no_tunnel_is_made(kernel: Kernel) -> None:
    kernel.refusal = "nftables is not installed"
    reconciler = made(kernel)
    with pytest.raises(
        SystemRefused, match="permissions cannot be enforced: nftables is not"
    ) as told:
        reconciler.reconcile_now(desired(Inbound()))
    assert "best-effort" in told.value.hint
    assert kernel.done == []
    assert reconciler.finished("no").inbound_error == "nftables is not installed"
    kernel.refusal = None
    reconciler.reconcile_now(desired(Inbound()))
    assert reconciler.finished(None).inbound_error is None


def test_a_user_may_prefer_a_tunnel_that_lets_everything_in(kernel: Kernel) -> None:
    kernel.refusal = "nftables is not installed"
    kernel.obstacle = Obstacle("ip filter INPUT", "sudo ufw allow in on nv0")
    reconciler = made(kernel, must_filter=False)
    reconciler.reconcile_now(desired(Inbound()))
    assert "link up" in kernel.done
    finished = reconciler.finished(None)
    assert finished.inbound_error == "nftables is not installed"
    assert finished.obstacle == ("ip filter INPUT", "sudo ufw allow in on nv0")


LAN = Gateway(frozenset({ip_network("192.168.5.0/24")}))


def routing(gateway: Gateway) -> Desired:
    return replace(desired(Inbound()), gateway=gateway)


def test_networks_behind_this_host_are_opened_after_the_filter(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(gateway: Gateway, *_: object) -> bool:
        kernel.done.append(gateway)
        return True

    monkeypatch.setattr(reconcile, "apply_gateway", forward)
    monkeypatch.setattr(reconcile, "forward_obstacle", lambda *_: Obstacle("chain", "command"))
    reconciler = made(kernel, must_filter=False)
    reconciler.reconcile_now(routing(LAN))
    assert kernel.done.index(LAN) > kernel.done.index(Inbound())
    assert reconciler.finished(None).forward_obstacle == ("chain", "command")
    kernel.done.clear()
    reconciler.reconcile_now(routing(LAN))
    assert LAN not in kernel.done
    reconciler.reconcile_now(routing(Gateway()))
    assert Gateway() in kernel.done
    assert reconciler.finished(None).forward_obstacle is None


def test_without_a_filter_nothing_is_forwarded(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else everybody in the network would reach what is behind this host."""
    asked: list[Gateway] = []

    def forward(gateway: Gateway, *_: object) -> bool:
        asked.append(gateway)
        return False

    monkeypatch.setattr(reconcile, "apply_gateway", forward)
    kernel.refusal = "nftables is not installed"
    reconciler = made(kernel, must_filter=False)
    reconciler.reconcile_now(routing(LAN))
    assert asked == []
    told = reconciler.finished(None).gateway_error
    assert told is not None
    assert "permissions cannot be enforced" in told
    kernel.refusal = None
    reconciler.reconcile_now(routing(LAN))
    assert asked == [LAN]
    assert reconciler.finished(None).gateway_error is None


def test_advice_that_fails_costs_no_tunnel(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_interface: str) -> Obstacle | None:
        raise AttributeError("no keys")

    monkeypatch.setattr(reconcile, "input_obstacle", fail)
    made(kernel).reconcile_now(desired(Inbound()))
    assert "link up" in kernel.done
    assert "no keys" in caplog.text


def test_what_somebody_removed_is_made_at_once(kernel: Kernel) -> None:
    reconciler = made(kernel)
    for _ in range(2):
        reconciler.reconcile_now(desired(OTHER))
    assert kernel.done.count(OTHER) == 1
    reconciler.tables_changed()
    for _ in range(2):
        reconciler.reconcile_now(desired(OTHER))
    assert kernel.done.count(OTHER) == 2


def test_the_next_look_counts_from_the_last_one_and_not_from_the_last_run(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what somebody removed would be missed for as long as both together."""
    now = [1000.0]
    monkeypatch.setattr("nostrvpn.daemon.reconcile.time.monotonic", lambda: now[0])
    reconciler = made(kernel)
    reconciler.reconcile_now(desired(Inbound()))
    now[0] += 19.9
    reconciler.reconcile_now(desired(Inbound()))
    assert reconciler.due_in_s == pytest.approx(10.1)
    now[0] += 10.1
    kernel.done.clear()
    reconciler.reconcile_now(desired(Inbound()))
    assert Inbound() in kernel.done
    assert reconciler.due_in_s == pytest.approx(30.0)
    # A shield that is not as it should be is tried again at once.
    monkeypatch.setattr(Reconciler, "shield_error", "nft refused")
    assert reconciler.due_in_s == 1.0
