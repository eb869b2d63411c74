"""The applicant's side of a joining: asking until it is answered, and reading the answer.

By an invite's link the inviter answers; by a token's any member does. A welcome is the whole log, in
parts; it is taken only if it is the network that the link names, and this node is in it. The link is
kept, and asked by again, until this node has the network's key for certain: who answered by a token may
have lied about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import (
    Joining,
    JoinState,
    MembersChanged,
    MembershipEffect,
    RequestJoin,
    Store,
)
from nostrvpn.mesh.invites import Link, parse_link, render_link
from nostrvpn.mesh.log_text import unpack_operations
from nostrvpn.mesh.roster import MAX_OPERATIONS, Roster, open_roster
from nostrvpn.mesh.tokens import (
    TokenLink,
    parse_token_link,
    prove,
    render_token_link,
)
from nostrvpn.nostr.event import Event

__all__ = ["KEEP_USED_S", "Applicant", "clean_text", "parse_any_link"]

KEEP_USED_S = 30 * 86400  # a used or expired invite is kept so long, to answer with the true reason
# Retry until answered: at first every few seconds, then rarely, for an inviter who is offline. Each
# retry is live; a stored copy waits on the relays meanwhile.
_RETRY_S = (1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
STORED_EVERY_S = 6 * 3600.0
# Who was welcomed asks again, ever more rarely, as long as nobody vouched for the key it got.
_CONFIRM_S = (15.0, 60.0, 240.0, 960.0, 3840.0, 15_360.0, STORED_EVERY_S)
# By a token several members may welcome at a time.
MAX_WELCOMERS = 4
MAX_PARTS = 400
MAX_REASON = 64
_OVER = (JoinState.REFUSED, JoinState.EXPIRED)


def clean_text(text: object) -> str:
    """Return a short text from outside with only printable characters."""
    if not isinstance(text, str):
        return ""
    return "".join(char for char in text if char.isprintable()).strip()[:MAX_REASON]


def parse_any_link(text: str) -> Link | TokenLink:
    """Parse an invite's or a token's link; UserError if it is neither."""
    if text.strip().startswith("nostrvpn://join/"):
        return parse_token_link(text)
    return parse_link(text)


class Applicant:
    """One node's application: at most one at a time."""

    def __init__(self, secret: RootSecret) -> None:
        self._secret = secret
        self._me = secret.public_key
        self.joining: Joining | None = None
        self._parts: dict[str, dict[int, tuple[Event, ...]]] = {}  # by sender
        self._total: dict[str, int] = {}

    @property
    def is_asking(self) -> bool:
        """Whether an answer is awaited."""
        return self.joining is not None and self.joining.state is JoinState.ASKING

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        return self.joining.due if self.joining is not None and self.joining.is_open else None

    def restore(self, text: str) -> None:
        """Go on with a stored link; UserError if it is damaged."""
        self.joining = Joining(parse_any_link(text))

    def check(self, text: str, wall: float) -> Link | TokenLink:
        """Return what a link says; UserError if it is not for this node, or too old."""
        link = parse_any_link(text)
        if isinstance(link, Link) and link.inviter == self._me:
            raise UserError("this is your own invite", "run `nostrvpn join` on the other node")
        if isinstance(link, Link) and link.bound_to not in (None, self._me):
            raise UserError(
                f"this invite is for {npub(link.bound_to or '')}, "
                f"and this node is {self._secret.npub}",
                "ask for an invite for this node's npub",
            )
        if wall >= link.expires:
            raise UserError("this invite has expired", "ask for a new one")
        return link

    def start(self, link: Link | TokenLink, moment: Moment) -> list[MembershipEffect]:
        """Begin to ask."""
        self.joining = Joining(link, due=moment.now)
        self._forget_parts()
        text = render_link(link) if isinstance(link, Link) else render_token_link(link)
        return [Store("join", "link", text), MembersChanged(), *self.tick(moment)]

    def tick(self, moment: Moment) -> list[MembershipEffect]:
        """Ask again when it is time."""
        joining = self.joining
        if joining is None or not joining.is_open or moment.now < joining.due:
            return []
        if moment.wall >= joining.link.expires + KEEP_USED_S:
            if not self.is_asking:
                return self.settled()
            self.joining = replace(
                joining, state=JoinState.EXPIRED, reason="expired", is_open=False
            )
            return [Store("join", "link", None), MembersChanged()]
        waits = _RETRY_S if self.is_asking else _CONFIRM_S
        wait = waits[min(joining.attempts, len(waits) - 1)]
        due = moment.now + wait * (0.9 + 0.2 * moment.entropy.fraction())
        if not self.is_asking and not joining.attempts:
            self.joining = replace(joining, attempts=1, due=due)
            return []  # just welcomed: mostly somebody is heard under the key at once
        stored = joining.stored_at is None or moment.now - joining.stored_at >= STORED_EVERY_S
        stored_at = moment.now if stored else joining.stored_at
        self.joining = replace(joining, attempts=joining.attempts + 1, due=due, stored_at=stored_at)
        return [RequestJoin(self.joining, stored)]

    def hurry(self, moment: Moment) -> None:
        """Something changed (a relay connected, the network moved): ask again now."""
        if self.joining is not None and self.is_asking:
            self.joining = replace(self.joining, attempts=0, due=moment.now)

    def request(self, name: str, aux: bytes) -> dict[str, object]:
        """Return what a join request says of the link; ``aux``: 32 random bytes."""
        assert self.joining is not None
        link = self.joining.link
        if isinstance(link, TokenLink):
            proof = prove(link.secret, link.network_id, self._me, aux)
            return {"token": link.token_id, "proof": proof, "name": name}
        return {"invite": link.invite_id, "secret": link.secret.hex(), "name": name}

    def expects(self, sender: str) -> bool:
        """Whether a welcome by ``sender`` may answer the application."""
        if self.joining is None or self.joining.state in _OVER:
            return False
        return self.joining.inviter in (None, sender)

    def on_welcome(self, sender: str, body: Mapping[str, object]) -> Roster | None:
        """Take a part of a welcome; return the roster once it is whole. PeerMisbehaved if it is bad."""
        assert self.joining is not None
        operations = unpack_operations(body.get("ops"))
        part, total = body.get("part"), body.get("total")
        if type(part) is not int or type(total) is not int or not 0 <= part < total <= MAX_PARTS:
            raise PeerMisbehaved("bad_message", "a welcome without its place in the log")
        parts = self._parts.pop(sender, {})
        self._parts[sender] = parts  # the latest last
        while len(self._parts) > MAX_WELCOMERS:
            # Whoever holds the link can begin one in any name: those shall not keep the real one out.
            oldest = next(iter(self._parts))
            del self._parts[oldest], self._total[oldest]
        if self._total.get(sender) != total:
            parts.clear()
        self._total[sender] = total
        parts[part] = operations
        if len(parts) < total:
            return None  # more parts are on their way
        del self._parts[sender], self._total[sender]
        log = [event for number in range(total) for event in parts[number]]
        if len(log) > MAX_OPERATIONS:
            raise PeerMisbehaved("bad_roster", "too many operations")
        roster = open_roster(log)
        by_admin = self.joining.inviter is None or roster.is_admin(sender)
        if roster.network_id != self.joining.link.network_id or not by_admin:
            raise PeerMisbehaved("welcome_foreign", "a welcome to another network")
        if sender not in roster.members:
            raise PeerMisbehaved("welcome_foreign", "a welcome by somebody who is no member")
        if self._me not in roster.members:
            raise PeerMisbehaved("welcome_without_us", "a roster that does not list this node")
        return roster

    def joined(self, by: str) -> None:
        """The welcome by this member was accepted; the application ends with :meth:`settled`."""
        if self.joining is None or not self.joining.is_open:
            return
        self.joining = replace(self.joining, welcomed_by=by)
        if self.is_asking:
            self._forget_parts()
            self.joining = replace(self.joining, state=JoinState.JOINED, attempts=0, due=0.0)

    def settled(self) -> list[MembershipEffect]:
        """The application came to its end: this node has the network's key."""
        if self.joining is None or not self.joining.is_open:
            return []
        self._forget_parts()
        self.joining = replace(self.joining, state=JoinState.JOINED, is_open=False)
        return [Store("join", "link", None), MembersChanged()]

    def on_refused(self, sender: str, body: Mapping[str, object]) -> list[MembershipEffect]:
        """Take note of a refusal, if it answers our request."""
        joining = self.joining
        if joining is None or joining.inviter != sender or joining.state is JoinState.JOINED:
            raise PeerMisbehaved("refusal_unasked", "a refusal nobody asked for")
        assert isinstance(joining.link, Link)
        if body.get("invite") != joining.link.invite_id:
            # Relays keep refusals for days: a late one must not end the application by a new link.
            raise PeerMisbehaved("refusal_outdated", "a refusal of another invite")
        reason = clean_text(body.get("reason")) or "refused"
        self.joining = replace(joining, state=JoinState.REFUSED, reason=reason, is_open=False)
        return [Store("join", "link", None), MembersChanged()]

    def _forget_parts(self) -> None:
        self._parts.clear()
        self._total.clear()
