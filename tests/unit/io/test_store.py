"""The store keeps what it acknowledged: through SIGKILL, full disks and damaged files."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.io.store import Record, Store
from nostrvpn.machine import Entropy
from nostrvpn.signaling.keeper import Keeper
from nostrvpn.signaling.network_key import make_key

IMPORTANT = frozenset({"network"})

# Puts numbers 0, 1, 2 … in pairs, and prints each only after put returned.
WRITER = """
import sys
from nostrvpn.io.store import Record, Store
store = Store.open(sys.argv[1], {"network"})
number = int(sys.argv[2])
while True:
    store.put([Record("network", f"{number}", number), Record("cache", f"{number}", "x" * 900)])
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
    number += 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.db"


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    store = Store.open(str(path), IMPORTANT)
    try:
        yield store
    finally:
        store.close()


def fill(path: Path, count: int = 200) -> None:
    with opened(path) as store:
        store.put([Record("network", f"n{i:04}", {"i": i}) for i in range(count)])
        store.put([Record("cache", f"c{i:04}", "v" * 100) for i in range(count)])


def test_records_survive_reopening_and_are_private(path: Path) -> None:
    with opened(path) as store:
        store.put([Record("a", "k", {"ä": [1, None, "x"]}), Record("b", "k", 0)])
        store.put([Record("a", "gone", True)])
        store.delete("a", "gone", "never there")
        assert store.restored == ""
    with opened(path) as store:
        assert store.all("a") == {"k": {"ä": [1, None, "x"]}}
        assert store.get("b", "k") == 0
        assert store.get("b", "none") is None
        assert store.restored == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_backup_is_private(path: Path) -> None:
    fill(path, 1)
    backup = path.with_name("state.db.backup")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600


def test_put_is_all_or_nothing(path: Path) -> None:
    with opened(path) as store:
        with pytest.raises(ValueError, match="too large"):
            store.put([Record("a", "1", 1), Record("a", "2", "x" * 5_000_000)])
        with pytest.raises(TypeError):
            store.put([Record("a", "1", 1), Record("a", "2", object())])
        assert store.all("a") == {}


def test_a_second_opener_is_refused_clearly(path: Path) -> None:
    with opened(path) as store:
        store.put([Record("a", "1", 1)])
        with pytest.raises(SystemRefused, match="another process has it open"):
            Store.open(str(path), IMPORTANT)
        assert store.all("a") == {"1": 1}
    assert not list(path.parent.glob("*damaged*"))


def test_sigkill_loses_nothing_acknowledged(path: Path) -> None:
    acknowledged = -1
    for attempt in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(acknowledged + 1)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        time.sleep(0.013 * attempt)  # another moment of the write each time
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait(timeout=10)
        writer.stdout.close()
        acknowledged = int([line for line in lines if line.endswith("\n")][-1])
        with opened(path) as store:
            assert store.restored == ""
            network, cache = store.all("network"), store.all("cache")
        kept = sorted(map(int, network))
        assert set(network) == set(cache)
        assert kept == list(range(len(kept)))
        assert kept[-1] in (acknowledged, acknowledged + 1)
        acknowledged = kept[-1]
    assert acknowledged > 8


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 5])
def test_a_damaged_page_is_restored_and_the_file_kept(path: Path, place: int) -> None:
    fill(path)
    data = bytearray(path.read_bytes())
    pages = len(data) // 4096
    start = 4096 * (place * (pages - 1) // 5)
    data[start : start + 4096] = b"\x07" * 4096
    path.write_bytes(data)
    with opened(path) as store:
        assert len(store.all("network")) == 200
        assert "damaged" in store.restored
    kept = list(path.parent.glob("state.db.damaged-*"))
    assert any(file.read_bytes() == bytes(data) for file in kept)
    with opened(path) as store:
        assert len(store.all("network")) == 200
        assert store.restored == ""


def test_a_flipped_bit_inside_a_value_is_noticed(path: Path) -> None:
    fill(path)
    data = path.read_bytes()
    damaged = data.replace(b'{"i":117}', b'{"i":917}')
    assert damaged != data
    path.write_bytes(damaged)
    with opened(path) as store:
        assert "digest" in store.restored
        assert store.get("network", "n0117") == {"i": 117}
        assert len(store.all("cache")) == 200


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 9000])
def test_a_cut_file_is_restored(path: Path, size: int) -> None:
    fill(path)
    os.truncate(path, size)
    with opened(path) as store:
        assert len(store.all("network")) == 200
        assert store.restored


