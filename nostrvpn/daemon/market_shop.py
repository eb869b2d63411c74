"""Selling this host's exit: the seller's machine, and what it needs of host, relays and wallet."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any, Final

from nostrvpn.daemon.market_hours import Hours
from nostrvpn.daemon.market_machine import MarketMachine
from nostrvpn.daemon.market_pace import Pace
from nostrvpn.daemon.market_parts import Parts
from nostrvpn.daemon.market_post import Correspondent
from nostrvpn.daemon.market_premises import Premises
from nostrvpn.daemon.market_told import NOT_SOLD, sale_document, with_hours, with_versions
from nostrvpn.daemon.market_wares import SALE_SPACE, Wares
from nostrvpn.daemon.supervise import Supervisor
from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import NostrvpnError, PeerMisbehaved, SystemRefused, UserError
from nostrvpn.host.sold import Sold
from nostrvpn.identity.keys import RootSecret
from nostrvpn.io.dns_server import DnsServer
from nostrvpn.market.channel_effects import CloseChannel
from nostrvpn.market.effects import (
    Counted,
    EndHold,
    GiveBack,
    Heard,
    Keep,
    MakeInvoice,
    MarketEffect,
    Redeem,
    ServiceChanged,
    Tell,
    Tick,
    WatchInvoice,
)
from nostrvpn.market.exit_service import ExitService
from nostrvpn.market.lease import SESSIONS, Lease, Phase
from nostrvpn.market.messages import Close, parse_message
from nostrvpn.market.offer import Offer
from nostrvpn.market.opening import Standing
from nostrvpn.market.sale import Sale
from nostrvpn.market.seller import SPACES, Seller
from nostrvpn.market.terms import PayMode

__all__ = ["Shop"]

# How long all ends are waited for, receipts and refunds with them, before the daemon ends.
LEAVE_S: Final = 4.0
# How often counters are read, and how often the rest is looked at: addresses, keysets, lists.
COUNT_S: Final = 2.0
COUNT_AT_LEAST_S: Final = 5.0
LOOK_S: Final = 15.0
# The same while the link is being made.
SOON_S: Final = 1.0
_LANE: Final = "sell"

_log = logging.getLogger("nostrvpn.market")
_Json = dict[str, Any]


class Shop:
    """What this host sells. ``error``: why buyers cannot come."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._host = parts, parts.host
        self._wake = asyncio.Event()
        self._wares = Wares(parts, self._wake.set)
        self.error: str | None = None
        self._wrong = ""  # with the books: then nothing is sold at all
        key = parts.host.root.market_key()
        self.service = ExitService(0 if self.sale is None else self.sale.max_sessions)
        self.seller = Seller(key, self._wares.settings(), self.service)
        self._machine = MarketMachine(self.seller, parts.store, self._host.moment, self._perform)  # type: ignore[arg-type]
        self._who = Correspondent(key, _LANE, self._heard, lambda effect: None)
        self._hours = Hours(parts.store, SALE_SPACE)
        self._premises = Premises(self._host, self._wares.port(), self.seller.pubkey)
        self._names = DnsServer(lambda query, tcp: None)
        self._guest_names = self._host.names.answers_for(
            lambda asker: any(asker in one.addresses for one in self.service.sold_leases())
        )
        self._tasks = Supervisor()
        # The kernel is told of all leases at once: of a thousand, not more often than once a second.
        self._pace = Pace(self._bring, lambda: len(self.service.sold_leases()) / 1000)
        self._applying: asyncio.Future[None] | None = None
        self._is_heard = False
        self._is_leaving = False
        self._telling = 0
        self._has_greeted = False

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
        except PeerMisbehaved as exc:
            # A record of another version, or damaged: the wallet works on.
            effects, wrong = [], [str(exc)]
        if wrong:
            self.error = self._wrong = f"the books do not add up: {wrong[0]}"
            _log.error("%s; nothing is sold", self.error)
            return
        self._hours.begin(self.seller.leases)
        self._parts.post.add(self._who)
        self._machine.carry_out(effects)
        for name, work in (
            ("shop", self._machine.run()),
            ("shop counters", self._count_forever()),
            ("shop look", self._look_forever()),
        ):
            self._tasks.start(name, work)

    async def stop(self) -> None:
        """End; leases go on when it is started again, and the kernel ends them by itself till then."""
        await self._tasks.stop()
        await self._wares.keysets.stop()
        await self._pace.stop()
        if not self._wrong:
            with suppress(NostrvpnError):
                self._hours.keep(self._host.moment().now)
        await self._names.stop()

    # -- what the user decides ----------------------------------------------------------------

    async def sell(self, sale: Sale) -> None:
        """Sell by these terms from now on; leases that run keep theirs."""
        if self._wrong:
            raise SystemRefused(self._wrong, "restore market.db, or move it away and begin anew")
        known = self._parts.wallet.balance()
        for mint in sale.terms.mints:
            if mint not in known:
                raise UserError(
                    f"{mint} is not a mint that your wallet trusts",
                    f"trust it first: nostrvpn wallet mints add {mint}",
                )
            if PayMode.CHANNEL in sale.terms.pay:
                await self._parts.wallet.channels.require(mint)
        self._wares.choose(sale)
        self._apply()
        await self._look()

    async def stop_selling(self) -> None:
        """Take the offer back and end all leases; what was not used is given back."""
        self._wares.choose(None)
        self._apply()
        await self._end_all()
        await self._look()

    async def leave(self) -> None:
        """The user stops this node: end all leases, and wait until receipts and refunds are out.

        ``LEAVE_S`` seconds at most; what is not out by then follows when it is started again.
        """
        if self._wrong:
            return
        self._is_leaving, self.service.is_open = True, False
        self._parts.board.offer(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._end_all()
                while True:
                    if not (self._telling or self._parts.post.is_busy or self._is_ending):
                        return
                    await asyncio.sleep(0.02)

    async def _end_all(self) -> None:
        """Count what was served until now, then end every lease."""
        counted, moment = await self._counted(), self._host.moment()
        if counted is not None:
            self._machine.carry_out(self.seller.step(counted, moment))
        self._machine.carry_out(self.seller.end_all(moment))
        # What they paid is redeemed now: after a restart nobody would think of it for hours.
        self._machine.carry_out(self.seller.step(Tick(), moment))

    @property
    def _is_ending(self) -> bool:
        leases = self.seller.leases
        return any(lease.phase == Phase.ENDING or lease.is_holding for lease in leases)

    def review(self) -> None:
        """End the leases of buyers that are denied now."""
        self.seller.settings = self._wares.settings()
        self._machine.carry_out(self.seller.end_unwelcome(self._host.moment()))

    @property
    def sale(self) -> Sale | None:
        """What the user decided, None: nothing is sold."""
        return self._wares.sale

    @property
    def leases(self) -> tuple[Lease, ...]:
        """The leases that run or end."""
        return tuple(lease for lease in self.seller.leases if lease.phase != Phase.QUOTED)

    def dispute(self, lease_id: str, text: str) -> None:
        """Have the arbiter asked about a lease that was sold; UserError if there is nothing to ask."""
        self._machine.carry_out(self.seller.dispute(lease_id, text, self._host.moment()))

    @property
    def root(self) -> RootSecret:
        """This node's secret."""
        return self._host.root

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
        told = sale_document(
            self.sale,
            self._made_offer(),
            () if self.service.place is None else self.service.place.endpoints,
            sum(lease.is_live for lease in self.leases),
            self._parts.board.accepted,
            self.error or self._host.reconciler.sold.error,
        )
        told = with_versions(told, self._premises.only_ipv4)
        return with_hours(told, self.sale, self._hours)

    # -- the machine --------------------------------------------------------------------------

    def _offer(self, event: object) -> None:
        if not self._machine.offer(event):
            self.seller.counters["too_busy"] += 1

    def _perform(self, effect: MarketEffect) -> None:
        match effect:
            case Tell():
                self._telling += 1
                self._tasks.start("tell", self._tell(effect))
            case (
                Redeem() | GiveBack() | CloseChannel() | MakeInvoice() | WatchInvoice() | EndHold()
            ):
                key = self._host.root.payment_key()
                self._parts.cashier.ask(effect, key, self._offer)
            case ServiceChanged():
                self._applying = self._pace.ask()
            case _:
                raise AssertionError(f"not a seller's: {effect}")

    async def _bring(self) -> None:
        self._host.node.sold = self._sold()
        await self._host.applied()

    def _sold(self) -> Sold | None:
        return self._premises.sold(self.sale, self.service, self._hours.rate)

    async def _tell(self, effect: Tell) -> None:
        """Send a message once the kernel has what it tells of: a buyer tries a grant at once."""
        try:
            if self._applying is not None:
                await asyncio.shield(self._applying)
            self._parts.post.tell(self._who, effect)
        finally:
            self._telling -= 1

    async def _count_forever(self) -> None:
        while True:
            began = time.monotonic()
            if (counted := await self._counted()) is not None:
                self._offer(counted)
            await self._stand()
            # Reading thousands of counters takes a while; the kernel ends by itself what is not paid.
            await asyncio.sleep(max(COUNT_S, min(9 * (time.monotonic() - began), COUNT_AT_LEAST_S)))

    async def _stand(self) -> None:
        """Look at the clock, the month's budget and each one's share, and do what follows."""
        before, rate = self._hours.standing, self._hours.rate
        leases, moment = self.seller.leases, self._host.moment()
        standing = self._hours.look(self.sale, leases, self._premises.speed, moment)
        if self._hours.rate != rate:
            self._applying = self._pace.ask()
        if standing is before:
            return
        self._open_or_close()
        if standing is Standing.CLOSING:
            self._machine.carry_out(self.seller.tell_all("warning", "ending", moment))
        elif standing is Standing.CLOSED:
            await self._end_all()
        self._wake.set()

    def _open_or_close(self) -> None:
        is_open = self._hours.standing is Standing.OPEN and self.error is None
        self.service.is_open = is_open and not self._is_leaving

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
                self._tasks.start("close", self._close(heard, message.lease_id))
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
        self.seller.mints = await self._wares.mints(self.seller)
        place = await self._premises.find(
            self.sale, is_wanted=self.sale is not None or bool(self.leases)
        )
        self.error = self._premises.error
        self._open_or_close()
        has_moved, self.service.place = place != self.service.place, place
        self.seller.settings = self._wares.settings()
        sold = self._sold()
        if has_moved or sold != self._host.node.sold:
            self._host.node.sold = sold
            await self._host.applied()
        is_open = self.sale is not None or bool(self.seller.leases or self.seller.unreleased_sat())
        self._parts.post.listen(self._who, self._parts.relays if is_open else ())
        own = [] if place is None else [i.ip for i in (place.ipv6, place.ipv4) if i is not None]
        await self._parts.post.use(self._who, self._premises.link, own)
        await self._answer_names(own)
        if place is not None and not self._has_greeted:
            # Whoever has a tunnel from before speaks to one that is gone, until it hears of it.
            self._has_greeted = True
            greeting = self.seller.tell_all("info", "resumed", self._host.moment())
            self._machine.carry_out(greeting)
        offered = self.sale is not None and self.service.is_open and bool(self.seller.mints)
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

    def _apply(self) -> None:
        self.service.max_sessions = 0 if self.sale is None else self.sale.max_sessions
        self.review()

    def _made_offer(self) -> Offer:
        assert self.sale is not None
        place = self.service.place
        return self._wares.offer(self.sale, has_ipv6=place is not None and place.ipv6 is not None)
