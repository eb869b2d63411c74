"""Where the root secret rests: a 0600 file, NIP-49 under a passphrase, or a systemd credential.

The file ``identity`` in the state directory holds one line, ``nsec1…`` or ``ncryptsec1…``. A
systemd credential named ``nostrvpn-identity`` goes before it. nostr-sdk (20 MB, used for NIP-06 and
NIP-49 only) is imported only when words or an encrypted key are really there.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.identity.keys import BadKey, RootSecret, parse_nsec
from nostrvpn.io.durable_file import (
    AlreadyExists,
    make_private_directory,
    refusal,
    sync_directory,
    write_durably,
)
from nostrvpn.io.privilege import as_owner

__all__ = [
    "NoIdentity",
    "adopt_next",
    "create_identity",
    "generate_root",
    "has_identity",
    "load_identity",
    "prepare_next",
    "read_nsec_file",
    "read_words_file",
]

CREDENTIAL = "nostrvpn-identity"
_NEXT, _FORMER = "identity.next", "identity.former"
PASSPHRASE_VARIABLE = "NOSTRVPN_PASSPHRASE_FILE"
# A key is under 200 characters and 24 words are under 250; more is another kind of file.
_MAX_SECRET_FILE = 4096
# scrypt with 2**16 rounds: 64 MiB and about half a second, NIP-49's own example.
_NIP49_LOG_N = 16
# NIP-49 key security byte 0x02: "client does not track this".
_NIP49_UNTRACKED = 2


class NoIdentity(UserError):
    """There is no identity yet."""

    code = "no_identity"


def generate_root() -> RootSecret:
    """Return a new root secret from the operating system's randomness."""
    while True:
        try:
            return RootSecret(secrets.token_bytes(32))
        except BadKey:  # one draw in 2**128
            continue


def has_identity(state_dir: str, environ: Mapping[str, str]) -> bool:
    """Say whether a credential or an identity file exists; it is not read."""
    credential = _credential(environ)
    return credential is not None or os.path.lexists(identity_path(state_dir))


def identity_path(state_dir: str) -> Path:
    """Return the path of the identity file."""
    return Path(state_dir) / "identity"


def load_identity(state_dir: str, environ: Mapping[str, str]) -> RootSecret:
    """Return the node's root secret; NoIdentity, UserError or SystemRefused say why it cannot.

    A file that others can read is refused: by then the key must be taken as known to them.
    """
    credential = _credential(environ)
    path = credential or identity_path(state_dir)
    try:
        # systemd guards its credentials itself, and shows mode 0440 where it uses an ACL.
        text = _read_secret(path, trust_mode=credential is not None)
    except FileNotFoundError as error:
        raise NoIdentity(
            f"there is no identity in {state_dir}", "create one with: nostrvpn init"
        ) from error
    try:
        return _parse_secret(text, environ)
    except BadKey as error:
        raise BadKey(
            f"the identity in {path} is damaged: {error}",
            "restore it from a backup; to start anew, move the file away and run: nostrvpn init",
        ) from error


def create_identity(state_dir: str, root: RootSecret, environ: Mapping[str, str]) -> Path:
    """Store a new root secret durably, 0600, and return its path; never overwrites one.

    With NOSTRVPN_PASSPHRASE_FILE set it is stored encrypted (NIP-49).
    """
    if _credential(environ) is not None:
        raise AlreadyExists(f"the systemd credential {CREDENTIAL} already is this node's identity")
    path = identity_path(state_dir)
    text = _encrypt(root, environ) if environ.get(PASSPHRASE_VARIABLE) else root.nsec()
    make_private_directory(state_dir)
    try:
        write_durably(path, (text + "\n").encode(), mode=0o600, replace=False)
    except AlreadyExists as error:
        raise AlreadyExists(
            f"{path} already holds an identity, it is not overwritten",
            "for a second node use another --state-dir; see this one with: nostrvpn id",
        ) from error
    return path


def prepare_next(state_dir: str, environ: Mapping[str, str]) -> RootSecret:
    """Return the secret that is to replace this node's: a new one, kept until ``adopt_next``.

    Asked again before that, it is the same one: somebody may have been told of it.
    """
    if _credential(environ) is not None:
        raise UserError(
            "this node's identity is a systemd credential, which nostrvpn cannot replace",
            "replace it there, and let an admin run: nostrvpn peer replace",
        )
    path = identity_path(state_dir).with_name(_NEXT)
    try:
        return _parse_secret(_read_secret(path), environ)
    except FileNotFoundError:
        pass
    except BadKey as error:
        raise BadKey(
            f"the new identity in {path} is damaged: {error}", "remove the file"
        ) from error
    root = generate_root()
    text = _encrypt(root, environ) if environ.get(PASSPHRASE_VARIABLE) else root.nsec()
    write_durably(path, (text + "\n").encode(), mode=0o600, replace=False)
    return root


