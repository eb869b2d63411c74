"""A relay operator who knows all npubs guesses which mailbox or message concerns which of them.

A ``Naming`` is one strategy with what it said and what is true. Who knows nothing would be right as
often if the npubs were dealt to the nodes anew, so that is what it is measured by (a permutation test):
its ``luck`` is the share of such deals in which the same guesses are right as often. ``derivations``
does not guess: it computes from the npubs what can be computed, and looks for it in all that was seen.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

from coincurve import PublicKey

from nostrvpn.identity.bech32 import encode_key
from nostrvpn.nostr.event import public_key
from nostrvpn.signaling.mailboxes import node_inbox, pair_mailbox
from nostrvpn.signaling.ratchet import DAY_S
from tests.sim.guessing import clocks, posts_of
from tests.sim.nodes import WALL
from tests.sim.privacy_days import Days

__all__ = [
    "LUCKY",
    "Naming",
    "connections_by_online",
    "derivations",
    "inboxes_by_clock",
    "inboxes_by_number",
    "inboxes_by_online",
    "inboxes_by_order",
    "messages_by_number",
    "messages_by_online",
]

# A hundred strategies in four worlds: by chance one of them is as lucky in one of 25 choices of a seed.
LUCKY = 1e-4
DEALS = 30_000
# So many deals that are as good settle that it was chance.
ENOUGH = 20

Pair = tuple[str, str]  # public keys: guessed, true
Key = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Naming:
    """What a strategy said. ``groups``: guesses whose npubs are dealt anew together, a day's mostly."""

    strategy: str
    groups: tuple[tuple[Pair, ...], ...]

    @property
    def guesses(self) -> int:
        return sum(len(group) for group in self.groups)

    @property
    def right(self) -> int:
        return sum(guess == true for group in self.groups for guess, true in group)

    @property
    def share(self) -> float:
        return self.right / max(1, self.guesses)

    @property
    def luck(self) -> float:
        """The share of deals that make the same guesses right as often, 1/30,000 at the least."""
        rng = random.Random(1)
        tables = [Counter(group) for group in self.groups]
        owners = [sorted({true for _, true in group}) for group in self.groups]
        as_good = deals = 0
        while deals < DEALS and as_good < ENOUGH:
            deals += 1
            right = 0
            for table, names in zip(tables, owners, strict=True):
                dealt = dict(zip(names, rng.sample(names, len(names)), strict=True))
                right += sum(n for (guess, true), n in table.items() if dealt[true] == guess)
            as_good += right >= self.right
        return (as_good + 1) / (deals + 1)

    def __str__(self) -> str:
        return f"{self.strategy}: {self.right} of {self.guesses}, luck {self.luck:.2g}"


# -- what can be computed from an npub ---------------------------------------------------------


def derivations(found: Days) -> dict[str, set[str]]:
    """Return for each npub (public key) what of all that was seen can be computed from it.

    Looked for: every number in hexadecimal that a frame holds, by its first 16 digits (mailboxes, ids,
    authors, signatures, challenges), and the nonces of the encrypted texts.
    """
    seen = {}
    for heard in found.relay.record:
        frame = heard.frame
        for text in re.findall(r"[0-9a-f]{16,}", json.dumps(frame)):
            seen[text[:16]] = text
        if frame[0] == "EVENT":
            nonce = base64.b64decode(frame[1]["content"])[1:33].hex()
            seen[nonce[:16]] = nonce
    days = tuple(sorted(set(found.day_of.values())))
    hits: dict[str, set[str]] = {}
    for npub in found.npubs:
        computed = _computed(npub, days) | _of_pairs(npub, tuple(found.npubs), days)
        hits[npub] = {seen[text] for text in computed & seen.keys()}
    return hits


