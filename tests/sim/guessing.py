"""A relay operator who kept everything guesses: who wrote what, and which mailboxes belong together.

Each guesser returns how often it was right, of how many guesses. Whoever knows nothing is right by
chance: ``is_chance`` says whether a score can be told from that.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.sim.meshes import Heard, RecordingRelay
from tests.sim.nodes import WALL

__all__ = [
    "Post",
    "Score",
    "boards_by_clock",
    "boards_of_inboxes",
    "clocks",
    "next_by_author",
    "posts_of",
    "together",
]

# What a quiet operator would try: the same author again after so many seconds.
RHYTHMS = (600, 1200, 1800, 2400, 2700, 3000, 3300, 3600, 4200, 4800, 5400, 6000)


@dataclass(frozen=True, slots=True)
class Score:
    """``right`` of ``guesses``, where blind guessing is right in ``chance`` of all cases."""

    strategy: str
    right: int
    guesses: int
    chance: float

    @property
    def advantage(self) -> float:
        """By how much more often than blind it is right: 0 blind, 1 always right."""
        return (self.right / max(1, self.guesses) - self.chance) / (1 - self.chance)

    @property
    def sigmas(self) -> float:
        """How many standard deviations of blind guessing (a binomial) it is above it."""
        spread = math.sqrt(self.guesses * self.chance * (1 - self.chance))
        return (self.right - self.guesses * self.chance) / spread if spread else 0.0

    def __str__(self) -> str:
        share = self.right / max(1, self.guesses)
        return (
            f"{self.strategy}: {share:.3f} of {self.guesses} (chance {self.chance:.3f}, "
            f"{self.sigmas:+.1f} sigma, advantage {self.advantage:+.2f})"
        )


@dataclass(frozen=True, slots=True)
class Post:
    """One published event as the relay saw it. Times are the relay's clock (Unix seconds)."""

    at: float
    event: str
    mailbox: str
    size: int
    dated: int
    stands: int
    connection: str


def posts_of(record: Iterable[Heard]) -> list[Post]:
    """Return what was published, in order of arrival; once each, for AUTH makes clients say it again."""
    found, known = [], set()
    for heard in record:
        if heard.frame[0] == "EVENT" and heard.frame[1]["id"] not in known:
            event = heard.frame[1]
            known.add(event["id"])
            tags = dict(event["tags"])
            stands = int(tags.get("expiration", event["created_at"])) - event["created_at"]
            found.append(
                Post(
                    WALL + heard.at,
                    event["id"],
                    tags["p"],
                    len(event["content"]),
                    event["created_at"],
                    stands,
                    heard.connection,
                )
            )
    return found


# -- which messages have one author ----------------------------------------------------------


def next_by_author(
    posts: Sequence[Post], author_of: Mapping[str, str], members: int
) -> list[Score]:
    """For each message on a board: which of the later ones is its author's next?

    Without knowledge the best guess is the very next one, right for one in ``members``: authors take
    their turns without memory. Rhythms, sizes and clocks are what could tell more.
    """
    boards: dict[str, list[Post]] = defaultdict(list)
    for post in posts:
        boards[post.mailbox].append(post)
    chance = 1 / members
    strategies: dict[str, Callable[[list[Post], int], Post]] = {
        f"after {rhythm} s": _by_rhythm(rhythm) for rhythm in RHYTHMS
    }
    strategies |= {"the next": _next, "the same size": _by_size, "the same clock": _by_clock}
    scores = []
    for name, guess in strategies.items():
        right = guesses = 0
        for board in boards.values():
            for place in range(len(board) - 1):
                author = author_of[board[place].event]
                later = (p for p in board[place + 1 :] if author_of[p.event] == author)
                true = next(later, None)
                if true is not None:
                    guesses += 1
                    right += guess(board, place) is true
        scores.append(Score(f"next by author, {name}", right, guesses, chance))
    return scores


def _next(board: list[Post], place: int) -> Post:
    return board[place + 1]


def _by_rhythm(rhythm: float) -> Callable[[list[Post], int], Post]:
    def guess(board: list[Post], place: int) -> Post:
        wanted = board[place].at + rhythm
        after = bisect_right(board, wanted, lo=place + 1, key=lambda post: post.at)
        near = board[max(place + 1, after - 1) : after + 1] or board[-1:]
        return min(near, key=lambda post: abs(post.at - wanted))

    return guess


def _by_size(board: list[Post], place: int) -> Post:
    rest = board[place + 1 :]
    return next((post for post in rest if post.size == board[place].size), rest[0])


def _by_clock(board: list[Post], place: int) -> Post:
    """Whose clock is off by as much: the date says it, if it is the author's."""
    off = board[place].dated - board[place].at
    near = board[place + 1 : place + 25]
    return min(near, key=lambda post: abs(post.dated - post.at - off))


