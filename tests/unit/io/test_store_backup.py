"""The backup follows each change at the cost of the change, and is never behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from nostrvpn.io.store import Record, Store
from nostrvpn.io.store_backup import backup_path, read_backup

SPACES = frozenset({"lease"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "market.db"


def restored(path: Path) -> dict[str, object]:
    """What a daemon finds that lost the database itself."""
    for suffix in ("", "-wal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    store = Store.open(str(path), SPACES)
    try:
        assert store.restored
        return store.all("lease")
    finally:
        store.close()


def test_each_change_is_in_the_backup_and_nothing_else(path: Path) -> None:
    store = Store.open(str(path), SPACES)
    store.put([Record("lease", f"{number}", number) for number in range(500)])
    begun = backup_path(path).read_bytes()
    for number in range(100):
        store.put([Record("lease", f"{number}", "new"), Record("cache", "x", "y" * 900)])
    store.delete("lease", "499")
    store.put([Record("lease", "two", 1), Record("lease", "two", 2)])
    store.close()
    followed = backup_path(path).read_bytes()
    assert followed.startswith(begun)  # added to, not written anew
    assert len(followed) - len(begun) < 102 * 200
    expected = {f"{n}": "new" if n < 100 else n for n in range(499)} | {"two": 2}
    assert restored(path) == expected


def test_it_does_not_grow_with_the_changes(path: Path) -> None:
    store = Store.open(str(path), SPACES)
    store.put([Record("lease", f"{number}", "x" * 1000) for number in range(100)])
    sizes = []
    for number in range(500):
        store.put([Record("lease", f"{number % 100}", f"{number}" * 300)])
        sizes.append(backup_path(path).stat().st_size)
    store.close()
    assert max(sizes) < 3 * min(sizes) + 100_000
    assert sorted(sizes) != sizes  # it was written anew


@pytest.mark.parametrize("cut", [1, 20, 70, 100])
def test_a_line_that_a_crash_cut_off_is_none(path: Path, cut: int) -> None:
    store = Store.open(str(path), SPACES)
    for number in range(3):
        store.put([Record("lease", "a", number), Record("lease", "b", "x" * 100)])
    store.close()
    backup = backup_path(path)
    backup.write_bytes(backup.read_bytes()[: -1 - cut])
    found = read_backup(path)
    assert found is not None
    assert found == (2, {("lease", "a"): "1", ("lease", "b"): '"' + "x" * 100 + '"'})


def test_what_comes_after_a_line_that_is_none_is_none(path: Path) -> None:
    store = Store.open(str(path), SPACES)
    for number in range(4):
        store.put([Record("lease", "a", number)])
    store.close()
    backup = backup_path(path)
    lines = backup.read_bytes().split(b"\n")
    backup.write_bytes(b"\n".join([*lines[:3], *lines[4:]]))  # one is missing
    assert read_backup(path) == (2, {("lease", "a"): "1"})


def test_another_run_begins_with_all_of_it(path: Path) -> None:
    for number in range(2):
        store = Store.open(str(path), SPACES)
        store.put([Record("lease", "a", number)])
        store.put([Record("lease", "b", number)])
        store.close()
        with backup_path(path).open("ab") as file:
            file.write(b"half a li")  # it was killed
    # The second run wrote all of it first, so what the first one left is gone.
    assert read_backup(path) == (4, {("lease", "a"): "1", ("lease", "b"): "1"})


def test_a_backup_that_went_away_is_made_again(path: Path) -> None:
    store = Store.open(str(path), SPACES)
    store.put([Record("lease", "a", 1)])
    backup_path(path).unlink()
    store.put([Record("lease", "b", 2)])
    assert store.backup_problem is None
    store.close()
    assert restored(path) == {"a": 1, "b": 2}


def test_a_secret_that_goes_is_gone_from_it(path: Path) -> None:
    store = Store.open(str(path), SPACES, SPACES)
    store.put([Record("lease", "a", "the secret")])
    store.put([Record("lease", "a", "another")])
    assert b"the secret" not in backup_path(path).read_bytes()
    store.close()
