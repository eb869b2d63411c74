"""The block that nft alone loads when a host starts in lockdown, by the unit's own line."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.config.options import BOOT_BLOCK, DEFAULT_STATE_DIR, Options
from nostrvpn.daemon.boot_guard import PRECIOUS_SPACES, SECRET_SPACES, guard
from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.errors import SystemRefused
from nostrvpn.exits.kill_switch import KillSwitch
from nostrvpn.exits.settings import ExitSettings
from nostrvpn.host.shield import Shield, ShieldKind, shield_marks, shield_table
from nostrvpn.host.state import HostState
from nostrvpn.io.boot_block import keep_boot_block, remove_boot_blocks
from nostrvpn.io.nftables import has_marks, own_tables
from nostrvpn.io.shield import apply_shield, remove_shield
from nostrvpn.io.store import Record, Store
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard.device import Device, SecretKey
from tests.contract.cable import LAN, PUBLIC, TUNNEL, Host, addresses, talk

UNIT = Path(__file__).parents[2] / "packaging/systemd/system/nostrvpn-lockdown.service"
BLOCKED = Shield(ShieldKind.BLOCKED)
TABLE = shield_table(TUNNEL)
# Somebody with the unit's one capability, as its User= is; nothing of Python is in his way.
ACCOUNT = 64_157
AS_THE_UNIT = (
    *("setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all,+net_admin", "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin"),
    *("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"),
)


@pytest.fixture
def host(make_netns: Callable[[], Any]) -> Iterator[Host]:
    made = Host(make_netns)
    yield made
    made.close()


@pytest.fixture
def options() -> Iterator[Options]:
    """A state directory below one that the account may pass through."""
    with tempfile.TemporaryDirectory(prefix="nostrvpn-boot-") as base:
        Path(base).chmod(0o711)
        made = Options(f"{base}/state", f"{base}/run", f"{base}/none.yaml", TUNNEL)
        Path(made.home).mkdir(mode=0o700)
        yield made


def boot(host: Host, options: Options) -> None:
    """Run the unit's first line as it says."""
    line = re.search(r"^ExecStartPre=-/bin/sh -c '(.*)'$", UNIT.read_text(), re.MULTILINE)
    assert line is not None
    script = line[1].replace("$$", "$").replace(DEFAULT_STATE_DIR, options.state_dir)
    give(options, ACCOUNT)
    host.netns.run(*AS_THE_UNIT, "sh", "-c", script, check=False)
    give(options, 0)


def give(options: Options, owner: int) -> None:
    for path in (Path(options.state_dir), *Path(options.state_dir).rglob("*")):
        os.chown(path, owner, owner)


def keep(options: Options, interface: str = TUNNEL, shield: Shield = BLOCKED) -> Path:
    keep_boot_block(options.home, interface, shield)
    return Path(options.home, BOOT_BLOCK)


def decide(options: Options, kill_switch: KillSwitch) -> None:
    store = Store.open(options.store_path, PRECIOUS_SPACES, SECRET_SPACES)
    settings = ExitSettings("", kill_switch).to_json()
    store.put([Record("meta", "listen_port", 1), Record("policy", "exit", settings)])
    store.close()


def is_blocked(host: Host, shield: Shield = BLOCKED) -> bool:
    found: bool = host.netns.call(has_marks, TABLE, shield_marks(shield, TUNNEL))
    return found


def test_lockdown_holds_at_boot_before_the_guard_and_without_it(
    host: Host, options: Options
) -> None:
    sent = talk(*addresses(PUBLIC, LAN))
    boot(host, options)
    assert host.netns.call(own_tables) == ()
    assert host.leaves(sent)[0]
    assert keep(options).stat().st_mode & 0o777 == 0o600
    boot(host, options)
    assert is_blocked(host)
    assert host.leaves(sent) == (set(), set())
    # What the guard would make is there.
    assert not host.netns.call(apply_shield, BLOCKED, TUNNEL)


