"""What a daemon does when the identity is another than in its last run."""

from __future__ import annotations

from pathlib import Path

import pytest

from nostrvpn.daemon.main import _forget_other_identity, _stored_epoch
from nostrvpn.io.store import Record, Store

KEPT = [
    Record("network", "a" * 64, {"id": "a"}),
    Record("keys", "ring", [1]),
    Record("meta", "listen_port", 23_456),
    Record("peer", "b", {"wg": "x"}),
    Record("policy", "local", {}),
]
SHARED = [
    Record("keys", "pair/b", "secret"),
    Record("keys", "joining", "secret"),
    Record("invite", "i", {}),
    Record("join", "link", "nostrvpn://"),
    Record("session", "b", {}),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.open(str(tmp_path / "state.db"))
    made.put(KEPT + SHARED)
    return made


def found(store: Store) -> set[tuple[str, str]]:
    spaces = {record.space for record in KEPT + SHARED}
    return {(space, key) for space in spaces for key in store.all(space)} - {("meta", "public_key")}


def test_a_new_identity_keeps_the_membership_and_drops_what_was_shared(store: Store) -> None:
    everything = found(store)
    _forget_other_identity(store, "old")
    assert found(store) == everything  # the first run that knows
    _forget_other_identity(store, "old")
    assert found(store) == everything
    _forget_other_identity(store, "new")
    assert found(store) == {(record.space, record.key) for record in KEPT}
    store.put(SHARED)
    _forget_other_identity(store, "new")
    assert found(store) == everything


@pytest.mark.parametrize(("stored", "epoch"), [(3, 3), (0, 0), (-1, 0), ("x", 0), (1 << 31, 0)])
def test_a_damaged_epoch_is_the_first(store: Store, stored: object, epoch: int) -> None:
    assert _stored_epoch(store) == 0
    store.put([Record("meta", "wireguard_epoch", stored)])
    assert _stored_epoch(store) == epoch
