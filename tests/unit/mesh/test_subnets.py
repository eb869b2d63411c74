"""Which networks may be shared, and what a user's choices about them come to."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved, UsageError
from nostrvpn.mesh.subnets import (
    MAX_ADVERTISED,
    MAX_CHOICES,
    Choice,
    IPNetwork,
    SubnetSettings,
    covering_route,
    objection,
    parse_advertised,
    parse_subnet,
)

OVERLAY = (ip_network("10.77.0.0/16"), ip_network("fdaa:bbbb:cccc::/48"))
A, B = "aa" * 32, "bb" * 32
LAN, HALF, WIDE = map(ip_network, ("192.168.5.0/24", "192.168.5.0/25", "192.168.0.0/16"))


def networks(version: int) -> st.SearchStrategy[IPNetwork]:
    bits = 32 if version == 4 else 128

    def made(number: int, length: int) -> IPNetwork:
        return ip_network((number >> (bits - length) << (bits - length), length))

    return st.builds(made, st.integers(0, (1 << bits) - 1), st.integers(0, bits))


ANY = st.one_of(networks(4), networks(6))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0/0", "exits"),
        ("::/0", "exits"),
        ("127.0.0.0/8", "loopback"),
        ("::1/128", "loopback"),
        ("169.254.7.0/24", "link-local"),
        ("fe80::/64", "link-local"),
        ("224.0.0.0/24", "multicast"),
        ("ff02::/16", "multicast"),
        ("240.0.0.0/24", "no host"),
        ("::ffff:10.0.0.0/104", "no host"),
        ("16.0.0.0/5", "too wide"),
        ("2000::/3", "too wide"),
        ("10.0.0.0/8", "members' own"),
        ("10.77.3.0/24", "members' own"),
        ("fdaa:bbbb:cccc:1::/64", "members' own"),
    ],
)
def test_what_nobody_may_share(text: str, words: str) -> None:
    assert words in (objection(ip_network(text), OVERLAY) or "")


@pytest.mark.parametrize(
    "text",
    ["192.168.5.0/24", "10.0.0.0/10", "172.16.0.0/12", "8.8.8.8/32", "fd12::/48", "2001:db8::/32"],
)
def test_what_may_be_shared(text: str) -> None:
    assert objection(ip_network(text), OVERLAY) is None


@given(ANY)
def test_what_passes_touches_nothing_of_the_overlay_and_is_not_half_the_internet(
    network: IPNetwork,
) -> None:
    if objection(network, OVERLAY) is None:
        assert not any(p.version == network.version and p.overlaps(network) for p in OVERLAY)
        assert network.prefixlen >= (8 if network.version == 4 else 16)
        assert not network.is_loopback
        assert not network.is_link_local
        assert not network.is_multicast


@pytest.mark.parametrize(
    "text", ["", "x", "192.168.5.0/33", "192.168.5.1/24", "\x1b[2J", "1.2.3.4/a"]
)
def test_a_network_that_is_none_is_explained(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_subnet(text)
    assert caught.value.hint
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "x",
        5,
        {},
        [5],
        [None],
        ["x"],
        ["192.168.5.1/24"],
        ["9" * 50],
        ["192.168.5.0/24"] * (MAX_ADVERTISED + 1),
    ],
)
def test_a_bad_list_of_a_peer_is_misbehaviour(value: Any) -> None:
    with pytest.raises(PeerMisbehaved):
        parse_advertised(value)


def test_a_peers_list_is_sorted_and_without_what_nobody_may_share() -> None:
    given_list = ["fd12::/48", "0.0.0.0/0", "192.168.5.0/24", "192.168.5.0/24", "127.0.0.0/8"]
    assert parse_advertised(given_list) == (LAN, ip_network("fd12::/48"))
    assert parse_advertised(None) == parse_advertised([]) == ()


@given(ANY, st.lists(ANY, max_size=6))
def test_only_an_equal_or_wider_route_is_hidden(
    network: IPNetwork, routes: list[IPNetwork]
) -> None:
    found = covering_route(network, routes)
    hidden = [
        r
        for r in routes
        if r.version == network.version
        and r.prefixlen > 0
        and int(r.network_address) <= int(network.network_address)
        and int(r.broadcast_address) >= int(network.broadcast_address)
    ]
    assert (found is None) == (not hidden)
    if found is not None:
        assert found.prefixlen == max(r.prefixlen for r in hidden)


def settings(*choices: Choice) -> SubnetSettings:
    made = SubnetSettings()
    for choice in choices:
        made = made.choosing(choice)
    return made


def takes(chosen: SubnetSettings, router: str, network: IPNetwork) -> bool:
    choice = chosen.choice_about(router, network)
    return choice is not None and choice.accept


def test_nothing_is_accepted_that_nobody_accepted() -> None:
    assert not takes(SubnetSettings(), A, LAN)
    assert settings(Choice("", None, False), Choice(A, LAN, False)).choices == ()


def test_narrower_choices_beat_wider_ones_and_crossing_ones_refuse() -> None:
    chosen = settings(Choice("", None, True), Choice(A, None, False))
    assert takes(chosen, B, LAN)
    assert not takes(chosen, A, LAN)
    chosen = chosen.choosing(Choice("", LAN, True))
    assert takes(chosen, B, LAN)
    assert not takes(chosen, A, LAN)
    chosen = chosen.choosing(Choice(A, LAN, True))
    assert takes(chosen, A, LAN)
    assert takes(chosen, A, HALF)
    assert not takes(chosen, A, WIDE)


def test_a_wider_choice_ends_the_narrower_ones_before_it() -> None:
    chosen = settings(Choice(A, LAN, True), Choice(B, None, True), Choice("", None, False))
    assert chosen.choices == ()
    chosen = settings(Choice(A, LAN, False), Choice(A, WIDE, True))
    assert [choice.network for choice in chosen.choices] == [WIDE]


CHOICES = st.builds(
    Choice,
    st.sampled_from(["", A, B]),
    st.sampled_from([None, WIDE, LAN, HALF]),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(CHOICES, max_size=12))
def test_the_last_word_about_something_holds_for_exactly_that(choices: list[Choice]) -> None:
    chosen = settings(*choices)
    if choices:
        last = choices[-1]
        for router in [last.who] if last.who else [A, B]:
            about = chosen.choice_about(router, last.network or LAN)
            if not last.accept:
                assert about is None or not about.accept
        if last.accept and last.who and last.network is not None:
            assert takes(chosen, last.who, last.network)


@given(st.lists(CHOICES, max_size=12), st.lists(st.sampled_from([WIDE, LAN, HALF])), st.booleans())
def test_settings_survive_being_stored(
    choices: list[Choice], shared: list[IPNetwork], snat: bool
) -> None:
    made = settings(*choices).advertising(shared, withdraw=False)
    made = SubnetSettings(made.advertised, snat, made.choices)
    assert SubnetSettings.from_json(made.to_json()) == made


GOOD = {"advertised": [], "snat": True, "choices": []}
CHOICE = {"who": "", "network": None, "accept": True, "force": False}


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        GOOD | {"snat": 1},
        GOOD | {"choices": None},
        GOOD | {"choices": [CHOICE] * (MAX_CHOICES + 1)},
        *(
            GOOD | {"choices": [CHOICE | bad]}
            for bad in (
                {"who": "zz"},
                {"who": "aa"},
                {"who": 5},
                {"network": "x"},
                {"network": 5},
                {"accept": None},
                {"force": "no"},
            )
        ),
        GOOD | {"choices": ["x"]},
        GOOD | {"advertised": ["x"]},
    ],
)
def test_a_damaged_record_is_noticed(stored: Any) -> None:
    with pytest.raises(PeerMisbehaved):
        SubnetSettings.from_json(stored)


def test_what_is_shared_and_chosen_is_bounded() -> None:
    many = [ip_network(f"192.168.{number}.0/24") for number in range(MAX_ADVERTISED + 1)]
    with pytest.raises(UsageError):
        SubnetSettings().advertising(many, withdraw=False)
    full = SubnetSettings().advertising(many[1:], withdraw=False)
    assert full.advertising(many[1:2], withdraw=True).advertised == tuple(many[2:])
    chosen = SubnetSettings()
    for number in range(MAX_CHOICES):
        chosen = chosen.choosing(Choice("", ip_network((number << 16, 24)), True))
    with pytest.raises(UsageError):
        chosen.choosing(Choice("", LAN, True))