def test_garbage_and_another_programs_database_are_moved_aside(path: Path) -> None:
    fill(path)
    path.write_bytes(b"not a database at all\n" * 400)
    with opened(path) as store:
        assert len(store.all("network")) == 200
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with opened(path) as store:
        assert "not a database of nostrvpn" in store.restored
        assert len(store.all("network")) == 200


def test_a_lost_or_outdated_file_gives_way_to_its_backup(path: Path) -> None:
    fill(path, 10)
    old = path.read_bytes()
    with opened(path) as store:
        store.put([Record("network", "new", 1), Record("network", "n0003", None)])
    path.write_bytes(old)
    with opened(path) as store:
        assert "older than its backup" in store.restored
        assert store.get("network", "new") == 1
        assert store.get("network", "n0003") is None
        assert len(store.all("cache")) == 10
    path.unlink()
    with opened(path) as store:
        assert "missing" in store.restored
        assert store.get("network", "new") == 1


def test_a_lost_log_gives_way_to_the_backup(path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "0"], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(5):
        writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    lines = writer.stdout.readlines()
    writer.wait(timeout=10)
    writer.stdout.close()
    path.with_name("state.db-wal").unlink()
    with opened(path) as store:
        assert store.restored
        assert len(store.all("network")) >= 5 + len(lines) - 1


def test_without_a_backup_whatever_reads_is_salvaged(path: Path) -> None:
    fill(path)
    path.with_name("state.db.backup").write_text("damaged as well")
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\x07" * 4096
    path.write_bytes(data)
    with opened(path) as store:
        found = len(store.all("network")) + len(store.all("cache"))
        assert store.recovery is not None
        assert store.recovery.from_backup == 0
        assert store.recovery.salvaged == found > 100


def test_a_newer_format_is_refused_not_restored_over(path: Path) -> None:
    fill(path, 1)
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(SystemRefused, match="format 99"):
        Store.open(str(path), IMPORTANT)
    assert not list(path.parent.glob("*damaged*"))


def test_a_full_disk_fails_clearly_and_keeps_the_rest(path: Path) -> None:
    # A child, since a limit on file size cannot be taken back by whoever is not root.
    fill(path, 50)
    code = """
import resource, signal, sys, json
from nostrvpn.errors import SystemRefused
from nostrvpn.io.store import Record, Store
store = Store.open(sys.argv[1], {"network"})
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
done = 0
try:
    for number in range(10_000):
        store.put([Record("cache", f"more{number}", "y" * 5000)])
        done += 1
except SystemRefused as error:
    print(json.dumps([done, str(error), error.hint, len(store.all("cache"))]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.put([Record("cache", "after", 1)])
    store.close()
"""
    child = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    done, text, hint, count = json.loads(child.stdout)
    assert done > 5
    assert count == 50 + done
    assert str(path) in text
    assert hint
    with opened(path) as store:
        assert store.restored == ""
        assert len(store.all("cache")) == 50 + done + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_disk_without_room_says_so(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "nvpn-test", disk], check=True)
    try:
        path = disk / "state" / "state.db"
        with opened(path) as store:
            done, refused = fill_disk(store)
            assert "No space left on device" in str(refused)
            assert "make room" in refused.hint
            assert len(store.all("network")) == done > 5
            subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
            store.put([Record("network", "small", 1)])
            assert store.backup_problem is None
        with opened(path) as store:
            assert store.restored == ""
            assert len(store.all("network")) == done + 1
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill_disk(store: Store) -> tuple[int, SystemRefused]:
    """Put until the store refuses; return how many it acknowledged, and its words."""
    for number in range(1000):
        try:
            store.put([Record("network", f"{number}", "z" * 2000)])
        except SystemRefused as error:
            return number, error
    raise AssertionError("the disk was never full")


