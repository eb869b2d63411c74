"""The seller's channels: which updates are taken, when one is closed, and what became of it.

An update is checked without the mint, written down, then credited. A channel is closed once its lease
ended, or the next one was opened, at half of its locktime, and before its keyset ends. What a close did
is written down before the books are, and they are made good from it after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from nostrvpn.cashu.blind import y_of
from nostrvpn.cashu.channel import Update, check_update, open_channel
from nostrvpn.cashu.proof import MintKeys
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.market.channel_effects import ChannelClosed, most_capacity
from nostrvpn.market.effects import Keep, MarketEffect, PaymentFailed, Say
from nostrvpn.market.errands import Errands
from nostrvpn.market.lease import Lease, Payment, Phase
from nostrvpn.market.ledger import Entry, Ledger
from nostrvpn.market.messages import Fund, TopUp
from nostrvpn.market.money_in import redeem_by
from nostrvpn.market.payment_check import LOCK_MARGIN_S, LONGEST_LOCK_S, proofs_in
from nostrvpn.market.sold_channel import CHANNELS, Shown, SoldChannel

__all__ = ["ChannelTill"]

# How long a channel is known beyond its locktime (seconds): our clock may be set back.
SEEN_S = 86_400


class ChannelTill:
    """All channels of a seller's leases. ``most_sat``: beyond this no more is taken of a mint that does
    not close."""

    def __init__(self, ledger: Ledger, errands: Errands) -> None:
        self.most_sat = 2000
        self._ledger, self._errands = ledger, errands
        self._channels: dict[str, SoldChannel] = {}
        self._of_lease: dict[str, list[str]] = {}
        self._seen: set[str] = set()

    def __contains__(self, ref: str) -> bool:
        """Whether an answer of the wallet is of a channel."""
        return ref.removeprefix("close:") in self._channels and ref.startswith("close:")

    def __iter__(self) -> Iterator[SoldChannel]:
        return iter(tuple(self._channels.values()))

    @property
    def is_empty(self) -> bool:
        """Whether no channel is known."""
        return not self._channels

    def of_lease(self, lease_id: str) -> list[SoldChannel]:
        """Return a lease's channels, the last one last."""
        return [self._channels[one] for one in self._of_lease.get(lease_id, ())]

    # What is taken

    def examine(
        self, lease: Lease, message: Fund | TopUp, mints: Mapping[str, MintKeys], moment: Moment
    ) -> SoldChannel:
        """Return the channel with the update in a payment; nothing is changed yet.

        PeerMisbehaved with a code that ``notice_code`` knows: it is refused.
        """
        found = self.of_lease(lease.id)
        shown = Shown(message.seq, message.balance, message.signature)
        if any(one.state == "lost" for one in found):
            raise PeerMisbehaved("channel-refused", "one before could not be closed")
        if message.token:
            channel = self._opened(lease, message, mints, moment)
        elif found and found[-1].state == "open":
            channel = found[-1]
        else:
            raise PeerMisbehaved("channel-closed", "no channel is open")
        update = Update(shown.balance, shown.signature)
        least = max(channel.balance_sat, channel.margin_sat) + 1
        check_update(channel.channel, update, least)
        more = channel.worth_msat(shown.balance) - channel.worth_msat(channel.balance_sat)
        if more > 1000 * lease.quote.max_slice_sat:
            raise PeerMisbehaved("slice-too-large", f"{more} msat at once")
        return channel.updated(shown)

    def _opened(
        self, lease: Lease, message: Fund | TopUp, mints: Mapping[str, MintKeys], moment: Moment
    ) -> SoldChannel:
        mint, proofs = proofs_in(message.token, lease, mints)
        ys = tuple(y_of(proof.secret) for proof in proofs)
        if not self._seen.isdisjoint(ys):
            raise PeerMisbehaved("payment-error-token-spent", "it funded a channel before")
        keysets, wall = mints[mint].keysets, moment.wall
        receiver, seed = lease.quote.receiver, bytes.fromhex(message.seed)
        channel = open_channel(proofs, seed, keysets, receiver, wall + LOCK_MARGIN_S)
        due, void = redeem_by(proofs, keysets, wall)
        if not 0 < void <= wall + LONGEST_LOCK_S:
            raise PeerMisbehaved("locked-token", "the lock has no end, or a far one")
        number = self._refuse(lease, mint, channel.capacity, moment.now)
        margin = channel.margin_sat(keysets[proofs[0].keyset_id].fee_ppk)
        return SoldChannel(
            channel.id,
            lease.id,
            number,
            mint,
            channel.funding,
            message.seed,
            ys,
            channel.capacity,
            margin,
            (),
            due,
            void,
        )

    def _refuse(self, lease: Lease, mint: str, capacity: int, now: float) -> int:
        """Return which channel of its lease one would be; PeerMisbehaved if it is not taken."""
        before = self.of_lease(lease.id)
        if capacity > most_capacity(len(before)):
            raise PeerMisbehaved("channel-refused", "it holds more than is taken so early")
        closing = [one for one in self if one.mint == mint and one.is_unclosed]
        late = any(self._errands.is_late(one.ref, now) for one in closing)
        # The last one is closed now; those before it must be, or a payer who spoils them goes on.
        is_behind = any(one.is_unclosed for one in before[:-1])
        if is_behind or (late and sum(one.balance_sat for one in closing) >= self.most_sat):
            raise PeerMisbehaved("mint-down", "the mint does not close channels")
        return len(before)

    def take(self, channel: SoldChannel) -> list[Keep]:
        """Write a channel down with its last update."""
        self._know(channel)
        return [channel.keep()]

    # What is closed

    def close(self, leases: Mapping[str, Lease], moment: Moment) -> list[MarketEffect]:
        """Close what is not to be used further."""
        effects: list[MarketEffect] = []
        for one in self:
            if one.state == "open" and self._is_over(one, leases.get(one.lease_id), moment.wall):
                closing = replace(one, state="closing")
                effects += self.take(closing)
                effects += self._errands.ask(closing.request, moment.now)
        return effects

    def _is_over(self, one: SoldChannel, lease: Lease | None, wall: float) -> bool:
        others = self.of_lease(one.lease_id)
        is_open = lease is not None and lease.phase not in (Phase.ENDING, Phase.CLOSED)
        is_good = not any(other.state == "lost" for other in others)
        return not is_open or not is_good or others[-1].id != one.id or one.due <= wall

    def closed(self, event: ChannelClosed, wall: float) -> list[MarketEffect]:
        """A close came home: write it down, then into the books."""
        one = self._channels[event.ref.removeprefix("close:")]
        if not self._errands.finish(event.ref):
            return []
        done = one.ended("done", event.balance_sat, event.amount_sat)
        effects: list[MarketEffect] = [*self.take(done), *self._post(done, wall)]
        if done.closed_sat < done.balance_sat:
            text = f"a channel closed at {done.closed_sat} sat instead of {done.balance_sat}"
            effects.append(Say("warning", text))
        return effects

    def failed(self, failed: PaymentFailed, moment: Moment) -> list[MarketEffect]:
        """The mint does not close it now, or for good at none of the balances that were kept."""
        if failed.ref not in self._errands:
            return []
        if failed.may_retry:
            self._errands.retry(failed.ref, moment.now)
            return []
        self._errands.finish(failed.ref)
        one = self._channels[failed.ref.removeprefix("close:")]
        lost = one.ended("lost")
        text = f"{one.mint} does not close a channel over {one.balance_sat} sat: {failed.text}"
        return [*self.take(lost), *self._post(lost, moment.wall), Say("warning", text)]

    def prune(self, wall: float) -> list[Keep]:
        """Forget channels whose locks are over: a copy is refused by the check of the lock."""
        old = [one for one in self if not one.is_unclosed and one.void < wall - SEEN_S]
        for one in old:
            del self._channels[one.id]
            others = self._of_lease[one.lease_id]
            others.remove(one.id)
            if not others:
                del self._of_lease[one.lease_id]
            self._seen -= set(one.ys)
        return [Keep(CHANNELS, one.id, None) for one in old]

    # After a restart

    def restore(self, records: Mapping[str, object], wall: float) -> list[MarketEffect]:
        """Take what was kept; return what makes the books good."""
        channels = [SoldChannel.from_json(key, stored) for key, stored in records.items()]
        effects: list[MarketEffect] = []
        for one in sorted(channels, key=lambda one: one.number):
            self._know(one)
            if one.state == "closing":
                self._errands.owe(one.request)
            if not one.is_unclosed:
                effects += self._post(one, wall)
        return effects

    def uncredited(self, lease: Lease) -> list[tuple[int, Payment]]:
        """Return payments that were written down here, and not in their lease: a crash came between."""
        return [
            (seq, payment)
            for one in self.of_lease(lease.id)
            for seq, payment in one.payments().items()
            if seq not in lease.payments and seq >= lease.stale_below
        ]

    def _post(self, one: SoldChannel, wall: float) -> list[Keep]:
        """Post what a record says, once."""
        at, has, credited = int(wall), f"channel:{one.mint}", one.worth_msat(one.balance_sat)
        if one.state == "lost":
            return self._ledger.post(Entry(f"lost:{one.id}", at, "lost", has, credited, "refused"))
        taken, arrived = one.worth_msat(one.closed_sat), 1000 * one.arrived_sat
        debit, credit = ("fees", has) if taken >= arrived else (has, "fees")
        entries = (
            Entry(one.ref, at, f"wallet:{one.mint}", has, arrived, "closed"),
            Entry(f"{one.ref}:fee", at, debit, credit, abs(taken - arrived), "rounding"),
            Entry(f"{one.ref}:lost", at, "lost", has, credited - taken, "closed at less"),
        )
        return [keep for entry in entries for keep in self._ledger.post(entry)]

    def _know(self, one: SoldChannel) -> None:
        if one.id not in self._channels:
            self._of_lease.setdefault(one.lease_id, []).append(one.id)
            self._seen |= set(one.ys)
        self._channels[one.id] = one
