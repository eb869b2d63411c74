"""A daemon that commands speak to: it has its answers, and notes what it is asked."""

from __future__ import annotations

import json
from typing import Any

from nostrvpn.control.schema import COMMANDS, parse_arguments

__all__ = ["Daemon"]


class Daemon:
    """In the place of ``ControlClient``; what it is asked is checked as the real one checks it."""

    answers: Any = None
    asked: tuple[str, dict[str, object]] = ("", {})

    def __init__(self, _path: str) -> None: ...

    def call(self, name: str, **args: object) -> Any:
        Daemon.asked = (name, parse_arguments(COMMANDS[name], json.dumps(args).encode()))
        return self.answers[name]