def adopt_next(state_dir: str, environ: Mapping[str, str]) -> Path:
    """Put the prepared secret in the place of this node's; return where the one before is kept.

    Nothing is left to do if that was done before. The prepared one must be readable.
    """
    path = identity_path(state_dir)
    new, former = path.with_name(_NEXT), path.with_name(_FORMER)
    if new.exists():
        _parse_secret(_read_secret(new), environ)
        with as_owner(path.parent):
            try:
                write_durably(former, path.read_bytes(), mode=0o600, replace=True)
                new.replace(path)
                sync_directory(path.parent)
            except OSError as error:
                raise refusal("replace", path, error) from error
    return former


def read_nsec_file(source: str, environ: Mapping[str, str]) -> RootSecret:
    """Return the secret in a file, or on standard input for ``-``: nsec, hex or ncryptsec."""
    return _parse_secret(_read_input(source), environ)


def read_words_file(source: str) -> RootSecret:
    """Return the secret that 12 to 24 words stand for, account 0, no passphrase (NIP-06)."""
    words = " ".join(_read_input(source).lower().split())
    nostr_sdk = _nostr_sdk()
    try:
        keys = nostr_sdk.Keys.from_mnemonic(words)
    except nostr_sdk.NostrSdkError as error:
        raise BadKey(
            f"these words are not a NIP-06 key: {error}",
            "give all 12 or 24 words in order, separated by spaces",
        ) from error
    return RootSecret(bytes.fromhex(keys.secret_key().to_hex()))


def _credential(environ: Mapping[str, str]) -> Path | None:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory) / CREDENTIAL if directory else None
    return path if path is not None and path.exists() else None


def _parse_secret(text: str, environ: Mapping[str, str]) -> RootSecret:
    if not text:
        raise BadKey("it is empty", "it should hold one line, nsec1…")
    return _decrypt(text, environ) if text.startswith("ncryptsec1") else parse_nsec(text)


def _read_input(source: str) -> str:
    if source == "-":
        if sys.stdin.isatty():
            print("Type or paste it, then Enter and Ctrl-D:", file=sys.stderr)  # noqa: T201
        return sys.stdin.read(_MAX_SECRET_FILE).strip()
    try:
        return _read_secret(Path(source))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {source}", "check the path") from error


def _read_secret(path: Path, *, trust_mode: bool = False) -> str:
    """Return a secret file's text; FileNotFoundError passes through, the rest is explained."""
    try:
        with as_owner(path.parent), path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and not trust_mode:
                _check_private(path, status)
            data = file.read(_MAX_SECRET_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refusal("read the key file", path, error) from error
    if len(data) > _MAX_SECRET_FILE:
        raise UserError(f"{path} is too large to be a key file", "check the path")
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise BadKey(f"{path} is not a key file: it is not text", "check the path") from error


def _check_private(path: Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise UserError(
            f"other users can read or change the key file {path} (mode {mode:04o})",
            f"if nobody did: chmod 600 {path}",
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise UserError(
            f"the key file {path} belongs to another user (uid {status.st_uid})",
            f"if it is yours: chown root: {path}",
        )


def _passphrase(environ: Mapping[str, str]) -> str:
    source = environ.get(PASSPHRASE_VARIABLE)
    if not source:
        raise UserError(
            "the identity is encrypted (NIP-49) and no passphrase is given",
            f"put it into a file with mode 0600 and set {PASSPHRASE_VARIABLE} to its path",
        )
    path = Path(source)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and not _is_credential(path, environ):
                _check_private(path, status)
            text = file.read(_MAX_SECRET_FILE).decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the passphrase in {path} is not UTF-8 text", "write it anew") from error
    except OSError as error:
        raise refusal("read the passphrase file", path, error) from error
    if not text:
        raise UserError(f"the passphrase file {path} is empty", "write the passphrase into it")
    return text


def _is_credential(path: Path, environ: Mapping[str, str]) -> bool:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return directory is not None and path.parent == Path(directory)


def _encrypt(root: RootSecret, environ: Mapping[str, str]) -> str:
    passphrase, nostr_sdk = _passphrase(environ), _nostr_sdk()
    key = nostr_sdk.SecretKey.from_bytes(root.reveal())
    untracked = nostr_sdk.KeySecurity(_NIP49_UNTRACKED)
    sealed = nostr_sdk.EncryptedSecretKey(key, passphrase, _NIP49_LOG_N, untracked)
    return str(sealed.to_bech32())


def _decrypt(text: str, environ: Mapping[str, str]) -> RootSecret:
    passphrase, nostr_sdk = _passphrase(environ), _nostr_sdk()
    try:
        sealed = nostr_sdk.EncryptedSecretKey.from_bech32(text)
    except nostr_sdk.NostrSdkError as error:
        raise BadKey(f"this is not an ncryptsec: {error}", "copy it again, whole") from error
    try:
        key = sealed.decrypt(passphrase)
    except nostr_sdk.NostrSdkError as error:
        raise UserError(
            "the passphrase does not open the encrypted identity",
            f"check the file that {PASSPHRASE_VARIABLE} names",
        ) from error
    return RootSecret(bytes.fromhex(key.to_hex()))


def _nostr_sdk() -> ModuleType:
    try:
        import nostr_sdk
    except ImportError as error:
        raise SystemRefused(
            f"nostr-sdk cannot be loaded: {error}", "install nostrvpn again with pip or pipx"
        ) from error
    return sys.modules[nostr_sdk.__name__]
