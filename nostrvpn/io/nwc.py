"""A connection to somebody's Lightning wallet by Nostr (NIP-47): one relay at a time, when it is needed.

A payment whose answer did not come may have been made all the same: that is ``WalletSilent``, and
whoever asked looks it up (``lookup_invoice``) before he pays again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from nostrvpn.errors import PeerMisbehaved, SystemRefused, UserError, one_line
from nostrvpn.io.relays import RelaySockets
from nostrvpn.lightning.bolt11 import Invoice, parse_invoice
from nostrvpn.lightning.nwc import (
    INFO,
    NOTIFICATION,
    RESPONSE,
    Answer,
    Notification,
    WalletError,
    WalletInfo,
    WalletLink,
    filters,
    parse_info,
    parse_notification,
    parse_response,
    request_event,
)
from nostrvpn.machine import Moment
from nostrvpn.nostr.event import Event, verify_event
from nostrvpn.nostr.frames import render_event
from nostrvpn.nostr.nip59 import fresh_secret
from nostrvpn.nostr.relay import (
    EventArrived,
    Hangup,
    PublishAnswered,
    RelayConnection,
    SendFrame,
    SubscriptionLive,
    SubscriptionRefused,
)
from nostrvpn.signaling.relays import RelayClosed, RelayOpened, RelayText

if TYPE_CHECKING:
    from nostrvpn.io.proxy import SocksProxy

__all__ = ["LightningWallet", "WalletSilent"]

CONNECT_S: Final = 15.0
# A wallet may look for a route for a minute; its answer is awaited a little longer than that.
ANSWER_S: Final = 75.0
_SUBSCRIPTION: Final = "nwc"
# A wallet sends one or two a payment.
_MAX_SEEN: Final = 512

# So many blocks, six hours, a payment that is held can be on its way at least.
HOLD_BLOCKS = 36

_log = logging.getLogger(__name__)


class WalletSilent(SystemRefused):
    """No answer came: what was asked may have been done, or may be done yet."""

    code = "wallet_silent"


class LightningWallet:
    """The wallet behind a link. Connects when something is asked; ``close`` ends it.

    ``notified`` is called for each notification while connected. Errors: WalletError (it refused),
    WalletSilent, SystemRefused (no relay of it can be reached).
    """

    def __init__(
        self,
        link: WalletLink,
        moment: Callable[[], Moment],
        *,
        proxy: SocksProxy | None = None,
        mark: int = 0,
        notified: Callable[[Notification], None] | None = None,
    ) -> None:
        self._link, self._moment = link, moment
        self._sockets = RelaySockets(self._take, proxy, mark)
        self._notified = notified
        self._connecting = asyncio.Lock()
        self._url: str | None = None
        self._relay: RelayConnection | None = None
        self._live = asyncio.Event()
        self._lost = asyncio.Event()
        self._reason = ""
        self._info: asyncio.Future[WalletInfo] | None = None
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._seen: dict[str, None] = {}
        self.counters: Counter[str] = Counter()

    # -- what can be asked --------------------------------------------------------------------

    async def info(self) -> WalletInfo:
        """Return what the wallet can do; UserError if it speaks no NIP-44."""
        await self._connect()
        assert self._info is not None
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.shield(self._info)
        except TimeoutError as exc:
            raise WalletSilent("the Lightning wallet tells nothing of itself") from exc

    async def balance(self) -> int:
        """Return the balance (msat)."""
        return _msat(await self._ask("get_balance", {}), "balance")

    async def pay_invoice(self, invoice: Invoice) -> tuple[str, int]:
        """Pay; return the preimage (64 hex digits) and the fees (msat)."""
        result = await self._ask("pay_invoice", {"invoice": invoice.text})
        return str(result.get("preimage", "")), _msat(result, "fees_paid", 0)

    async def pay_keysend(self, payee: str, amount_msat: int, note: str = "") -> str:
        """Pay a node (66 hex digits) without an invoice; return the preimage."""
        records = [{"type": 34349334, "value": note.encode().hex()}] if note else []
        asked = {"amount": amount_msat, "pubkey": payee, "tlv_records": records}
        return str((await self._ask("pay_keysend", asked)).get("preimage", ""))

    async def make_invoice(self, amount_msat: int, description: str, expiry_s: int) -> Invoice:
        """Return an invoice of the wallet, over this amount."""
        asked = {"amount": amount_msat, "description": description, "expiry": expiry_s}
        return self._invoice(await self._ask("make_invoice", asked), amount_msat)

    async def make_hold_invoice(
        self, amount_msat: int, payment_hash: str, expiry_s: int
    ) -> Invoice:
        """Return an invoice whose payment waits for ``settle_hold_invoice`` or its cancellation."""
        asked = {"amount": amount_msat, "payment_hash": payment_hash, "expiry": expiry_s}
        asked["min_cltv_expiry_delta"] = HOLD_BLOCKS
        invoice = self._invoice(await self._ask("make_hold_invoice", asked), amount_msat)
        if invoice.payment_hash != payment_hash:
            raise PeerMisbehaved("bad_wallet_answer", "the invoice has another payment hash")
        return invoice

    async def settle_hold_invoice(self, preimage: str) -> None:
        """Take a payment that waits."""
        await self._ask("settle_hold_invoice", {"preimage": preimage})

    async def cancel_hold_invoice(self, payment_hash: str) -> None:
        """Send a payment that waits back."""
        await self._ask("cancel_hold_invoice", {"payment_hash": payment_hash})

    async def lookup_invoice(self, payment_hash: str) -> Mapping[str, Any]:
        """Return what the wallet knows of a payment: ``state``, ``preimage``, ``settled_at``…

        WalletError NOT_FOUND where it knows nothing.
        """
        return await self._ask("lookup_invoice", {"payment_hash": payment_hash})

    async def close(self) -> None:
        """End the connection; who waits is told that the wallet is silent."""
        await self._sockets.stop()
        self._drop("closed")

    # -- asking -------------------------------------------------------------------------------

    async def _ask(self, method: str, params: Mapping[str, object]) -> Mapping[str, Any]:
        methods = (await self.info()).methods
        if methods and method not in methods:
            raise UserError(f"this Lightning wallet does not know {method}")
        moment = self._moment()
        event = request_event(self._link, method, params, moment)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[event.id] = answer
        try:
            if self._relay is None:
                raise SystemRefused(f"the Lightning wallet cannot be reached: {self._reason}")
            self._perform(self._relay.publish(event.id, render_event(event), moment))
            async with asyncio.timeout(ANSWER_S):
                return (await answer).result
        except TimeoutError as exc:
            raise WalletSilent(f"the Lightning wallet did not answer {method} in time") from exc
        finally:
            self._waiting.pop(event.id, None)

    def _invoice(self, result: Mapping[str, Any], amount_msat: int) -> Invoice:
        invoice = parse_invoice(str(result.get("invoice", "")))
        if invoice.amount_msat != amount_msat:
            raise PeerMisbehaved("bad_wallet_answer", "the invoice is over another amount")
        return invoice

    # -- the connection -----------------------------------------------------------------------

    async def _connect(self) -> None:
        async with self._connecting:
            if self._relay is not None and self._live.is_set():
                return
            for url in self._link.relays:
                self._live.clear()
                self._lost.clear()
                self._url, self._info = url, asyncio.get_running_loop().create_future()
                self._sockets.open(url)
                with suppress(TimeoutError):
                    async with asyncio.timeout(CONNECT_S):
                        await _first(self._live.wait(), self._lost.wait())
                if self._live.is_set():
                    return
                self._sockets.close(url)
            raise SystemRefused(
                f"the Lightning wallet cannot be reached: {self._reason or 'its relays are silent'}"
            )

    async def _take(self, event: RelayOpened | RelayClosed | RelayText) -> None:
        if event.url != self._url:
            return
        moment = self._moment()
        match event:
            case RelayOpened():
                self._relay = RelayConnection(
                    event.url, fresh_secret(moment.entropy), self.counters
                )
                wanted = filters(self._link, int(moment.wall) - 60)
                keys = {self._link.client: self._link.secret}
                self._perform(self._relay.subscribe(_SUBSCRIPTION, wanted, keys, moment))
            case RelayText() if self._relay is not None:
                self._perform(self._relay.receive(event.text, moment))
            case RelayClosed():
                self._drop(event.reason)

    def _perform(self, outputs: list[Any]) -> None:
        assert self._url is not None
        for output in outputs:
            match output:
                case SendFrame(text):
                    self._sockets.send(self._url, text)
                case EventArrived(_, event):
                    self._heard(event)
                case SubscriptionLive():
                    self._live.set()
                case PublishAnswered(request, False, reason, _) if reason:
                    waiting = self._waiting.get(request)
                    if waiting is not None and not waiting.done():
                        text = f"the wallet's relay refused: {one_line(reason)}"
                        waiting.set_exception(SystemRefused(text))
                case SubscriptionRefused(_, reason) | Hangup(reason):
                    self._reason = one_line(reason)
                    self._sockets.close(self._url)

    def _heard(self, event: Event) -> None:
        if event.pubkey != self._link.wallet or event.id in self._seen:
            return
        try:
            verify_event(event)
            self._remember(event.id)
            if event.kind == RESPONSE:
                self._answered(event)
            elif event.kind == NOTIFICATION and self._notified is not None:
                self._notified(parse_notification(self._link, event))
            elif event.kind == INFO and self._info is not None and not self._info.done():
                self._info.set_result(parse_info(event))
        except PeerMisbehaved as exc:
            self.counters[exc.code] += 1
        except UserError as exc:
            if self._info is not None and not self._info.done():
                self._info.set_exception(exc)

    def _answered(self, event: Event) -> None:
        outcome: Answer | WalletError
        try:
            outcome = parse_response(self._link, event)
        except WalletError as exc:
            outcome = exc
        waiting = self._waiting.get(outcome.request_id)
        if waiting is None or waiting.done():
            return
        if isinstance(outcome, WalletError):
            waiting.set_exception(outcome)
        else:
            waiting.set_result(outcome)

    def _remember(self, event_id: str) -> None:
        self._seen[event_id] = None
        if len(self._seen) > _MAX_SEEN:
            del self._seen[next(iter(self._seen))]

    def _drop(self, reason: str) -> None:
        self._reason, self._relay = one_line(reason), None
        self._live.clear()
        self._lost.set()
        if self._info is not None and not self._info.done():
            self._info.cancel()
        for waiting in self._waiting.values():
            if not waiting.done():
                text = f"the connection to the Lightning wallet was lost: {self._reason}"
                waiting.set_exception(WalletSilent(text))


async def _first(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _msat(result: Mapping[str, Any], name: str, otherwise: int | None = None) -> int:
    value = result.get(name, otherwise)
    if type(value) is not int or value < 0:
        raise PeerMisbehaved("bad_wallet_answer", f"no {name} in the answer")
    return value
