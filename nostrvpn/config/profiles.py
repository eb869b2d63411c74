"""Profiles: one host in several networks, each with a place, an interface and settings of its own.

The first network lives in the state directory itself and is called ``default``; each further one in
``networks/PROFILE`` below it. A profile's ``config.yaml`` is laid over the node's configuration.
"""

from __future__ import annotations

import re
from collections.abc import Container

import yaml

from nostrvpn.config.model import Config
from nostrvpn.config.names import MAX_PROFILE
from nostrvpn.config.parse import parse_config

__all__ = [
    "first_overlay",
    "free_interface",
    "free_profile",
    "laid_over",
]

# Linux: IFNAMSIZ is 16 with the final NUL.
MAX_INTERFACE = 15


def free_profile(wanted: str, taken: Container[str]) -> str:
    """Return the profile name nearest to any text, with ``-2``, ``-3`` … added if it is taken."""
    plain = re.sub(r"[^a-z0-9]+", "-", wanted[: 4 * MAX_PROFILE].lower()).strip("-")
    stem = plain[:MAX_PROFILE].rstrip("-") or "network"
    found, number = stem, 1
    while found in taken:
        number += 1
        ending = f"-{number}"
        found = stem[: MAX_PROFILE - len(ending)].rstrip("-") + ending
    return found


def free_interface(first: str, taken: Container[str]) -> str:
    """Return a name for a further interface: ``nvpn0`` is followed by ``nvpn1``, and so on."""
    stem, number = first.rstrip("0123456789") or "nvpn", 1
    while True:
        ending = str(number)
        found = stem[: MAX_INTERFACE - len(ending)] + ending
        if found not in taken and found != first:
            return found
        number += 1


def first_overlay(interface: str) -> str:
    """Return the text of a further network's settings: what two networks cannot both have.

    The port is drawn, whatever the first network's is; relaying and its ports stay the first one's.
    """
    settings = {
        "wireguard": {"interface": interface, "listen_port": 0},
        "relay": {"offer": "none", "websocket": {"listen": "", "url": ""}},
    }
    heading = (
        "# Settings of this network alone; all others are those of the node's configuration.\n"
    )
    return heading + yaml.safe_dump(settings, sort_keys=False)


def laid_over(text: str, source: str, overlay: str, overlay_source: str) -> Config:
    """Return the configuration of ``text`` with the keys that ``overlay`` sets in their place.

    Lists are replaced as a whole. ConfigError names the file with the mistake: the overlay, where each
    is good and only both together are not.
    """
    parse_config(text, source)
    parse_config(overlay, overlay_source)
    merged = _merged(yaml.safe_load(text), yaml.safe_load(overlay))
    return parse_config(yaml.safe_dump(merged, sort_keys=False), overlay_source)


def _merged(under: object, over: object) -> object:
    if over is None:
        return under
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return under | {key: _merged(under.get(key), value) for key, value in over.items()}
