"""The state that operations build up, one after the other: what each of them changes.

Whether an operation may have its effect at all is decided before (``authority.py``); here it has it.
Names and host numbers are settled so that nobody takes another's by signing with an old place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from nostrvpn.mesh.addressing import ipv4_host
from nostrvpn.mesh.history import members_of
from nostrvpn.mesh.members import Member, NetworkSettings, Role, Token
from nostrvpn.mesh.names import free_label
from nostrvpn.mesh.operations import Operation
from nostrvpn.mesh.permissions import Rule, parse_rule
from nostrvpn.nostr.event import encode_json

__all__ = ["Around", "State", "Struck", "apply", "is_counted", "labels"]

_CONTESTED = ""  # stands for the holder of a host number that nobody may hold
# Below everybody who admits: a key that an admin put in another's place, and that agreed to nothing.
_UNASKED = -1


@dataclass
class Struck:
    """The effective operations that may void what is concurrent with them: sets by what they strike."""

    reduced: dict[str, int] = field(default_factory=dict)  # by key: removed, rotated away, demoted
    removed: dict[str, int] = field(default_factory=dict)  # by key: removed only
    rotated_to: dict[str, int] = field(default_factory=dict)  # by new key, that agreed
    revoked: dict[str, int] = field(default_factory=dict)  # by token
    own: dict[str, int] = field(default_factory=dict)  # by key: what it did to itself

    def copy(self) -> Struck:
        """Return a copy that can be changed alone."""
        return Struck(*(dict(sets) for sets in self._sets()))

    def _sets(self) -> tuple[dict[str, int], ...]:
        return (self.reduced, self.removed, self.rotated_to, self.revoked, self.own)


@dataclass
class State:
    """What holds after some operations. Keys of ``after`` are (public key, place of the operation)."""

    network_id: str = ""
    owner: str = ""
    settings: NetworkSettings = field(default_factory=lambda: NetworkSettings(""))
    members: dict[str, Member] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)  # of everybody ever admitted
    holders: dict[int, str] = field(default_factory=dict)
    admitted_at: dict[str, int] = field(default_factory=dict)  # key -> place of its first admission
    weights: dict[str, int] = field(default_factory=dict)  # key -> rank of who admitted it
    rotated: set[str] = field(default_factory=set)
    stand_ins: dict[str, str] = field(default_factory=dict)  # new key that was not asked -> old key
    named: dict[str, tuple[bool, int]] = field(default_factory=dict)  # (by itself, place)
    tokens: dict[str, Token] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)  # token -> the operation that made it
    rules: dict[str, Rule] = field(default_factory=dict)
    key_id: str = ""
    key_place: int = 0
    keys: dict[str, str] = field(default_factory=dict)  # id -> who made it, of every network key
    removals: int = 0
    effective: int = 0
    events: dict[str, int] = field(default_factory=dict)  # key -> operations about its standing
    after: dict[tuple[str, int], Role | None] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)  # operations of those who are no admins
    struck: Struck = field(default_factory=Struck)

    def copy(self) -> State:
        """Return a copy that can be changed alone."""
        return replace(
            self,
            members=dict(self.members),
            keys=dict(self.keys),
            hosts=dict(self.hosts),
            holders=dict(self.holders),
            admitted_at=dict(self.admitted_at),
            weights=dict(self.weights),
            rotated=set(self.rotated),
            stand_ins=dict(self.stand_ins),
            named=dict(self.named),
            tokens=dict(self.tokens),
            made=dict(self.made),
            rules=dict(self.rules),
            events=dict(self.events),
            after=dict(self.after),
            written=dict(self.written),
            struck=self.struck.copy(),
        )


@dataclass(frozen=True, slots=True)
class Around:
    """What surrounds an operation: the sets of its ancestors and of what is concurrent with it.

    ``lowers``: it takes a role away that its author knew of; ``is_free``: by all that is concurrent, a
    new key may be put in somebody's place without its agreement.
    """

    before: int
    beside: int
    lowers: bool
    is_free: bool


def apply(state: State, operation: Operation, place: int, around: Around) -> None:
    """Let an operation have its effect."""
    bit, fields, who = 1 << place, operation.fields, operation.who
    state.effective |= bit
    if is_counted(state, operation):
        state.written[operation.author] = state.written.get(operation.author, 0) + 1
    match operation.action:
        case "create":
            _create(state, operation, place)
        case "add" | "admit":
            _admit(state, operation, place, around)
        case "remove":
            state.members.pop(who, None)  # somebody else may have been faster
            state.removals |= bit
            _standing(state, who, place, None)
            _strike(state.struck.reduced, who, bit)
            _strike(state.struck.removed, who, bit)
            if operation.author == who:
                _strike(state.struck.own, who, bit)
            if fields["key"] is not None:
                _use_key(state, operation, place)
        case "role":
            _change_role(state, operation, place, around)
        case "name":
            state.members[who] = replace(state.members[who], name=fields["name"])
            state.named[who] = (_is_own_choice(state, operation), place)
        case "tag":
            tags = frozenset(fields["tags"])
            state.members[who] = replace(state.members[who], tags=tags)
        case "routes":
            routes = frozenset(ip_network(text) for text in fields["networks"])
            state.members[who] = replace(state.members[who], routes=routes)
        case "rotate":
            _rotate(state, operation, place, around)
        case "permit":
            text = encode_json(fields["rule"])
            state.rules.pop(text, None)
            if not fields["withdraw"]:
                state.rules[text] = parse_rule(fields["rule"])
        case "token":
            state.tokens[fields["id"]] = _token(fields)
            state.made[fields["id"]] = bit
        case "token_revoke":
            state.tokens[fields["id"]] = replace(state.tokens[fields["id"]], revoked=True)
            _strike(state.struck.revoked, fields["id"], bit)
        case "settings":
            state.settings = replace(state.settings, **fields)
        case "rekey":
            _use_key(state, operation, place)


def is_counted(state: State, operation: Operation) -> bool:
    """Whether this is one of the few operations that a member who is no admin may add to the log.

    Not counted is what is bounded otherwise: to leave, and to admit by a token who is not in already.
    """
    author = state.members.get(operation.author)
    if author is None or author.role.rank >= Role.ADMIN.rank:
        return False
    if operation.action == "admit":
        return operation.who in state.members
    return operation.action != "remove"


def labels(state: State) -> dict[str, str]:
    """Return the name of each member: who comes later gets ``-2``, ``-3`` … added.

    Names given by admins come first, so that a member who renames itself never takes one of them.
    """
    taken: dict[str, str] = {}
    for key in sorted(state.members, key=lambda key: (*state.named[key], key)):
        taken[free_label(state.members[key].name, taken)] = key
    return {key: label for label, key in taken.items()}


def _use_key(state: State, operation: Operation, place: int) -> None:
    state.key_id, state.key_place = operation.fields["key"], place
    state.keys[state.key_id] = operation.author


def _create(state: State, operation: Operation, place: int) -> None:
    author, fields = operation.author, operation.fields
    state.network_id, state.owner = operation.id, author
    state.settings = NetworkSettings(fields["name"])
    _use_key(state, operation, place)
    host = _take_host(state, author, place, 0)
    state.members[author] = Member(
        author,
        fields["who_name"],
        Role.OWNER,
        frozenset(),
        author,
        None,
        False,
        host,
        frozenset(),
    )
    state.named[author], state.weights[author] = (False, place), Role.OWNER.rank
    _standing(state, author, place, Role.OWNER)


def _admit(state: State, operation: Operation, place: int, around: Around) -> None:
    fields, who = operation.fields, operation.who
    known = state.members.get(who)
    if operation.action == "admit":
        weight, role = 0, state.tokens[fields["token"]].role
    else:
        weight, role = state.members[operation.author].role.rank, Role(fields["role"])
    if known is not None:
        # Admitted twice at the same time: as those with the higher standing said, or else the first.
        beside = state.events[who] & around.beside
        lowered = state.struck.reduced.get(who, 0) & around.beside
        if weight <= state.weights[who] or lowered:
            _standing(state, who, place, known.role)
            return
        for other in members_of(beside):
            if state.after[who, other] is not None:
                state.after[who, other] = role
        _give_back(state, who)
    state.stand_ins.pop(who, None)
    state.weights[who] = weight
    if operation.action == "admit":
        token = state.tokens[fields["token"]]
        state.tokens[token.id] = replace(token, used=token.used + 1)
        tags, principal, expires, ephemeral = token.tags, who, None, token.ephemeral
    else:
        tags, principal = frozenset(fields["tags"]), fields["owner"]
        expires, ephemeral = fields["expires"], fields["ephemeral"]
    host = state.hosts.get(who)
    if host is None:
        host = _take_host(state, who, place, around.before)
    state.members[who] = Member(
        who, fields["name"], role, tags, principal, expires, ephemeral, host, frozenset()
    )
    state.named[who] = (operation.action == "admit", place)
    _standing(state, who, place, role)


def _change_role(state: State, operation: Operation, place: int, around: Around) -> None:
    who, role = operation.who, Role(operation.fields["role"])
    if around.lowers:
        _strike(state.struck.reduced, who, 1 << place)
    _standing(state, who, place, role)
    # Of roles given at the same time the lowest holds.
    for other in members_of(state.events[who] & around.beside):
        given = state.after[who, other]
        if given is not None and given.rank < role.rank:
            role = given
    member, expires = state.members[who], operation.fields["expires"]
    state.members[who] = replace(member, role=role, expires=expires)


def _rotate(state: State, operation: Operation, place: int, around: Around) -> None:
    """The old key is out. The new one takes its place, unless it has one and was not asked."""
    who, to = operation.who, operation.fields["to"]
    is_agreed = operation.author == who
    member = state.members.pop(who, None)  # somebody else may have been faster
    state.rotated.add(who)
    state.removals |= 1 << place
    _standing(state, who, place, None)
    _strike(state.struck.reduced, who, 1 << place)
    if is_agreed:
        _strike(state.struck.own, who, 1 << place)
        _strike(state.struck.rotated_to, to, 1 << place)
    if member is None or not (is_agreed or (around.is_free and to not in state.hosts)):
        return
    if who == state.owner:
        state.owner = to
    _give_back(state, to)
    if to in state.hosts and state.holders.get(state.hosts[to]) == to:
        del state.holders[state.hosts[to]]
    if not is_agreed:
        state.stand_ins[to] = who
    state.hosts[to] = member.host
    state.holders[member.host] = to
    state.admitted_at[to] = state.admitted_at[who]
    state.named[to] = state.named[who]
    state.weights[to] = state.weights[who] if is_agreed else _UNASKED
    state.written[to] = max(state.written.get(to, 0), state.written.get(who, 0))
    state.members[to] = replace(member, public_key=to)
    _standing(state, to, place, member.role)


def _give_back(state: State, key: str) -> None:
    """Take from a key the number that it had in somebody's place without having agreed."""
    old = state.stand_ins.pop(key, None)
    if old is None:
        return
    number = state.hosts.pop(key)
    if state.holders.get(number) == key:
        del state.holders[number]
        if state.hosts[old] == number:
            state.holders[number] = old


