"""The embedded relay: it listens, it stops, and it says why it cannot."""

from __future__ import annotations

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.io.embedded_relay import EmbeddedRelay


async def test_start_and_stop() -> None:
    relay = EmbeddedRelay()
    assert relay.url == ""
    await relay.start()
    assert relay.url.startswith("ws://127.0.0.1:")
    await relay.stop()
    assert relay.url == ""
    await relay.stop()


async def test_a_port_in_use_is_a_clear_error() -> None:
    first = EmbeddedRelay()
    await first.start()
    port = int(first.url.rpartition(":")[2])
    with pytest.raises(SystemRefused, match=f"cannot listen on 127.0.0.1:{port}") as caught:
        await EmbeddedRelay("127.0.0.1", port).start()
    assert caught.value.hint
    await first.stop()
