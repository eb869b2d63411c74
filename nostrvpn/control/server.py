"""The server side of the control interface: aiohttp on a Unix socket.

The kernel tells who called (SO_PEERCRED, unix(7)): root and the daemon's own user may do anything,
members of the group ``nostrvpn`` may look, everybody else is refused, whatever the file's mode.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from aiohttp import web

from nostrvpn.control.schema import COMMANDS, parse_arguments
from nostrvpn.errors import NostrvpnError, SystemRefused, UsageError, UserError
from nostrvpn.io.durable_file import require_own_directory

__all__ = ["GROUP", "ControlServer", "Handler"]

Handler = Callable[[str, dict[str, object], bool], Awaitable[object]]

GROUP = "nostrvpn"
# Linux, asm-generic/socket.h; Python has no name for it. A list of gid_t.
_SO_PEERGROUPS = 59
# The largest request is a token of 500,000 characters.
_MAX_BODY = 512 * 1024
# Calls at once: people and scripts on one host; more would only hide a runaway loop.
_MAX_CALLS = 64
# How long a caller on this host may take to send its arguments, seconds.
_BODY_TIMEOUT = 5.0
# sizeof(sockaddr_un.sun_path) is 108 with the final NUL, and a draft name is made beside it.
_MAX_SOCKET_PATH = 100
# Running calls may still answer for so long, seconds; "stop" itself has answered by then.
_CLOSE_TIMEOUT = 0.5

_log = logging.getLogger(__name__)


class _Refused(UserError):
    code = "permission_denied"


class ControlServer:
    """Serves ``handle(command, arguments, admin)`` at a path until ``stop``.

    ``handle`` returns anything JSON-able; a NostrvpnError it raises reaches the caller as JSON,
    anything else is logged as a bug and reported as one.
    """

    def __init__(self, path: str, handle: Handler) -> None:
        self._path = Path(path)
        self._handle = handle
        self._runner: web.AppRunner | None = None
        self._inode: int | None = None
        self._calls = {True: 0, False: 0}  # of admins, of the group's members

    async def start(self) -> None:
        """Listen at the path; SystemRefused if a daemon answers there or it cannot be made."""
        listener = self._bind()
        try:
            application = web.Application(client_max_size=_MAX_BODY)
            application.router.add_post("/v1/{command}", self._answer)
            self._runner = web.AppRunner(
                application, access_log=None, shutdown_timeout=_CLOSE_TIMEOUT
            )
            await self._runner.setup()
            await web.SockSite(self._runner, listener).start()
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Finish running calls (bounded), close the socket and remove it if it still is ours."""
        with suppress(OSError):
            if self._inode is not None and self._path.stat().st_ino == self._inode:
                self._path.unlink()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _bind(self) -> socket.socket:
        draft = self._path.with_name(self._path.name + ".new")
        if len(os.fsencode(draft)) > _MAX_SOCKET_PATH:
            raise UserError(
                f"the path {self._path} is too long for a Unix socket",
                "choose a shorter --runtime-dir",
            )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            require_own_directory(self._path.parent, self._path.parent.stat())
            _refuse_living(self._path)
            draft.unlink(missing_ok=True)
            listener.bind(str(draft))
            _share_with_group(draft)
            listener.listen(_MAX_CALLS)
            self._inode = draft.stat().st_ino
            draft.replace(self._path)  # appears complete: with its mode, and listening
        except OSError as error:
            listener.close()
            raise SystemRefused(
                f"cannot listen on {self._path}: {error.strerror or error}",
                "choose a writable --runtime-dir, or run as root (sudo)",
            ) from error
        except BaseException:
            listener.close()
            raise
        return listener

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["command"]
        try:
            admin = _is_admin(request)
        except _Refused as error:
            return _error(403, error)
        # Counted apart: whoever may only look cannot keep root out.
        if self._calls[admin] >= _MAX_CALLS:
            return _error(503, SystemRefused("too many calls at once", "try again in a moment"))
        self._calls[admin] += 1
        try:
            command = COMMANDS.get(name)
            if command is None:
                raise UsageError(
                    f"the daemon knows no command {name[:40]!r}",
                    "the running daemon may be of another version: nostrvpn down, nostrvpn up",
                )
            if command.admin and not admin:
                raise _Refused(f"{name} needs root", "run the same command with sudo")
            arguments = parse_arguments(command, await _body(request))
            result = await self._handle(name, arguments, admin)
            return web.Response(body=msgspec.json.encode(result), content_type="application/json")
        except NostrvpnError as error:
            return _error(403 if isinstance(error, _Refused) else 400, error)
        except (asyncio.CancelledError, web.HTTPException):
            raise
        except Exception:  # the supervisor of calls: one broken command must not end the daemon
            _log.exception("control command %s failed", name[:40])
            text = f"the daemon failed inside {name[:40]}"
            return _error(500, SystemRefused(text, "please report it; the log has the details"))
        finally:
            self._calls[admin] -= 1


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            return await request.read()
    except TimeoutError as error:
        raise UsageError(f"the arguments did not come within {_BODY_TIMEOUT:g} s") from error


def _error(status: int, error: NostrvpnError) -> web.Response:
    code = "bug" if status == 500 else error.code
    body = {
        "code": code,
        "text": str(error),
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    return web.Response(
        status=status,
        body=msgspec.json.encode({"error": body}),
        content_type="application/json",
    )


def _is_admin(request: web.Request) -> bool:
    """Return True for root and our own user, False for group members; raise for everybody else."""
    transport = request.transport
    peer = transport.get_extra_info("socket") if transport is not None else None
    if peer is None:
        raise _Refused("the caller has gone")
    _, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid in (0, os.geteuid()):
        return True
    ours = _group()
    if ours is not None and (gid == ours or ours in _peer_groups(peer)):
        return False
    raise _Refused(
        "you may not talk to the daemon",
        f"use sudo, or join the group for reading: sudo usermod -aG {GROUP} USER",
    )


def _peer_groups(peer: socket.socket) -> tuple[int, ...]:
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:  # before Linux 4.13, or more than 256 groups: ERANGE
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _share_with_group(path: Path) -> None:
    """Let the kernel admit root and our group only; who may do what is decided per call."""
    group = _group()
    if group is not None:
        with suppress(PermissionError):  # not root: the file stays ours alone
            if path.stat().st_gid != group:  # a service has it already, and may not chown
                os.chown(path, -1, group)
            path.chmod(0o660)
            return
    path.chmod(0o600)


def _refuse_living(path: Path) -> None:
    """Raise if a daemon answers at a socket; a dead one's socket file is simply replaced."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SystemRefused(f"{path} is in the way and is not a socket", "move it away")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except TimeoutError:
            pass  # a full backlog: somebody is there
    raise SystemRefused(
        f"another daemon answers on {path}",
        "stop it with: nostrvpn down; or give this one another --runtime-dir",
    )