def _take_host(state: State, key: str, place: int, before: int) -> int:
    """Give a key its host number: hashed, or the next that is free.

    Two keys of one hash, admitted by people who did not know of each other, both give way: if the
    earlier in order had it, who signs with an old place could take over an address in use.
    """
    host = ipv4_host(state.network_id, key, frozenset())
    holder = state.holders.get(host, _CONTESTED)
    if holder != _CONTESTED and not before >> state.admitted_at[holder] & 1:
        state.holders[host] = _CONTESTED
        state.admitted_at[key] = place
        _move_host(state, holder)
    _settle(state, key, ipv4_host(state.network_id, key, state.holders))
    state.admitted_at[key] = place
    return state.hosts[key]


def _move_host(state: State, key: str) -> None:
    _settle(state, key, ipv4_host(state.network_id, key, state.holders))
    if key in state.members:
        state.members[key] = replace(state.members[key], host=state.hosts[key])


def _settle(state: State, key: str, host: int) -> None:
    state.hosts[key] = host
    state.holders[host] = key


def _is_own_choice(state: State, operation: Operation) -> bool:
    author = state.members[operation.author]
    return operation.author == operation.who and author.role.rank < Role.ADMIN.rank


def _token(fields: Mapping[str, object]) -> Token:
    given = dict(fields)
    given["mailbox"] = bytes.fromhex(str(given["mailbox"]))
    given["role"] = Role(given["role"])
    given["tags"] = frozenset(given["tags"])  # type: ignore[call-overload]
    return Token(**given, used=0, revoked=False)  # type: ignore[arg-type]


def _standing(state: State, key: str, place: int, role: Role | None) -> None:
    state.events[key] = state.events.get(key, 0) | 1 << place
    state.after[key, place] = role


def _strike(sets: dict[str, int], key: str, bit: int) -> None:
    sets[key] = sets.get(key, 0) | bit
