"""WireGuard in user space: start ``wireguard-go`` (or another), and speak UAPI with it.

The process is detached in a session of its own, so that tunnels outlive the agent; the next agent
adopts it. Its control socket lies in a directory that all network namespaces of a host share,
while its link is in one: so a device is here only if both the socket answers and the link is in
this namespace.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from nostrvpn.errors import SystemRefused
from nostrvpn.host.state import ALIAS_MARK, is_interface_name
from nostrvpn.io.netlink import delete_link, find_link, set_link
from nostrvpn.io.tun_owner import TunOwners
from nostrvpn.io.wireguard_claim import require_free_port, require_ours
from nostrvpn.wireguard.device import Device, ObservedDevice
from nostrvpn.wireguard.diff import Op
from nostrvpn.wireguard.uapi import GET_REQUEST, parse_get, render_set, response_errno

__all__ = ["UserspaceBackend"]

# Spec: where wireguard-tools looks for control sockets.
_SOCKET_DIRECTORY = Path("/var/run/wireguard")

# Spec (wg-quick(8)): the variable that names the implementation to start.
_IMPLEMENTATION_VARIABLE = "WG_QUICK_USERSPACE_IMPLEMENTATION"
_DEFAULT_IMPLEMENTATION = "wireguard-go"

# Ours: it needs 0.1 s on a laptop; a loaded or emulated machine may need seconds.
_START_TIMEOUT_S = 20.0

# Ours: how long a process may take to notice that its link is gone, before it is told by a signal.
_EXIT_TIMEOUT_S = 5.0

# Ours: it answers at once or it hangs.
_ANSWER_TIMEOUT_S = 5.0

_POLL_S = 0.01

# Ours: 10,000 peers with a few addresses each; an answer beyond that is not WireGuard's.
_MAX_ANSWER_BYTES = 8 << 20


class UserspaceBackend:
    """Devices of a process that implements WireGuard over a TUN interface."""

    def __init__(self, implementation: str | None = None) -> None:
        self._implementation = (
            implementation or os.environ.get(_IMPLEMENTATION_VARIABLE) or _DEFAULT_IMPLEMENTATION
        )
        # By interface. Most exit once a second process runs; one that does not is the device.
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def name(self) -> Literal["userspace"]:
        """Which of the two backends this is."""
        return "userspace"

    def unavailable(self) -> str:
        """Return why no process can be started here, or an empty string if one can."""
        if shutil.which(self._implementation) is None:
            return f"{self._implementation} is not installed"
        try:
            os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
        except OSError as exc:
            return f"/dev/net/tun cannot be opened ({exc.strerror})"
        return ""

    def create(self, interface: str, mtu: int) -> None:
        """Make the device exist, marked as ours, with this MTU; adopt a running one of ours."""
        path = _socket_path(interface)
        link = find_link(interface)
        if link is not None:
            if not link.is_ours:
                require_ours(link, self.observe(interface))
            if link.kind != "tun" or not self._is_well(interface):
                # A process that no longer answers, or a link of the other backend.
                self.delete(interface)
                link = None
        if link is None:
            if _answers(path):
                raise SystemRefused(
                    f"{path} is in use by a WireGuard interface of another network namespace",
                    "Choose another name with --interface: they are shared by all namespaces.",
                )
            path.unlink(missing_ok=True)
            self._start(interface)
        set_link(interface, mtu=mtu, alias=None if link and link.is_ours else ALIAS_MARK)

    def observe(self, interface: str) -> ObservedDevice | None:
        """Return the device as it is, or None if no process answers or the link is not here."""
        if not _is_link_here(interface):
            return None
        answer = _ask(_socket_path(interface), GET_REQUEST)
        if answer is None:
            return None
        try:
            code = response_errno(answer)
            if code:
                raise SystemRefused(f"reading {interface}: {os.strerror(abs(code))}")
            return parse_get(answer)
        except ValueError as exc:
            raise SystemRefused(f"reading {interface}: its answer is garbled ({exc})") from exc

    def apply(self, interface: str, ops: Iterable[Op], device: Device) -> None:
        """Apply operations in order; ``device`` is the desired one, which holds the keys."""
        ops = list(ops)
        if not ops:
            return
        observed = self.observe(interface)
        if observed is None:
            raise SystemRefused(f"there is no WireGuard device {interface} any more")
        require_ours(find_link(interface), observed)
        require_free_port(ops, observed)
        # One request per operation: an error then names what was refused.
        for op in ops:
            answer = _ask(_socket_path(interface), render_set([op], device))
            if answer is None:
                raise SystemRefused(f"{op}: the WireGuard process has gone")
            try:
                code = response_errno(answer)
            except ValueError as exc:
                raise SystemRefused(f"{op}: its answer is garbled") from exc
            if code:
                raise SystemRefused(f"{op}: {os.strerror(abs(code))}")

    def delete(self, interface: str) -> None:
        """Remove link, process and socket; gone is fine, not ours is SystemRefused."""
        path = _socket_path(interface)
        link = find_link(interface)
        if link is not None:
            if not link.is_ours:
                require_ours(link, self.observe(interface))
            with TunOwners(interface) as owners:
                delete_link(interface)
                # It exits by itself when its link vanishes, and removes its socket then.
                owners.wait_gone(_EXIT_TIMEOUT_S)
            _wait_until(lambda: not _answers(path), _EXIT_TIMEOUT_S)
        if not _answers(path):
            path.unlink(missing_ok=True)
        self._reap(interface)

    def _is_well(self, interface: str) -> bool:
        try:
            return self.observe(interface) is not None
        except SystemRefused:
            return False

    def _reap(self, interface: str) -> None:
        child = self._children.pop(interface, None)
        if child is not None and not _wait_until(lambda: child.poll() is not None, _EXIT_TIMEOUT_S):
            self._children[interface] = child

    def _start(self, interface: str) -> None:
        self._reap(interface)
        program = shutil.which(self._implementation)
        if program is None:
            raise SystemRefused(
                f"{self._implementation} is not installed",
                f"Install it (apt install wireguard-go), or set {_IMPLEMENTATION_VARIABLE}.",
            )
        # A file and not a pipe: whatever stays in the background would keep a pipe open.
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    [program, interface],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    cwd="/",
                    env=_environment(),
                )
            except OSError as exc:
                raise SystemRefused(f"starting {program}: {exc.strerror}") from exc
            self._children[interface] = process
            is_ready = self._wait_ready(interface, process)
            if is_ready:
                return
            output.seek(0)
            lines = output.read(4096).decode(errors="replace").strip().splitlines()
        process.kill()
        self._reap(interface)
        reason = lines[-1].strip() if lines else "it did not answer"
        raise SystemRefused(
            f"{self._implementation} did not bring up {interface}: {reason}",
            "Is /dev/net/tun there, and are you root?",
        )

    def _wait_ready(self, interface: str, process: subprocess.Popen[bytes]) -> bool:
        # Wanted next in any case, and slow to import: while the process starts it costs no time.
        import nostrvpn.io.pyroute  # noqa: F401

        def is_settled() -> bool:
            failed = process.poll() not in (None, 0)
            # The socket is there before the second process is, which sets an MTU of its own first.
            return failed or self._is_well(interface)

        _wait_until(is_settled, _START_TIMEOUT_S)
        if not self._is_well(interface):
            return False
        # Most start a second process and exit, and are no zombies then.
        _wait_until(lambda: process.poll() is not None, 1.0)
        return True


def _socket_path(interface: str) -> Path:
    if not is_interface_name(interface):
        raise SystemRefused(f"not an interface name: {interface!r}")
    return _SOCKET_DIRECTORY / f"{interface}.sock"


def _environment() -> dict[str, str]:
    """Return what the process may see of our environment: nothing that is the agent's own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "LOG_LEVEL") or name.startswith("WG_")
    }
    # Without it some versions refuse to start where the kernel might have WireGuard too.
    kept.setdefault("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
    return kept


def _is_link_here(interface: str) -> bool:
    try:
        return bool(socket.if_nametoindex(interface))
    except OSError:
        return False


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_ANSWER_TIMEOUT_S)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _ask(path: Path, request: str) -> str | None:
    """Return the answer to one request, or None if nobody listens; SystemRefused if it hangs."""
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_ANSWER_TIMEOUT_S)
        try:
            client.connect(str(path))
            client.sendall(request.encode("ascii"))
            while not answer.endswith(b"\n\n"):
                chunk = client.recv(65536)
                if not chunk:
                    break
                answer += chunk
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise SystemRefused(f"{path}: the answer is too long")
        except (FileNotFoundError, ConnectionError):
            return None
        except OSError as exc:
            raise SystemRefused(f"{path}: {exc.strerror or 'no answer'}") from exc
    # Closed without a word: it is on its way out.
    return answer.decode("ascii", errors="replace") if answer else None


def _wait_until(is_so: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
