"""The identity at rest: private, whole, encrypted on demand, and never overwritten."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest

from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.identity.keys import BadKey, RootSecret
from nostrvpn.io.durable_file import AlreadyExists
from nostrvpn.io.identity_file import (
    NoIdentity,
    adopt_next,
    create_identity,
    generate_root,
    has_identity,
    load_identity,
    prepare_next,
    read_nsec_file,
    read_words_file,
)

WORDS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[3] / "docs/protocol/vectors/identity.json").read_text()
)["words"]
ROOT = RootSecret(bytes(range(1, 33)))


def private(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return str(path)


def test_created_private_and_read_back(tmp_path: Path) -> None:
    state = str(tmp_path / "a" / "state")
    assert not has_identity(state, {})
    with pytest.raises(NoIdentity, match="no identity"):
        load_identity(state, {})
    root = generate_root()
    old = os.umask(0)
    try:
        path = create_identity(state, root, {})
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert has_identity(state, {})
    assert load_identity(state, {}) == root
    assert [file.name for file in path.parent.iterdir()] == ["identity"]


def test_never_overwritten(tmp_path: Path) -> None:
    create_identity(str(tmp_path), ROOT, {})
    with pytest.raises(AlreadyExists, match="not overwritten"):
        create_identity(str(tmp_path), generate_root(), {})
    assert load_identity(str(tmp_path), {}) == ROOT
    assert [file.name for file in tmp_path.iterdir()] == ["identity"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o622, 0o601])
def test_a_key_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = create_identity(str(tmp_path), ROOT, {})
    path.chmod(mode)
    with pytest.raises(UserError, match=f"mode 0{mode:o}") as caught:
        load_identity(str(tmp_path), {})
    assert "chmod 600" in caught.value.hint
    with pytest.raises(UserError, match="other users"):
        read_nsec_file(str(path), {})


@pytest.mark.parametrize("text", ["", "nsec1", "garbage", b"\xff\xfe\x00", "x" * 5000])
def test_damaged_files_are_explained_and_kept(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "identity"
    private(path, text)
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        load_identity(str(tmp_path), {})
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "identity").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        load_identity(str(tmp_path), {})


def test_nip49(tmp_path: Path) -> None:
    passphrase = private(tmp_path / "passphrase", "correct horse ä\n")
    environ = {"NOSTRVPN_PASSPHRASE_FILE": passphrase}
    path = create_identity(str(tmp_path), ROOT, environ)
    text = path.read_text().strip()
    assert text.startswith("ncryptsec1")
    referee = nostr_sdk.EncryptedSecretKey.from_bech32(text).decrypt("correct horse ä")
    assert referee.to_hex() == ROOT.reveal().hex()
    assert load_identity(str(tmp_path), environ) == ROOT
    with pytest.raises(UserError, match="no passphrase"):
        load_identity(str(tmp_path), {})
    private(tmp_path / "passphrase", "wrong")
    with pytest.raises(UserError, match="does not open"):
        load_identity(str(tmp_path), environ)
    private(tmp_path / "passphrase", "\n")
    with pytest.raises(UserError, match="is empty"):
        load_identity(str(tmp_path), environ)
    (tmp_path / "passphrase").chmod(0o644)
    with pytest.raises(UserError, match="other users"):
        load_identity(str(tmp_path), environ)


def test_systemd_credential_goes_first(tmp_path: Path) -> None:
    state, credentials = tmp_path / "state", tmp_path / "credentials"
    create_identity(str(state), generate_root(), {})
    credentials.mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert load_identity(str(state), environ) != ROOT
    credential = credentials / "nostrvpn-identity"
    credential.write_text(ROOT.nsec())
    credential.chmod(0o440)
    assert load_identity(str(state), environ) == ROOT
    with pytest.raises(AlreadyExists, match="credential"):
        create_identity(str(tmp_path / "other"), ROOT, environ)


@pytest.mark.parametrize("vector", WORDS, ids=["12 words", "24 words"])
def test_words_of_nip06(tmp_path: Path, vector: dict[str, str]) -> None:
    untidy = "  " + vector["words"].upper().replace(" ", "\n ") + "\n"
    root = read_words_file(private(tmp_path / "words", untidy))
    assert root.reveal().hex() == vector["root"]
    assert root.npub == vector["npub"]


@pytest.mark.parametrize("words", ["", "one two", "abandon " * 12, WORDS[0]["words"][7:]])
def test_bad_words(tmp_path: Path, words: str) -> None:
    with pytest.raises(BadKey, match="NIP-06"):
        read_words_file(private(tmp_path / "words", words))


def test_nsec_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f" {ROOT.nsec()}\n"))
    assert read_nsec_file("-", {}) == ROOT


def test_missing_and_unreadable_inputs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        read_nsec_file(str(tmp_path / "none"), {})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_without_permission(tmp_path: Path) -> None:
    create_identity(str(tmp_path / "state"), ROOT, {})
    tmp_path.chmod(0o755)
    code = (
        "import os, sys\n"
        "from nostrvpn.io.identity_file import load_identity\n"
        "os.setuid(65534)\n"
        "load_identity(sys.argv[1], {})"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "SystemRefused: cannot read the key file" in child.stderr
    assert "Permission denied" in child.stderr


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(SystemRefused, match="No space left"):
        create_identity(str(tmp_path), ROOT, {})
    assert list(tmp_path.iterdir()) == []


def test_the_next_identity_waits_until_it_is_adopted(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    create_identity(state, ROOT, {})
    new = prepare_next(state, {})
    assert new != ROOT
    assert prepare_next(state, {}) == new  # somebody may have been told of it
    assert stat.S_IMODE((tmp_path / "state/identity.next").stat().st_mode) == 0o600
    assert load_identity(state, {}) == ROOT
    former = adopt_next(state, {})
    assert load_identity(state, {}) == new
    assert former.read_text() == ROOT.nsec() + "\n"
    assert stat.S_IMODE(former.stat().st_mode) == 0o600
    assert adopt_next(state, {}) == former  # again: nothing to do, and nothing is lost
    assert load_identity(state, {}) == new
    assert former.read_text() == ROOT.nsec() + "\n"


def test_adopting_goes_on_after_a_crash(tmp_path: Path) -> None:
    state = tmp_path / "state"
    create_identity(str(state), ROOT, {})
    new = prepare_next(str(state), {})
    (state / "identity.former").write_text(ROOT.nsec() + "\n")  # as far as it came
    adopt_next(str(state), {})
    assert load_identity(str(state), {}) == new
    assert (state / "identity.former").read_text() == ROOT.nsec() + "\n"


def test_a_damaged_next_identity_replaces_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    create_identity(str(state), ROOT, {})
    private(state / "identity.next", "nsec1x")
    for act in (prepare_next, adopt_next):
        with pytest.raises(BadKey):
            act(str(state), {})
    assert load_identity(str(state), {}) == ROOT


def test_an_encrypted_identity_is_replaced_by_an_encrypted_one(tmp_path: Path) -> None:
    state = tmp_path / "state"
    environ = {"NOSTRVPN_PASSPHRASE_FILE": private(tmp_path / "passphrase", "correct horse")}
    create_identity(str(state), ROOT, environ)
    new = prepare_next(str(state), environ)
    assert (state / "identity.next").read_text().startswith("ncryptsec1")
    adopt_next(str(state), environ)
    assert load_identity(str(state), environ) == new


def test_a_credential_is_not_replaced(tmp_path: Path) -> None:
    private(tmp_path / "nostrvpn-identity", ROOT.nsec())
    with pytest.raises(UserError, match="systemd credential"):
        prepare_next(str(tmp_path / "state"), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