def test_each_network_has_its_own_and_a_broken_one_keeps_no_other_from_it(
    host: Host, options: Options
) -> None:
    text = keep(options).read_bytes()
    for number, length in enumerate((0, 60, len(text) // 2)):
        broken = Path(options.state_dir, "networks", f"a{number}", BOOT_BLOCK)
        broken.parent.mkdir(parents=True)
        broken.write_bytes(text[:length])
    other = options.of_network("work")
    Path(other.home).mkdir(parents=True)
    keep(other, "nv7")
    boot(host, options)
    assert set(host.netns.call(own_tables)) == {TABLE, shield_table("nv7")}


def test_a_table_that_is_there_is_left_as_it_is(host: Host, options: Options) -> None:
    keep(options)
    host.apply(ShieldKind.TUNNELLED, versions=frozenset({4}))
    before = host.netns.run("nft", "list", "ruleset")
    boot(host, options)
    assert host.netns.run("nft", "list", "ruleset") == before


@pytest.mark.parametrize("left", ["another version's", "none", "broken"])
def test_the_guard_makes_the_block_and_its_script_what_they_are_now(
    host: Host, options: Options, left: str
) -> None:
    decide(options, KillSwitch.LOCKDOWN)
    path = keep(options)
    now = path.read_bytes()
    if left == "none":
        path.unlink()
    elif left == "broken":
        path.write_bytes(now[: len(now) // 2])
    else:
        [mark] = set(shield_marks(BLOCKED, TUNNEL))
        path.write_bytes(now.replace(mark.encode(), b"0123456789abcdef"))
    boot(host, options)
    assert (TABLE in host.netns.call(own_tables)) == (left == "another version's")
    assert not is_blocked(host)
    [one] = host.netns.call(guard, options)
    assert (one.state, is_blocked(host), path.read_bytes()) == ("blocked", True, now)


def test_what_was_left_in_the_last_moment_is_undone_by_the_guard(
    host: Host, options: Options
) -> None:
    decide(options, KillSwitch.ON)
    path = keep(options)
    boot(host, options)
    assert is_blocked(host)
    [one] = host.netns.call(guard, options)
    assert (one.state, path.exists(), host.netns.call(own_tables)) == ("open", False, ())
    # What a killed daemon left of another kill switch is no business of the guard's.
    keep(options)
    host.apply(ShieldKind.TUNNELLED, versions=frozenset({4}))
    host.netns.call(guard, options)
    assert (path.exists(), host.netns.call(own_tables)) == (False, (TABLE,))
    host.netns.call(remove_shield, TUNNEL)


def test_a_disk_that_takes_no_script_keeps_nobody_from_the_block(
    host: Host, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise SystemRefused("cannot write: no space left on device")

    decide(options, KillSwitch.LOCKDOWN)
    monkeypatch.setattr("nostrvpn.io.boot_block.write_durably", refuse)
    [one] = host.netns.call(guard, options)
    assert (one.state, is_blocked(host)) == ("blocked", True)


def test_the_daemon_keeps_it_while_lockdown_is_decided(
    netns: Any, interface: str, options: Options
) -> None:
    backend, path = UserspaceBackend(), Path(options.home, BOOT_BLOCK)
    device = Device(SecretKey(b"\1" * 32), 23456, 1, ())
    reconcilers = []

    def settle(shield: Shield, home: str = options.home) -> None:
        reconcilers.append(Reconciler(backend, interface, 1280, home=home))
        desired = Desired(device, HostState(interface, 1280), shield_at_boot=shield)
        netns.call(reconcilers[-1].reconcile_now, desired)

    try:
        settle(Shield())
        assert not path.exists()
        settle(BLOCKED)
        first = path.stat()
        settle(BLOCKED)
        assert path.stat().st_ino == first.st_ino
        settle(Shield(ShieldKind.BLOCKED, allow_lan=True))
        assert "192.168.0.0/16" in path.read_text()
        settle(Shield())
        assert not path.exists()
        # Without a place for it everything else goes on.
        settle(BLOCKED, f"{options.home}/none")
        assert netns.call(backend.observe, interface) is not None
    finally:
        netns.call(backend.delete, interface)
        for one in reconcilers:
            one.close()


def test_cleanup_takes_those_of_a_node_or_of_one_interface(options: Options) -> None:
    other = options.of_network("work")
    Path(other.home).mkdir(parents=True)
    mine, others = keep(options), keep(other, "nv7")
    assert remove_boot_blocks(options.state_dir, "nv") == []
    assert remove_boot_blocks(options.state_dir, "nv7") == [str(others)]
    assert remove_boot_blocks(options.state_dir) == [str(mine)]
    assert remove_boot_blocks(options.state_dir) == []
