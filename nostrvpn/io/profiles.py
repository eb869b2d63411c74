"""The networks of one node on disk: which there are, which one is spoken to, making and removing one.

The identity is shared, so it is never here. Which network commands speak to when nobody says is kept
beside the networks (it outlives a reboot) and, for users who may not read there, with the sockets.
"""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from nostrvpn.config.names import check_profile
from nostrvpn.config.options import BOOT_BLOCK, FIRST, NETWORKS, Options
from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.io.durable_file import make_private_directory, refusal, write_durably
from nostrvpn.io.lock import lock_holder
from nostrvpn.io.privilege import as_owner
from nostrvpn.io.store_backup import delete_remains

__all__ = [
    "create_profile",
    "profiles",
    "remove_profile",
    "select_profile",
    "selected_profile",
    "used_profiles",
]

# Not the name of a profile: those begin with a letter or digit.
_SELECTED = ".selected"
# What a network leaves in the state directory when it is the first one, where the identity stays.
_STATE = ("state.db", "state.db-wal", "state.db-shm", "state.db.backup", BOOT_BLOCK)
# All network namespaces share the sockets of userspace WireGuard.
_WIREGUARD_SOCKETS = "/run/wireguard"


def profiles(options: Options) -> tuple[str, ...]:
    """Return the profiles of all networks that were made here, the first one first.

    A user who may not look into the state directory is told of those that were started.
    """
    for base in (options.state_dir, options.runtime_dir):
        try:
            found = sorted(path.name for path in Path(base, NETWORKS).iterdir() if path.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return (FIRST,)
        except PermissionError:
            continue
        except OSError as error:
            raise refusal("list the networks in", base, error) from error
        return (FIRST, *(name for name in found if _is_profile(name)))
    return (FIRST,)


def used_profiles(options: Options) -> tuple[str, ...]:
    """Return the profiles without a first one that has no state while there are others."""
    found = profiles(options)
    try:
        os.lstat(options.of_network(FIRST).store_path)
    except FileNotFoundError:
        return found[1:] or found
    except OSError:
        pass  # who may not look takes it to be there
    return found


def selected_profile(options: Options) -> str:
    """Return the profile that commands speak to when nobody says: the one selected last."""
    for base in (options.state_dir, options.runtime_dir):
        try:
            name = Path(base, NETWORKS, _SELECTED).read_text(encoding="ascii").strip()
        except PermissionError:
            continue
        except (OSError, UnicodeDecodeError):
            break
        if name in used_profiles(options):
            return name
    return used_profiles(options)[0]


def select_profile(options: Options, profile: str) -> None:
    """Let commands speak to this network from now on."""
    for base, mode in ((options.state_dir, 0o600), (options.runtime_dir, 0o644)):
        directory = Path(base, NETWORKS)
        try:
            with as_owner(directory):
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise refusal("create the directory", directory, error) from error
        write_durably(directory / _SELECTED, f"{profile}\n".encode(), mode=mode, replace=True)


def create_profile(options: Options, profile: str) -> Options:
    """Make the place of a further network, with an interface of its own; return its options.

    ValueError if the name is none; AlreadyExists (a UserError) if there is one of that name.
    """
    from nostrvpn.config.profiles import first_overlay, free_interface
    from nostrvpn.io.config_file import load_config  # every command asks which network it speaks to

    made = options.of_network(check_profile(profile))
    if made.is_first or made.overlay is None:
        raise UserError("the first network is there already", "choose another name")
    first = options.of_network(FIRST)
    own = first.interface_name(load_config(options.config))
    interface = free_interface(own, _taken_interfaces(options))
    make_private_directory(options.state_dir)
    make_private_directory(made.home)
    write_durably(made.overlay, first_overlay(interface).encode(), mode=0o600, replace=False)
    return made


def remove_profile(options: Options) -> None:
    """Remove a network's state, for good. Its daemon must have ended; the identity stays."""
    if lock_holder(options.lock_path) is not None:
        raise SystemRefused("its daemon still runs", "stop it with: nostrvpn down")
    try:
        if options.is_first:
            for name in _STATE:
                Path(options.home, name).unlink(missing_ok=True)
            delete_remains(Path(options.store_path))  # they hold secrets of the membership
        else:
            with suppress(FileNotFoundError):
                shutil.rmtree(options.home)
            with suppress(OSError):
                Path(options.control_socket).parent.rmdir()
    except OSError as error:
        raise refusal("remove", options.home, error) from error


def _is_profile(name: str) -> bool:
    try:
        return check_profile(name) != FIRST
    except ValueError:
        return False


def _taken_interfaces(options: Options) -> frozenset[str]:
    """Return the interfaces that exist, or that a network of this node has."""
    from nostrvpn.io.config_file import load_config

    taken = {name for _, name in socket.if_nameindex()}
    for profile in profiles(options):
        place = options.of_network(profile)
        taken.add(place.interface_name(load_config(place.config, place.overlay)))
    with suppress(OSError):
        taken |= {path.stem for path in Path(_WIREGUARD_SOCKETS).iterdir()}
    return frozenset(taken)
