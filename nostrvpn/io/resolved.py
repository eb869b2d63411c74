"""systemd-resolved, over D-Bus by ``busctl``: which names our link answers. Blocking.

``busctl`` belongs to systemd, so it is there wherever systemd-resolved is; it is run when something
changes and every few minutes, and costs the daemon no memory in between.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from ipaddress import ip_address
from typing import Any

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import SystemRefused, one_line
from nostrvpn.host.resolver import LinkNames, Set

__all__ = ["all_within", "apply_link", "flush_caches", "is_running", "observe_link", "revert_link"]

_SERVICE = "org.freedesktop.resolve1"
_PATH = "/org/freedesktop/resolve1"
_MANAGER = f"{_SERVICE}.Manager"
_LINK = f"{_SERVICE}.Link"
# A bus that hangs shall not keep the daemon's thread.
_TIMEOUT_S = 5.0
# For all calls of one piece of work: when it must be done (monotonic).
_until: ContextVar[float] = ContextVar("until", default=float("inf"))
_FAMILIES = {4: 2, 6: 10}  # AF_INET, AF_INET6, as Linux numbers them
_PROPERTIES = ("DNSEx", "Domains", "DefaultRoute", "DNSSEC", "DNSOverTLS")


@contextmanager
def all_within(seconds: float) -> Iterator[None]:
    """All calls inside end within so many seconds together; those after it are refused at once."""
    token = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def is_running() -> bool:
    """Whether systemd-resolved answers; it is not started for it."""
    with suppress(SystemRefused):
        _busctl("get-property", _SERVICE, _PATH, _MANAGER, "LLMNRHostname")
        return True
    return False


def observe_link(index: int) -> LinkNames:
    """Return what systemd-resolved knows of the link with that interface index."""
    said = _busctl("get-property", _SERVICE, _link_path(index), _LINK, *_PROPERTIES)
    try:
        servers, domains, default_route, dnssec, tls = (
            json.loads(line)["data"] for line in said.splitlines()
        )
        return LinkNames(
            tuple(_endpoint(server) for server in servers),
            tuple((str(name), bool(routing)) for name, routing in domains),
            bool(default_route),
            str(dnssec),
            str(tls),
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise SystemRefused(f"systemd-resolved's answer is not understood: {exc}") from exc


def apply_link(index: int, operations: Iterable[Set]) -> None:
    """Carry out operations on the link; SystemRefused says what systemd-resolved refused."""
    for operation in operations:
        value = operation.value
        match operation.what:
            case "dns":
                arguments = [str(len(value.servers))]
                for server in value.servers:
                    packed = server.ip.packed
                    arguments += [str(_FAMILIES[server.ip.version]), str(len(packed))]
                    arguments += [*map(str, packed), str(server.port), ""]
                _call("SetLinkDNSEx", "ia(iayqs)", index, *arguments)
            case "domain":
                words = [word for name, r in value.domains for word in (name, "yes" if r else "no")]
                _call("SetLinkDomains", "ia(sb)", index, str(len(value.domains)), *words)
            case "default-route":
                _call("SetLinkDefaultRoute", "ib", index, "yes" if value.default_route else "no")
            case "dnssec":
                _call("SetLinkDNSSEC", "is", index, value.dnssec)
            case "dnsovertls":
                _call("SetLinkDNSOverTLS", "is", index, value.dns_over_tls)


def revert_link(index: int) -> None:
    """Let systemd-resolved forget what it was told of the link. It also does when the link goes."""
    _call("RevertLink", "i", index)


def flush_caches() -> None:
    """Let systemd-resolved forget what it was answered."""
    _busctl("call", _SERVICE, _PATH, _MANAGER, "FlushCaches")


def _call(method: str, signature: str, index: int, *arguments: str) -> None:
    _busctl("call", _SERVICE, _PATH, _MANAGER, method, signature, str(index), *arguments)


def _busctl(verb: str, *arguments: str) -> str:
    program = shutil.which("busctl")
    if program is None:
        raise SystemRefused("busctl is not installed")
    left = min(_TIMEOUT_S, _until.get() - time.monotonic())
    if left <= 0:
        raise SystemRefused("systemd-resolved does not answer in time")
    options = ("--system", "--json=short", "--auto-start=no", f"--timeout={left:.2f}")
    # "--": an empty server name is an argument, and no interface or domain is ever an option.
    command = (program, *options, "--", verb, *arguments)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            # In the C locale too: what it says in words is only quoted.
            encoding="utf-8",
            errors="replace",
            timeout=left + 1,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SystemRefused(f"systemd-resolved does not answer: {exc}") from exc
    if done.returncode != 0:
        raise SystemRefused(f"systemd-resolved refused: {one_line(done.stderr.strip())}")
    return done.stdout


def _link_path(index: int) -> str:
    # How sd-bus writes a number as a part of an object's path: the first digit as its code.
    digits = str(index)
    return f"{_PATH}/link/_{ord(digits[0]):02x}{digits[1:]}"


def _endpoint(server: Any) -> Endpoint:
    _family, packed, port, _name = server
    return Endpoint(ip_address(bytes(packed)), port or 53)