@cache
def _computed(npub: str, days: tuple[int, ...]) -> frozenset[str]:
    """Return the first 16 digits of everything an operator would compute from one public key."""
    raw = bytes.fromhex(npub)
    bech32 = encode_key("npub", raw)
    spellings = [raw, b"\2" + raw, b"\3" + raw, raw[::-1], npub.encode(), npub.upper().encode()]
    spellings += [bech32.encode(), base64.b64encode(raw)]
    found = {spelling.hex()[:16] for spelling in spellings} | {npub[16:32], npub[-16:]}
    for spelling in spellings:
        for salt in _salts(days):
            found.update(_hashes(spelling, salt))
            for secret in _secrets(spelling, salt):
                found.add(public_key(secret)[:16])
                # The npub moved by a public number, as in blinded or tweaked keys (BIP 32, BIP 341).
                found.add(PublicKey(b"\2" + raw).add(secret).format()[1:9].hex())
    for day in days:
        for known in (bytes(32), raw, hashlib.sha256(raw).digest()):
            found.add(node_inbox(known, "", day, npub).public_key[:16])
            found.add(pair_mailbox(known, npub, day).public_key[:16])
    return frozenset(found)


@cache
def _salts(days: tuple[int, ...]) -> tuple[bytes, ...]:
    found = [b"", b"nostrvpn", b"nostrvpn/mailbox", b"inbox/v2/", b"wss://relay", b"1059", b"21059"]
    for day in days:
        found += [str(day).encode(), day.to_bytes(8, "big"), str(day * DAY_S).encode()]
    return tuple(found)


def _hashes(text: bytes, salt: bytes) -> Iterator[str]:
    for data in {text + salt, salt + text}:
        for name in ("sha256", "sha512", "sha1", "md5", "blake2b", "blake2s", "sha3_256"):
            digest = hashlib.new(name, data).digest()
            yield digest[:8].hex()
            yield hashlib.new(name, digest).digest()[:8].hex()
    yield hmac.digest(text, salt, "sha256")[:8].hex()
    yield hmac.digest(salt, text, "sha256")[:8].hex()


def _secrets(text: bytes, salt: bytes) -> Iterator[bytes]:
    """Yield what would serve as the secret key of a mailbox, and needs no secret to compute."""
    yield hashlib.sha256(text + salt).digest()
    if salt:
        yield hashlib.sha256(salt + text).digest()
        yield hmac.digest(salt, text, "sha256")
        yield hmac.digest(hmac.digest(salt, text, "sha256"), b"\1", "sha256")  # HKDF (RFC 5869)


@cache
def _of_pairs(npub: str, npubs: tuple[str, ...], days: tuple[int, ...]) -> frozenset[str]:
    """Return the same of two npubs, ``npub`` first, and in either order."""
    found = set()
    for other in npubs:
        for one, two in permutations((npub, other)) if other != npub else ():
            for text in (
                bytes.fromhex(one + two),
                (one + two).encode(),
                (one + ":" + two).encode(),
            ):
                for salt in (b"", *(str(day).encode() for day in days)):
                    digest = hashlib.sha256(text + salt).digest()
                    found |= {digest[:8].hex(), public_key(digest)[:16]}
    return frozenset(found)


# -- numbers -----------------------------------------------------------------------------------


def _by_number(npubs: Sequence[str]) -> dict[str, Callable[[int], str]]:
    """Return ways to get from a number of 256 bits to one of the npubs."""
    keys = {npub: int(npub, 16) for npub in npubs}
    size = len(npubs)
    ways: dict[str, Callable[[int], str]] = {
        "its remainder": lambda n: npubs[n % size],
        "its first digits": lambda n: npubs[(n >> 192) * size >> 64],
        "the nearest": lambda n: min(npubs, key=lambda npub: abs(keys[npub] - n)),
        "the nearest by XOR": lambda n: min(npubs, key=lambda npub: keys[npub] ^ n),
        "most bits in common": lambda n: min(npubs, key=lambda npub: (keys[npub] ^ n).bit_count()),
    }
    for modulus in (7, 16, 256, 997, 65_537):
        ways[f"the remainder by {modulus}"] = _by_remainder(keys, modulus)
    return ways


def _by_remainder(keys: Mapping[str, int], modulus: int) -> Callable[[int], str]:
    return lambda n: min(keys, key=lambda npub: ((keys[npub] - n) % modulus, npub))


def inboxes_by_number(found: Days) -> list[Naming]:
    """For each inbox of each day: whose it is, by its address."""
    return [
        _of_inboxes(f"inbox, {name}", found, {a: way(int(a, 16)) for a in found.npub_of})
        for name, way in _by_number(found.npubs).items()
    ]


