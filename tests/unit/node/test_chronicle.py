"""The network's log in words: every operation has some, and what came to nothing says why."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.mesh.names import dns_label
from nostrvpn.mesh.operations import (
    _SHAPES,
    MAX_TIME,
    OPERATION_KIND,
    agree_to_rotate,
    operation_content,
    sign_operation,
)
from nostrvpn.mesh.roster import Roster, create_network
from nostrvpn.mesh.tokens import prove, token_id, token_mailbox, token_signer
from nostrvpn.node.chronicle import _WORDS, chronicle
from nostrvpn.nostr.event import sign_event

OWNER, ADMIN, PHONE, NEW, GUEST = (RootSecret(bytes([n]) * 32) for n in range(1, 6))
SECRET = b"\x07" * 16
WALL = 1_700_000_000.0


def founded() -> Roster:
    roster = create_network(
        OWNER.reveal(), "home", "laptop", nonce=bytes(16), key_id="0" * 16, wall=WALL, aux=bytes(32)
    )
    for who, name, role in ((ADMIN, "desk", "admin"), (PHONE, "phone", "member")):
        roster = signed(roster, OWNER, "add", **added(who, name, role))
    return roster


def added(who: RootSecret, name: str, role: str, **more: Any) -> dict[str, Any]:
    fields = {"who": who.public_key, "name": dns_label(name), "role": role, "tags": []}
    return fields | {"owner": who.public_key, "expires": None, "ephemeral": False} | more


def signed(
    roster: Roster, by: RootSecret, action: str, *, later: float = 0, **fields: Any
) -> Roster:
    return roster.sign(by.reveal(), action, fields, wall=WALL + later, aux=bytes(32))


def texts(roster: Roster) -> list[str]:
    return [str(entry["text"]) for entry in chronicle(roster, WALL)]


def test_every_kind_of_operation_has_words() -> None:
    assert set(_WORDS) == set(_SHAPES)


def test_each_is_told_as_it_was_meant() -> None:
    who: dict[str, object] = {"who": PHONE.public_key}
    token: dict[str, Any] = {
        "id": token_id(SECRET),
        "signer": token_signer(SECRET),
        "mailbox": token_mailbox(SECRET).hex(),
        "uses": 2,
        "expires": int(WALL) + 86_400,
        "role": "guest",
        "tags": [],
        "ephemeral": True,
    }
    roster = founded()
    agreed = agree_to_rotate(NEW.reveal(), roster.network_id, PHONE.public_key, bytes(32))
    steps: list[tuple[RootSecret, str, dict[str, Any], str]] = [
        (OWNER, "tag", who | {"tags": ["a", "b"]}, "tagged phone a, b"),
        (OWNER, "tag", who | {"tags": []}, "untagged phone"),
        (PHONE, "name", who | {"name": "phone"}, "named itself phone"),
        (
            OWNER,
            "role",
            who | {"role": "guest", "expires": int(WALL)},
            "made phone guest until 2023-11-14 22:13 UTC",
        ),
        (ADMIN, "routes", who | {"networks": ["10.1.0.0/16"]}, "approved 10.1.0.0/16 behind phone"),
        (ADMIN, "routes", who | {"networks": []}, "approved nothing behind phone"),
        (
            ADMIN,
            "token",
            token,
            f"made the token {token['id']}, good 2 times until 2023-11-15 22:13 UTC",
        ),
        (
            ADMIN,
            "admit",
            {
                "who": GUEST.public_key,
                "name": "vm",
                "token": token["id"],
                "proof": prove(SECRET, roster.network_id, GUEST.public_key, bytes(32)),
            },
            f"let vm in by the token {token['id']}",
        ),
        (ADMIN, "token_revoke", {"id": token["id"]}, f"ended the token {token['id']}"),
        (
            ADMIN,
            "settings",
            {"inbound": "all", "same_owner": False},
            "set inbound to all, same owner to off",
        ),
        (ADMIN, "rekey", {"key": "1" * 16}, "renewed the network's key"),
        (
            PHONE,
            "rotate",
            who | {"to": NEW.public_key, "proof": agreed},
            f"put the key {NEW.npub[:16]}… in the place of its own",
        ),
        (OWNER, "remove", {"who": NEW.public_key, "key": "2" * 16}, "removed phone"),
        (ADMIN, "remove", {"who": ADMIN.public_key, "key": None}, "left"),
    ]
    for by, action, fields, said in steps:
        roster = signed(roster, by, action, **fields)
        assert texts(roster)[-1] == said
    entries = chronicle(roster, WALL)
    assert {entry["void"] for entry in entries} == {None}
    assert entries[0]["text"] == "created the network home"
    assert entries[1]["text"] == "let desk in as admin"
    # Who is out is still called by its name.
    assert entries[-1]["author"] == {"npub": ADMIN.npub, "name": "desk"}
    assert entries[-1]["about"] == npub(ADMIN.public_key)


def test_an_invite_with_everything() -> None:
    more: dict[str, Any] = {"tags": ["a"], "owner": OWNER.public_key, "ephemeral": True}
    more["expires"] = int(WALL)
    roster = signed(founded(), OWNER, "add", **added(GUEST, "tv", "guest", **more))
    assert texts(roster)[-1] == (
        "let tv in as guest, tagged a, as a device of the same owner, until 2023-11-14 22:13 UTC, "
        "ephemeral"
    )


@pytest.mark.parametrize("expires", [MAX_TIME, 2**39, 2**40, 2**62])
def test_what_a_member_dates_beyond_all_calendars_breaks_no_telling(expires: int) -> None:
    roster = founded()
    member = signed(roster, ADMIN, "name", who=PHONE.public_key, name="x")
    fields = {"who": PHONE.public_key, "role": "guest", "expires": expires}
    content = operation_content(roster.network_id, member.heads, "role", fields)
    for created_at, text in ((int(WALL), content), (expires, content.replace(str(expires), "1"))):
        event = sign_event(
            PHONE.reveal(),
            kind=OPERATION_KIND,
            tags=(),
            content=text,
            created_at=created_at,
            aux=bytes(32),
        )
        with pytest.raises(PeerMisbehaved):
            member.merge([event])
    fields["expires"] = MAX_TIME - 1
    content = operation_content(roster.network_id, member.heads, "role", fields)
    last = sign_operation(PHONE.reveal(), content, wall=MAX_TIME - 1, aux=bytes(32))
    aside = member.merge([last.event])
    assert [entry["text"] for entry in chronicle(aside, WALL) if entry["void"]] == [
        "made itself guest until 9999-12-31 23:59 UTC"
    ]


@pytest.mark.parametrize("first", [True, False])
def test_what_was_done_by_who_was_just_removed_is_void(first: bool) -> None:
    roster = founded()
    late = signed(roster, ADMIN, "tag", later=5, who=PHONE.public_key, tags=["x"])
    gone = signed(roster, OWNER, "remove", later=9, who=ADMIN.public_key, key="3" * 16)
    both = late.merge(gone.log) if first else gone.merge(late.log)
    [void] = [entry for entry in chronicle(both, WALL) if entry["void"]]
    assert void["text"] == "tagged phone x"
    assert void["void"] == "desk was removed, or replaced, by somebody who did not know of it"
    # It stands where its date puts it: before the removal.
    assert texts(both)[-2:] == ["tagged phone x", "removed desk"]


def test_a_token_that_was_used_up_elsewhere() -> None:
    token: dict[str, Any] = {
        "id": token_id(SECRET),
        "signer": token_signer(SECRET),
        "mailbox": token_mailbox(SECRET).hex(),
        "uses": 1,
        "expires": int(WALL) + 86_400,
        "role": "member",
        "tags": [],
        "ephemeral": False,
    }
    roster = signed(founded(), OWNER, "token", **token)

    def admit(by: RootSecret, who: RootSecret, name: str) -> Roster:
        proof = prove(SECRET, roster.network_id, who.public_key, bytes(32))
        fields = {"who": who.public_key, "name": name, "token": token["id"], "proof": proof}
        return signed(roster, by, "admit", **fields)

    both = admit(ADMIN, NEW, "one").merge(admit(PHONE, GUEST, "two").log)
    [void] = [entry["void"] for entry in chronicle(both, WALL) if entry["void"]]
    assert void == "the token was revoked, or used up by others"
