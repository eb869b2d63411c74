"""What the selling and the buying half of the market share in one daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

# What a node does not use is not even imported.
if TYPE_CHECKING:
    from nostrvpn.config.model import Config
    from nostrvpn.daemon.lightning_rail import LightningRail
    from nostrvpn.daemon.market_board import MarketBoard
    from nostrvpn.daemon.market_cashier import Cashier
    from nostrvpn.daemon.market_post import MarketPost
    from nostrvpn.daemon.name_service import NameService
    from nostrvpn.daemon.reconcile import Reconciler
    from nostrvpn.daemon.wallet import Wallet
    from nostrvpn.identity.keys import RootSecret
    from nostrvpn.io.store import Store
    from nostrvpn.machine import Moment
    from nostrvpn.node.events import NodeEvent
    from nostrvpn.node.node import Node

__all__ = ["Host", "Parts"]


@dataclass(frozen=True, slots=True)
class Host:
    """What the daemon lends the market: its node and interface, and ways to act on both.

    ``offer`` puts an event to the node in; ``reconcile`` asks for the kernel to be looked at;
    ``applied`` waits until the kernel has what is desired now, some seconds at most.
    """

    node: Node
    interface: str
    config: Config
    root: RootSecret = field(repr=False)
    reconciler: Reconciler
    names: NameService
    offer: Callable[[NodeEvent], None]
    reconcile: Callable[[], None]
    applied: Callable[[], Awaitable[bool]]
    moment: Callable[[], Moment]


@dataclass(frozen=True, slots=True)
class Parts:
    """The market's own: its store, wallet, post, and board of offers; ``relays``: where it listens;
    ``rail``: leases by Lightning."""

    host: Host
    store: Store
    wallet: Wallet
    cashier: Cashier
    post: MarketPost
    board: MarketBoard
    relays: tuple[str, ...]
    rail: LightningRail