def messages_by_number(found: Days) -> list[Naming]:
    """For each message: who wrote it, and where it lies in an inbox who reads it, by its numbers."""
    by_name = {host.name: host.secret.public_key for host in found.hosts}
    events = {h.frame[1]["id"]: h.frame[1] for h in found.relay.record if h.frame[0] == "EVENT"}
    namings = []
    for name, way in _by_number(found.npubs).items():
        for part in ("id", "pubkey", "sig"):
            written, read = [], []
            for event in events.values():
                guess = way(int(event[part][:64], 16))
                written.append((guess, by_name[found.world.author_of[event["id"]]]))
                owner = found.npub_of.get(dict(event["tags"])["p"])
                read += [(guess, owner)] if owner is not None else []
            namings.append(Naming(f"author of a message, {name}, {part}", (tuple(written),)))
            namings.append(Naming(f"reader of a message, {name}, {part}", (tuple(read),)))
    return namings


# -- order -------------------------------------------------------------------------------------


def inboxes_by_order(found: Days) -> list[Naming]:
    """For each day: its inboxes in some order, and the npubs in some order, go together."""
    first, last, opened = _times(found)
    busy = Counter(post.mailbox for post in posts_of(found.relay.record))
    ranks: dict[str, Mapping[str, float]] = {
        "first sight": first,
        "last sight": last,
        "connection": opened,
        "number of messages": busy,
        "address": {address: int(address, 16) for address in found.npub_of},
    }
    orders: dict[str, Callable[[str], object]] = {
        "their numbers": lambda npub: npub,
        "their spelling": lambda npub: encode_key("npub", bytes.fromhex(npub)),
        "their hashes": lambda npub: hashlib.sha256(bytes.fromhex(npub)).digest(),
    }
    namings = []
    for rank, value in ranks.items():
        for order, key in orders.items():
            for way, is_reverse in (("", False), (" backwards", True)):
                npubs = sorted(found.npubs, key=key, reverse=is_reverse)  # type: ignore[arg-type]
                guesses: dict[str, str] = {}
                for addresses in _days_of(found).values():
                    ranked = sorted(addresses, key=lambda a: (value.get(a, 0.0), a))
                    guesses |= dict(zip(ranked, npubs, strict=False))
                name = f"inbox, {rank} in the order of {order}{way}"
                namings.append(_of_inboxes(name, found, guesses))
    return namings


# -- clocks ------------------------------------------------------------------------------------


def inboxes_by_clock(found: Days) -> list[Naming]:
    """For each inbox: which of the next day's has the same owner, by the clock that its frames show?

    Not about npubs by itself, but who follows an inbox from day to day has to find its owner only once.
    """
    namings = []
    for what in ("REQ", "AUTH"):
        shown = clocks(found.relay, what)
        groups = []
        days = _days_of(found)
        for day in days:
            pairs = []
            later = [a for a in days.get(day + 1, ()) if a in shown]
            for address in (a for a in days[day] if a in shown and later):
                best = min(
                    later, key=lambda other: (abs(shown[other][0] - shown[address][0]), other)
                )
                pairs.append((found.npub_of[best], found.npub_of[address]))
            groups.append(tuple(pairs))
        namings.append(Naming(f"the next day's inbox, clock of {what}", tuple(groups)))
    return namings


# -- who knows when who is online --------------------------------------------------------------


def inboxes_by_online(found: Days) -> tuple[Naming, Naming]:
    """For each inbox: whose node ran when it was read?

    Apart: the inboxes of the days on which their owners did not start, and of those on which they did.
    """
    spans = _spans(found)
    quiet: dict[int, list[Pair]] = defaultdict(list)
    started: dict[int, list[Pair]] = defaultdict(list)
    for address, owner in found.npub_of.items():
        if address not in spans:
            continue
        day = found.day_of[address]
        far = {npub: _mismatch(found, npub, spans[address], day) for npub in found.npubs}
        best = min(far.values())
        # Less than a second of a difference is a connection's way there and back.
        near = sorted(npub for npub in far if far[npub] < best + 1.0)
        guess = random.Random(address).choice(near)
        which = started if (day, owner) in found.restarted else quiet
        which[day].append((guess, owner))
    return (
        Naming("inbox, online, did not start", tuple(map(tuple, quiet.values()))),
        Naming("inbox, online, started", tuple(map(tuple, started.values()))),
    )


