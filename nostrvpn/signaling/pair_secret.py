"""The secret of a pair: agreed on inside the tunnel, mixed into what the two say through relays.

Each side sends a fresh X25519 public key (KEYS messages, through the tunnel only). From both, and from
the pair's secret before if both have the same one, follows the new secret; it moves one step a day as
the network key does (``ratchet``), and is replaced about daily. A message of an exchange::

    {"pub": hex, "echo": hex or "", "base": hex or "", "day": n, "mac": hex or "", "done": bool}

``pub`` is the sender's key for this exchange, ``echo`` the other's as it was received; with it ``mac``
proves that the sender has computed the secret. ``base`` names the secret before, ``done`` says that no
answer is needed. The same rule for both sides, so it does not matter who began, or that both did:

- whoever gets a key computes the secret, stores it and answers with the proof;
- whoever gets the proof puts the secret to use: from then on it writes under it;
- a message that is not ``done`` is answered once; what got lost is sent again by whoever waits.

What is read: under every secret of the day, few as they are, and without any. So nothing is lost while
the two sides switch, however often messages of an exchange are lost or overtaken. A side that lost its
state is heard too: who hears it speak without the secret, or with one before, writes so as well until
they have agreed anew.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.signaling.ratchet import DAY_S, MAX_STEPS, days_around, derive, standing_day, step_to
from nostrvpn.signaling.sealing import exchange, public_half

__all__ = ["Held", "PairSecret", "PairSecrets", "SayKeys", "StoreSecret"]

# Without an answer: said again so often, so far apart (the tunnel's TCP has its own repeats).
SEND_AGAIN_S = 20.0
MAX_SENDS = 4
# New keys that a peer may send: each costs four multiplications, under a millisecond, and a write. An
# honest one that began anew sooner says so again.
MIN_GAP_S = 5.0
# Secrets held for a peer: exchanges that came to nothing, or half, on one day.
MAX_HELD = 8
# Clocks may differ by so much: words older than the secret say nothing about who has it.
SKEW_S = 600


@dataclass(frozen=True, slots=True)
class PairSecret:
    """A pair's secret (32 bytes) as it stands at ``day``; ``born`` is Unix time.

    ``id`` (16 hex digits) stays, and tells nothing: do both mean the same secret?
    """

    id: str
    day: int
    secret: bytes = field(repr=False)
    born: int = 0

    def on(self, day: int) -> bytes | None:
        """Return the secret of a day; None if that is gone, or too far ahead."""
        if not 0 <= day - self.day <= MAX_STEPS:
            return None
        return step_to(self.secret, self.day, day)


@dataclass(frozen=True, slots=True)
class Held:
    """What is held for one peer: secrets, the newest first.

    ``speaks`` is the id of the one to write under, and ``heard`` of the one that the peer last wrote
    under; "" is none.
    """

    secrets: tuple[PairSecret, ...] = ()
    speaks: str = ""
    heard: str = ""

    def get(self, name: str) -> PairSecret | None:
        """Return the secret with this id."""
        return next((secret for secret in self.secrets if secret.id == name), None)

    def place(self, name: str) -> int:
        """Return how many secrets are newer; for none at all: all."""
        names = [secret.id for secret in self.secrets]
        return names.index(name) if name in names else len(names)

    def add(self, made: PairSecret) -> Held:
        """Hold one more, without those that nobody can be using if they get too many."""
        secrets = (made, *self.secrets)
        idle = [s for s in secrets[1:] if s.id not in (self.speaks, self.heard)]
        dropped = idle[-1].id if len(secrets) > MAX_HELD else ""
        return replace(self, secrets=tuple(s for s in secrets if s.id != dropped))

    def advance(self, day: int) -> Held:
        """Move every secret to ``day``, and let those before the ones in use go."""
        if all(secret.day >= day for secret in self.secrets):
            return self
        used = max(self.place(self.speaks), self.place(self.heard))
        kept = self.secrets[: used + 1] if self.speaks else self.secrets[:1]
        return replace(self, secrets=tuple(_moved(secret, day) for secret in kept))

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        rows = [[s.id, s.day, s.secret.hex(), s.born] for s in self.secrets]
        return {"secrets": rows, "speaks": self.speaks, "heard": self.heard}

    @classmethod
    def from_json(cls, value: object) -> Held:
        """Read what ``to_json`` wrote; PeerMisbehaved("bad_key") if it is none."""
        match value:
            case {"secrets": [*rows], "speaks": str(speaks), "heard": str(heard)} if (
                len(rows) <= MAX_HELD
            ):
                return cls(tuple(_secret_from_json(row) for row in rows), speaks, heard)
            case _:
                raise PeerMisbehaved("bad_key", "no pair secret")


@dataclass(frozen=True, slots=True)
class SayKeys:
    """Send this KEYS message to ``peer`` through its tunnel."""

    peer: str
    body: dict[str, object]


@dataclass(frozen=True, slots=True)
class StoreSecret:
    """Persist ``value`` (None deletes) for ``peer`` before anything that follows."""

    peer: str
    value: dict[str, object] | None = field(repr=False)


PairEffect = SayKeys | StoreSecret


@dataclass(slots=True)
class _Running:
    """An exchange under way; ``base`` is the secret that stood when it began."""

    own: bytes
    public: bytes
    day: int
    base: PairSecret | None
    theirs: bytes = b""  # their public key, once heard
    made: PairSecret | None = None
    mac: str = ""
    proven: bool = False  # they proved that they have it too
    sends: int = 0
    due: float = 0.0


class PairSecrets:
    """The secrets that ``me`` (public key) shares with others: a pure machine for all pairs."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._held: dict[str, Held] = {}
        self._running: dict[str, _Running] = {}
        self._taken: dict[str, float] = {}  # peer -> when a new key of its was taken (Moment.now)

    def restore(self, records: Mapping[str, object]) -> list[str]:
        """Take up stored secrets by peer; return the peers whose record is damaged and left out."""
        damaged = []
        for peer, value in records.items():
            try:
                self._held[peer] = Held.from_json(value)
            except PeerMisbehaved:
                damaged.append(peer)
        return damaged

    # -- use --------------------------------------------------------------------------------

    def writing(self, peer: str, day: int) -> bytes | None:
        """Return the secret to seal with for a mailbox of ``day``; None: without."""
        held = self._held.get(peer, Held())
        secret = held.get(held.speaks)
        return secret.on(day) if secret is not None else None

    def reading(self, peer: str, day: int) -> list[tuple[str, bytes | None]]:
        """Return the secrets to try, by name: at most eight, and none at the end."""
        held = self._held.get(peer, Held())
        found: list[tuple[str, bytes | None]] = [
            (secret.id, stands) for secret in held.secrets if (stands := secret.on(day)) is not None
        ]
        return [*found, ("", None)]

    def heard(self, peer: str, name: str, created: float) -> list[PairEffect]:
        """``peer`` wrote (at ``created``, Unix seconds) under the secret ``name``: write so too."""
        held = self._held.get(peer)
        if held is None or name == held.heard == held.speaks:
            return []
        current = held.get(held.speaks)
        is_older = held.place(name) > held.place(held.speaks)
        if is_older and current is not None and created <= current.born + SKEW_S:
            # Written before that one was agreed on, perhaps. But it is in use: it is not to be let go.
            if name in ("", held.heard):
                return []
            return self._keep(peer, replace(held, heard=name))
        return self._keep(peer, replace(held, speaks=name, heard=name))

    # -- agreeing ---------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due."""
        return min((run.due for run in self._running.values()), default=None)

    def begin(self, peer: str, moment: Moment) -> list[PairEffect]:
        """The tunnel to ``peer`` is up: agree on a new secret, if today's is not new yet."""
        held = self._held.get(peer, Held())
        current = held.get(held.speaks)
        is_fresh = current is not None and 0 <= moment.wall - current.born < DAY_S
        if peer in self._running or is_fresh:
            return []
        run = self._start(peer, moment)
        return self._say(peer, run, moment)

    def on_message(self, peer: str, body: Mapping[str, object], moment: Moment) -> list[PairEffect]:
        """Take a KEYS message that came through the tunnel of ``peer``; PeerMisbehaved if it is none."""
        theirs, echo, base, day, mac, done = _parse(body)
        if day not in range(standing_day(moment.wall) - 1, days_around(moment.wall)[-1] + 2):
            raise PeerMisbehaved("bad_keys", "an exchange of another day")
        run = self._running.get(peer)
        if echo and (run is None or echo != run.public):
            finished = self._held.get(peer, Held()).secrets
            if not any(mac == _mac(secret, echo, theirs) for secret in finished):
                raise PeerMisbehaved("old_keys", "an answer to an exchange that is over")
            return []  # a late repeat about what is in use already
        if run is None or run.theirs != theirs:
            taken = self._taken.get(peer)
            if taken is not None and moment.now - taken < MIN_GAP_S:
                raise PeerMisbehaved("keys_flood", "new keys too often")
        if run is None or (run.theirs and run.theirs != theirs and run.proven):
            run = self._start(peer, moment)
        made = self._made(peer, run, (theirs, base, day), moment)
        if echo and mac != _mac(made, run.public, theirs):
            # Before anything is held: what is not stored may not be proven to anybody.
            raise PeerMisbehaved("bad_keys", "a proof that is none")
        if run.theirs != theirs:
            self._taken[peer] = moment.now
        effects = self._hold(peer, run, theirs, made)
        if echo:
            run.proven = True
            held = self._held[peer]
            if held.place(made.id) < held.place(held.speaks):
                effects += self._keep(peer, replace(held, speaks=made.id))
        if not done:
            effects += self._say(peer, run, moment)
        elif run.proven:
            del self._running[peer]
        return effects

    def tick(self, moment: Moment) -> list[PairEffect]:
        """Say again what was not answered; give up after a few times, until the next occasion."""
        effects: list[PairEffect] = []
        for peer, run in list(self._running.items()):
            if moment.now < run.due:
                continue
            if run.sends >= MAX_SENDS or run.proven:
                del self._running[peer]
            else:
                effects += self._say(peer, run, moment)
        return effects

    def advance(self, wall: float) -> list[PairEffect]:
        """Move every secret to the day of ``wall``, and forget the days before."""
        effects: list[PairEffect] = []
        for peer, held in list(self._held.items()):
            moved = held.advance(standing_day(wall))
            if moved != held:
                effects += self._keep(peer, moved)
        return effects

    def forget(self, peer: str) -> list[PairEffect]:
        """``peer`` is no member any more."""
        self._running.pop(peer, None)
        self._taken.pop(peer, None)
        return [StoreSecret(peer, None)] if self._held.pop(peer, None) is not None else []

    @property
    def peers(self) -> frozenset[str]:
        """With whom there is a secret."""
        return frozenset(self._held)

    def _start(self, peer: str, moment: Moment) -> _Running:
        own = moment.entropy.take(32)
        held = self._held.get(peer, Held())
        base = held.get(held.speaks)
        day = days_around(moment.wall)[0]
        run = _Running(own, public_half(own), day, base)
        self._running[peer] = run
        return run

    def _made(
        self, peer: str, run: _Running, heard: tuple[bytes, str, int], moment: Moment
    ) -> PairSecret:
        """Return the secret that follows from what was heard of the other side."""
        theirs, base, day = heard
        if run.theirs == theirs and run.made is not None:
            return run.made
        shared = exchange(run.own, theirs)
        day = max(day, run.day)
        same = run.base is not None and base == run.base.id
        old = run.base.on(day) if same and run.base is not None else None
        halves = b"".join(sorted((run.public, theirs)))
        names = "".join(sorted((self._me, peer))).encode()
        secret = derive(shared + (old or bytes(32)), b"nostrvpn/pair", b"v1" + names + halves)
        name = derive(secret, b"nostrvpn/pair", b"id/v1")[:8].hex()
        return PairSecret(name, day, secret, int(moment.wall))

    def _hold(self, peer: str, run: _Running, theirs: bytes, made: PairSecret) -> list[PairEffect]:
        if made is run.made:
            return []
        run.theirs, run.proven, run.made = theirs, False, made
        run.mac = _mac(made, theirs, run.public)
        return self._keep(peer, self._held.get(peer, Held()).add(made))

    def _say(self, peer: str, run: _Running, moment: Moment) -> list[PairEffect]:
        run.sends += 1
        # What is agreed on waits for the other side's repeats only, to be answered.
        run.due = moment.now + SEND_AGAIN_S * (MAX_SENDS if run.proven else 1)
        body: dict[str, object] = {
            "pub": run.public.hex(),
            "echo": run.theirs.hex(),
            "base": run.base.id if run.base is not None else "",
            "day": run.day,
            "mac": run.mac,
            "done": run.proven,
        }
        return [SayKeys(peer, body)]

    def _keep(self, peer: str, held: Held) -> list[PairEffect]:
        self._held[peer] = held
        return [StoreSecret(peer, held.to_json())]


