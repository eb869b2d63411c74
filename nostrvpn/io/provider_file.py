"""Reading the wg-quick file of a WireGuard provider, which nobody else may read: it holds a key."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import UserError
from nostrvpn.wireguard.provider import MAX_FILE_BYTES, Provider, parse_provider

__all__ = ["read_provider"]


def read_provider(path: Path) -> Provider:
    """Return the provider of a file, the name of its endpoint looked up; UserError if it has none."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise UserError(f"{path} is no file")
            if mode & 0o077:
                raise UserError(
                    f"{path} holds a private key, and others can reach it", f"chmod 600 {path}"
                )
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise UserError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{path} is too long for a wg-quick file")
    provider, host = parse_provider(content.decode(errors="replace"))
    assert provider.peer.endpoint is not None
    if str(provider.peer.endpoint.ip) == host:
        return provider
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError as exc:
        raise UserError(f"{host} cannot be looked up: {exc.strerror}") from exc
    endpoint = Endpoint(ip_address(found[0][4][0]), provider.peer.endpoint.port)
    return replace(provider, peer=replace(provider.peer, endpoint=endpoint))