def connections_by_online(found: Days) -> Naming:
    """For each connection: whose node started right before it opened? Without a proxy a node has one."""
    readers: dict[str, set[str]] = defaultdict(set)
    for heard in found.relay.record:
        filters = heard.frame[2:] if heard.frame[0] == "REQ" else []
        readers[heard.connection] |= {
            found.npub_of[address]
            for wanted in filters
            for address in wanted.get("#p", ())
            if address in found.npub_of
        }
    starts = sorted((at, npub) for npub, spans in found.online.items() for at, _ in spans)
    pairs = []
    for connection, owners in readers.items():
        before = [npub for at, npub in starts if at <= found.relay.opened[connection]]
        pairs += [(before[-1], owner) for owner in owners]
    return Naming("connection, online", (tuple(pairs),))


def messages_by_online(found: Days) -> tuple[Naming, Naming]:
    """For each message on a board: who started last before it? The first after a start, and others."""
    by_name = {host.name: host.secret.public_key for host in found.hosts}
    boards = {address for day in found.boards.values() for address in day}
    starts = sorted((at, npub) for npub, spans in found.online.items() for at, _ in spans)
    first: list[Pair] = []
    others: list[Pair] = []
    known: set[tuple[float, str]] = set()
    for post in posts_of(found.relay.record):
        before = [start for start in starts if start[0] < post.at - WALL]
        if post.mailbox not in boards or not before:
            continue
        pair = (before[-1][1], by_name[found.world.author_of[post.event]])
        is_first = post.at - WALL - before[-1][0] < 10.0 and before[-1] not in known
        known |= {before[-1]} if is_first else set()
        (first if is_first else others).append(pair)
    return (
        Naming("message on a board, online, later", (tuple(others),)),
        Naming("message on a board, online, right after a start", (tuple(first),)),
    )


def _mismatch(found: Days, npub: str, read: Sequence[tuple[float, float]], day: int) -> float:
    """Return for how many seconds an inbox was read and the node was off, or the other way round.

    Within its day: on the edges of it connections come and go at random.
    """
    low, high = day * DAY_S - WALL, (day + 1) * DAY_S - WALL
    online = [(max(a, low), min(b, high)) for a, b in found.online[npub]]
    ours = [(max(a, low), min(b, high)) for a, b in read]
    both = sum(max(0.0, min(b, d) - max(a, c)) for a, b in ours for c, d in online)
    return _length(online) + _length(ours) - 2 * both


def _length(spans: Iterable[tuple[float, float]]) -> float:
    return sum(max(0.0, b - a) for a, b in spans)


def _spans(found: Days) -> dict[str, list[tuple[float, float]]]:
    """Return when each address was read, as the relay's connections tell."""
    spans: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for heard in found.relay.record:
        if heard.frame[0] == "REQ":
            until = found.relay.closed.get(heard.connection, found.world.now)
            for address in (a for wanted in heard.frame[2:] for a in wanted.get("#p", ())):
                spans[address].setdefault(heard.connection, (heard.at, until))
    return {address: list(read.values()) for address, read in spans.items()}


def _times(found: Days) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return when each address was named first and last, and when its first connection opened."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    opened: dict[str, float] = {}
    for heard in found.relay.record:
        filters = heard.frame[2:] if heard.frame[0] == "REQ" else []
        for address in (a for wanted in filters for a in wanted.get("#p", ())):
            first.setdefault(address, heard.at)
            opened.setdefault(address, found.relay.opened[heard.connection])
            last[address] = heard.at
    return first, last, opened


def _days_of(found: Days) -> dict[int, list[str]]:
    days: dict[int, list[str]] = defaultdict(list)
    for address, day in sorted(found.day_of.items()):
        days[day].append(address)
    return days


def _of_inboxes(name: str, found: Days, guesses: Mapping[str, str]) -> Naming:
    groups = (
        tuple((guesses[a], found.npub_of[a]) for a in addresses if a in guesses)
        for addresses in _days_of(found).values()
    )
    return Naming(name, tuple(groups))
