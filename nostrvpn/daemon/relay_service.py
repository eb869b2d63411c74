"""This node as a relay for others: the machine, its ports, its WebSockets, and what it remembers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from nostrvpn.config.addresses import check_port_range
from nostrvpn.config.model import Relay
from nostrvpn.endpoint import Endpoint, parse_endpoint
from nostrvpn.errors import NostrvpnError, UserError
from nostrvpn.host.state import FWMARK
from nostrvpn.io.relay_host import RelayHost
from nostrvpn.io.relay_routing import uplinks
from nostrvpn.io.relay_websocket import RelayWebSocket, WebSocketListen
from nostrvpn.io.store import Record, Store
from nostrvpn.machine import Moment
from nostrvpn.node.relaying import WEBSOCKET_PATH
from nostrvpn.relaying.events import AllocateReceived, ChannelClosed, ChannelOpened, Users
from nostrvpn.relaying.server import RelayServer
from nostrvpn.relaying.settings import RelaySettings
from nostrvpn.relaying.snapshot import RelaySnapshot

__all__ = ["RelayService"]

GIGABYTE = 10**9
# One peer towards each other of a mesh of 30, as nobody of whom there are few should be kept out.
LEAST_PER_USER = 32
# What was carried is stored so often while it grows, and as soon as a hundredth of the month's bytes was
# carried since, or the last: a killed daemon forgets no more. (A minute at 400 Mbit/s is 3 GB.)
STORE_EVERY_S = 60.0
STORE_SHARE = 100

_log = logging.getLogger(__name__)


def _settings(config: Relay) -> RelaySettings:
    return RelaySettings(
        ports=check_port_range(config.ports),
        max_pairs=config.pairs,
        pairs_per_user=max(LEAST_PER_USER, config.pairs // 4),
        for_anyone=config.offer == "anyone",
        mbit_per_s=config.mbit,
        monthly_bytes=config.gigabytes * GIGABYTE or None,
    )


class RelayService:
    """Runs on the daemon's loop. ``error`` says what of it could not be had, None if all stands.

    ``unsaved`` says why the bytes of the month cannot be stored, None if they are.
    """

    @property
    def slow(self) -> str | None:
        """Why this program forwards itself what the kernel could; None if the kernel does."""
        return self._host.refusal

    @property
    def troubles(self) -> dict[str, object]:
        """What status says beside the machine's own figures; see :func:`relay_document`."""
        return {
            "slow": self.slow,
            "forward_dropped": self._host.counters["forward_dropped"],
            "unsaved": self.unsaved,
            "failures": self._host.counters["failed"],
            "failure": self._host.failure,
        }

    def __init__(
        self,
        secret: bytes,
        config: Relay,
        store: Store,
        *,
        moment: Callable[[], Moment],
        send_control: Callable[[bytes, Endpoint], object],
    ) -> None:
        settings = _settings(config)
        self._store = store
        self._moment = moment
        remembered = store.all("meta").get("relay_month")
        month, carried = remembered if isinstance(remembered, list) else ("", 0)
        self._server = RelayServer(secret, settings, month, carried)
        self._stored: tuple[str, int] = (month, carried)
        self._store_at = moment().now + STORE_EVERY_S
        self._share = (settings.monthly_bytes or 0) // STORE_SHARE
        self.unsaved: str | None = None
        self._seen: set[int] = set()
        self._websocket: RelayWebSocket | None = None
        if config.websocket.listen:
            at = parse_endpoint(config.websocket.listen)
            given = config.websocket
            listen = WebSocketListen(
                str(at.ip),
                at.port,
                path=urlsplit(given.url).path or WEBSOCKET_PATH,
                certificate=Path(given.certificate) if given.certificate else None,
                key=Path(given.key) if given.key else None,
                behind_proxy=given.url.startswith("wss://") and not given.certificate,
            )
            self._websocket = RelayWebSocket(listen, self._frame, self._closed)
        self._host = RelayHost(
            self._server,
            settings,
            mark=FWMARK,
            moment=moment,
            send_control=send_control,
            channels=self,
        )
        self._host.counted = self._counted
        self.error: str | None = None

    async def start(self, interface: str) -> None:
        """Begin to relay; what cannot be had is said by ``error`` and left out."""
        try:
            await self._host.start(interface, uplinks())
            if self._host.refusal is not None:  # slower, and nothing else
                _log.warning("relaying in user space: %s", self._host.refusal)
            if self._websocket is not None:
                await self._websocket.start()
        except NostrvpnError as exc:
            _log.error("relaying: %s", exc)
            self.error = str(exc)

    async def stop(self) -> None:
        """Give everything back, and remember what was carried this month."""
        self._remember()
        if self._websocket is not None:
            await self._websocket.stop()
        await self._host.stop()

    def _counted(self) -> None:
        """The counters were read: store them, if it is time or if they grew by much.

        It comes every 15 s, and so a certificate that was renewed is taken up then too.
        """
        if self._websocket is not None:
            try:
                self._websocket.renew_certificate()
            except UserError as exc:
                _log.warning("the certificate of before is served on: %s", exc)
        moment = self._moment()
        told = self._server.snapshot(moment)
        month, carried = self._stored
        grown = told.month_bytes - (carried if month == told.month else 0)
        is_much = told.is_exhausted or 0 < self._share <= grown
        if grown and (is_much or moment.now >= self._store_at):
            self._remember()

    def _remember(self) -> None:
        # For the cap to hold over restarts.
        moment = self._moment()
        told = self._server.snapshot(moment)
        self._store_at = moment.now + STORE_EVERY_S
        self._stored = (told.month, told.month_bytes)
        try:
            self._store.put([Record("meta", "relay_month", list(self._stored))])
        except NostrvpnError as exc:
            if self.unsaved is None:
                _log.warning("what was relayed could not be stored: %s", exc)
            self.unsaved = str(exc)
        else:
            self.unsaved = None

    def tables_changed(self) -> None:
        """Somebody removed of our nftables tables."""
        self._host.tables_changed()

    def lend_to(self, users: frozenset[str]) -> None:
        """Relay for these users (names of their credentials) from now on, and for no others."""
        self._host.step(Users(users))

    def allocate(self, data: bytes, source: Endpoint) -> None:
        """Take an Allocate that came to WireGuard's port."""
        self._host.step(AllocateReceived(data, source))

    async def look(self) -> RelaySnapshot:
        """Return the relay as it is now, counters included."""
        await self._host.look_around()
        await self._host.read_counters()
        return self._server.snapshot(self._moment())

    # What the host asks of the WebSockets (RelayChannels).

    def send_frame(self, number: int, data: bytes) -> bool:
        """Send a frame to a client's WebSocket; False if it was dropped."""
        return self._websocket is not None and self._websocket.send_frame(number, data)

    def close_channel(self, number: int) -> None:
        """Close a client's WebSocket."""
        if self._websocket is not None:
            self._websocket.close(number)

    def _frame(self, number: int, data: bytes) -> None:
        if number not in self._seen:
            self._seen.add(number)
            assert self._websocket is not None
            self._host.step(ChannelOpened(number, self._websocket.ip_of(number)))
        self._host.channel_frame(number, data)

    def _closed(self, number: int) -> None:
        self._seen.discard(number)
        self._host.step(ChannelClosed(number))
