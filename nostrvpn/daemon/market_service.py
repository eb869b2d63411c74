"""The market in one daemon: wallet, board, shop and customer together, and their commands.

Opened when it is first asked for, or at start if there is something in it: most nodes need none. One
daemon of a node has it, whatever networks the node is in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nostrvpn.config.options import Options
from nostrvpn.control.market_schema import MARKET_COMMANDS
from nostrvpn.daemon.market_parts import Host, Parts
from nostrvpn.errors import NostrvpnError, SystemRefused, UserError
from nostrvpn.exits.settings import BOUGHT
from nostrvpn.io.lock import AlreadyRunning, StateLock

if TYPE_CHECKING:
    from nostrvpn.daemon.arbiter_bench import Bench
    from nostrvpn.daemon.lightning_service import LightningService
    from nostrvpn.daemon.market_board import MarketBoard
    from nostrvpn.daemon.market_customer import Customer
    from nostrvpn.daemon.market_shop import Shop
    from nostrvpn.daemon.wallet import Wallet
    from nostrvpn.io.market_relays import MarketRelays
    from nostrvpn.io.proxy import SocksProxy
    from nostrvpn.io.store import Store

__all__ = ["MarketService"]

# What the words of the wallet do not bring back, and what is owed.
_PRECIOUS: Final = frozenset(
    {"counter", "mint", "wallet", "sale", "buyer", "bought_lease", "sold_lease", "sold_money"}
    | {"sold_channel", "sold_dispute", "arbiter_case", "arbiter"}
)
_Json = dict[str, Any]
_Command = Callable[[str, dict[str, object], bool], Awaitable[object]]

_log = logging.getLogger("nostrvpn.market")


class MarketService:
    """``command`` runs a command of the daemon's: an exit that is bought is used like any other."""

    COMMANDS = frozenset(MARKET_COMMANDS)

    def __init__(
        self, host: Host, options: Options, command: _Command, proxy: SocksProxy | None = None
    ) -> None:
        self._host, self._command, self._proxy = host, command, proxy
        self._path = f"{options.state_dir}/market.db"
        self._lock = StateLock(f"{options.state_dir}/market.lock")
        self._opening = asyncio.Lock()
        self._open: _Open | None = None

    async def start(self) -> None:
        """Go on with what was bought and sold, if anything was."""
        is_bought = self._host.node.exits.settings.exit == BOUGHT
        if not is_bought and not await asyncio.to_thread(Path(self._path).exists):
            return
        try:
            await self._opened()
        except NostrvpnError as exc:
            # Another daemon of this node may have it; a damaged one must not end the tunnels.
            _log.warning("the market stays closed: %s", exc)

    async def leave(self) -> None:
        """The user stops this node, for who knows how long: buyers get their receipts and what is unused
        back first. Some seconds at most."""
        if self._open is not None:
            await self._open.shop.leave()

    async def stop(self) -> None:
        """End in order: nothing is lost, and nothing is served that is not paid."""
        async with self._opening:
            opened, self._open = self._open, None
            if opened is not None:
                try:
                    await opened.close()
                finally:
                    self._lock.release()

    async def call(self, name: str, args: Mapping[str, Any]) -> object:
        """Run one of ``COMMANDS``."""
        opened = await self._opened()
        if name == "exit_buy":
            return await self._buy(opened, args)
        return await opened.call(name, args)

    def answered(self, name: str, answer: _Json) -> _Json:
        """Return the daemon's answer to a command, with what the market adds to it.

        If the user chose another exit, or none, nothing more is bought.
        """
        opened = self._open
        if opened is None or not (name == "status" or name.startswith("exit_")):
            return answer
        from nostrvpn.daemon.market_told import added

        customer, settings = opened.customer, self._host.node.exits.settings
        if settings.exit != BOUGHT and customer.buyer.wish is not None and name != "status":
            customer.want(None)
        free = sum(free for free, _ in opened.wallet.balance().values())
        return added(name, answer, customer.document(), opened.shop.document(), free)

    def network_changed(self) -> None:
        """Addresses or routes changed: relays are connected anew at once."""
        if self._open is not None:
            self._open.relays.retry_now()

    async def _opened(self) -> _Open:
        async with self._opening:
            if self._open is None:
                try:
                    await asyncio.to_thread(self._lock.acquire)  # it may wait for a moment
                except AlreadyRunning as exc:
                    raise UserError(
                        "the market runs in another daemon of this node",
                        "name its network: nostrvpn --network NAME …",
                    ) from exc
                try:
                    self._open = await self._begin()
                except BaseException:
                    self._lock.release()
                    raise
            return self._open

    async def _begin(self) -> _Open:
        """Open it, wholly or not at all: no wallet works on without the lock."""
        opened = _Open(self._host, self._path, self._proxy)
        try:
            opened.start()
        except BaseException:
            await opened.close()
            raise
        return opened

    async def _buy(self, opened: _Open, args: Mapping[str, Any]) -> _Json:
        from nostrvpn.daemon.market_wishes import (
            bought_document,
            named_offer,
            parse_wish,
            refuse_unfunded,
        )
        from nostrvpn.market.terms import PayMode

        wish = parse_wish(args, self._host.root)
        if PayMode.BOLT11 in wish.modes:
            await opened.parts.rail.look()
        refuse_unfunded(opened.parts)
        wish = await named_offer(wish, opened.board, opened.customer.buyer.wish)
        opened.customer.want(wish)
        use = {key: args[key] for key in ("kill_switch", "allow_lan", "resolver")}
        try:
            await self._command("exit_use", {"peer": BOUGHT, "dry_run": False, **use}, True)
        except NostrvpnError:
            opened.customer.want(None)
            raise
        end = time.monotonic() + args["wait_s"]
        document = await opened.customer.settled(args["wait_s"])
        if document["state"] == "connected":
            await self._in_force(end)
        return bought_document(document)

    async def _in_force(self, end: float) -> None:
        """Wait until the routes lead into what was bought, at the latest until ``end``."""
        while time.monotonic() < end:
            answer = await self._command("exit_status", {}, False)
            if isinstance(answer, Mapping) and answer["state"] == "connected":
                return
            await asyncio.sleep(0.05)


