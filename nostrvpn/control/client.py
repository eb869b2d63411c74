"""The caller's side of the control interface: one HTTP request over the Unix socket.

Standard library only: this is what ``nostrvpn status`` pays for at every start.
"""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPException
from typing import Any

from nostrvpn.errors import NostrvpnError, SystemRefused, UserError

__all__ = ["CallRefused", "ControlClient", "DaemonNotRunning"]

# An answer is some kilobytes; a mesh of a thousand peers stays below one megabyte.
_MAX_ANSWER = 16 * 1024 * 1024
_CONNECT_TIMEOUT = 3.0


class DaemonNotRunning(UserError):
    """Nobody answers at the control socket."""

    code = "daemon_not_running"


class CallRefused(NostrvpnError):
    """The daemon answered with an error; code, text, hint and exit code are the daemon's."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("text", "the daemon refused")), str(error.get("hint", "")))
        self.code = str(error.get("code", "error"))
        self.exit_code = 2 if error.get("exit_code") == 2 else 1


class ControlClient:
    """Calls one daemon by the path of its control socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    def call(self, command: str, timeout: float = 30.0, **arguments: object) -> Any:
        """Return a command's result; DaemonNotRunning, CallRefused or SystemRefused say why not.

        ``timeout`` bounds, in seconds, each wait for the daemon. Arguments of None are left out.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        connection = _UnixConnection(self._path, timeout)
        try:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", f"/v1/{command}", json.dumps(given), headers)
            response = connection.getresponse()
            body = response.read(_MAX_ANSWER)
        except TimeoutError as error:
            raise SystemRefused(
                f"the daemon did not answer {command} within {timeout:g} s",
                "see its log; to stop it: nostrvpn down",
            ) from error
        except (OSError, HTTPException) as error:
            raise DaemonNotRunning(
                "the daemon stopped during the call", "see its log; start it with: nostrvpn up"
            ) from error
        finally:
            connection.close()
        return _result(response.status, body, command)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._unix_path = path
        self._answer_timeout = timeout

    def connect(self) -> None:
        """Connect to the daemon; DaemonNotRunning or SystemRefused say why it is not possible."""
        path = self._unix_path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CONNECT_TIMEOUT)
        try:
            self.sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise DaemonNotRunning(
                f"nostrvpn is not running (nobody answers on {path})",
                "start it with: sudo nostrvpn up",
            ) from error
        except PermissionError as error:
            raise SystemRefused(
                f"you may not open {path}",
                "use sudo, or join the group for reading: sudo usermod -aG nostrvpn USER",
            ) from error
        except OSError as error:
            raise SystemRefused(
                f"cannot reach the daemon on {path}: {error}", "check --runtime-dir"
            ) from error
        self.sock.settimeout(self._answer_timeout)


def _result(status: int, body: bytes, command: str) -> Any:
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise SystemRefused(
            f"the daemon gave no JSON answer to {command} (status {status})",
            "it may be of another version: nostrvpn down, then nostrvpn up",
        ) from error
    if status == 200:
        return answer
    refused = answer.get("error") if isinstance(answer, dict) else None
    raise CallRefused(refused if isinstance(refused, dict) else {})
