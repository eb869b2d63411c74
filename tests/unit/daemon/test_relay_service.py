"""What a relay that cannot have everything says of itself."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

from nostrvpn.config.model import Relay
from nostrvpn.daemon import relay_service
from nostrvpn.daemon.relay_service import RelayService
from nostrvpn.errors import SystemRefused
from nostrvpn.io.store import Store
from nostrvpn.machine import Entropy, Moment


async def test_a_relay_that_the_kernel_does_not_help_still_relays(
    monkeypatch, tmp_path: Path, caplog
):
    def refuse(_table: object, _uplinks: tuple[str, ...]) -> None:
        raise SystemRefused("there is no nft here")

    monkeypatch.setattr(relay_service, "uplinks", lambda: ("eth0",))
    monkeypatch.setattr("nostrvpn.io.relay_host.RelayTable.create", refuse)
    with closing(Store.open(str(tmp_path / "store"))) as store:
        service = RelayService(
            bytes(32),
            Relay(offer="members"),
            store,
            moment=lambda: Moment(0.0, 1.8e9, Entropy(b"x")),
            send_control=lambda _data, _destination: None,
        )
        with caplog.at_level(logging.WARNING):
            await service.start("nvpn0")
        await service.stop()
    assert service.error is None
    assert "there is no nft here" in caplog.text
