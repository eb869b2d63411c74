"""What runs beside the node: channels, TURN, port mapping, names, the doorbell, our own relay.

Each turns the node's effects into work, and what happens into events; none of them decides. What
a node does not use is not even imported: together they are a tenth of its memory and start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING

from nostrvpn.config.model import Config, Turn
from nostrvpn.daemon.exit_service import ExitService
from nostrvpn.daemon.name_service import NameService
from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import NostrvpnError, UserError
from nostrvpn.host.state import FWMARK, HostState
from nostrvpn.io.peer_channel import PeerChannel
from nostrvpn.mesh.policy import CHANNEL_PORT
from nostrvpn.node.events import (
    HeardThrough,
    LendTo,
    NodeEvent,
    SendThrough,
    ThroughFailed,
)
from nostrvpn.node.node import Node
from nostrvpn.node.services import relay_document
from nostrvpn.paths.candidates import refusal
from nostrvpn.paths.events import (
    ChannelAnswered,
    ChannelClosed,
    ChannelOpened,
    CloseChannel,
    MappedAddresses,
    OpenChannel,
    TurnAllocated,
    TurnHeard,
    TurnLost,
)

if TYPE_CHECKING:
    from nostrvpn.daemon.relay_service import RelayService
    from nostrvpn.io.channels import Channels
    from nostrvpn.io.port_mapping import DefaultGateway, PortMapping
    from nostrvpn.io.turn import TurnServers
    from nostrvpn.io.turn_wire import TurnServer

__all__ = ["Services"]

# Commands that show something of us.
_SHOWN = frozenset({"status", "netcheck", "why", "exit_list", "exit_status"})
# How long a status waits for our own relay's counters.
SHOW_SECONDS = 3.0

_log = logging.getLogger(__name__)

Offer = Callable[[NodeEvent], None]
Run = Callable[
    [Callable[[], "tuple[DefaultGateway, ...]"]], Awaitable["tuple[DefaultGateway, ...]"]
]


class Services:
    """All of them, on the running loop. ``offer`` takes events for the node."""

    def __init__(self, node: Node, config: Config, offer: Offer) -> None:
        self._port = node.settings.tunnel.listen_port
        self._node = node
        self._offer = offer
        self._turn_servers = tuple(_turn_server(turn) for turn in config.turn)
        self._turn = self._make_turn() if self._turn_servers else None
        self._channels: Channels | None = None
        self._mapping: PortMapping | None = None
        self._may_map = bool(config.paths.port_mapping)
        self._must_map = config.paths.port_mapping == "required"
        self.relay: RelayService | None = None
        self._talk = PeerChannel(
            CHANNEL_PORT,
            self._heard_through,
            lambda token: offer(ThroughFailed(token)),
        )
        interface = node.settings.tunnel.interface
        self.names = NameService(node, config.dns, interface, config.exit)
        self.exits = ExitService(
            node, node.settings.tunnel.interface, offer, config.exit.country_database
        )

    def _heard_through(self, address: IPAddress, text: str) -> None:
        assert isinstance(address, IPv6Address)  # as the one that is listened on
        self._offer(HeardThrough(address, text))

    def use_relay(self, relay: RelayService) -> None:
        """Relay for others too."""
        self.relay = relay

    async def start(self, interface: str) -> None:
        """Begin; what cannot be had is said in status, and the rest goes on.

        Nothing here waits for the network. Port mapping begins with ``network_changed``.
        """
        self.names.start()
        self.exits.start()
        if self._turn is not None:
            for server in self._turn_servers:
                self._node.turn_states[server.name] = "allocating"
                self._turn.allocate(server)
        if self.relay is not None:
            await self.relay.start(interface)
            self._node.relay_error = self.relay.error

    async def stop(self) -> None:
        """Give everything back, in bounded time."""
        await self.exits.stop()
        await self.names.stop()
        await self._talk.close()
        if self.relay is not None:
            try:
                await self.relay.stop()
            except NostrvpnError as exc:
                _log.error("relaying could not be ended in order: %s", exc)
        if self._channels is not None:
            await self._channels.close_all()
        if self._turn is not None:
            await self._turn.stop()
        self._may_map = False
        if self._mapping is not None:
            await self._mapping.close()

    async def network_changed(self, run: Run) -> None:
        """Addresses or routes are known, or changed: ask the router that we have now.

        ``run`` does blocking work elsewhere. One call at a time: the last one's answer counts.
        """
        if not self._may_map:
            return
        try:
            gateways = await run(_default_gateways)
        except NostrvpnError as exc:
            _log.warning("the default routes could not be read: %s", exc)
            return
        if self._may_map:
            self._mapper().gateways_changed(gateways)

    async def use_addresses(self, host: HostState) -> None:
        """These are the tunnel's own addresses now: members may speak to us there."""
        own = (a.ip for a in host.addresses if isinstance(a, IPv6Interface))
        await self._talk.use(host.interface, next(own, None))

    def perform(self, effect: OpenChannel | CloseChannel | LendTo | SendThrough) -> None:
        """Carry out one effect."""
        match effect:
            case OpenChannel():
                self._carriers().open(effect.channel, effect.target)
            case CloseChannel():
                self._carriers().close(effect.channel)
            case SendThrough():
                self._talk.send(effect.address, effect.text, effect.token)
            case LendTo() if self.relay is not None:
                self.relay.lend_to(effect.users)

    def answered(self, channel: int) -> None:
        """The node took the first frame of a channel, and did not close it: let packets flow."""
        self._carriers().carry(channel)

    async def before(self, command: str) -> None:
        """Do what a command needs of us before the node takes it."""
        if command in _SHOWN:
            await self._show()
        elif command == "exit_use":
            await self.exits.check_alone()

    async def _show(self) -> None:
        """Tell the node what status and netcheck show of us."""
        self.exits.show()
        if self._mapping is not None:
            self._node.port_mapping = {**self._mapping.report(), "required": self._must_map}
        if self.relay is not None:
            # What the kernel is busy with shall not keep a status waiting.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHOW_SECONDS):
                    shown = relay_document(await self.relay.look())
                    self._node.relay_snapshot = shown | self.relay.troubles

    def _mapper(self) -> PortMapping:
        if self._mapping is None:
            from nostrvpn.io.port_mapping import PortMapping

            offer = self._offer
            self._mapping = PortMapping(self._port, FWMARK, lambda e: offer(MappedAddresses(e)))
        return self._mapping

    def _carriers(self) -> Channels:
        if self._channels is None:
            from nostrvpn.io.channels import ChannelCalls, Channels

            calls = ChannelCalls(
                lambda number, frame: self._offer(ChannelAnswered(number, frame)),
                self._channel_opened,
                self._channel_closed,
            )
            self._channels = Channels(self._port, calls, turn=self._turn, mark=FWMARK)
            self._channels.refuses = self._is_refused
        return self._channels

    def _channel_opened(self, number: int, endpoint: Endpoint) -> None:
        self._offer(ChannelOpened(number, endpoint))

    def _channel_closed(self, number: int, reason: str) -> None:
        self._offer(ChannelClosed(number, reason))

    def _is_refused(self, ip: IPAddress) -> bool:
        return refusal(Endpoint(ip, 1), self._node.path_settings) is not None

    def _make_turn(self) -> TurnServers:
        from nostrvpn.io.turn import TurnCalls, TurnServers

        def allocated(server: str, relayed: Endpoint) -> None:
            self._node.turn_states[server] = f"relays at {relayed}"
            self._offer(TurnAllocated(server, relayed))

        def lost(server: str, reason: str) -> None:
            _log.warning("TURN server %s: %s", server, reason)
            self._node.turn_states[server] = f"failed: {reason}"
            self._offer(TurnLost(server, reason))

        calls = TurnCalls(
            allocated,
            lost,
            lambda server, remote, ufrag: self._offer(TurnHeard(server, remote, ufrag)),
            self._channel_opened,
            self._channel_closed,
        )
        return TurnServers(self._port, calls, mark=FWMARK)


def _default_gateways() -> tuple[DefaultGateway, ...]:
    # In the worker thread the import holds up nothing.
    from nostrvpn.io.port_mapping import default_gateways

    return default_gateways()


def _turn_server(turn: Turn) -> TurnServer:
    from nostrvpn.io.turn_wire import parse_turn_url

    password = turn.password
    if turn.password_file:
        try:
            password = Path(turn.password_file).read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, UnicodeDecodeError) as exc:
            raise UserError(
                f"the password of {turn.url} cannot be read from {turn.password_file}: {exc}",
                "name a readable text file in turn.password_file",
            ) from exc
    return parse_turn_url(turn.url, turn.username, password)
