"""Holding traffic back while no daemon runs: what ``nostrvpn exit guard`` does when a host starts.

It reads what was decided about exits without a daemon, and blocks if that says lockdown, or if it
cannot be known any more. Where lockdown was decided before, nft has loaded a block already
(``io/boot_block.py``); if it was left in the moment before the host ended, that is undone here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from nostrvpn.config.options import Options
from nostrvpn.errors import NostrvpnError, PeerMisbehaved
from nostrvpn.exits.kill_switch import KillSwitch
from nostrvpn.exits.settings import ExitSettings
from nostrvpn.host.shield import Shield, ShieldKind
from nostrvpn.io.config_file import load_config
from nostrvpn.io.lock import AlreadyRunning, StateLock
from nostrvpn.io.privilege import as_owner
from nostrvpn.io.profiles import used_profiles
from nostrvpn.io.store import Record, Store

__all__ = ["PRECIOUS_SPACES", "SECRET_SPACES", "Guarded", "doubt_exit", "guard", "is_locked"]

# Losing one of these loses a membership, or the port and sequence numbers that peers know us by:
# the store refreshes its backup after they change.
PRECIOUS_SPACES = frozenset({"meta", "network", "policy", "invite", "join", "peer", "keys"})
# What is deleted here makes recorded messages unreadable, so it has to be gone.
SECRET_SPACES = frozenset({"keys"})

_log = logging.getLogger(__name__)

# Stands where the settings were, so that whoever reads it next knows that they were lost.
_LOST = "lost with the state database"


@dataclass(frozen=True, slots=True)
class Guarded:
    """One network: ``state`` is ``blocked``, ``open``, or ``running`` (its daemon sees to it)."""

    network: str
    interface: str
    state: str
    reason: str


def doubt_exit(store: Store) -> None:
    """Note that nobody knows what was decided about exits, where the database was lost for good."""
    recovery = store.recovery
    if recovery is None or recovery.from_backup or "exit" in store.all("policy"):
        return
    store.put([Record("policy", "exit", _LOST)])


def guard(options: Options) -> list[Guarded]:
    """Block where that was decided, in each network of the node; NostrvpnError says why it cannot be."""
    return [_guard(options.of_network(profile)) for profile in used_profiles(options)]


def _guard(options: Options) -> Guarded:
    interface = options.interface_name(load_config(options.config, options.overlay))
    if not Path(options.store_path).exists():
        return Guarded(options.network, interface, "open", "nothing was decided about exits")
    try:
        settings, reason = _read(options)
    except AlreadyRunning:
        return Guarded(options.network, interface, "running", "its daemon sees to it")
    from nostrvpn.io.boot_block import keep_boot_block, undo_boot_block

    if not _locks(settings):
        undo_boot_block(options.home, interface)
        return Guarded(options.network, interface, "open", reason)
    from nostrvpn.io.shield import apply_shield

    allow_lan = settings is not None and settings.allow_lan
    shield = Shield(ShieldKind.BLOCKED, allow_lan=allow_lan)
    apply_shield(shield, interface)
    try:
        keep_boot_block(options.home, interface, shield)
    except NostrvpnError as exc:
        _log.warning("at the next start the block comes later: %s", exc)
    return Guarded(options.network, interface, "blocked", reason)


def is_locked(options: Options) -> bool:
    """Whether traffic of this network is to be held back while no daemon runs; NostrvpnError."""
    return Path(options.store_path).exists() and _locks(_read(options)[0])


def _locks(settings: ExitSettings | None) -> bool:
    return settings is None or settings.kill_switch is KillSwitch.LOCKDOWN


def _read(options: Options) -> tuple[ExitSettings | None, str]:
    with as_owner(options.home):
        lock = StateLock(options.lock_path)
        lock.acquire()
        try:
            return _decided(options)
        finally:
            lock.release()


def _decided(options: Options) -> tuple[ExitSettings | None, str]:
    """Return what is stored, and what it says in words; None for settings that are damaged."""
    store = Store.open(options.store_path, PRECIOUS_SPACES, SECRET_SPACES)
    try:
        doubt_exit(store)
        stored = store.all("policy").get("exit")
    finally:
        store.close()
    if stored is None:
        return ExitSettings(), "nothing was decided about exits"
    try:
        settings = ExitSettings.from_json(stored)
    except PeerMisbehaved as exc:
        return None, f"what was decided about exits is damaged: {exc}"
    return settings, f"the kill switch is set to {settings.kill_switch.value}"
