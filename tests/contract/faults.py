"""What is asked of the system, counted; one of it is refused, or the agent dies at it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.io import nftables, pyroute, relay_routing, wireguard_userspace

__all__ = ["REFUSED", "Faults", "Killed"]

REFUSED, KILLED = "refused", "killed"

_ROUTE = frozenset({"link", "addr", "route", "rule"})
_ROUTE_READS = frozenset({"get_links", "get_addr", "get_routes", "get_rules"})
_TABLES = frozenset({"get_tables", "get_rules"})


class Killed(BaseException):
    """The agent is gone: nothing of it hears of this."""


class Faults:
    """Counts nft's runs, netlink's requests, writes of settings, and requests to WireGuard.

    ``before_each`` is called before each of them with what it is.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.before_each: Callable[[str], None] = lambda _what: None
        self._number, self._kind = -1, REFUSED
        self._is_counting = False
        for module, name, label in (
            (nftables, "_run", "nft"),
            (relay_routing, "_write", "sysctl"),
            (wireguard_userspace, "_ask", "uapi"),
            (wireguard_userspace.UserspaceBackend, "_start", "start"),
        ):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name), label))
        for name, methods in (("IPRoute", _ROUTE | _ROUTE_READS), ("NFTables", _TABLES)):
            made = self._sockets(getattr(pyroute, name), methods)
            monkeypatch.setattr(pyroute, name, made)

    def run(self, work: Callable[[], object], number: int = -1, kind: str = REFUSED) -> list[str]:
        """Do ``work`` with request ``number`` (from 0) refused, or never made as the agent is killed.

        Return what was asked for. Killed comes out of it.
        """
        self.asked, self._number, self._kind = [], number, kind
        self._is_counting = True
        try:
            work()
        finally:
            self._is_counting = False
        return self.asked

    def ask(self, what: str) -> None:
        """Count a request that is made to something else."""
        self._step(what, lambda: SystemRefused(f"{what}: out of luck"))

    def _step(self, what: str, refusal: Callable[[], Exception]) -> None:
        if not self._is_counting:
            return
        self.before_each(what)
        self.asked.append(what)
        if len(self.asked) - 1 == self._number:
            raise Killed(what) if self._kind == KILLED else refusal()

    def _counted(self, original: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            words = [str(word)[:40] for word in arguments if isinstance(word, str)]
            self._step(" ".join([label, *words]), lambda: SystemRefused(f"{label}: out of luck"))
            return original(*arguments, **more)

        return call

    def _sockets(self, original: Callable[..., Any], methods: frozenset[str]) -> type:
        faults = self

        class Counted:
            def __init__(self, *arguments: Any, **more: Any) -> None:
                self._made = original(*arguments, **more)

            def __enter__(self) -> Counted:
                self._made.__enter__()
                return self

            def __exit__(self, *error: object) -> None:
                self._made.__exit__(*error)

            def __getattr__(self, name: str) -> Any:
                found = getattr(self._made, name)
                if name not in methods:
                    return found

                def call(*arguments: Any, **more: Any) -> Any:
                    verb = arguments[0] if arguments and isinstance(arguments[0], str) else ""
                    no_memory = lambda: pyroute.NetlinkError(errno.ENOMEM)  # noqa: E731
                    faults._step(f"netlink {name} {verb}".strip(), no_memory)
                    return found(*arguments, **more)

                return call

        return Counted
