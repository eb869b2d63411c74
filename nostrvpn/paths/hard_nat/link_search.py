"""One link's searches through hard NATs: when one may begin, what it tells, what it found."""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Moment
from nostrvpn.paths.events import Pin, SendDatagram
from nostrvpn.paths.hard_nat.plan import SearchPlan
from nostrvpn.paths.hard_nat.roles import SEARCHES_PER_HOUR, Role, SearchBudget, role_of
from nostrvpn.paths.hard_nat.search import Search
from nostrvpn.paths.hard_nat.task import Failed, Found, SearchEffect, SearchTask, Tell
from nostrvpn.stun.binding import StunMessage

__all__ = ["LinkSearch"]

# Searches in vain in a row, each as soon as it may be; later ones wait for rounds that grow rare. Of
# guesses 1.7 % miss: whom six do not reach stands behind something else.
TRIES = SEARCHES_PER_HOUR

_WORDS = {
    Role.OPEN: "ports are being opened for the peer",
    Role.FOLLOW: "the ports that the peer opens are being tried",
    Role.FORECAST: "the next ports of both NATs are being foretold and tried",
    Role.ANSWER: "the next ports of both NATs are being foretold and tried",
}


class LinkSearch:
    """At most one Search at a time, within the node's ``budget``.

    ``plan`` is what the peer is to be told, in every description from now on; ``take_news`` says
    once that it changed. ``take_found`` gives the peer's endpoint once a hit is known (or replaced by
    a later one): the link then checks it as any other endpoint, after the Pin that was returned with
    it. ``reason`` is why the last search found nothing, in words.
    """

    def __init__(self, peer: str, budget: SearchBudget) -> None:
        self._peer = peer
        self._budget = budget
        self._search: Search | None = None
        self._news = False
        self._found: Found | None = None
        self._fresh: Endpoint | None = None
        self._in_vain = 0
        self.plan: SearchPlan | None = None
        self.attempts = 0
        self.reason = ""

    @property
    def running(self) -> bool:
        """Whether a search is under way (or lingers after a hit)."""
        return self._search is not None

    @property
    def seeking(self) -> bool:
        """Whether a search is under way and found nothing yet."""
        return self._search is not None and self._search.result is None

    @property
    def shown(self) -> str:
        """What goes on, or why the last search found nothing, in words."""
        if self._search is not None and self._search.result is None:
            role = self._search.role
            return _WORDS[role] if isinstance(role, Role) else role
        return self.reason

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        return None if self._search is None else self._search.deadline

    @property
    def again_at(self) -> float | None:
        """When the next search may begin after one in vain; None: no sooner than by chance."""
        wanted = self._search is not None or bool(self.reason)
        return self._budget.free_at(self._peer) if wanted and self._in_vain < TRIES else None

    def take_news(self) -> bool:
        """Say, once, that there is a plan to tell."""
        news, self._news = self._news, False
        return news

    def take_found(self) -> Endpoint | None:
        """Return, once, where the peer was found."""
        found, self._fresh = self._fresh, None
        return found

    def listens(self, port: int) -> bool:
        """Whether a packet to our ``port``, which is not WireGuard's, may be taken."""
        return self._search is not None and port in self._search.ports

    def knows(self, transaction: bytes) -> bool:
        """Whether an answer with this transaction id is the search's."""
        return self._search is not None and self._search.knows(transaction)

    def begin(self, task: SearchTask, moment: Moment) -> list[SendDatagram | Pin]:
        """Search, if the budget allows. ``task.attempt`` should be ``attempts``."""
        if self._search is not None:
            return []
        role = role_of(task.own, task.peer, controlling=task.controlling)
        if not isinstance(role, Role):
            self.reason = role
            return []
        return self._run(task, moment) if self._budget.start(self._peer, moment.now) else []

    def told(self, plan: SearchPlan, task: SearchTask, moment: Moment) -> list[SendDatagram | Pin]:
        """The peer told ``plan``: take our part. PeerMisbehaved if it is not about its address."""
        effects: list[SendDatagram | Pin] = []
        if self._search is None:
            if self._found is not None or not self._budget.start(
                self._peer, moment.now, asked=True
            ):
                return []
            effects += self._run(task, moment)
        return effects + (
            [] if self._search is None else self._after(self._search.told(plan, moment))
        )

    def answered(
        self, message: StunMessage, source: Endpoint, moment: Moment
    ) -> list[SendDatagram | Pin]:
        """An answer that ``knows`` came. PeerMisbehaved if it is not what it should be."""
        assert self._search is not None
        return self._after(self._search.answered(message, source, moment))

    def asked(self, source: Endpoint, port: int | None, moment: Moment) -> list[SendDatagram | Pin]:
        """An authentic check of the peer came to ``port`` (None: WireGuard's own)."""
        if self._search is None:
            return []
        return self._after(self._search.asked(source, port, moment))

    def tick(self, moment: Moment) -> list[SendDatagram | Pin]:
        """Do what is due."""
        return [] if self._search is None else self._after(self._search.tick(moment))

    def stop(self) -> None:
        """Give up: the peer goes, or another path is better. A Pin stays the link's to undo."""
        search = self._search
        self._search = self._found = self._fresh = self.plan = None
        self._news = False
        if search is not None:
            self._over(search)

    def _run(self, task: SearchTask, moment: Moment) -> list[SendDatagram | Pin]:
        self.attempts += 1
        self._found, self.reason = None, ""
        self._search = Search(task, moment)
        return self._after(self._search.start(moment))

    def _after(self, effects: list[SearchEffect]) -> list[SendDatagram | Pin]:
        done: list[SendDatagram | Pin] = []
        for effect in effects:
            if isinstance(effect, Tell):
                self.plan, self._news = effect.plan, True
            else:
                done.append(effect)
        search = self._search
        assert search is not None
        if isinstance(search.result, Found) and search.result != self._found:
            self._found, self._in_vain = search.result, 0
            self._fresh = self._found.remote
            if self._found.local_port is not None:
                done.append(Pin(self._peer, self._found.local_port, self._found.remote))
        if search.finished:
            if isinstance(search.result, Failed):
                self.reason = search.result.reason
                self._in_vain += 1
            self._search = self.plan = None
            self._over(search)
        return done

    def _over(self, search: Search) -> None:
        """Give the node's budget back what was not used: who only waited for a plan sent nothing."""
        if not search.packets:
            self.attempts -= 1
        self._budget.end(self._peer, spent=search.packets > 0)
