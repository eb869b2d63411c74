"""The service's units: how exposed systemd finds them, and that they and the product say the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nostrvpn.config.options import DEFAULT_RUNTIME_DIR, DEFAULT_STATE_DIR
from nostrvpn.control.server import GROUP
from nostrvpn.io.identity_file import CREDENTIAL
from nostrvpn.io.privilege import ACCOUNT
from nostrvpn.lab.service import CAPABILITIES

SYSTEMD = Path(__file__).parents[2] / "packaging/systemd"
DAEMONS = ("nostrvpn.service", "nostrvpn@.service")
UNITS = (*DAEMONS, "nostrvpn-lockdown.service")
# systemd's own scale: 0 is closed, 10 is wide open.
MOST_EXPOSED = 2.0


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / "system" / unit).read_text().splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_little_exposed(unit: str):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("NOT RUN: systemd is not installed")
    done = subprocess.run(
        [program, "security", "--offline=true", "--no-pager", str(SYSTEMD / "system" / unit)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    exposed = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert exposed is not None, done.stdout + done.stderr
    assert float(exposed[1]) <= MOST_EXPOSED, done.stdout


@pytest.mark.parametrize("unit", DAEMONS)
def test_the_lab_runs_daemons_with_the_capabilities_of_the_unit(unit: str):
    said = settings(unit)
    wanted = {f"CAP_{name.upper()}" for name in CAPABILITIES}
    assert set(said["AmbientCapabilities"][0].split()) == wanted
    assert set(said["CapabilityBoundingSet"][0].split()) == wanted
    assert said["User"] == said["Group"] == [ACCOUNT] == [GROUP]


def test_the_unit_and_the_product_mean_the_same_places():
    said = settings("nostrvpn.service")
    assert f"/var/lib/{said['StateDirectory'][0]}" == DEFAULT_STATE_DIR
    assert f"/run/{said['RuntimeDirectory'][0]}" == DEFAULT_RUNTIME_DIR
    assert said["LoadCredential"] == [CREDENTIAL]
    assert f"u {ACCOUNT} " in (SYSTEMD / "sysusers.d/nostrvpn.conf").read_text()


def test_a_further_network_has_the_same_sandbox():
    first, further = (settings(unit) for unit in DAEMONS)
    own = {"Description", "ExecStart", "EnvironmentFile"}
    assert {name: first[name] for name in first.keys() - own} == {
        name: further[name] for name in further.keys() - own
    }


def test_the_watchdog_waits_for_several_rounds():
    """A round is 30 s at most; one that waits for nft and for WireGuard may take another minute."""
    assert settings("nostrvpn.service")["WatchdogSec"] == ["3min"]
