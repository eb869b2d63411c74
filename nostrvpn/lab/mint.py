"""A real Cashu mint in the lab: Nutshell with a Lightning backend that pays nothing (FakeWallet).

::

    with Mint(directory, settings=MintSettings(fee_ppk=100)) as mint:
        mint.url        # http://127.0.0.1:PORT

Its program is made by ``packaging/install-mint``. Its invoices look real and are not: whoever pays one
pays nobody. The same seed makes the same keys, so two mints that are to differ need two seeds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process

__all__ = ["Mint", "MintSettings", "mint_program"]

PROGRAM = Path(__file__).parents[2] / "build" / "mint" / "bin" / "mint"
# Two seconds on a quiet machine.
START_TIMEOUT = 40.0
ASK_TIMEOUT = 2.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class MintSettings:
    """How a mint behaves.

    ``fee_ppk``: thousandths of a sat for each input. ``per_minute``: calls that move money, for each
    client address but loopback; None: no limit. ``pays_itself``: its invoices count as paid at once,
    otherwise never. ``payment``: what becomes of what it is asked to pay: SETTLED, FAILED, PENDING or
    ERROR.
    """

    seed: str = "laboratory"
    fee_ppk: int = 0
    per_minute: int | None = None
    pays_itself: bool = True
    payment: str = "SETTLED"


class Mint:
    """One mint on ``host``, its database in ``directory``; without a namespace, in the caller's."""

    def __init__(
        self,
        directory: Path,
        *,
        namespace: Namespace | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        settings: MintSettings | None = None,
    ) -> None:
        """``port`` 0 takes one that is free, and keeps it."""
        self._directory = directory
        self._namespace = namespace if namespace is not None else _Here()
        self._host = host
        self._port = port
        self._operator_port = 0
        self.settings = settings if settings is not None else MintSettings()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where wallets reach it, once it was started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers; SystemRefused or LabTimeout if it does not.

        A second start takes ``settings`` as they are then, and the database of before.
        """
        program = mint_program()
        # It loads ./.env and ~/.cashu/.env, which would win over what is said here.
        home = self._directory / "home"
        home.mkdir(parents=True, exist_ok=True)
        if self._port == 0:
            self._port = self._free_port()
        self._operator_port = self._free_port()
        values = [f"{name}={value}" for name, value in self._environment(home).items()]
        argv = ("env", "-i", f"--chdir={home}", *values, str(program))
        self._process = Process(self._namespace, argv, log=self._directory / "mint.log")
        wait_until(
            self._answers,
            f"the mint at {self.url}",
            timeout=START_TIMEOUT,
            evidence=self._process.tail,
            poll=POLL_SECONDS,
        )

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self, settings: MintSettings | None = None) -> None:
        """Stop it, and start it with the same database, port and (unless given) settings."""
        self.stop()
        if settings is not None:
            self.settings = settings
        self.start()

    def rotate(self, *, fee_ppk: int = 0, final_expiry: int | None = None) -> None:
        """Sign with new keys from now on, as an operator does it; the old ones still redeem.

        ``final_expiry``: Unix time when proofs of the new keys lose their value.
        """
        words = [str(mint_program().with_name("mint-cli")), "-i", "-p", str(self._operator_port)]
        words += ["next-keyset", "sat", str(fee_ppk), "64"]
        if final_expiry is not None:
            words.append(str(final_expiry))
        done = self._namespace.run(*words)
        if "successfully" not in done.stdout:
            raise SystemRefused(f"the mint's keys were not rotated: {done.stdout}{done.stderr}")

    def info(self) -> Any:
        """Return what ``/v1/info`` says, or None if it does not answer."""
        with contextlib.suppress(OSError, HTTPException, ValueError), self._inside():
            connection = HTTPConnection(self._host, self._port, timeout=ASK_TIMEOUT)
            with contextlib.closing(connection):
                connection.request("GET", "/v1/info")
                answer = connection.getresponse()
                return json.loads(answer.read()) if answer.status == 200 else None
        return None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _answers(self) -> bool:
        assert self._process is not None
        if not self._process.alive:
            raise SystemRefused(f"the mint ended early: {self._process.tail()}")
        return self.info() is not None

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        return self._namespace.enter()

    def _free_port(self) -> int:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with self._inside(), socket.socket(family) as probe:
            probe.bind((self._host, 0))
            port: int = probe.getsockname()[1]
            return port

    def _environment(self, home: Path) -> dict[str, str]:
        now = self.settings
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(home),
            "MINT_BACKEND_BOLT11_SAT": "FakeWallet",
            "MINT_PRIVATE_KEY": now.seed,
            "MINT_LISTEN_HOST": self._host,
            "MINT_LISTEN_PORT": str(self._port),
            "MINT_RPC_SERVER_ENABLE": "TRUE",
            "MINT_RPC_SERVER_MUTUAL_TLS": "FALSE",
            "MINT_RPC_SERVER_ADDR": "localhost",
            "MINT_RPC_SERVER_PORT": str(self._operator_port),
            "MINT_DATABASE": str(self._directory / "db"),
            "MINT_AUTH_DATABASE": str(self._directory / "auth"),
            "MINT_INPUT_FEE_PPK": str(now.fee_ppk),
            "MINT_RATE_LIMIT": "FALSE" if now.per_minute is None else "TRUE",
            "MINT_TRANSACTION_RATE_LIMIT_PER_MINUTE": str(now.per_minute or 1000),
            "MINT_GLOBAL_RATE_LIMIT_PER_MINUTE": "100000",
            "FAKEWALLET_BRR": "TRUE" if now.pays_itself else "FALSE",
            "FAKEWALLET_PAY_INVOICE_STATE": now.payment,
            "FAKEWALLET_PAYMENT_STATE": now.payment,
            "FAKEWALLET_DELAY_INCOMING_PAYMENT": "0",
            "FAKEWALLET_DELAY_OUTGOING_PAYMENT": "0",
        }


class _Here(Namespace):
    """The namespace that the caller is in."""

    def __init__(self) -> None:
        super().__init__("", label="here")

    @contextlib.contextmanager
    def enter(self) -> Any:
        yield

    def _inside(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        return argv


def mint_program() -> Path:
    """Return where the mint's program is; SystemRefused if it was not made yet."""
    program = Path(os.environ.get("NOSTRVPN_MINT", PROGRAM))
    if not program.exists():
        raise SystemRefused(
            f"there is no mint at {program}", "Make it with: packaging/install-mint"
        )
    return program
