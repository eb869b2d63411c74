"""A small Nostr relay in this process (nostr-sdk's ``LocalRelay``), for the lab and ``relay``.

nostr-sdk costs 20 MB, so it is imported only when a relay is started.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from nostrvpn.errors import SystemRefused

if TYPE_CHECKING:
    import nostr_sdk

__all__ = ["EmbeddedRelay"]

# More than a lab or a family of nodes opens; each connection costs some kilobytes.
MAX_CONNECTIONS: Final = 512
# A node asks for a handful of events a minute; a lab with twenty of them stays far below.
MAX_REQUESTS: Final = 1000
EVENTS_PER_MINUTE: Final = 60_000


class EmbeddedRelay:
    """A relay that keeps its events in memory and delivers ephemeral ones to who listens."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        auth: str | None = None,
        write_policy: nostr_sdk.WritePolicy | None = None,
    ) -> None:
        """Port 0 takes a free one; ``auth`` is "read", "write" or "both" (NIP-42), or None."""
        self._host, self._port = host, port
        self._auth = auth
        self._write_policy = write_policy
        self._relay: Any = None
        self._url = ""

    @property
    def url(self) -> str:
        """The ws:// URL; empty before ``start``."""
        return self._url

    async def start(self) -> None:
        """Listen; SystemRefused if the address cannot be used."""
        import nostr_sdk

        try:
            builder = nostr_sdk.LocalRelayBuilder().addr(self._host)
        except nostr_sdk.NostrSdkError as exc:
            where = f"the relay listens on an IP address, and {self._host} is none"
            raise SystemRefused(where, "for example: --listen 0.0.0.0:7777") from exc
        builder = builder.max_connections(MAX_CONNECTIONS).rate_limit(
            nostr_sdk.RateLimit(max_reqs=MAX_REQUESTS, notes_per_minute=EVENTS_PER_MINUTE)
        )
        if self._port:
            builder = builder.port(self._port)
        if self._auth is not None:
            mode = nostr_sdk.LocalRelayBuilderNip42Mode[self._auth.upper()]
            builder = builder.nip42(nostr_sdk.LocalRelayBuilderNip42(mode=mode))
        if self._write_policy is not None:
            # The policy is called from the library's own threads, which must find our loop. The
            # setting is the library's only one, so it is taken back when the relay stops.
            nostr_sdk.uniffi_set_event_loop(asyncio.get_running_loop())
            builder = builder.write_policy(self._write_policy)
        try:
            relay = builder.build()
            await relay.run()
            self._url = str(await relay.url()).rstrip("/")
        except nostr_sdk.NostrSdkError as exc:
            where = f"{self._host}:{self._port}"
            raise SystemRefused(
                f"the relay cannot listen on {where}: {exc}",
                "choose another address or port, or stop what listens there",
            ) from exc
        self._relay = relay
        _send_at_once(int(self._url.rpartition(":")[2]))

    async def stop(self) -> None:
        """Stop listening and close every connection; nothing if it does not run."""
        relay, self._relay, self._url = self._relay, None, ""
        if relay is None:
            return
        relay.shutdown()
        if self._write_policy is not None:
            import nostr_sdk

            nostr_sdk.uniffi_set_event_loop(None)


def _send_at_once(port: int) -> None:
    """Turn Nagle's algorithm (RFC 896) off for this process's listener on ``port``.

    The library leaves it on, so an event waits a round trip for the acknowledgement of a small frame
    before it. Accepted connections inherit the option from the listening socket.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            # Asked first: a duplicate that turns out to be no socket would stay open.
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                is_listener = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if is_listener and sock.getsockname()[1] == port:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