class _Open:
    """The market while it is open."""

    def __init__(self, host: Host, path: str, proxy: SocksProxy | None) -> None:
        from nostrvpn.daemon.lightning_service import LIGHTNING_SPACE
        from nostrvpn.io.store import Store

        self.store: Store = Store.open(path, _PRECIOUS, [LIGHTNING_SPACE])
        if self.store.restored:
            _log.warning("%s", self.store.restored)
        try:
            self._build(host, proxy)
        except BaseException:
            self.store.close()
            raise

    def _build(self, host: Host, proxy: SocksProxy | None) -> None:
        from nostrvpn.daemon.arbiter_bench import Bench
        from nostrvpn.daemon.lightning_rail import LightningRail
        from nostrvpn.daemon.lightning_service import LightningService
        from nostrvpn.daemon.market_board import MarketBoard
        from nostrvpn.daemon.market_cashier import Cashier
        from nostrvpn.daemon.market_customer import Customer
        from nostrvpn.daemon.market_opinions import BoardSettings
        from nostrvpn.daemon.market_post import MarketPost
        from nostrvpn.daemon.market_shop import Shop
        from nostrvpn.daemon.wallet import Wallet
        from nostrvpn.io.market_relays import MarketRelays
        from nostrvpn.io.mint import MintClient

        settings = BoardSettings.of(host.config.market, host.node.settings.relays)
        self.relays: MarketRelays = MarketRelays(host.moment, proxy, own=frozenset(settings.relays))
        self.wallet: Wallet = Wallet(
            self.store,
            host.root.wallet_entropy(),
            connect=lambda url: MintClient(url, proxy=proxy),
        )
        self.lightning: LightningService = LightningService(
            self.store,
            self.wallet,
            host.moment,
            proxy=proxy,
            reserved=lambda: self.shop.seller.reserved_sat(),
        )
        self.board: MarketBoard = MarketBoard(
            self.relays, self.store, host.root, settings, host.moment
        )
        self.post: MarketPost = MarketPost(self.relays, host.moment)
        rail = LightningRail(self.lightning)
        self.cashier: Cashier = Cashier(self.wallet, rail)
        self.parts = Parts(
            host,
            self.store,
            self.wallet,
            self.cashier,
            self.post,
            self.board,
            settings.relays,
            rail,
        )
        self.shop: Shop = Shop(self.parts)
        self.customer: Customer = Customer(self.parts)
        self.bench: Bench = Bench(self.parts)
        self._publishing: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.wallet.start()
        self.lightning.start()
        self.board.mints = frozenset(self.wallet.balance())
        self._publishing = asyncio.create_task(self.board.run(), name="board")
        self.shop.start()
        self.customer.start()
        self.bench.start()

    async def close(self) -> None:
        await self.bench.stop()
        await self.customer.stop()
        await self.shop.stop()
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        await self.board.withdraw()
        await self.cashier.stop()
        await self.post.stop()
        await self.lightning.stop()
        await self.wallet.stop()
        await self.relays.stop()
        self.store.close()

    async def call(self, name: str, args: Mapping[str, Any]) -> object:
        from nostrvpn.daemon.escrow_commands import ESCROW_COMMANDS
        from nostrvpn.daemon.lightning_commands import LIGHTNING_COMMANDS
        from nostrvpn.daemon.market_commands import BOARD_COMMANDS
        from nostrvpn.daemon.shop_commands import SHOP_COMMANDS, buyer_named
        from nostrvpn.daemon.wallet_commands import WALLET_COMMANDS

        if name in WALLET_COMMANDS:
            answer = await WALLET_COMMANDS[name](self.wallet, args)
            self.board.mints = frozenset(self.wallet.balance())
            if name == "wallet_balance":
                answer = {**answer, "coming_home": self.customer.document()["coming_home_sat"]}
            return answer
        if name in LIGHTNING_COMMANDS:
            return await LIGHTNING_COMMANDS[name](self.lightning, self.wallet, args)
        if name in BOARD_COMMANDS:
            if name in ("market_deny", "market_allow"):
                args = {**args, "seller": buyer_named(self.shop, args["seller"])}
            answer = await BOARD_COMMANDS[name](self.board, args)
            self.shop.review()
            return answer
        if name in SHOP_COMMANDS:
            return await SHOP_COMMANDS[name](self.shop, self.customer, args)
        if name in ESCROW_COMMANDS:
            return await ESCROW_COMMANDS[name](self.bench, self.shop, self.customer, args)
        raise SystemRefused(f"{name} is no command of the market")
