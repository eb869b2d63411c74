"""What systemd is told, and that nobody is told without it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from nostrvpn.io.service_manager import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_state_reaches_the_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    path = f"@nostrvpn-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + path[1:] if abstract else path)
        listener.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    notify("READY=1")
