"""The lab's relay is a real one, and its recorder keeps every frame."""

import asyncio
import json

import aiohttp
import pytest

from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.topology import Host, Lab, Server

pytestmark = pytest.mark.lab


async def subscribe(host: Host, url: str) -> list[str]:
    """Send one REQ from ``host`` and return the frames up to EOSE."""
    frames: list[str] = []
    with host.namespace.enter():  # the socket is made before anything else runs on this thread
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as websocket:
            await websocket.send_str('["REQ","needle",{"kinds":[1]}]')
            while not frames or json.loads(frames[-1])[0] != "EOSE":
                frames.append(await websocket.receive_str())
    return frames


@pytest.mark.parametrize("record", [False, True])
def test_a_host_reaches_the_relay(record: bool) -> None:
    with Lab() as lab:
        server: Server = lab.server_host(record=record)
        laptop = lab.host("laptop", lab.router("nat"))
        frames = asyncio.run(asyncio.wait_for(subscribe(laptop, server.relay_url), patient(10)))
        assert json.loads(frames[-1]) == ["EOSE", "needle"]
        if not record:
            assert server.recording is None
            return
        assert server.recording is not None
        recording = server.recording
        wait_until(lambda: "EOSE" in recording.read_text(), "the recording")
        records = [json.loads(line) for line in recording.read_text().splitlines()]
        assert [record["from"] for record in records] == ["client", "relay"]
        assert json.loads(records[0]["frame"]) == ["REQ", "needle", {"kinds": [1]}]
        assert records[1]["frame"] == frames[-1]
        # A relay sees the NAT's address; this is what a privacy test may allow, and nothing more.
        assert {record["peer"] for record in records} == {"11.0.2.2"}


def test_a_killed_relay_comes_back_at_the_same_address() -> None:
    with Lab() as lab:
        server = lab.server_host(relay=False)
        laptop = lab.host("laptop")
        for _ in range(2):
            process = lab.start_relay(server)
            frames = asyncio.run(asyncio.wait_for(subscribe(laptop, server.relay_url), patient(10)))
            assert len(frames) == 1
            process.kill()
