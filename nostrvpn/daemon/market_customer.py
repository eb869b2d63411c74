"""Buying an exit: the buyer's machine, and what it needs of host, relays and wallet."""

from __future__ import annotations

import asyncio
import logging
import socket
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Final

from nostrvpn.daemon.market_machine import MarketMachine
from nostrvpn.daemon.market_parts import Parts
from nostrvpn.daemon.market_post import Correspondent
from nostrvpn.daemon.market_premises import is_taken
from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import NostrvpnError
from nostrvpn.exits.settings import BOUGHT as EXIT_BOUGHT
from nostrvpn.host.bought import Bought, bought_interface
from nostrvpn.host.state import FWMARK
from nostrvpn.io.link_probe import probe, public_places
from nostrvpn.io.source_address import source_towards
from nostrvpn.market.bought_lease import BOUGHT, BOUGHT_METER
from nostrvpn.market.bought_link import BoughtLink
from nostrvpn.market.buyer import Buyer
from nostrvpn.market.buyer_records import BUYER, HISTORY, LEDGER, history_of, row_of
from nostrvpn.market.effects import (
    Counted,
    Heard,
    Lock,
    MarketEffect,
    PayInvoice,
    Probe,
    Probed,
    Reclaim,
    Redeem,
    ServiceChanged,
    TakeOut,
    Tell,
)
from nostrvpn.market.terms import LIGHTNING, PayMode
from nostrvpn.market.trust import History
from nostrvpn.market.wish import Funds, Ranked, Wanted, Wish
from nostrvpn.node.events import Purchase, PurchaseChanged
from nostrvpn.wireguard.device import SecretKey

__all__ = ["Customer"]

SPACES: Final = (BUYER, HISTORY, LEDGER, BOUGHT, BOUGHT_METER)
# How often counters and the wallet are looked at.
COUNT_S: Final = 2.0
# How often offers are looked for: while none is used, and while one is.
LOOK_S: Final = 15.0
REST_S: Final = 300.0
# Behind a NAT the seller must be able to speak first (suspended, resumed).
KEEPALIVE: Final = 25
# Messages that wait to be read.
MAX_WAITING: Final = 64
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_log = logging.getLogger("nostrvpn.market")
_Json = dict[str, Any]


