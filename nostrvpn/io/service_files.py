"""The units and their company, put where systemd looks and taken away again. Blocking; needs root.

The files are those of ``packaging/systemd``: beside the sources, or below ``share/nostrvpn`` where pip
put them. The Debian package brings its own, and what dpkg owns is not touched.
"""

from __future__ import annotations

import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.io.durable_file import refusal, write_durably
from nostrvpn.io.privilege import ACCOUNT

__all__ = ["ENABLED", "install_service", "installed_files", "service_state", "uninstall_service"]

# What starts at boot.
ENABLED = ("nostrvpn.service", "nostrvpn-lockdown.service")
_UNITS = ("nostrvpn.service", "nostrvpn@.service", "nostrvpn-lockdown.service")
# Directory of the sources -> (directory on the host, name there or None for the same).
_PLACES: dict[str, tuple[str, str | None]] = {
    "system": ("etc/systemd/system", None),
    "sysusers.d": ("etc/sysusers.d", None),
    "tmpfiles.d": ("etc/tmpfiles.d", None),
    "modules-load.d": ("etc/modules-load.d", None),
    "polkit-1": ("etc/polkit-1/rules.d", "50-nostrvpn.rules"),
}
_PACKAGED = "usr/lib/systemd/system/nostrvpn.service"
_COMMAND = "/usr/bin/nostrvpn"
_TIMEOUT_S = 60.0


def install_service(root: Path, command: str) -> list[str]:
    """Write the files below ``root``; for this host ("/") also make the account and enable the units.

    ``command`` is the absolute path that the units run. Return what was written or changed.
    """
    _require_no_package(root)
    is_here = root == Path("/")
    if is_here:
        _require_systemd()
    written = []
    for source, target in _files(root):
        text = source.read_text(encoding="utf-8").replace(_COMMAND, command)
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        try:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise refusal("create the directory", target.parent, error) from error
        write_durably(target, text.encode(), mode=0o644, replace=True)
        written.append(str(target))
    if is_here:
        _run("systemd-sysusers", "nostrvpn.conf")
        _run("systemd-tmpfiles", "--create", "nostrvpn.conf")
        _run("systemctl", "daemon-reload")
        _run("systemctl", "enable", "--now", *ENABLED)
    else:
        _run("systemctl", f"--root={root}", "enable", *ENABLED)
    return written


def uninstall_service(root: Path) -> list[str]:
    """Stop and disable the units, and remove the files and the account; the state stays.

    Return what was removed. Nothing to remove is fine.
    """
    _require_no_package(root)
    is_here = root == Path("/")
    found = installed_files(root)
    if found:
        if is_here:
            _require_systemd()
            _run("systemctl", "stop", "nostrvpn@*.service")
            _run("systemctl", "disable", "--now", *ENABLED)
        else:
            _run("systemctl", f"--root={root}", "disable", *ENABLED)
    for path in found:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise refusal("remove", path, error) from error
    if is_here and found:
        _run("systemctl", "daemon-reload")
        _give_back(Path("/var/lib/nostrvpn"))
    return [str(path) for path in found]


def installed_files(root: Path) -> list[Path]:
    """Return those of our files that are below ``root``."""
    return [target for _, target in _files(root) if target.exists()]


def service_state() -> dict[str, dict[str, str]]:
    """Return of each unit whether it starts at boot and whether it runs, in systemd's words."""
    _require_systemd()
    return {
        unit: {
            "enabled": _ask("is-enabled", unit) or "not-found",
            "active": _ask("is-active", unit),
        }
        for unit in ENABLED
    }


def _files(root: Path) -> list[tuple[Path, Path]]:
    sources = _sources()
    found: list[tuple[Path, Path]] = []
    for part, (place, name) in _PLACES.items():
        found += [
            (source, root / place / (name or source.name))
            for source in sorted((sources / part).iterdir())
            if part != "system" or source.name in _UNITS
        ]
    return found


def _sources() -> Path:
    beside = Path(__file__).resolve().parents[2] / "packaging/systemd"
    for place in (beside, Path(sys.prefix, "share/nostrvpn")):
        if (place / "system").is_dir():
            return place
    raise SystemRefused(
        "the files of the service are not here", "install nostrvpn again with pip or pipx"
    )


def _require_no_package(root: Path) -> None:
    if (root / _PACKAGED).exists():
        raise UserError(
            "the package nostrvpn brings the service already",
            "systemctl enable --now nostrvpn; to remove it: apt remove nostrvpn",
        )


def _require_systemd() -> None:
    if not Path("/run/systemd/system").is_dir():
        raise SystemRefused(
            "systemd does not run here",
            "run nostrvpn up, or let your service manager run: nostrvpn daemon",
        )


def _give_back(state: Path) -> None:
    """Let root have the state again, and remove the account that it was of."""
    if state.is_dir():
        _run("chown", "-R", "--no-dereference", "root:root", str(state))
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        return
    _run("userdel", ACCOUNT)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemRefused(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise SystemRefused(f"{' '.join(command)} failed: {said[-1]}")


def _ask(question: str, unit: str) -> str:
    program = shutil.which("systemctl")
    if program is None:
        raise SystemRefused("systemctl is not installed")
    done = subprocess.run(
        (program, question, unit), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    return done.stdout.strip()