def _mac(made: PairSecret, reader: bytes, writer: bytes) -> str:
    """Return the proof, in hex, of the writer to the reader that it has the secret."""
    key = derive(made.secret, b"nostrvpn/pair", b"proof/v1")
    return hmac.digest(key, writer + reader, hashlib.sha256)[:16].hex()


def _parse(body: Mapping[str, object]) -> tuple[bytes, bytes, str, int, str, bool]:
    match body:
        case {
            "pub": str(public),
            "echo": str(echo),
            "base": str(base),
            "day": int(day),
            "mac": str(mac),
            "done": bool(done),
        } if len(public) == 64 and len(echo) in (0, 64) and len(base) < 65 and len(mac) < 65:
            pass
        case _:
            raise PeerMisbehaved("bad_keys", "no message of an exchange")
    try:
        return bytes.fromhex(public), bytes.fromhex(echo), base, int(day), mac, done
    except ValueError as exc:
        raise PeerMisbehaved("bad_keys", "a key that is not in hex") from exc


def _moved(secret: PairSecret, day: int) -> PairSecret:
    if not 0 < day - secret.day <= MAX_STEPS:
        return secret
    return replace(secret, day=day, secret=step_to(secret.secret, secret.day, day))


def _secret_from_json(value: object) -> PairSecret:
    match value:
        case [str(name), int(day), str(text), int(born)] if (
            len(name) == 16 and len(text) == 64 and 0 <= day < 1 << 20
        ):
            try:
                return PairSecret(name, day, bytes.fromhex(text), born)
            except ValueError:
                pass
    raise PeerMisbehaved("bad_key", "no pair secret")
