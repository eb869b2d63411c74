"""What the command line and the environment say about one node: where it lives and runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only a type here, and the model costs every command the import of msgspec
    from nostrvpn.config.model import Config, Relay

__all__ = ["DEFAULT_CONFIG", "DEFAULT_RUNTIME_DIR", "DEFAULT_STATE_DIR", "Options", "RelayOptions"]

DEFAULT_STATE_DIR = "/var/lib/nostrvpn"
DEFAULT_RUNTIME_DIR = "/run/nostrvpn"
DEFAULT_CONFIG = "/etc/nostrvpn/config.yaml"


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """What one run says about relaying for others; None and () leave the configuration's word."""

    offer: str | None = None
    address: tuple[str, ...] = ()
    websocket: str | None = None
    pairs: int | None = None
    mbit: int | None = None
    gigabytes: int | None = None

    @property
    def given(self) -> frozenset[str]:
        """The names of the options that were given."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) not in (None, ()))


@dataclass(frozen=True, slots=True)
class Options:
    """One node's places and the overrides of one run; several nodes share a host by differing here.

    ``interface``, ``name``, ``relays`` and ``relay`` override the configuration when they are set.
    ``log_file`` is where a detached daemon writes, None means standard error.
    """

    state_dir: str = DEFAULT_STATE_DIR
    runtime_dir: str = DEFAULT_RUNTIME_DIR
    config: str = DEFAULT_CONFIG
    interface: str | None = None
    name: str | None = None
    relays: tuple[str, ...] = ()
    log_file: str | None = None
    relay: RelayOptions = RelayOptions()

    @property
    def control_socket(self) -> str:
        """Path of the Unix socket on which the daemon answers."""
        return f"{self.runtime_dir}/control.sock"

    @property
    def store_path(self) -> str:
        """Path of the state database."""
        return f"{self.state_dir}/state.db"

    @property
    def lock_path(self) -> str:
        """Path of the lock file that a running daemon holds."""
        return f"{self.state_dir}/daemon.lock"

    @property
    def log_path(self) -> str:
        """Path of the detached daemon's log."""
        return f"{self.state_dir}/daemon.log"

    def interface_name(self, config: Config) -> str:
        """Return the interface to use: the command line's, or else the configuration's."""
        return self.interface or config.wireguard.interface

    def relay_urls(self, config: Config) -> tuple[str, ...]:
        """Return the relays to use: the command line's, or else the configuration's."""
        return self.relays or config.relays.urls

    def relay_settings(self, config: Config) -> Relay:
        """Return what to relay: the configuration's, with the command line's word over it.

        BadRelay (a UserError) if the two do not fit together.
        """
        from nostrvpn.config.relay import relay_with  # not before it is needed: see above

        return relay_with(config.relay, self.relay)
