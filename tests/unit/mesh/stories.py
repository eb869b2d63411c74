"""Networks made up: people who sign for and against each other, knowing more or less of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from nostrvpn.errors import UserError
from nostrvpn.identity.keys import RootSecret
from nostrvpn.mesh.operations import agree_to_rotate, operation_content, sign_operation
from nostrvpn.mesh.permissions import EVERYBODY, Rule, What, rule_to_json
from nostrvpn.mesh.roster import Roster, create_network
from nostrvpn.mesh.tokens import prove, token_id, token_mailbox, token_signer
from nostrvpn.nostr.event import Event

WALL = 1_800_000_000
SECRETS = [RootSecret(bytes([n]) * 32) for n in range(1, 31)]
KEYS = [secret.public_key for secret in SECRETS]
TOKEN = b"a token's secret"
RULE = rule_to_json(Rule(True, EVERYBODY, EVERYBODY, What.INBOUND))


def network(owner: int = 0) -> Roster:
    """A network of its owner alone."""
    return create_network(
        SECRETS[owner].reveal(),
        "home",
        "owner",
        wall=WALL,
        nonce=b"n" * 16,
        key_id="0" * 16,
        aux=bytes(32),
    )


def sign(roster: Roster, author: int, action: str, fields: Mapping[str, object]) -> Roster:
    """Sign on top of all that a roster knows; UserError if the author may not."""
    return roster.sign(SECRETS[author].reveal(), action, fields, wall=WALL + 1, aux=bytes(32))


def forge(
    roster: Roster,
    author: int,
    parents: Sequence[str],
    action: str,
    fields: Mapping[str, object],
) -> Event:
    """Sign with any predecessors, whatever the roster thinks of it."""
    secret = SECRETS[author].reveal()
    content = operation_content(roster.network_id, sorted(parents), action, fields)
    return sign_operation(secret, content, wall=WALL, aux=bytes(32)).event


def added(who: int, role: str = "member", **changes: object) -> dict[str, object]:
    """The fields that admit somebody."""
    return {
        "who": KEYS[who],
        "name": f"n{who}",
        "role": role,
        "tags": [],
        "owner": KEYS[who],
        "expires": None,
        "ephemeral": False,
    } | changes


def token_fields(uses: int = 2, secret: bytes = TOKEN) -> dict[str, object]:
    """The fields that make a token."""
    return {
        "id": token_id(secret),
        "signer": token_signer(secret),
        "mailbox": token_mailbox(secret).hex(),
        "uses": uses,
        "expires": WALL + 1000,
        "role": "member",
        "tags": [],
        "ephemeral": False,
    }


def admitted(roster: Roster, who: int, secret: bytes = TOKEN) -> dict[str, object]:
    """The fields that admit somebody by a token."""
    proof = prove(secret, roster.network_id, KEYS[who], bytes(32))
    return {"who": KEYS[who], "name": f"n{who}", "token": token_id(secret), "proof": proof}


def rotated(roster: Roster, author: int, who: int, to: int) -> dict[str, object]:
    """The fields that put a key in the place of another, with its agreement where that is needed."""
    proof = None
    if author == who:
        proof = agree_to_rotate(SECRETS[to].reveal(), roster.network_id, KEYS[who], bytes(32))
    return {"who": KEYS[who], "to": KEYS[to], "proof": proof}


def grown(*roles: str) -> Roster:
    """A network with a member of each role: person 1 has the first, and so on."""
    roster = network()
    for who, role in enumerate(roles, 1):
        roster = sign(roster, 0, "add", added(who, role))
    return roster


def all_of(roster: Roster) -> tuple[Any, ...]:
    """Everything that two nodes must agree on."""
    state = roster.folded.state
    return (
        roster.heads,
        [event.id for event in roster.log],
        list(roster.members.items()),
        dict(roster.former),
        dict(roster.tokens),
        roster.rules,
        roster.settings,
        roster.owner,
        (roster.key_id, roster.is_key_former),
        roster.equivocators,
        (state.effective, state.events, state.struck, state.rotated, state.named),
    )


people = st.integers(0, 6)
roles = st.sampled_from(["admin", "member", "guest"])
actions = st.one_of(
    st.tuples(st.just("add"), people, roles),
    st.tuples(st.just("remove"), people, st.sampled_from([None, "1" * 16, "2" * 16])),
    st.tuples(st.just("role"), people, roles),
    st.tuples(st.just("name"), people, st.sampled_from(["n1", "n2", "x"])),
    st.tuples(st.just("rotate"), people, st.integers(3, 9)),
    st.tuples(st.just("token"), people, st.integers(1, 2)),
    st.tuples(st.just("admit"), people, st.just(0)),
    st.tuples(st.just("token_revoke"), people, st.just(0)),
    st.tuples(st.just("permit"), people, st.booleans()),
    st.tuples(st.just("rekey"), people, st.just(0)),
)


def fields_of(
    roster: Roster, action: str, who: int, more: Any, author: int = 0
) -> dict[str, object]:
    """The fields of one of ``actions``."""
    match action:
        case "add":
            return added(who, more)
        case "remove":
            return {"who": KEYS[who], "key": more}
        case "role":
            return {"who": KEYS[who], "role": more, "expires": None}
        case "name":
            return {"who": KEYS[who], "name": more}
        case "rotate":
            return rotated(roster, author, who, more)
        case "token":
            return token_fields(more)
        case "admit":
            return admitted(roster, who)
        case "token_revoke":
            return {"id": token_id(TOKEN)}
        case "permit":
            return {"rule": RULE, "withdraw": more}
        case _:
            return {"key": "3" * 16}


@st.composite
def stories(draw: Any, length: int = 14) -> tuple[Roster, list[Event]]:
    """A network and what is signed on it: honestly on somebody's view, or with any predecessors."""
    start = grown("admin", "admin", "member")
    events = list(start.log[1:])
    views = [start, start, start]
    for _ in range(draw(st.integers(1, length))):
        author = draw(people)
        action, who, more = draw(actions)
        at = draw(st.integers(0, 2))
        fields = fields_of(start, action, who, more, author)
        if draw(st.integers(0, 3)):
            with contextlib.suppress(UserError):
                before = {event.id for event in views[at].log}
                views[at] = sign(views[at], author, action, fields)
                events += [event for event in views[at].log if event.id not in before]
        else:
            known = [start.log[0].id, *(event.id for event in events)]
            parents = draw(st.sets(st.sampled_from(known), min_size=1, max_size=3))
            events.append(forge(start, author, list(parents), action, fields))
        if not draw(st.integers(0, 3)):
            views[at] = merged(views[at], views[draw(st.integers(0, 2))].log)
    return network(), list({event.id: event for event in events}.values())


def merged(roster: Roster, events: Sequence[Event]) -> Roster:
    """Merge; what is refused as a whole changes nothing."""
    from nostrvpn.errors import PeerMisbehaved

    try:
        return roster.merge(events)
    except PeerMisbehaved:
        return roster
