"""Which of the node's networks a command speaks to: said with it, or switched to before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient, DaemonNotRunning
from nostrvpn.errors import NostrvpnError, UserError
from nostrvpn.io.profiles import profiles, selected_profile

__all__ = ["find_network", "network_document", "with_network"]

# A daemon that does not say its network's name in this time is found by its profile only.
_TIMEOUT = 5.0


def with_network(options: Options, named: str | None) -> Options:
    """Return the options of the network called ``named``; of the one switched to, if None.

    UserError if there is none of that name.
    """
    if named is None:
        return options.of_network(selected_profile(options))
    return replace(options, network=find_network(options, named), is_named=True)


def find_network(options: Options, named: str) -> str:
    """Return the profile that ``named`` means: itself, or the one whose network has that name."""
    known = profiles(options)
    if named in known:
        return named
    names = {}
    for profile in known:
        document = network_document(options.of_network(profile))
        names[profile] = document.get("name") if document else None
    found = [profile for profile, name in names.items() if name == named]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{len(found)} networks are called {named}", f"name one of {', '.join(found)}"
        )
    raise UserError(
        f"there is no network {named[:80]!r} on this node",
        f"there are: {', '.join(known)}; see: nostrvpn network list",
    )


def network_document(options: Options) -> dict[str, Any] | None:
    """Return what a network's daemon says of it; None if none runs, or one that cannot say."""
    try:
        document = ControlClient(options.control_socket).call("network", timeout=_TIMEOUT)
    except DaemonNotRunning:
        return None
    except NostrvpnError:
        return {}
    return document if isinstance(document, dict) else {}
