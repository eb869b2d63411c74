"""Add a first name and first relays to a configuration the user wrote, leaving the rest alone."""

from __future__ import annotations

import yaml

from nostrvpn.config.parse import ConfigError, parse_config

__all__ = ["amend_config"]


def amend_config(text: str, source: str, name: str | None, relays: tuple[str, ...]) -> str:
    """Return the YAML text with ``name`` and ``relays`` added where they were not set.

    Raise ConfigError if the text already sets them to something else, or cannot be added to.
    """
    before = parse_config(text, source)
    added: dict[str, object] = {}
    if name is not None and name != before.name:
        if before.name:
            raise _conflict(source, "name", before.name)
        added["name"] = name
    if relays and relays != before.relays.urls:
        added["relays"] = {"urls": list(relays)}
    if not added:
        return text
    joint = "" if not text or text.endswith("\n") else "\n"
    amended = text + joint + yaml.safe_dump(added, sort_keys=False)
    try:
        after = parse_config(amended, source)
    except ConfigError as error:
        raise _conflict(source, " or ".join(added), "something else") from error
    if (name and after.name != name) or (relays and after.relays.urls != relays):
        raise _conflict(source, " or ".join(added), "something else")
    return amended


def _conflict(source: str, key: str, value: str) -> ConfigError:
    return ConfigError(
        f"{source} already sets {key} to {value}",
        "edit it there, or leave --name and --relay away",
    )
