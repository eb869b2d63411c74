"""The embedded relay: it listens, it stops, and it says why it cannot."""

from __future__ import annotations

import os

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


async def test_starting_leaves_no_descriptors_behind() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def once() -> None:
        relay = EmbeddedRelay()
        await relay.start()
        await relay.stop()

    await once()  # the library's threads start with the first one
    pipe = os.pipe()  # descriptors that are no sockets
    before = count()
    for _ in range(3):
        await once()
    after = count()
    for descriptor in pipe:
        os.close(descriptor)
    # Sockets of relays that were just stopped may still be on their way out.
    assert after <= before + 6