class Customer:
    """What this host buys. Made once the store is open; ``start`` resumes what was bought."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._host = parts, parts.host
        records = {space: parts.store.all(space) for space in SPACES}
        moment = parts.host.moment()
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        self.buyer = Buyer(parts.host.root, moment, boot, records, parts.relays[:4])
        self._machine = MarketMachine(
            self.buyer,  # type: ignore[arg-type]
            parts.store,
            parts.host.moment,
            self._perform,
            self._sync,
        )
        self._correspondents: dict[str, Correspondent] = {}
        self._places: dict[str, tuple[str, tuple[IPAddress, ...]]] = {}
        self._tries: dict[str, int] = {}
        self._purchase: Purchase | None = None
        self._ended_leases: dict[str, History] = {}
        self._hearing = asyncio.Lock()
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()

    # -- running ------------------------------------------------------------------------------

    def start(self) -> None:
        """Go on with what was bought, unless the user chose another exit meanwhile."""
        if self._host.node.exits.settings.exit != EXIT_BOUGHT and self.buyer.wish is not None:
            self.want(None)
        self._sync()
        for name, work in (
            ("customer", self._machine.run()),
            ("customer counters", self._count_forever()),
            ("customer look", self._look_forever()),
        ):
            self._spawn(name, work)

    async def stop(self) -> None:
        """End; what was paid is known, and goes on when it is started again."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what the user decides ----------------------------------------------------------------

    def want(self, wish: Wish | None) -> None:
        """Have this from now on; None: nothing more, and money that is out comes home."""
        if wish is None:
            self._spawn("leave", self._leave())
            return
        self._offer(Funds(self._funds()))
        self._offer(Wanted(wish))
        self._look.set()

    async def _leave(self) -> None:
        # The links go with the wish: what they carried is counted before, or a bill looks too high. It
        # is told after: nothing more is to be paid.
        counted = await self._counted()
        self._offer(Wanted(None))
        for one in counted:
            self._offer(one)
        self._look.set()

    async def settled(self, seconds: float) -> _Json:
        """Return the document once something carries, or nothing can be had; at the latest then."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            document = self.document()
            if document["state"] in ("connected", "off") or loop.time() >= end:
                return document
            await asyncio.sleep(0.1)

    def document(self) -> _Json:
        """Return the state of the purchase, for people and programs."""
        return self.buyer.document(self._host.moment()) | {"error": self._machine.error}

    def past(self) -> list[_Json]:
        """Return the leases that were bought, the newest first; those in use too."""
        rows = {}
        for value in self._parts.store.all(HISTORY).values():
            if isinstance(value, Mapping):
                rows[str(value.get("lease_id"))] = dict(value) | {"state": "closed"}
        now = int(self._host.moment().wall)
        for deal in self.buyer.deals:
            if deal.lease.lease_id and deal.lease.quote is not None:
                state = "closed" if deal.lease.is_square else deal.lease.phase
                rows[deal.lease.lease_id] = row_of(deal.lease, now) | {"state": state}
        return sorted(rows.values(), key=lambda row: (-row["at"], row["lease_id"]))

    # -- the machine --------------------------------------------------------------------------

    def _offer(self, event: object) -> None:
        if not self._machine.offer(event):
            self.buyer.counters["too_busy"] += 1

    def _perform(self, effect: MarketEffect) -> None:
        match effect:
            case Tell(lease_id=name):
                who = self._correspondent(name)
                if who is not None:
                    self._parts.post.tell(who, effect)
            case Lock() | TakeOut() | PayInvoice() | Redeem() | Reclaim():
                number = self.buyer.number_of(effect.ref)
                key = None if number is None else self._host.root.lease_key(number)
                self._parts.cashier.ask(effect, key, self._offer)
            case Probe(lease_id):
                self._spawn("probe", self._probe(lease_id))
            case ServiceChanged():
                self._sync()
            case _:
                raise AssertionError(f"not a buyer's: {effect}")

    def _heard(self, heard: Heard) -> None:
        known = any(deal.lease.seller == heard.sender for deal in self.buyer.deals)
        if not known or self._waiting >= MAX_WAITING:
            # Each costs a look at the kernel: not for strangers, and not for whoever floods.
            self.buyer.counters["unknown_sender" if not known else "too_busy"] += 1
            return
        self._waiting += 1
        self._spawn("heard", self._take(heard))

    async def _take(self, heard: Heard) -> None:
        """Count before a message is read: a bill is of now, and two seconds ago can be far from that."""
        try:
            async with self._hearing:
                await self._count()
                self._offer(heard)
        finally:
            self._waiting -= 1

    def _correspondent(self, name: str) -> Correspondent | None:
        number = self.buyer.number_of(name)
        if number is None:
            return None
        key = name.partition("/")[0]
        who = self._correspondents.get(key)
        if who is None:
            secret = self._host.root.lease_key(number)
            lane = f"lease{number}"
            who = Correspondent(secret, lane, self._heard, lambda effect: None)
            self._correspondents[key] = who
            self._parts.post.add(who)
            self._parts.post.listen(who, self._parts.relays[:4])
        return who

    def _sync(self) -> None:
        """Tell the node which links there are and which carries, and the post whose mail to take."""
        links = tuple(link for link in self.buyer.links() if not self._is_taken(link))
        self._remember()
        node = self._host.node
        bought = tuple(self._bought(link) for link in links)
        if bought != node.bought:
            node.bought = bought
            self._host.reconcile()
        purchase = self._purchased(links)
        if purchase != self._purchase:
            self._purchase = purchase
            self._host.offer(PurchaseChanged(purchase))
        there = {deal.lease.key for deal in self.buyer.deals}
        for key in self._correspondents.keys() - there:
            self._spawn("post", self._parts.post.remove(self._correspondents.pop(key)))
        for link in links:
            who = self._correspondent(link.key)
            place = (self._name(link), link.addresses)
            if who is not None and self._places.get(link.key) != place:
                self._places[link.key] = place
                self._spawn("post", self._listen_at(who, link.key, *place))
        for key in self._places.keys() - {link.key for link in links}:
            del self._places[key]
            who = self._correspondents.get(key)
            if who is not None:
                self._spawn("post", self._parts.post.use(who, "", ()))

    async def _listen_at(
        self, who: Correspondent, key: str, interface: str, addresses: tuple[IPAddress, ...]
    ) -> None:
        """Receive through a tunnel once it is there: a socket cannot be bound to it before."""
        if await self._is_made(interface):
            await self._parts.post.use(who, interface, addresses)
        if any(channel.error for channel in who.channels.values()):
            self._places.pop(key, None)  # tried again at the next step

    def _remember(self) -> None:
        """Tell the board how leases ended, whether or not all money is back yet."""
        for deal in self.buyer.deals:
            lease = deal.lease
            if not lease.ended_at or not lease.lease_id:
                continue
            ended = history_of(lease, lease.ended_at)
            if self._ended_leases.get(lease.key) != ended:
                self._ended_leases[lease.key] = ended
                self._parts.board.record(ended)
        there = {deal.lease.key for deal in self.buyer.deals}
        for key in self._ended_leases.keys() - there:
            del self._ended_leases[key]

    def _is_taken(self, link: BoughtLink) -> bool:
        return is_taken(self._host.node, (*link.addresses, *link.control))

    def _name(self, link: BoughtLink) -> str:
        return bought_interface(self._host.interface, link.slot)

    def _bought(self, link: BoughtLink) -> Bought:
        tried = self._tries.get(link.key, 0)
        usable = [e for e in link.endpoints if source_towards(e.ip, FWMARK)] or link.endpoints
        addresses = frozenset(ip_interface(f"{ip}/{ip.max_prefixlen}") for ip in link.addresses)
        return Bought(
            self._name(link),
            SecretKey(link.private_key),
            link.peer_key,
            SecretKey(b64decode(link.psk)),
            usable[tried % len(usable)],
            addresses,
            link.mtu,
            frozenset(ip.version for ip in link.addresses),
            frozenset(link.control),
            tried,
            KEEPALIVE,
        )

    def _purchased(self, links: tuple[BoughtLink, ...]) -> Purchase:
        used = next((link for link in links if link.carries), None)
        if used is None:
            return Purchase(possible=self.buyer.wish is not None)
        deal = self.buyer.using
        return Purchase(
            self._name(used),
            frozenset(ip.version for ip in used.addresses),
            used.dns,
            carries=True,
            possible=True,
            label=deal.lease.offer.ref if deal is not None else "",
        )

    # -- what it looks at -----------------------------------------------------------------------

    async def _count_forever(self) -> None:
        funds = None
        while True:
            await self._count()
            now = self._funds()
            if now != funds:
                funds = now
                self._offer(Funds(now))
            await asyncio.sleep(COUNT_S)

    async def _count(self) -> None:
        for one in await self._counted():
            self._offer(one)

    async def _counted(self) -> list[Counted]:
        reconciler, found = self._host.reconciler, []
        for one in self._host.node.bought:
            with suppress(NostrvpnError):
                counted = await reconciler.run(partial(reconciler.bought.read, one.link))
                if counted is not None:
                    found.append(counted)
        return found

    def _funds(self) -> dict[str, int]:
        found = {mint: free for mint, (free, _) in self._parts.wallet.balance().items()}
        return found | {LIGHTNING: self._parts.rail.sat}

    async def _look_forever(self) -> None:
        while True:
            # The machine may not have taken yet what the user just said.
            is_asked = self._look.is_set()
            self._look.clear()
            if is_asked or self.buyer.wish is not None or self.buyer.deals:
                try:
                    await self._look_around()
                except NostrvpnError as exc:
                    _log.info("looking for offers: %s", exc)
            seconds = LOOK_S if self.buyer.using is None else REST_S
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._look.wait()

    async def _look_around(self) -> None:
        wallet, found = self._parts.wallet, dict(self.buyer.mints)
        for mint in wallet.balance():
            with suppress(NostrvpnError):
                found[mint] = await wallet.keys(mint)
        self.buyer.mints = found
        await self._parts.board.refresh()
        wish = self.buyer.wish
        by_invoice = wish is not None and PayMode.BOLT11 in wish.modes
        if by_invoice:
            await self._parts.rail.look()
        self._offer(Ranked(self._parts.board.candidates(by_invoice=by_invoice)))

    async def _probe(self, name: str) -> None:
        link = next((one for one in self.buyer.links() if one.key == name), None)
        if link is None:
            return
        if self._is_taken(link):
            self._offer(Probed(name, False, reason="its addresses are those of a network here"))
            return
        interface = self._name(link)
        # A link that is only begun fails every try.
        if not await self._is_made(interface):
            self._offer(Probed(name, False, reason="the tunnel could not be made"))
            return
        urls = [*self._parts.relays[:4], *self._parts.wallet.balance()]
        targets = await public_places(urls, {ip.version for ip in link.addresses})
        found = await probe(interface, targets, next(iter(link.dns), None))
        result = found.reason or f"{found.rtt_ms} ms"
        _log.info("tried the tunnel %s to %d places: %s", interface, len(targets), result)
        if not found.ok:
            self._tries[name] = self._tries.get(name, 0) + 1
        self._offer(Probed(name, found.ok, found.rtt_ms, None, found.reason))

    async def _is_made(self, interface: str) -> bool:
        """Wait until the kernel has a link with all that belongs to it; False after some seconds."""
        await self._host.applied()
        with suppress(OSError):
            return socket.if_nametoindex(interface) > 0
        return False

    def _spawn(self, name: str, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed: %r", task.get_name(), error, exc_info=error)
