"""A real TURN server in a lab namespace: coturn, the one that most of the world runs.

::

    with Coturn(namespace, IPv4Address("198.51.100.9"), directory) as coturn:
        coturn.url("tls")   # turns:198.51.100.9:5349?transport=tcp

It speaks UDP, TCP and, with a certificate, TLS; its only user is ``USERNAME`` with ``PASSWORD``.
"""

from __future__ import annotations

import shutil
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Self

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.processes import Process

__all__ = ["PASSWORD", "PORT", "TLS_PORT", "USERNAME", "Coturn"]

USERNAME = "laboratory"
PASSWORD = "not-a-secret"
PORT = 3478
TLS_PORT = 5349
START_TIMEOUT = 20.0
# What coturn writes last when it starts, after all listeners are open.
READY = "SQLite DB connection success"


class Coturn:
    """One coturn on ``address``, its files in ``directory``; ``certificate`` is (chain, key)."""

    def __init__(
        self,
        namespace: Namespace,
        address: IPv4Address,
        directory: Path,
        *,
        certificate: tuple[Path, Path] | None = None,
        settings: tuple[str, ...] = (),
    ) -> None:
        """``settings`` are more lines for turnserver.conf."""
        self._namespace = namespace
        self._address = address
        self._directory = directory
        self._certificate = certificate
        self._settings = settings
        self._process: Process | None = None

    def url(self, transport: str) -> str:
        """Return the URL for ``udp``, ``tcp`` or ``tls``."""
        if transport == "tls":
            return f"turns:{self._address}:{TLS_PORT}?transport=tcp"
        return f"turn:{self._address}:{PORT}?transport={transport}"

    def start(self) -> None:
        """Start it and wait until it listens; SystemRefused if it does not."""
        program = shutil.which("turnserver")
        if program is None:
            raise SystemRefused("the lab needs the program 'turnserver'", "Install coturn.")
        config = self._directory / "turnserver.conf"
        config.write_text("\n".join(self._lines()) + "\n", encoding="utf-8")
        argv = (program, "-c", str(config))
        self._process = Process(self._namespace, argv, log=self._directory / "coturn.log")
        self._process.wait_for_text(READY, timeout=START_TIMEOUT)

    def kill(self) -> None:
        """End it as a crash would: its allocations are gone, and no client is told."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _lines(self) -> tuple[str, ...]:
        security: tuple[str, ...] = ("no-tls",)
        if self._certificate is not None:
            chain, key = self._certificate
            security = (f"tls-listening-port={TLS_PORT}", f"cert={chain}", f"pkey={key}")
        return (
            f"listening-ip={self._address}",
            f"relay-ip={self._address}",
            f"listening-port={PORT}",
            "lt-cred-mech",
            f"user={USERNAME}:{PASSWORD}",
            "realm=lab.invalid",
            "no-cli",
            "no-dtls",
            "log-file=stdout",
            "simple-log",
            f"userdb={self._directory / 'turndb'}",
            f"pidfile={self._directory / 'turnserver.pid'}",
            *security,
            *self._settings,
        )