def test_a_backup_that_cannot_be_written_is_reported_not_raised(path: Path) -> None:
    with opened(path) as store:
        backup = path.with_name("state.db.backup")
        backup.mkdir()
        store.put([Record("network", "1", 1)])
        assert "state.db.backup" in str(store.backup_problem)
        assert store.all("network") == {"1": 1}
        backup.rmdir()
        store.put([Record("network", "2", 2)])
        assert store.backup_problem is None
        assert backup.is_file()


def traces(path: Path, secret: str) -> list[str]:
    """The files beside a database that hold a text anywhere."""
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    return [file.name for file in files if secret.encode() in file.read_bytes()]


SECRET = "5ec2e7" * 10


@contextmanager
def keeping_secrets(path: Path) -> Iterator[Store]:
    store = Store.open(str(path), {"network", "keys"}, {"keys"})
    try:
        yield store
    finally:
        store.close()


@pytest.mark.parametrize("value", [None, {"secret": "another"}])
def test_a_secret_that_was_let_go_leaves_no_trace_while_the_store_is_open(
    path: Path, value: object
) -> None:
    with keeping_secrets(path) as store:
        store.put([Record("network", f"{i}", "x" * 300) for i in range(50)])
        store.put([Record("keys", "ring", {"secret": SECRET, "more": "y" * 5_000})])
        assert traces(path, SECRET)
        store.put([Record("network", "1", "z"), Record("keys", "ring", value)])
        assert traces(path, SECRET) == []
        assert store.get("keys", "ring") == value


def test_remains_of_a_damaged_database_go_with_the_next_secret(path: Path) -> None:
    with keeping_secrets(path) as store:
        store.put([Record("keys", "ring", SECRET)])
    data = bytearray(path.read_bytes())
    data[100:140] = bytes(40)
    path.write_bytes(data)
    (path.parent / f".{path.name}.backup.999.new").write_text(SECRET)
    with keeping_secrets(path) as store:
        assert store.recovery is not None
        assert store.get("keys", "ring") == SECRET
        store.put([Record("keys", "ring", "next")])
        assert traces(path, SECRET) == []


def test_what_a_killed_run_left_in_the_log_is_gone_after_opening(path: Path) -> None:
    script = """
import os, sys
from nostrvpn.io.store import Record, Store
store = Store.open(sys.argv[1], {"keys"})  # a run that was killed before it could clean up
store.put([Record("keys", "ring", sys.argv[2])])
store.put([Record("keys", "ring", None)])
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script, str(path), SECRET], timeout=30, check=False)
    assert traces(path, SECRET)
    with keeping_secrets(path):
        assert traces(path, SECRET) == []


def test_yesterdays_network_key_is_in_no_byte_of_the_state_directory(path: Path) -> None:
    """The keeper's daily step, written as the daemon writes it."""
    keeper, noon = Keeper("ab" * 32, {}), 20_000 * 86_400 + 43_200.0
    keeper.adopt(make_key("5a" * 8, noon, Entropy(b"key")), noon)
    with keeping_secrets(path) as store:

        def save() -> None:
            store.put([Record("keys", save.key, save.value) for save in keeper.saves])
            keeper.saves.clear()

        save()
        old = keeper.keyring.keys[0].secret.hex()
        assert traces(path, old)
        keeper.advance(noon + 86_400, caught_up=True)
        save()
        assert traces(path, old) == []
        assert traces(path, keeper.keyring.keys[0].secret.hex())
