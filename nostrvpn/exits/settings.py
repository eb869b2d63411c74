"""What the user of a node decided about using exits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.exits.kill_switch import KillSwitch

__all__ = ["AUTO", "ExitSettings"]

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ExitSettings:
    """``exit``: a member's public key, ``AUTO``, or empty for none. ``resolver``: an IP address asked
    through the tunnel, or empty for the exit's own. ``bypass``: words as ``exit bypass`` takes them."""

    exit: str = ""
    kill_switch: KillSwitch = KillSwitch.ON
    allow_lan: bool = False
    resolver: str = ""
    bypass: tuple[str, ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether nothing was decided yet, or all was taken back."""
        return self == ExitSettings()

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        return {
            "exit": self.exit,
            "kill_switch": self.kill_switch.value,
            "allow_lan": self.allow_lan,
            "resolver": self.resolver,
            "bypass": list(self.bypass),
        }

    @classmethod
    def from_json(cls, stored: object) -> ExitSettings:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        if not isinstance(stored, Mapping):
            raise PeerMisbehaved("bad_record", "not an exit's settings")
        values: Mapping[str, Any] = stored
        bypass = values.get("bypass")
        try:
            kill_switch = KillSwitch(values.get("kill_switch"))
        except ValueError as exc:
            raise PeerMisbehaved("bad_record", "no such kill switch") from exc
        fits = (
            isinstance(values.get("exit"), str)
            and isinstance(values.get("allow_lan"), bool)
            and isinstance(values.get("resolver"), str)
            and isinstance(bypass, list)
            and all(isinstance(word, str) for word in bypass)
        )
        if not fits:
            raise PeerMisbehaved("bad_record", "not an exit's settings")
        return cls(
            values["exit"],
            kill_switch,
            values["allow_lan"],
            values["resolver"],
            tuple(bypass or ()),
        )
