"""What ``doctor`` sees of a real host: another firewall, no daemon, a broken configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DROPPING = (
    "add table inet filter;"
    "add chain inet filter input { type filter hook input priority 0; policy drop; }"
)


def doctor(netns: Any, tmp_path: Path, config: str = "") -> dict[str, tuple[str, str]]:
    """Return (severity, hint) by code."""
    file = tmp_path / "config.yaml"
    file.write_text(config, encoding="utf-8")
    places = (f"--config={file}", f"--state-dir={tmp_path}", f"--runtime-dir={tmp_path}")
    command = (sys.executable, "-m", "nostrvpn", *places, "doctor", "--json")
    found = json.loads(netns.run(*command, check=False))["findings"]
    return {item["code"]: (item["severity"], item["hint"]) for item in found}


def test_a_healthy_host_without_daemon(netns: Any, tmp_path: Path) -> None:
    found = doctor(netns, tmp_path)
    assert {severity for severity, _ in found.values()} <= {"ok", "info", "warning"}
    assert found["nftables"][0] == "ok"
    assert found["daemon_not_running"] == ("warning", "start it with: sudo nostrvpn up")
    assert "firewall_drops" not in found


def test_a_firewall_that_drops_the_tunnels_traffic_and_what_helps(
    netns: Any, tmp_path: Path
) -> None:
    netns.run("nft", DROPPING)
    severity, hint = doctor(netns, tmp_path)["firewall_drops"]
    assert severity == "warning"
    assert hint == "sudo nft insert rule inet filter input iifname nvpn0 accept"
    netns.run(*hint.split()[1:])
    assert "firewall_drops" not in doctor(netns, tmp_path)


def test_a_broken_configuration_is_an_error(netns: Any, tmp_path: Path) -> None:
    assert doctor(netns, tmp_path, "relays: 5\n")["configuration"][0] == "error"
