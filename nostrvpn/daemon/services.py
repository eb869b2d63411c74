"""What runs beside the node: channels, TURN, port mapping, the doorbell, our own relay.

Each turns the node's effects into work, and what happens into events; none of them decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from nostrvpn.config.model import Config, Turn
from nostrvpn.daemon.relay_service import RelayService
from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import NostrvpnError, UserError
from nostrvpn.host.state import FWMARK
from nostrvpn.io.channels import ChannelCalls, Channels
from nostrvpn.io.port_mapping import PortMapping, default_gateways
from nostrvpn.io.turn import TurnCalls, TurnServers
from nostrvpn.io.turn_wire import TurnServer, parse_turn_url
from nostrvpn.node.events import LendTo, NodeEvent
from nostrvpn.node.node import Node
from nostrvpn.node.services import relay_document
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

__all__ = ["Services"]

_log = logging.getLogger(__name__)

Offer = Callable[[NodeEvent], None]


class Services:
    """All of them, on the running loop. ``offer`` takes events for the node."""

    def __init__(self, node: Node, config: Config, offer: Offer) -> None:
        port = node.settings.tunnel.listen_port
        self._node = node
        self._offer = offer
        self._turn_servers = tuple(_turn_server(turn) for turn in config.turn)
        self._turn = TurnServers(port, self._turn_calls(), mark=FWMARK)
        self._channels = Channels(
            port,
            ChannelCalls(
                lambda number, frame: offer(ChannelAnswered(number, frame)),
                lambda number, endpoint: offer(ChannelOpened(number, endpoint)),
                lambda number, reason: offer(ChannelClosed(number, reason)),
            ),
            turn=self._turn,
            mark=FWMARK,
        )
        self._mapping: PortMapping | None = None
        self._must_map = config.paths.port_mapping == "required"
        if config.paths.port_mapping:
            self._mapping = PortMapping(port, FWMARK, lambda e: offer(MappedAddresses(e)))
        self.relay: RelayService | None = None

    def use_relay(self, relay: RelayService) -> None:
        """Relay for others too."""
        self.relay = relay

    async def start(self, interface: str) -> None:
        """Begin; what cannot be had is said in status, and the rest goes on."""
        for server in self._turn_servers:
            self._node.turn_states[server.name] = "allocating"
            self._turn.allocate(server)
        if self.relay is not None:
            await self.relay.start(interface)
            self._node.relay_error = self.relay.error
        await self.network_changed()

    async def stop(self) -> None:
        """Give everything back, in bounded time."""
        if self.relay is not None:
            await self.relay.stop()
        await self._channels.close_all()
        await self._turn.stop()
        if self._mapping is not None:
            await self._mapping.close()

    async def network_changed(self) -> None:
        """Addresses or routes changed: ask the router that we have now."""
        if self._mapping is None:
            return
        try:
            gateways = await asyncio.to_thread(default_gateways)
        except NostrvpnError as exc:
            _log.warning("the default routes could not be read: %s", exc)
            return
        self._mapping.gateways_changed(gateways)

    def perform(self, effect: OpenChannel | CloseChannel | LendTo) -> None:
        """Carry out one effect."""
        match effect:
            case OpenChannel():
                self._channels.open(effect.channel, effect.target)
            case CloseChannel():
                self._channels.close(effect.channel)
            case LendTo() if self.relay is not None:
                self.relay.lend_to(effect.users)

    def answered(self, channel: int) -> None:
        """The node took the first frame of a channel, and did not close it: let packets flow."""
        self._channels.carry(channel)

    async def show(self) -> None:
        """Tell the node what status and netcheck show of us."""
        if self._mapping is not None:
            self._node.port_mapping = {**self._mapping.report(), "required": self._must_map}
        if self.relay is not None:
            self._node.relay_snapshot = relay_document(await self.relay.look())

    def _turn_calls(self) -> TurnCalls:
        def allocated(server: str, relayed: Endpoint) -> None:
            self._node.turn_states[server] = f"relays at {relayed}"
            self._offer(TurnAllocated(server, relayed))

        def lost(server: str, reason: str) -> None:
            _log.warning("TURN server %s: %s", server, reason)
            self._node.turn_states[server] = f"failed: {reason}"
            self._offer(TurnLost(server, reason))

        return TurnCalls(
            allocated,
            lost,
            lambda server, remote: self._offer(TurnHeard(server, remote)),
            lambda number, endpoint: self._offer(ChannelOpened(number, endpoint)),
            lambda number, reason: self._offer(ChannelClosed(number, reason)),
        )


def _turn_server(turn: Turn) -> TurnServer:
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
