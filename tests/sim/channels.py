"""Channels at the mint of the simulated market: closed by its rules, into wallets that are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.cashu.blind import y_of
from nostrvpn.cashu.channel import Channel, close_body, finish_close
from nostrvpn.cashu.operations import parse_signatures
from nostrvpn.cashu.proof import Proof
from nostrvpn.market.channel_effects import ChannelClosed, CloseChannel, SettleChannel
from nostrvpn.market.effects import PaymentFailed, Redeemed

if TYPE_CHECKING:
    from tests.sim.market import Bank

__all__ = ["ChannelDesk"]

_Proofs = tuple[Proof, ...]


class ChannelDesk:
    """How each channel was closed: at which balance, and both sides' proofs."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self.closed: dict[str, tuple[int, _Proofs, _Proofs]] = {}

    def close(
        self, owner: str, effect: CloseChannel, keys: tuple[bytes, ...], now: float
    ) -> ChannelClosed | PaymentFailed:
        """The receiver closes it."""
        channel, ref, mint = effect.channel, effect.ref, self._bank.mint
        if channel.id not in self.closed:
            if self._is_spent(channel):
                return PaymentFailed(ref, "11001", "already spent", False)
            refused = {}
            for update in effect.updates:
                body = close_body(channel, update, keys[0], mint.keyset)
                status, answer = mint.handle("POST", "/v1/swap", body)
                if status == 200:
                    sides = finish_close(
                        channel, update.balance, parse_signatures(answer), mint.keyset
                    )
                    self._spend(channel, channel.capacity)
                    self._bank.out |= {proof.secret: proof for side in sides for proof in side}
                    self.closed[channel.id] = (update.balance, *sides)
                    break
                refused = answer
            else:
                return PaymentFailed(ref, str(refused["code"]), refused["detail"], False)
        balance, ours, _ = self.closed[channel.id]
        amount = self._pay_in(owner, ref, ours, keys, now)
        return ChannelClosed(ref, balance, amount, balance - amount)

    def settle(
        self, owner: str, effect: SettleChannel, keys: tuple[bytes, ...], now: float
    ) -> ChannelClosed | PaymentFailed:
        """The payer has the rest of it, or all."""
        channel, ref = effect.channel, effect.ref
        face = sum(proof.amount for proof in channel.funding)
        if channel.id in self.closed:
            balance, _, theirs = self.closed[channel.id]
            amount = self._pay_in(owner, ref, theirs, keys, now)
            return ChannelClosed(ref, balance, amount, face - balance - amount)
        if now < effect.not_before:
            return PaymentFailed(ref, "refused", "the channel is open", True)
        assert effect.not_before > (channel.lock.locktime or 0)
        self._spend(channel, channel.capacity)
        self._bank.balances[owner] += channel.capacity
        return ChannelClosed(ref, 0, channel.capacity, face - channel.capacity)

    def _is_spent(self, channel: Channel) -> bool:
        return any(y_of(proof.secret) in self._bank.spent for proof in channel.funding)

    def _spend(self, channel: Channel, left: int) -> None:
        for proof in channel.funding:
            self._bank.spent.add(y_of(proof.secret))
            del self._bank.out[proof.secret]
        self._bank.fees += sum(proof.amount for proof in channel.funding) - left

    def _pay_in(
        self, owner: str, ref: str, proofs: _Proofs, keys: tuple[bytes, ...], now: float
    ) -> int:
        bank = self._bank
        face = sum(proof.amount for proof in proofs)
        if 1000 * face <= bank.mint.keyset.fee_ppk * len(proofs):
            for proof in proofs:  # nobody spends it: it stays with the mint
                del bank.out[proof.secret]
            bank.fees += face
            return 0
        came = bank._pay_in(owner, ref, proofs, keys, now)
        assert isinstance(came, Redeemed), came
        return came.amount_sat
