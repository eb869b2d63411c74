"""The relay pool: several relays used as one, so that any of them may fail.

Every message is published to each active relay and counts as sent when one accepts it; every event
is taken from whichever relay brings it first. The first ``active`` usable relays of the list are
kept connected; unreachable and unfit ones are replaced from the rest and displaced again when the
better one is back, because nodes with the same list must end up on the same relays to meet.

This file routes between the node and the slots (``relay_slot``: one relay's life) and decides which
relays to use. ``relay_events`` has the events and effects, ``fitness`` the test of a relay,
``subscription`` what is read, ``dispatch`` and ``outbox`` what is sent.

Error contract: ``step`` raises nothing for anything a relay sends; it counts, per relay. Nothing is
dropped silently: each ``Publish`` ends in one ``Published``, each discarded event in a counter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, Tick, earliest
from nostrvpn.nostr.event import Event, verify_event
from nostrvpn.nostr.nip59 import EPHEMERAL_WRAP, STORED_WRAP
from nostrvpn.nostr.relay import EventArrived, Hangup, SendFrame
from nostrvpn.signaling.dispatch import Answered
from nostrvpn.signaling.fitness import Fitness
from nostrvpn.signaling.outbox import Delivery, Outbox
from nostrvpn.signaling.relay_events import (
    CloseRelay,
    Listen,
    OpenRelay,
    Publish,
    Published,
    Received,
    RelayClosed,
    RelayEffect,
    RelayEvent,
    RelayOpened,
    RelayStateChanged,
    RelayStatus,
    RelayText,
    RetryNow,
    SendText,
    UseRelays,
)
from nostrvpn.signaling.relay_slot import RelaySlot, SlotOutput, SlotState

__all__ = [
    "CloseRelay",
    "Listen",
    "OpenRelay",
    "Publish",
    "Published",
    "Received",
    "RelayClosed",
    "RelayEffect",
    "RelayEvent",
    "RelayOpened",
    "RelayPool",
    "RelayStateChanged",
    "RelayStatus",
    "RelayText",
    "RetryNow",
    "SendText",
    "UseRelays",
]

# More relays than anybody configures by hand; a link may add to them, but not without end.
MAX_RELAYS = 32
# How long a message may wait for a relay that is connecting: its connect timeout and some.
DELIVERY_SECONDS = 15.0
# Event ids remembered to recognise what another relay, or the same one after a reconnect, sends
# again: eight days of a busy node's wraps. About a megabyte when full.
MAX_SEEN = 8192
# Longest pause between tries of a relay: while relays are short, and while there are enough.
RETRY_SHORT_SECONDS, RETRY_ENOUGH_SECONDS = 60.0, 600.0

_WRAPS = frozenset((STORED_WRAP, EPHEMERAL_WRAP))


class RelayPool:
    """The pure machine over all relays; see the module docstring."""

    def __init__(self, urls: Sequence[str], *, active: int, is_tested: bool = True) -> None:
        """``urls`` are in order of preference; ``active`` of them are kept connected.

        ``is_tested`` False: relays that another pool tests are not tested again by this one.
        """
        if active < 1:
            raise ValueError("at least one relay must be active")
        self._active = active
        self._is_tested = is_tested
        self._slots: dict[str, RelaySlot] = {}
        self._adopt(urls)
        # Relays taken out of the list whose connections are being closed.
        self._leaving: dict[str, RelaySlot] = {}
        self._mailboxes: Mapping[str, bytes] = {}
        self._outbox = Outbox()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._shown: dict[str, tuple[str, str, str]] = {}
        self._is_started = False

    @property
    def deadline(self) -> float | None:
        """When ``step(Tick())`` is due, in ``Moment.now``'s time; at once before the first step."""
        if not self._is_started:
            return 0.0
        return earliest(*(slot.deadline for slot in self._slots.values()))

    @property
    def is_settled(self) -> bool:
        """Whether every relay has answered for every message."""
        return not len(self._outbox)

    @property
    def connected(self) -> int:
        """How many relays are connected and not known to be unfit."""
        return sum(1 for slot in self._slots.values() if _is_useful(slot))

    def snapshot(self) -> tuple[RelayStatus, ...]:
        """Return every relay of the list, in order, as the user sees it."""
        return tuple(slot.status() for slot in self._slots.values())

    def step(self, event: RelayEvent, moment: Moment) -> list[RelayEffect]:
        """Take one event; the effects are to be carried out in order."""
        out: list[RelayEffect] = []
        self._is_started = True
        match event:
            case RelayText(url, text):
                slot = self._slots.get(url)
                if slot is not None and slot.state is SlotState.CONNECTED:
                    self._perform(slot, slot.text(text, moment), moment, out)
            case Publish():
                self._publish(event, moment, out)
            case RelayOpened(url):
                slot = self._slots.get(url)
                if slot is not None and slot.state is SlotState.CONNECTING and not slot.is_closing:
                    self._perform(slot, slot.opened(self._mailboxes, moment), moment, out)
            case RelayClosed(url, reason):
                self._closed(url, reason, moment, out)
            case Listen(mailboxes):
                self._mailboxes = dict(mailboxes)
                for slot in self._slots.values():
                    self._perform(slot, slot.listen(self._mailboxes, moment), moment, out)
            case UseRelays(urls):
                self._use(urls, moment, out)
            case RetryNow():
                for slot in self._slots.values():
                    self._perform(slot, slot.retry_now(moment), moment, out)
            case Tick():
                for slot in self._slots.values():
                    if slot.deadline is not None and slot.deadline <= moment.now:
                        self._perform(slot, slot.tick(moment), moment, out)
            case _:
                assert_never(event)
        self._balance(moment, out)
        self._tell_changes(out)
        return out

    def _adopt(self, urls: Iterable[str]) -> None:
        known = self._slots
        wanted = list(dict.fromkeys(urls))[:MAX_RELAYS]
        self._slots = {
            url: known.get(url) or RelaySlot(url, is_tested=self._is_tested) for url in wanted
        }

    def _use(self, urls: Sequence[str], moment: Moment, out: list[RelayEffect]) -> None:
        before = self._slots
        self._adopt(urls)
        for url in [url for url in self._slots if url in self._leaving]:
            # Wanted again before its old connection was gone: wait for that end.
            self._slots[url] = self._leaving.pop(url)
        for url, slot in before.items():
            if url in self._slots:
                continue
            if slot.is_closing or slot.state in (SlotState.CONNECTING, SlotState.CONNECTED):
                self._leaving[url] = slot
            self._retire(slot, "not in the list of relays", None, moment, out)

    def _publish(self, event: Publish, moment: Moment, out: list[RelayEffect]) -> None:
        delivery = Delivery(event.token, event.wraps, moment.now + DELIVERY_SECONDS)
        slots = [slot for slot in self._slots.values() if slot.state is not SlotState.STANDBY]
        told = self._outbox.add(delivery, {slot.url for slot in slots})
        out += told
        if told:
            return
        for slot in slots:
            self._perform(slot, slot.deliver(delivery, moment), moment, out)

    def _closed(self, url: str, reason: str, moment: Moment, out: list[RelayEffect]) -> None:
        self._leaving.pop(url, None)
        slot = self._slots.get(url)
        if slot is None:
            return
        if slot.is_closing:
            slot.is_closing = False
        elif slot.state in (SlotState.CONNECTING, SlotState.CONNECTED):
            self._perform(slot, slot.lost(reason, self._cap, moment), moment, out)

    def _perform(
        self,
        slot: RelaySlot,
        outputs: Iterable[SlotOutput],
        moment: Moment,
        out: list[RelayEffect],
    ) -> None:
        for output in outputs:
            match output:
                case SendFrame(text):
                    if slot.state is SlotState.CONNECTED:  # not after a hang-up in this step
                        out.append(SendText(slot.url, text))
                case EventArrived(_, event):
                    offence = self._receive(slot, event, out)
                    if offence is not None:
                        self._perform(slot, slot.charge(offence, moment), moment, out)
                case Answered(delivery, accepted, reason):
                    out += self._outbox.answered(delivery, slot.url, accepted, reason)
                case Hangup(reason):
                    self._hang_up(slot, reason, moment, out)
                case _:
                    assert_never(output)

    def _receive(self, slot: RelaySlot, event: Event, out: list[RelayEffect]) -> str | None:
        """Pass on a new, genuine wrap for us; return the offence (an error code) otherwise."""
        if event.kind not in _WRAPS or self._mailboxes.keys().isdisjoint(event.tag_values("p")):
            return "unasked"
        if event.id in self._seen:
            self._seen.move_to_end(event.id)
            return "duplicate"
        try:
            verify_event(event)
        except PeerMisbehaved as exc:
            return exc.code
        # Only genuine events are remembered: a forged one must not hide the real one.
        self._seen[event.id] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        slot.counters["received"] += 1
        out.append(Received(event, slot.url))
        return None

    def _hang_up(
        self, slot: RelaySlot, reason: str, moment: Moment, out: list[RelayEffect]
    ) -> None:
        if slot.state is not SlotState.CONNECTED:
            return
        slot.hung_up()
        self._close(slot, out)
        self._perform(slot, slot.lost(reason, self._cap, moment), moment, out)

    def _retire(
        self,
        slot: RelaySlot,
        reason: str,
        until: float | None,
        moment: Moment,
        out: list[RelayEffect],
    ) -> None:
        if slot.state in (SlotState.CONNECTING, SlotState.CONNECTED):
            self._close(slot, out)
        self._perform(slot, slot.stand_by(reason, until), moment, out)

    def _close(self, slot: RelaySlot, out: list[RelayEffect]) -> None:
        slot.is_closing = True
        out.append(CloseRelay(slot.url))

    @property
    def _cap(self) -> float:
        enough = self.connected >= self._active
        return RETRY_ENOUGH_SECONDS if enough else RETRY_SHORT_SECONDS

    def _balance(self, moment: Moment, out: list[RelayEffect]) -> None:
        """Open what is missing or due, close what is too much."""
        slots = [slot for slot in self._slots.values() if not slot.is_closing]
        useful = [slot for slot in slots if _is_useful(slot)]
        hopeful = [slot for slot in slots if _is_hopeful(slot, bool(useful))]
        missing = self._active - len(useful) - len(hopeful)
        last = slots.index(useful[-1]) if useful else -1
        for index, slot in enumerate(slots):
            due = slot.retry_at is None or slot.retry_at <= moment.now
            if not due or slot.state not in (SlotState.STANDBY, SlotState.DOWN):
                continue
            slot.retry_at = None
            preferred = index < last
            if slot.state is SlotState.DOWN or preferred or missing > 0:
                missing -= 1 if slot.state is SlotState.STANDBY and not preferred else 0
                slot.connecting()
                out.append(OpenRelay(slot.url))
        proven = [slot for slot in useful if slot.fitness is not Fitness.TESTING]
        if len(proven) < self._active:
            return
        for slot in proven[self._active :]:
            if slot.dispatch.is_idle:
                self._retire(slot, "enough relays before it in the list", None, moment, out)
        for slot in slots:
            if slot.state is SlotState.CONNECTED and slot.fitness is Fitness.UNFIT:
                until = moment.now + slot.retest_seconds
                self._retire(slot, slot.status().reason, until, moment, out)

    def _tell_changes(self, out: list[RelayEffect]) -> None:
        shown = {url: slot.shown for url, slot in self._slots.items()}
        if shown != self._shown:
            changed = [url for url in shown if self._shown.get(url) != shown[url]]
            gone = [url for url in self._shown if url not in shown]
            out += [RelayStateChanged(url) for url in changed + gone]
            self._shown = shown


def _is_useful(slot: RelaySlot) -> bool:
    return slot.state is SlotState.CONNECTED and slot.fitness is not Fitness.UNFIT


def _is_hopeful(slot: RelaySlot, any_useful: bool) -> bool:
    """Whether a relay without connection may soon have one, so that it needs no substitute yet."""
    if slot.state is SlotState.CONNECTING:
        return slot.failures < 2
    # One that was just lost often comes back at once; with no other relay that is not worth a wait.
    return slot.state is SlotState.DOWN and slot.failures < 2 and any_useful
