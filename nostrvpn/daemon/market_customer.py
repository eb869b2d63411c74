"""Buying an exit: the buyer's machine, and what it needs of host, relays and wallet."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from nostrvpn.daemon.market_cashier import Request
from nostrvpn.daemon.market_keysets import Keysets
from nostrvpn.daemon.market_links import Links
from nostrvpn.daemon.market_machine import MarketMachine
from nostrvpn.daemon.market_parts import Parts
from nostrvpn.daemon.market_post import Correspondent
from nostrvpn.daemon.market_soundings import Soundings
from nostrvpn.daemon.supervise import Supervisor
from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import NostrvpnError, PeerMisbehaved
from nostrvpn.exits.settings import BOUGHT as EXIT_BOUGHT
from nostrvpn.market.bought_lease import BOUGHT, BOUGHT_METER
from nostrvpn.market.bought_link import BoughtLink
from nostrvpn.market.buyer import Buyer
from nostrvpn.market.buyer_records import BUYER, HISTORY, LEDGER, history_of, row_of
from nostrvpn.market.channel_effects import FundChannel, SettleChannel
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
from nostrvpn.market.escrow_bought import disputable
from nostrvpn.market.messages import Notice, parse_message
from nostrvpn.market.terms import LIGHTNING, PayMode
from nostrvpn.market.trust import History
from nostrvpn.market.wish import Disputed, Funds, Ranked, Wanted, Wish
from nostrvpn.node.events import Purchase, PurchaseChanged

__all__ = ["Customer"]

SPACES: Final = (BUYER, HISTORY, LEDGER, BOUGHT, BOUGHT_METER)
# How often counters and the wallet are looked at.
COUNT_S: Final = 2.0
# How often offers are looked for: while none is used, and while one is.
LOOK_S: Final = 15.0
REST_S: Final = 300.0
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
        self._links = Links(parts.host)
        self._soundings = Soundings(parts)
        self._purchase: Purchase | None = None
        self._ended_leases: dict[str, History] = {}
        self._hearing = asyncio.Lock()
        self._waiting = 0
        self._tasks = Supervisor()
        self._look = asyncio.Event()
        self._keysets = Keysets(parts.wallet, self._look.set)

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
            self._tasks.start(name, work)

    async def stop(self) -> None:
        """End; what was paid is known, and goes on when it is started again."""
        await self._tasks.stop()
        await self._keysets.stop()
        self._soundings.close()

    # -- what the user decides ----------------------------------------------------------------

    def want(self, wish: Wish | None) -> None:
        """Have this from now on; None: nothing more, and money that is out comes home."""
        if wish is None:
            self._tasks.start("leave", self._leave())
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

    @property
    def leases_in_escrow(self) -> list[str]:
        """Return the ids of leases of which something may be disputed."""
        return [d.lease.lease_id for d in self.buyer.deals if disputable(d.lease)]

    def dispute(self, lease_id: str, text: str) -> None:
        """Have the arbiter asked about a lease."""
        for deal in self.buyer.deals:
            if deal.lease.lease_id == lease_id:
                self._offer(Disputed(deal.lease.key, text))

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
                self._ask(effect)
            case FundChannel() | SettleChannel():
                self._ask(effect)
            case Probe(lease_id):
                self._tasks.start("probe", self._probe(lease_id))
            case ServiceChanged():
                self._sync()
            case _:
                raise AssertionError(f"not a buyer's: {effect}")

    def _ask(self, request: Request) -> None:
        number = self.buyer.number_of(request.ref)
        key = None if number is None else self._host.root.lease_key(number)
        self._parts.cashier.ask(request, key, self._offer)

    def _heard(self, heard: Heard) -> None:
        known = any(heard.sender in deal.lease.correspondents for deal in self.buyer.deals)
        if not known or self._waiting >= MAX_WAITING:
            # Each costs a look at the kernel: not for strangers, and not for whoever floods.
            self.buyer.counters["unknown_sender" if not known else "too_busy"] += 1
            return
        self._waiting += 1
        self._tasks.start("heard", self._take(heard))

    async def _take(self, heard: Heard) -> None:
        """Count before a message is read: a bill is of now, and two seconds ago can be far from that."""
        try:
            async with self._hearing:
                await self._count()
                self._offer(heard)
                if heard.at_tunnel is None:
                    self._meet_again(heard)
        finally:
            self._waiting -= 1

    def _meet_again(self, heard: Heard) -> None:
        """A seller that began anew says so by relays: nothing comes through the tunnel of before."""
        with suppress(PeerMisbehaved):
            message = parse_message(heard.text)
            if not isinstance(message, Notice) or message.code != "resumed":
                return
            for lease in (deal.lease for deal in self.buyer.deals):
                if lease.seller == heard.sender and lease.lease_id == message.lease_id:
                    self._links.began_anew(lease.key)
            self._sync()

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
        self._soundings.look(deal.lease for deal in self.buyer.deals)
        links = tuple(link for link in self.buyer.links() if not self._links.is_taken(link))
        self._remember()
        node = self._host.node
        bought = tuple(self._links.bought(link) for link in links)
        if bought != node.bought:
            node.bought = bought
            self._host.reconcile()
        purchase = self._purchased(links)
        if purchase != self._purchase:
            self._purchase = purchase
            self._host.offer(PurchaseChanged(purchase))
        there = {deal.lease.key for deal in self.buyer.deals}
        self._links.keep_only(there)
        for key in self._correspondents.keys() - there:
            self._tasks.start("post", self._parts.post.remove(self._correspondents.pop(key)))
        for link in links:
            who = self._correspondent(link.key)
            place = (self._links.name(link), link.addresses)
            if who is not None and self._places.get(link.key) != place:
                self._places[link.key] = place
                self._tasks.start("post", self._listen_at(who, link.key, *place))
        for key in self._places.keys() - {link.key for link in links}:
            del self._places[key]
            who = self._correspondents.get(key)
            if who is not None:
                self._tasks.start("post", self._parts.post.use(who, "", ()))

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

    def _purchased(self, links: tuple[BoughtLink, ...]) -> Purchase:
        used = next((link for link in links if link.carries), None)
        if used is None:
            return Purchase(possible=self.buyer.wish is not None)
        deal = self.buyer.using
        return self._links.purchase(used, deal.lease.offer.ref if deal is not None else "")

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
        found = await self._keysets.of(self._parts.wallet.balance().keys())
        self.buyer.mints = {**self.buyer.mints, **found}
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
        if self._links.is_taken(link):
            self._offer(Probed(name, False, reason="its addresses are those of a network here"))
            return
        interface = self._links.name(link)
        # A link that is only begun fails every try.
        if not await self._is_made(interface):
            self._offer(Probed(name, False, reason="the tunnel could not be made"))
            return
        deal = next((deal for deal in self.buyer.deals if deal.lease.key == name), None)
        # Who waits for our money lets nothing through.
        judged = deal.lease if deal is not None and not deal.told.is_suspended else None
        found = await self._soundings.try_out(
            link, interface, self._links.bought(link).endpoint.ip, judged
        )
        if not found.ok:
            self._links.failed(name)
        self._offer(found)

    async def _is_made(self, interface: str) -> bool:
        """Wait until the kernel has a link with all that belongs to it; False after some seconds."""
        await self._host.applied()
        with suppress(OSError):
            return socket.if_nametoindex(interface) > 0
        return False
