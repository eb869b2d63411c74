"""What the command line and the environment say about one node: where it lives and runs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only a type here, and the model costs every command the import of msgspec
    from nostrvpn.config.model import Config, Relay

__all__ = [
    "BOOT_BLOCK",
    "DEFAULT_CONFIG",
    "DEFAULT_RUNTIME_DIR",
    "DEFAULT_STATE_DIR",
    "FIRST",
    "JOIN_VARIABLE",
    "NETWORKS",
    "Options",
    "RelayOptions",
]

DEFAULT_STATE_DIR = "/var/lib/nostrvpn"
DEFAULT_RUNTIME_DIR = "/run/nostrvpn"
DEFAULT_CONFIG = "/etc/nostrvpn/config.yaml"

# The environment variable with a link by which a node joins when it starts.
JOIN_VARIABLE = "NOSTRVPN_JOIN"

# The profile of the first network, which lives in the state directory itself; each further one has a
# directory below this one.
FIRST = "default"
NETWORKS = "networks"
# In a network's directory: the nft script of what lockdown holds back when the host starts.
BOOT_BLOCK = "lockdown.nft"


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

    ``interface`` (of the first network only), ``name``, ``relays`` and ``relay`` override the
    configuration when they are set. ``log_file`` is where a detached daemon writes, None means standard
    error. ``network`` is the profile of the network that is meant; ``is_named``: somebody said so, for
    this command, and it is not just the one that is spoken to when nobody says.
    """

    state_dir: str = DEFAULT_STATE_DIR
    runtime_dir: str = DEFAULT_RUNTIME_DIR
    config: str = DEFAULT_CONFIG
    interface: str | None = None
    name: str | None = None
    relays: tuple[str, ...] = ()
    log_file: str | None = None
    relay: RelayOptions = RelayOptions()
    network: str = FIRST
    is_named: bool = False

    @property
    def is_first(self) -> bool:
        """Whether the first network is meant, whose home is the state directory itself."""
        return self.network == FIRST

    @property
    def home(self) -> str:
        """Directory of the network's state; the identity is in ``state_dir``, for all networks."""
        return self.state_dir + self._place

    @property
    def overlay(self) -> str | None:
        """Path of the settings of this network alone; the first one has none."""
        return None if self.is_first else f"{self.home}/config.yaml"

    @property
    def control_socket(self) -> str:
        """Path of the Unix socket on which the daemon answers."""
        return f"{self.runtime_dir}{self._place}/control.sock"

    @property
    def store_path(self) -> str:
        """Path of the state database."""
        return f"{self.home}/state.db"

    @property
    def lock_path(self) -> str:
        """Path of the lock file that a running daemon holds."""
        return f"{self.home}/daemon.lock"

    @property
    def log_path(self) -> str:
        """Path of the detached daemon's log."""
        return f"{self.home}/daemon.log"

    @property
    def _place(self) -> str:
        return "" if self.is_first else f"/{NETWORKS}/{self.network}"

    def of_network(self, profile: str) -> Options:
        """Return the options of another network of this node."""
        return replace(self, network=profile)

    def interface_name(self, config: Config) -> str:
        """Return the interface to use: the command line's, or else the configuration's."""
        given = self.interface if self.is_first else None
        return given or config.wireguard.interface

    def relay_urls(self, config: Config) -> tuple[str, ...]:
        """Return the relays to use: the command line's, or else the configuration's."""
        return self.relays or config.relays.urls

    def relay_settings(self, config: Config) -> Relay:
        """Return what to relay: the configuration's, with the command line's word over it.

        BadRelay (a UserError) if the two do not fit together.
        """
        from nostrvpn.config.relay import relay_with  # not before it is needed: see above

        return relay_with(config.relay, self.relay)
