"""PEER arguments mean one peer, or are refused."""

from __future__ import annotations

import pytest

from nostrvpn.identity.keys import BadKey, RootSecret, npub
from nostrvpn.identity.reference import UnknownPeer, find_peer

KEYS = [RootSecret(bytes([i] * 32)).public_key for i in range(1, 60)]
PEERS = {key: f"node-{i}" for i, key in enumerate(KEYS)} | {KEYS[0]: "laptop", KEYS[1]: ""}


@pytest.mark.parametrize("reference", ["laptop", "LapTop", " laptop "])
def test_names(reference: str) -> None:
    assert find_peer(reference, PEERS) == KEYS[0]


def test_npubs_and_their_beginnings() -> None:
    whole = npub(KEYS[1])
    assert find_peer(whole, PEERS) == KEYS[1]
    assert find_peer(whole[:20], PEERS) == KEYS[1]
    assert find_peer(whole[5:20], PEERS) == KEYS[1]


def test_a_name_goes_before_an_npub() -> None:
    beginning = npub(KEYS[3])[5:9]
    assert find_peer(beginning, PEERS | {KEYS[4]: beginning}) == KEYS[4]


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("nobody", "no peer is called"),
        ("", "too short"),
        ("npub1", "too short"),
        (npub(RootSecret(b"\x77" * 32).public_key), "not a peer"),
    ],
)
def test_unknown(reference: str, reason: str) -> None:
    with pytest.raises(UnknownPeer, match=reason):
        find_peer(reference, PEERS)


def test_ambiguous() -> None:
    shared = next(
        letter
        for letter in "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
        if sum(npub(key)[5] == letter for key in KEYS) > 1
    )
    with pytest.raises(UnknownPeer, match="peers begin with"):
        find_peer(shared, PEERS)
    with pytest.raises(UnknownPeer, match="2 peers are named"):
        find_peer("twin", PEERS | {KEYS[5]: "twin", KEYS[6]: "twin"})


def test_a_mistyped_npub() -> None:
    whole = npub(KEYS[1])
    with pytest.raises(BadKey, match="checksum"):
        find_peer(whole[:-1] + ("q" if whole[-1] != "q" else "p"), PEERS)
