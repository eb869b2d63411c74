"""What was asked of a relay, and whether an answer is one."""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.paths.relay_end import End, RelayEnd
from nostrvpn.stun.binding import StunKind, StunMessage, StunMethod
from nostrvpn.stun.relaying import (
    ERROR_CAPACITY,
    ERROR_MISMATCH,
    ERROR_QUOTA,
    ERROR_STALE_NONCE,
    ERROR_UNAUTHORIZED,
)

__all__ = ["RelayRequest", "refusal_text"]

_REASONS = {
    ERROR_UNAUTHORIZED: "it does not know us",
    ERROR_MISMATCH: "it does not know the pair any more",
    ERROR_QUOTA: "our share of it is used up",
    ERROR_CAPACITY: "it is full",
}


@dataclass(frozen=True, slots=True)
class RelayRequest:
    """A request whose answer is awaited: what the end wanted then, of whom."""

    end: RelayEnd
    state: End
    target: Endpoint
    at: float

    def authenticate(self, message: StunMessage) -> None:
        """Raise PeerMisbehaved unless it is the answer of who was asked, to what was asked.

        A relay that does not know us has no key to say so with; the transaction id must do.
        """
        end = self.end
        allocating = self.state is End.ALLOCATING
        method = StunMethod.ALLOCATE if allocating else StunMethod.BINDING
        key = end.user.key if allocating and end.user is not None else end.key
        refused = message.kind is StunKind.ERROR and not message.nonce
        keyless = refused and message.error_code in (ERROR_UNAUTHORIZED, ERROR_MISMATCH)
        if message.method is not method or not (keyless or message.is_authentic(key)):
            raise PeerMisbehaved("forged_answer", "an answer that is not the relay's")

    def is_challenged_by(self, message: StunMessage) -> bool:
        """Say whether the request is to be repeated with the answer's nonce."""
        codes = (ERROR_UNAUTHORIZED, ERROR_STALE_NONCE)
        return self.state is End.BINDING and bool(message.nonce) and message.error_code in codes


def refusal_text(code: int | None) -> str:
    """Return in words why a relay refuses."""
    return _REASONS.get(code or 0, f"it answered with error {code}")
