"""One channel that a seller is paid by, as a record: funding and updates until it is closed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nostrvpn.cashu.channel import Channel, Update
from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.wire import parse_proof, proof_dict
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.channel_effects import CloseChannel
from nostrvpn.market.effects import Keep
from nostrvpn.market.lease import Payment

__all__ = ["CHANNELS", "Shown", "SoldChannel"]

CHANNELS = "sold_channel"
# The last update is what counts. Older ones are for a payer who made it impossible to close there.
KEPT_UPDATES = 4


@dataclass(frozen=True, slots=True)
class Shown:
    """An update with the number of the payment that it was."""

    seq: int
    balance: int
    signature: str


@dataclass(frozen=True, slots=True)
class SoldChannel:
    """``state``: open (updates are taken), closing, done, or lost.

    ``number``: which of its lease, from 0; ``ys``: what the mint knows its funding by; ``margin_sat``:
    what of a balance is not credited, as bringing it home costs that; ``updates``: the last one first;
    ``due``: when it is closed at the latest, ``void``: when a copy of its funding is no longer taken
    (Unix time). ``closed_sat``: the balance at which it was closed, of which ``arrived_sat`` arrived.
    """

    id: str
    lease_id: str
    number: int
    mint: str
    funding: tuple[Proof, ...] = field(repr=False)
    seed: str = field(repr=False)
    ys: tuple[str, ...]
    capacity: int
    margin_sat: int
    updates: tuple[Shown, ...]
    due: int
    void: int
    state: str = "open"
    closed_sat: int = 0
    arrived_sat: int = 0

    @property
    def balance_sat(self) -> int:
        """What the payer signed for last."""
        return self.updates[0].balance if self.updates else 0

    @property
    def is_unclosed(self) -> bool:
        """Whether money is in it yet."""
        return self.state in ("open", "closing")

    @property
    def ref(self) -> str:
        """The ref of its close."""
        return f"close:{self.id}"

    @property
    def channel(self) -> Channel:
        """The channel itself, while it is not closed."""
        return Channel.known(self.funding, self.capacity, bytes.fromhex(self.seed))

    @property
    def request(self) -> CloseChannel:
        """What the wallet is asked for."""
        updates = tuple(Update(one.balance, one.signature) for one in self.updates)
        return CloseChannel(self.ref, self.mint, self.channel, updates)

    def worth_msat(self, balance: int) -> int:
        """Return what is credited for a balance."""
        return 1000 * max(0, balance - self.margin_sat)

    def updated(self, shown: Shown) -> SoldChannel:
        """Return it with another update, the last one from now on."""
        return replace(self, updates=(shown, *self.updates)[:KEPT_UPDATES])

    def payments(self) -> dict[int, Payment]:
        """Return the payments that the updates were, the oldest first.

        What is credited for one needs the one before: of many, the oldest that is kept is left out.
        """
        balances = [one.balance for one in self.updates] + [0]
        whole = len(self.updates) < KEPT_UPDATES
        known = list(zip(self.updates, balances[1:], strict=True))
        return {
            one.seq: Payment(
                hashlib.sha256(f"{self.id}:{one.balance}".encode()).hexdigest(),
                "credited",
                self.worth_msat(one.balance) - self.worth_msat(before),
                self.mint,
            )
            for one, before in reversed(known if whole else known[:-1])
        }

    def ended(self, state: str, closed_sat: int = 0, arrived_sat: int = 0) -> SoldChannel:
        """Return it without its secrets: what it was, and how it ended."""
        bare = tuple(Shown(one.seq, one.balance, "") for one in self.updates)
        return replace(
            self,
            state=state,
            funding=(),
            seed="",
            updates=bare,
            closed_sat=closed_sat,
            arrived_sat=arrived_sat,
        )

    def keep(self) -> Keep:
        """Return the record, written."""
        value: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        value["funding"] = [proof_dict(proof, dleq=False) for proof in self.funding]
        value["ys"] = list(self.ys)
        value["updates"] = [[one.seq, one.balance, one.signature] for one in self.updates]
        return Keep(CHANNELS, self.id, value)

    @classmethod
    def from_json(cls, key: str, stored: object) -> SoldChannel:
        """Rebuild from :meth:`keep`; PeerMisbehaved if the record is damaged."""
        try:
            if not isinstance(stored, Mapping):
                raise TypeError("no record")
            values: Mapping[str, Any] = stored
            return cls(
                id=key,
                funding=tuple(parse_proof(proof) for proof in values["funding"]),
                ys=tuple(values["ys"]),
                updates=tuple(Shown(*one) for one in values["updates"]),
                **{name: values[name] for name in _PLAIN},
            )
        except (TypeError, ValueError, KeyError, PeerMisbehaved) as exc:
            raise PeerMisbehaved("bad_record", f"not a channel: {exc}") from exc


_PLAIN = (
    *("lease_id", "number", "mint", "seed", "capacity", "margin_sat", "due", "void"),
    *("state", "closed_sat", "arrived_sat"),
)
