"""Selling this host's exit: the seller's machine, and what it needs of host, relays and wallet."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Interface
from typing import Any, Final

from nostrvpn.cashu.conditions import lock_key
from nostrvpn.cashu.proof import MintKeys
from nostrvpn.daemon.market_machine import MarketMachine
from nostrvpn.daemon.market_pace import Pace
from nostrvpn.daemon.market_parts import Parts
from nostrvpn.daemon.market_post import Correspondent
from nostrvpn.daemon.market_premises import Premises
from nostrvpn.daemon.market_told import NOT_SOLD, sale_document
from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import NostrvpnError, PeerMisbehaved, SystemRefused, UserError
from nostrvpn.io.dns_server import DnsServer
from nostrvpn.io.store import Record
from nostrvpn.market.effects import (
    Counted,
    GiveBack,
    Heard,
    Keep,
    MakeInvoice,
    MarketEffect,
    Redeem,
    ServiceChanged,
    Tell,
    WatchInvoice,
)
from nostrvpn.market.exit_service import ExitService
from nostrvpn.market.lease import SESSIONS, Lease, Phase
from nostrvpn.market.messages import Close, parse_message
from nostrvpn.market.offer import Offer
from nostrvpn.market.sale import Sale
from nostrvpn.market.seller import SPACES, Seller, SellerSettings, settings_of
from nostrvpn.market.terms import PayMode, Price, Terms

__all__ = ["SALE_SPACE", "Shop"]

SALE_SPACE: Final = "sale"
# How often counters are read, and how often the rest is looked at: addresses, keysets, lists.
COUNT_S: Final = 2.0
COUNT_AT_LEAST_S: Final = 5.0
LOOK_S: Final = 15.0
# The same while the link is being made.
SOON_S: Final = 1.0
# A mint's keysets are asked for anew by the wallet once an hour.
MTU: Final = 1280
_SOLD4: Final = IPv4Interface("198.18.0.1/16")
_PORTS: Final = (20_000, 32_000)
# Networks as wide as a LAN's; wider ones are the way to the internet.
_WIDEST: Final = {4: 8, 6: 32}
_LANE: Final = "sell"
_NOTHING: Final = Terms(Price(1, 0), ())

_log = logging.getLogger("nostrvpn.market")
_Json = dict[str, Any]


class Shop:
    """``sale``: what the user decided, None: nothing is sold. ``error``: why buyers cannot come."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._host = parts, parts.host
        store, root = parts.store, parts.host.root
        self.sale: Sale | None = None
        self.error: str | None = None
        self._key = root.market_key()
        self._offer_id = str(self._stored("offer_id") or "")
        self._restore_sale()
        self.service = ExitService(self._most)
        self.seller = Seller(self._key, self._settings(), self.service)
        self._machine = MarketMachine(self.seller, store, self._host.moment, self._perform)  # type: ignore[arg-type]
        self._who = Correspondent(self._key, _LANE, self._heard, lambda effect: None)
        self._premises = Premises(self._host, self._own_port(), self.seller.pubkey)
        self._names = DnsServer(lambda query, tcp: None)
        self._guest_names = self._host.names.answers_for(
            lambda asker: any(asker in one.addresses for one in self.service.sold_leases())
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        # The kernel is told of all leases at once: of a thousand, not more often than once a second.
        self._pace = Pace(self._bring, lambda: len(self.service.sold_leases()) / 1000)
        self._applying: asyncio.Future[None] | None = None
        self._is_heard = False

    # -- running ------------------------------------------------------------------------------

    def start(self) -> None:
        """Go on with what was sold; SystemRefused if the books are wrong."""
        kept = [
            Keep(space, key, value)
            for space in SPACES
            for key, value in self._parts.store.all(space).items()
        ]
        try:
            effects = self.seller.restore(kept, self._host.moment())
            wrong = self.seller.problems()
        except (
            PeerMisbehaved
        ) as exc:  # a record of another version, or damaged: the wallet works on
            effects, wrong = [], [str(exc)]
        if wrong:
            self.error = f"the books do not add up: {wrong[0]}"
            _log.error("%s; nothing is sold", self.error)
            return
        self._parts.post.add(self._who)
        self._machine.carry_out(effects)
        for name, work in (
            ("shop", self._machine.run()),
            ("shop counters", self._count_forever()),
            ("shop look", self._look_forever()),
        ):
            self._spawn(name, work)

    async def stop(self) -> None:
        """End; leases go on when it is started again, and the kernel ends them by itself till then."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pace.stop()
        await self._names.stop()

    # -- what the user decides ----------------------------------------------------------------

    async def sell(self, sale: Sale) -> None:
        """Sell by these terms from now on; leases that run keep theirs."""
        if self.error is not None and not self._tasks:
            raise SystemRefused(self.error, "restore market.db, or move it away and begin anew")
        known = self._parts.wallet.balance()
        for mint in sale.terms.mints:
            if mint not in known:
                raise UserError(
                    f"{mint} is not a mint that your wallet trusts",
                    f"trust it first: nostrvpn wallet mints add {mint}",
                )
        self._parts.store.put([Record(SALE_SPACE, "sale", sale.to_json())])
        self.sale = sale
        self._apply()
        await self._look()

    async def stop_selling(self) -> None:
        """Take the offer back and end all leases; what was not used is given back."""
        self._parts.store.put([Record(SALE_SPACE, "sale", None)])
        self.sale = None
        self._apply()
        counted, moment = await self._counted(), self._host.moment()
        if counted is not None:
            self._machine.carry_out(self.seller.step(counted, moment))
        for lease in self.seller.leases:
            if lease.phase in (Phase.QUOTED, Phase.OPEN):
                self._machine.carry_out(self.seller.end(lease.id, "stopped", moment))
        await self._look()

    def review(self) -> None:
        """End the leases of buyers that are denied now."""
        self.seller.settings = self._settings()
        self._machine.carry_out(self.seller.end_unwelcome(self._host.moment()))

    @property
    def leases(self) -> tuple[Lease, ...]:
        """The leases that run or end."""
        return tuple(lease for lease in self.seller.leases if lease.phase != Phase.QUOTED)

    @property
    def past(self) -> tuple[object, ...]:
        """The rows of leases that ended (``statements.py``)."""
        return tuple(self._parts.store.all(SESSIONS).values())

    @property
    def now(self) -> int:
        """Unix time."""
        return int(self._host.moment().wall)

    def document(self) -> _Json:
        """Return what is sold and how that stands, for people and programs."""
        if self.sale is None:
            return dict(NOT_SOLD)
        return sale_document(
            self.sale,
            self._made_offer(),
            () if self.service.place is None else self.service.place.endpoints,
            sum(lease.is_live for lease in self.leases),
            self._parts.board.accepted,
            self.error or self._host.reconciler.sold.error,
        )

    # -- the machine --------------------------------------------------------------------------

    def _offer(self, event: object) -> None:
        if not self._machine.offer(event):
            self.seller.counters["too_busy"] += 1

    def _perform(self, effect: MarketEffect) -> None:
        match effect:
            case Tell():
                self._spawn("tell", self._tell(effect))
            case Redeem() | GiveBack() | MakeInvoice() | WatchInvoice():
                key = self._host.root.payment_key()
                self._parts.cashier.ask(effect, key, self._offer)
            case ServiceChanged():
                self._applying = self._pace.ask()
            case _:
                raise AssertionError(f"not a seller's: {effect}")

    async def _bring(self) -> None:
        self._host.node.sold = self._premises.sold(self.sale, self.service)
        await self._host.applied()

    async def _tell(self, effect: Tell) -> None:
        """Send a message once the kernel has what it tells of: a buyer tries a grant at once."""
        if self._applying is not None:
            await asyncio.shield(self._applying)
        self._parts.post.tell(self._who, effect)

    def _spawn(self, name: str, work: Any) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed: %r", task.get_name(), error, exc_info=error)

    async def _count_forever(self) -> None:
        while True:
            began = time.monotonic()
            if (counted := await self._counted()) is not None:
                self._offer(counted)
            # Reading thousands of counters takes a while; the kernel ends by itself what is not paid.
            await asyncio.sleep(max(COUNT_S, min(9 * (time.monotonic() - began), COUNT_AT_LEAST_S)))

    async def _counted(self) -> Counted | None:
        if self._host.node.sold is None:
            return None
        with suppress(NostrvpnError):
            return await self._host.reconciler.run(self._host.reconciler.sold.read)
        return None

    def _heard(self, heard: Heard) -> None:
        with suppress(PeerMisbehaved):
            message = parse_message(heard.text)
            if isinstance(message, Close):
                self._spawn("close", self._close(heard, message.lease_id))
                return
        self._offer(heard)

    async def _close(self, heard: Heard, lease_id: str) -> None:
        """Count before the peer goes: its last seconds would be served for nothing."""
        leases = (one for one in self.seller.leases if one.id == lease_id and one.is_live)
        if any(one.buyer == heard.sender for one in leases):
            counted = await self._counted()
            if counted is not None:
                self._offer(counted)
        self._offer(heard)

    async def _look_forever(self) -> None:
        while True:
            try:
                await self._look()
            except NostrvpnError as exc:
                _log.warning("selling: %s", exc)
                self.error = str(exc)
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._is_heard else SOON_S):
                    await self._wake.wait()

    async def _look(self) -> None:
        """See where this host is now, and what the mints sign with."""
        self.seller.mints = await self._mints()
        place = await self._premises.find(
            self.sale, is_wanted=self.sale is not None or bool(self.leases)
        )
        self.error = self._premises.error
        has_moved, self.service.place = place != self.service.place, place
        self.seller.settings = self._settings()
        sold = self._premises.sold(self.sale, self.service)
        if has_moved or sold != self._host.node.sold:
            self._host.node.sold = sold
            await self._host.applied()
        is_open = self.sale is not None or bool(self.seller.leases)
        self._parts.post.listen(self._who, self._parts.relays if is_open else ())
        own = [] if place is None else [i.ip for i in (place.ipv6, place.ipv4) if i is not None]
        await self._parts.post.use(self._who, self._premises.link, own)
        await self._answer_names(own)
        offered = self.sale is not None and place is not None and bool(self.seller.mints)
        self._parts.board.offer(
            self._made_offer() if offered else None,
            mirror=self.sale is not None and self.sale.mirror,
        )

    async def _answer_names(self, own: list[IPAddress]) -> None:
        answer = self._guest_names.answer if own else None
        self._is_heard = False
        with suppress(NostrvpnError):
            await self._names.offer_at(tuple(own), self._premises.link, guests=answer)
            self._is_heard = not any(one.error for one in self._who.channels.values())

    # -- what follows -------------------------------------------------------------------------

    def _restore_sale(self) -> None:
        stored = self._stored("sale")
        if stored is not None:
            try:
                self.sale = Sale.from_json(stored)
            except PeerMisbehaved as exc:
                _log.error("what was for sale is lost: %s", exc)
        if not self._offer_id:
            self._offer_id = os.urandom(4).hex()
            self._parts.store.put([Record(SALE_SPACE, "offer_id", self._offer_id)])

    def _own_port(self) -> int:
        """Return where strangers' WireGuard listens: drawn once, then kept."""
        port = self._stored("port")
        if isinstance(port, int) and 0 < port < 65536:
            return port
        low, high = _PORTS
        drawn = low + int.from_bytes(os.urandom(4), "big") % (high - low)
        self._parts.store.put([Record(SALE_SPACE, "port", drawn)])
        return drawn

    def _stored(self, key: str) -> object | None:
        return self._parts.store.get(SALE_SPACE, key)

    @property
    def _most(self) -> int:
        return 0 if self.sale is None else self.sale.max_sessions

    def _apply(self) -> None:
        self.service.max_sessions = self._most
        self.review()

    def _settings(self) -> SellerSettings:
        receiver = lock_key(self._host.root.payment_key())
        if self.sale is None:
            return SellerSettings(self._offer_id, _NOTHING, receiver)
        sale = self.sale
        lists = self._parts.board.opinions.denied, self._parts.board.events
        return settings_of(sale, self._terms(sale), self._offer_id, receiver, lists)

    async def _mints(self) -> Mapping[str, MintKeys]:
        """Return the keysets of the mints whose tokens are taken, or are in hand yet."""
        wanted = set() if self.sale is None else set(self.sale.terms.mints)
        wanted |= set(self.seller.mints) if self.seller.leases else set()
        for mint in self.seller.stale_mints & wanted:
            await self._quietly(self._parts.wallet.mints.keys(mint, fresh=True))
        found = dict(self.seller.mints)
        for mint in wanted:
            keys = await self._quietly(self._parts.wallet.keys(mint))
            if isinstance(keys, MintKeys):
                found[mint] = keys
        return {mint: keys for mint, keys in found.items() if mint in wanted}

    async def _quietly(self, work: Any) -> object:
        try:
            return await work
        except NostrvpnError as exc:
            _log.info("selling: %s", exc)
            return None

    def _terms(self, sale: Sale) -> Terms:
        """Return the terms: invoices are taken while a wallet that makes them is connected."""
        if not self._parts.rail.can_sell or PayMode.BOLT11 in sale.terms.pay:
            return sale.terms
        return replace(sale.terms, pay=(*sale.terms.pay, PayMode.BOLT11))

    def _made_offer(self) -> Offer:
        assert self.sale is not None
        sale, place = self.sale, self.service.place
        has_ipv6 = place is not None and place.ipv6 is not None
        return Offer(
            self.seller.pubkey,
            self._offer_id,
            self._terms(sale),
            lock_key(self._host.root.payment_key()),
            self._parts.relays[:4],
            sale.country,
            (4, 6) if has_ipv6 else (4,),
            (sale.policy.name,),
            sale.pow_bits,
            sale.max_sessions,
            contact=sale.contact,
        )
