"""Names of networks on a host, their interfaces, and settings laid over the node's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.config.model import INTERFACE_PATTERN
from nostrvpn.config.names import MAX_PROFILE, check_profile
from nostrvpn.config.options import FIRST, Options
from nostrvpn.config.parse import ConfigError, parse_config
from nostrvpn.config.profiles import first_overlay, free_interface, free_profile, laid_over

# The longest path of a Unix socket on Linux, with the ".new" under which it is made.
SOCKET_PATH = 107


@given(st.text(max_size=200), st.sets(st.sampled_from(["a", "work", "network", "network-2"])))
def test_any_text_becomes_a_free_name(text: str, taken: set[str]) -> None:
    found = free_profile(text, taken)
    assert check_profile(found) == found
    assert found not in taken
    if text == found:
        return
    with pytest.raises(ValueError, match="not a name for a network"):
        check_profile(text) if text not in taken else check_profile("")


@given(st.text(max_size=64))
def test_what_is_a_name_is_one_directory_and_no_more(text: str) -> None:
    try:
        name = check_profile(text)
    except ValueError:
        return
    assert "/" not in name
    assert name not in (".", "..", "")
    options = Options().of_network(name)
    assert len(f"{options.control_socket}.new") <= SOCKET_PATH
    assert options.home.startswith(options.state_dir)


@pytest.mark.parametrize(
    "text", ["", "-a", "a-", "a b", "a/b", "..", "Work", "é", "a" * (MAX_PROFILE + 1), "a\n", "a.b"]
)
def test_odd_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a name for a network"):
        check_profile(text)


def test_names_that_are_taken_are_numbered() -> None:
    assert free_profile("Work!", ()) == "work"
    assert free_profile("work", {"work", "work-2"}) == "work-3"
    assert free_profile("a" * 40, {"a" * 32}) == "a" * 30 + "-2"
    assert free_profile("🦤", ()) == "network"


@given(
    st.from_regex(INTERFACE_PATTERN, fullmatch=True).filter(str.isprintable),
    st.sets(st.sampled_from(["nvpn1", "nvpn2", "a1"])),
)
def test_every_network_gets_an_interface_of_its_own(first: str, taken: set[str]) -> None:
    found = free_interface(first, taken)
    assert found != first
    assert found not in taken
    assert parse_config(first_overlay(found)).wireguard.interface == found


def test_interfaces_are_counted_on() -> None:
    assert free_interface("nvpn0", ()) == "nvpn1"
    assert free_interface("nvpn1", ()) == "nvpn2"
    assert free_interface("nvpn0", {f"nvpn{n}" for n in range(1, 12)}) == "nvpn12"
    assert free_interface("abcdefghijklmno", {"abcdefghijklmn1"}) == "abcdefghijklmn2"


def test_the_first_network_lives_where_a_single_one_did() -> None:
    options = Options("/s", "/r", "/c", "if0")
    assert options.network == FIRST
    assert options.is_first
    assert (options.home, options.overlay) == ("/s", None)
    assert options.control_socket == "/r/control.sock"
    work = options.of_network("work")
    assert work.home == "/s/networks/work"
    assert work.store_path == "/s/networks/work/state.db"
    assert work.control_socket == "/r/networks/work/control.sock"
    assert work.overlay == "/s/networks/work/config.yaml"
    config = parse_config("wireguard: {interface: nvpn1}")
    assert (options.interface_name(config), work.interface_name(config)) == ("if0", "nvpn1")


def test_settings_are_laid_over_the_nodes() -> None:
    node = "name: laptop\nwireguard: {mtu: 1400, listen_port: 51820}\nstun: ['a.example:1']\n"
    found = laid_over(node, "node", "wireguard: {interface: nvpn1, listen_port: 0}\n", "own")
    assert found.name == "laptop"
    assert found.stun == ("a.example:1",)
    wireguard = found.wireguard
    assert (wireguard.interface, wireguard.listen_port, wireguard.mtu) == ("nvpn1", 0, 1400)
    assert laid_over("", "node", "", "own") == parse_config("")
    assert laid_over(node, "node", "stun: ['b.example:2']", "own").stun == ("b.example:2",)


def test_a_relay_serves_the_first_network_only() -> None:
    node = "relay: {offer: anyone, websocket: {listen: '0.0.0.0:443'}}"
    relay = laid_over(node, "node", first_overlay("nvpn1"), "own").relay
    assert relay.offer == "none"
    assert not relay.websocket.listen


@pytest.mark.parametrize(
    ("node", "own", "said"),
    [
        ("mtu: 1\n", "", "node line 1: mtu: there is no such key"),
        ("", "a: [", "own line"),
        ("", "- a\n", "own: expected 'key: value' lines"),
        ("", "wireguard: {mtu: 5}", "own line 1: wireguard.mtu"),
        ("relay: {pairs: 500}", "relay: {ports: '33000-33009'}", "33000-33009"),
    ],
)
def test_a_mistake_is_told_with_its_file(node: str, own: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        laid_over(node, "node", own, "own")
    assert said in str(caught.value)
