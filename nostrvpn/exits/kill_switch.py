"""The kill switch: which state holds. What may leave in each is ``docs/security.md``'s, normative.

The states follow from what the user decided and from what is known of the exit; there is no memory in
them, so a restart, a crash or a lost message cannot lead into one that the user did not ask for.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["ExitState", "KillSwitch", "exit_state"]


class KillSwitch(Enum):
    """What happens to other traffic while an exit is wanted and none carries.

    ``OFF``: only routes lead into the tunnel, and they go with the daemon. ``ON``: nothing leaves
    outside until ``exit off``, ``down`` or ``cleanup``. ``LOCKDOWN``: nor while no exit is wanted, after
    ``down`` and after a reboot, until the kill switch is set otherwise, or ``cleanup``.
    """

    OFF = "off"
    ON = "on"
    LOCKDOWN = "lockdown"


class ExitState(Enum):
    """What the user wants, and what is known of the exit, in one word.

    ``OFF``: no exit is wanted, nothing is held back. ``CONNECTING``: one is wanted, none carries yet or
    any more, the next is tried. ``CONNECTED``: one carries. ``BLOCKED``: one is wanted and none can be
    had (not allowed, not offered, or what was stored is damaged). ``LOCKDOWN``: none is wanted, and
    nothing may leave.
    """

    OFF = "off"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    BLOCKED = "blocked"
    LOCKDOWN = "lockdown"


def exit_state(
    kill_switch: KillSwitch, *, wanted: bool, possible: bool, carries: bool, damaged: bool = False
) -> ExitState:
    """Return the state that holds.

    ``wanted``: the user chose an exit, and this network is not one where none is used. ``possible``:
    some exit could be used. ``carries``: the one in use does. ``damaged``: what the user decided could
    not be read, so nothing is let out that might have been forbidden.
    """
    if damaged:
        return ExitState.BLOCKED
    if not wanted:
        return ExitState.LOCKDOWN if kill_switch is KillSwitch.LOCKDOWN else ExitState.OFF
    if not possible:
        return ExitState.BLOCKED
    return ExitState.CONNECTED if carries else ExitState.CONNECTING
