"""Which state holds, for every combination of what decides it; and what is stored of it."""

from __future__ import annotations

import itertools

import pytest

from nostrvpn.errors import PeerMisbehaved, UsageError
from nostrvpn.exits.kill_switch import ExitState, KillSwitch, exit_state
from nostrvpn.exits.settings import (
    MAX_BYPASS,
    BypassKind,
    ExitSettings,
    parse_bypass,
    parse_network_word,
    parse_resolver,
)

SETTINGS = ExitSettings(
    "ab" * 32,
    KillSwitch.LOCKDOWN,
    True,
    "9.9.9.9",
    ("203.0.113.0/24", "example.org", "uid:1000", "cgroup:user.slice/a.service"),
    ("aa:bb:cc:dd:ee:ff 192.168.1.0/24",),
)


@pytest.mark.parametrize("kill_switch", KillSwitch)
@pytest.mark.parametrize(
    ("wanted", "possible", "carries"), list(itertools.product([True, False], repeat=3))
)
def test_the_state_follows_from_what_is_wanted_possible_and_measured(
    kill_switch: KillSwitch, wanted: bool, possible: bool, carries: bool
) -> None:
    state = exit_state(kill_switch, wanted=wanted, possible=possible, carries=carries)
    if not wanted:
        locked = kill_switch is KillSwitch.LOCKDOWN
        assert state is (ExitState.LOCKDOWN if locked else ExitState.OFF)
    elif not possible:
        assert state is ExitState.BLOCKED
    else:
        assert state is (ExitState.CONNECTED if carries else ExitState.CONNECTING)
    damaged = exit_state(
        kill_switch, wanted=wanted, possible=possible, carries=carries, damaged=True
    )
    assert damaged is ExitState.BLOCKED


def test_what_was_decided_is_stored_and_comes_back() -> None:
    assert ExitSettings.from_json(SETTINGS.to_json()) == SETTINGS
    assert ExitSettings.from_json(ExitSettings().to_json()).is_default
    assert not SETTINGS.is_default


@pytest.mark.parametrize(
    "damage",
    [
        {"exit": "somebody"},
        {"exit": None},
        {"kill_switch": "perhaps"},
        {"kill_switch": ["on"]},
        {"allow_lan": 1},
        {"resolver": "127.0.0.1"},
        {"resolver": 9},
        {"bypass": ["uid:x"]},
        {"bypass": "uid:1"},
        {"bypass": ["uid:1"] * (MAX_BYPASS + 1)},
        {"trusted": ["home"]},
        {"trusted": [7]},
    ],
)
def test_a_damaged_record_is_said_to_be_one(damage: dict[str, object]) -> None:
    with pytest.raises(PeerMisbehaved):
        ExitSettings.from_json(SETTINGS.to_json() | damage)


@pytest.mark.parametrize("stored", [None, [], "lost with the state database", 3, {}])
def test_what_is_no_record_is_damaged_too(stored: object) -> None:
    with pytest.raises(PeerMisbehaved):
        ExitSettings.from_json(stored)


@pytest.mark.parametrize(
    ("word", "kind", "spelled"),
    [
        ("203.0.113.7", BypassKind.NETWORK, "203.0.113.7/32"),
        ("203.0.113.7/24", BypassKind.NETWORK, "203.0.113.0/24"),
        ("2001:DB8::/32", BypassKind.NETWORK, "2001:db8::/32"),
        ("Example.ORG.", BypassKind.DOMAIN, "example.org"),
        ("uid:1000", BypassKind.UID, "uid:1000"),
        ("uid:1000-1999", BypassKind.UID, "uid:1000-1999"),
        ("cgroup:/user.slice/a.service", BypassKind.CGROUP, "cgroup:user.slice/a.service"),
    ],
)
def test_each_word_of_a_bypass_has_one_meaning_and_one_spelling(
    word: str, kind: BypassKind, spelled: str
) -> None:
    parsed = parse_bypass(word)
    assert parsed.kind is kind
    assert str(parsed) == spelled
    assert parse_bypass(spelled) == parsed


@pytest.mark.parametrize(
    "word",
    [
        *(
            "0.0.0.0/0",
            "::/0",
            "uid:",
            "uid:2-1",
            "uid:4294967295",
            "uid:-1",
            "cgroup:",
            "cgroup:/",
        ),
        *("cgroup:a/../b", "cgroup:a b", 'cgroup:a"b', "localhost", "1.2.3", "a..b", "", "x" * 400),
        *("exa mple.org", "example.org; drop", "-a.org", "{ 1.1.1.1 }"),
    ],
)
def test_a_word_that_means_nothing_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        parse_bypass(word)


@pytest.mark.parametrize("text", ["", "dns.example", "127.0.0.1", "::1", "224.0.0.251", "0.0.0.0"])
def test_a_resolver_is_an_address_that_can_be_one(text: str) -> None:
    with pytest.raises(UsageError):
        parse_resolver(text)


def test_a_network_is_its_gateways_hardware_address_and_a_prefix() -> None:
    word = parse_network_word(" AA:BB:CC:DD:EE:FF 192.168.1.7/24")
    assert word == "aa:bb:cc:dd:ee:ff 192.168.1.0/24"
    for bad in ("192.168.1.0/24", "aa:bb:cc:dd:ee:ff", "aa:bb:cc:dd:ee 10.0.0.0/8", "x y z"):
        with pytest.raises(UsageError):
            parse_network_word(bad)