# -- which mailboxes are of one network ------------------------------------------------------


def boards_of_inboxes(
    relay: RecordingRelay,
    boards: Mapping[int, Mapping[str, str]],
    inboxes: Mapping[int, Mapping[str, str]],
    quiet: Callable[[int, str], bool],
) -> list[Score]:
    """For each inbox of each day: to which of that day's boards does it belong?

    ``boards``: day -> address -> network; ``inboxes``: day -> address -> network; ``quiet``: whether
    an inbox's owner did nothing on a day that shows (started, moved, spoke to one). By connections:
    whose began (or ended) nearest to one that reads the board; by messages: what came there then.
    """
    reads = _reads(relay)
    posts: dict[str, list[float]] = defaultdict(list)
    for post in posts_of(relay.record):
        posts[post.mailbox].append(post.at)
    begins = {a: [relay.opened[c] for c in connections] for a, connections in reads.items()}
    ends = {
        address: [relay.closed[c] for c in connections if c in relay.closed]
        for address, connections in reads.items()
    }
    scores = []
    for name, times in (("begin", begins), ("end", ends), ("message", posts)):
        right = guesses = 0.0
        for day, found in inboxes.items():
            for address, network in found.items():
                if not quiet(day, address):
                    continue
                distances = {
                    other: _nearest(times.get(address, []), times.get(board, []))
                    for board, other in boards[day].items()
                }
                best = min(distances.values())
                winners = [other for other, far in distances.items() if far == best]
                guesses += 1
                right += (network in winners) / len(winners)
        chance = 1 / len(set(next(iter(boards.values())).values()))
        scores.append(Score(f"board of an inbox, {name}", round(right), int(guesses), chance))
    return scores


def boards_by_clock(
    relay: RecordingRelay,
    boards: Mapping[int, Mapping[str, str]],
    inboxes: Mapping[int, Mapping[str, str]],
    quiet: Callable[[int, str], bool],
) -> list[Score]:
    """The same, by the clocks that readers show: one of the board's readers is the inbox's too."""
    scores = []
    for what in ("REQ", "AUTH"):
        shown = clocks(relay, what)
        right = guesses = 0
        for day, found in inboxes.items():
            for address, network in found.items():
                if not shown[address] or not quiet(day, address):
                    continue
                far = {
                    other: _nearest(shown[address], shown[board])
                    for board, other in boards[day].items()
                }
                guesses += 1
                right += min(far, key=lambda other: (far[other], other)) == network
        if guesses:
            scores.append(Score(f"board of an inbox, clock of {what}", right, guesses, 0.5))
    return scores


def clocks(relay: RecordingRelay, what: str) -> dict[str, list[float]]:
    """Return for each address by how many seconds its readers' dates are off, but for days.

    Readers write dates in the ``since`` of a REQ and in an AUTH: ``what``.
    """
    shown: dict[str, list[float]] = defaultdict(list)
    for heard in relay.record:
        if heard.frame[0] != what:
            continue
        if what == "AUTH":
            dates = {heard.frame[1]["pubkey"]: heard.frame[1]["created_at"]}
        else:
            filters = [wanted for wanted in heard.frame[2:] if "since" in wanted]
            dates = {address: wanted["since"] for wanted in filters for address in wanted["#p"]}
        for address, dated in dates.items():
            shown[address].append((dated - WALL - heard.at + 43_200) % 86_400)
    return shown


def together(
    relay: RecordingRelay,
    boards: Mapping[int, Mapping[str, str]],
    inboxes: Mapping[int, Mapping[str, str]],
) -> Score:
    """The same, by what one connection reads."""
    read_by: dict[str, set[str]] = defaultdict(set)
    for address, connections in _reads(relay).items():
        for connection in connections:
            read_by[connection].add(address)
    right = guesses = 0
    for day, found in inboxes.items():
        for address, network in found.items():
            beside = {
                boards[day][other]
                for addresses in read_by.values()
                if address in addresses
                for other in addresses & boards[day].keys()
            }
            guesses += 1
            right += beside == {network}
    return Score("board of an inbox, one connection", right, guesses, 0.5)


def _reads(relay: RecordingRelay) -> dict[str, list[str]]:
    """Return by which connections each address was read."""
    found: dict[str, list[str]] = defaultdict(list)
    for heard in relay.record:
        if heard.frame[0] == "REQ":
            for wanted in heard.frame[2:]:
                for address in wanted.get("#p", ()):
                    if heard.connection not in found[address]:
                        found[address].append(heard.connection)
    return found


def _nearest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return min((abs(a - b) for a in ours for b in theirs), default=math.inf)
