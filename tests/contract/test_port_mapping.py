"""Port mapping with a real miniupnpd on a router of the lab, and with routers that misbehave."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.io import upnp
from nostrvpn.io.port_mapping import DefaultGateway, PortMapping, default_gateways
from nostrvpn.io.upnp import UpnpFailure, UpnpRouter
from nostrvpn.lab.gateway import PROGRAM, Gateway
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.patience import patient
from nostrvpn.lab.topology import Host, Lab, Router
from nostrvpn.portmap.upnp import UpnpService

PORT = 40_000
STEP = 5.0
ONLY = {
    "pcp": {"natpmp": False, "upnp": False},
    "nat_pmp": {"pcp": False, "upnp": False},
    "upnp": {"pcp": False, "natpmp": False},
}


class Site:
    """A laptop behind a symmetric NAT whose router maps ports, and a host far away."""

    def __init__(self, lab: Lab, **gateway: Any) -> None:
        self.router: Router = lab.router("home", NatKind.SYMMETRIC, ipv6=True)
        self.laptop: Host = lab.host("laptop", self.router)
        self.far: Host = lab.host("far")
        self.gateway = Gateway(lab, self.router, **gateway)

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(patient(25.0)):
                await work()

        with self.laptop.namespace.enter():
            asyncio.run(bounded())

    def reaches(self, target: Endpoint) -> bool:
        """Whether a packet that nobody asked for gets from the far host to the laptop's port."""
        far_address = self.far.address if target.ip.version == 4 else self.far.address6
        everywhere = "0.0.0.0" if target.ip.version == 4 else "::"
        with (
            udp(self.laptop.namespace, everywhere, PORT) as inside,
            udp(self.far.namespace, str(far_address)) as outside,
        ):
            outside.sendto(b"hello", (str(target.ip), target.port))
            try:
                data, source = inside.recvfrom(100)
            except TimeoutError:
                return False
            inside.sendto(b"answer", source)
            answer, heard_from = outside.recvfrom(100)
        assert (data, answer) == (b"hello", b"answer")
        assert heard_from[:2] == (str(target.ip), target.port)
        return True


def udp(namespace: Namespace, address: str, port: int = 0) -> socket.socket:
    with namespace.enter():
        made = socket.socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
        )
    made.bind((address, port))
    made.settimeout(patient(0.5))
    return made


async def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + patient(STEP)
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)
    return found


@asynccontextmanager
async def mapping(lease_s: int = 7200) -> AsyncIterator[tuple[PortMapping, list[Any]]]:
    told: list[Any] = []
    made = PortMapping(PORT, 0, told.append, lease_s=lease_s)
    made.gateways_changed(await asyncio.to_thread(default_gateways))
    try:
        yield made, told
    finally:
        await made.close()


@pytest.fixture(autouse=True)
def _miniupnpd(needs: Callable[[bool, str], None]) -> None:
    needs(Path(PROGRAM).exists(), "the program miniupnpd (Debian package miniupnpd-nftables)")


@pytest.mark.parametrize("used", ONLY)
def test_a_mapping_lets_the_world_in_is_renewed_and_removed(used):
    with Lab() as lab:
        site = Site(lab, min_lease_s=4, **ONLY[used])
        external = Endpoint(site.router.address, PORT)
        assert not site.reaches(external)

        async def work() -> None:
            async with mapping(lease_s=4) as (made, told):
                await until(lambda: external in (told[-1] if told else ()))
                report: Any = made.report()
                assert report["protocol"] == used
                assert report["external"] == str(external)
                assert 0 < report["expires_in_s"] <= 4
                assert report["error"] is None
                assert site.gateway.mappings() == {PORT: Endpoint(site.laptop.address, PORT)}
                # Renewed at half-life, and nobody was told of a change.
                left: list[Any] = [report["expires_in_s"]]

                def renewed() -> bool:
                    now: Any = made.report()
                    left.append(now["expires_in_s"])
                    return bool(left[-1] > left[-2])

                await until(renewed)
                assert left[-2] == pytest.approx(2.0, abs=patient(0.5))
                assert not [new for new in told if external not in new]
                assert await asyncio.to_thread(site.reaches, external)
                began = time.monotonic()
            assert time.monotonic() - began < patient(1.0)
            assert site.gateway.mappings() == {}

        site.run(work)


def test_a_restarted_router_is_mapped_again_and_ipv6_gets_its_hole():
    with Lab() as lab:
        site = Site(lab)
        assert site.laptop.address6 is not None
        wanted = (Endpoint(site.router.address, PORT), Endpoint(site.laptop.address6, PORT))
        assert not site.reaches(wanted[1])

        async def work() -> None:
            async with mapping() as (_, told):
                await until(lambda: told and told[-1] == wanted)
                assert await asyncio.to_thread(site.reaches, wanted[1])
                site.gateway.restart()
                assert site.gateway.mappings() == {}
                await until(site.gateway.mappings)
                assert told[-1] == wanted
                assert await asyncio.to_thread(site.reaches, wanted[0])
            assert site.gateway.mappings() == {}
            assert site.gateway.holes() == set()

        site.run(work)


def test_a_port_that_upnp_gave_to_another_host_is_left_alone_and_removal_is_bounded():
    with Lab() as lab:
        site = Site(lab, **ONLY["upnp"])
        other = lab.host("other", site.router)

        async def theirs() -> None:
            router = UpnpRouter(site.laptop.plug.gateway, other.address, "eth0", 0)
            await router.find()
            await router.map(PORT, Endpoint(other.address, PORT), 3600)
            await router.close()

        async def ours() -> None:
            async with mapping() as (made, told):
                ((external, *_),) = await until(lambda: told)
                assert external.port != PORT
                assert site.gateway.mappings() == {
                    PORT: Endpoint(other.address, PORT),
                    external.port: Endpoint(site.laptop.address, PORT),
                }
                made.gateways_changed(())
                assert told[-1] == ()
                report: Any = made.report()
                assert report["error"] == "there is no default gateway"
                made.gateways_changed(await asyncio.to_thread(default_gateways))
                await until(lambda: told[-1])
                site.gateway.silence()
                began = time.monotonic()
            assert time.monotonic() - began < patient(2.0)
            site.gateway.silence(False)

        with other.namespace.enter():
            asyncio.run(theirs())
        site.run(ours)


def test_default_gateways_are_read_from_the_routes(netns):
    assert netns.call(default_gateways) == ()
    netns.ip("link", "add", "e0", "type", "veth", "peer", "name", "e1")
    netns.ip("link", "set", "e0", "up")
    netns.ip("link", "set", "e1", "up")
    netns.ip("addr", "add", "192.168.7.2/24", "dev", "e0")
    netns.ip("addr", "add", "192.168.8.2/24", "dev", "e1")
    netns.ip("addr", "add", "2d00::2/64", "dev", "e0", "nodad")
    netns.ip("route", "add", "default", "via", "192.168.8.1", "metric", "600")
    second = DefaultGateway(IPv4Address("192.168.8.1"), IPv4Address("192.168.8.2"), "e1")
    assert netns.call(default_gateways) == (second,)
    netns.ip("route", "add", "default", "via", "192.168.7.1", "metric", "100")
    netns.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "e0")
    first, sixth = netns.call(default_gateways)
    assert first == DefaultGateway(IPv4Address("192.168.7.1"), IPv4Address("192.168.7.2"), "e0")
    assert (str(sixth.ip), str(sixth.local), sixth.interface) == ("fe80::1", "2d00::2", "e0")
    netns.ip("route", "add", "default", "via", "192.168.7.1", "metric", "1", "proto", "157")
    assert netns.call(default_gateways) == (first, sixth)


PLACE = (
    b"HTTP/1.1 200 OK\r\n"
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: %s\r\n\r\n"
)
HERE = b"http://127.0.0.1:5000/d.xml"


@pytest.mark.parametrize(
    ("location", "response", "said"),
    [
        (HERE, b"", "does not answer by HTTP"),
        (HERE, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000, "sends an answer too long"),
        (HERE, b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2/\r\n\r\n", "answers HTTP 302"),
        (HERE, b"HTTP/1.1 200 OK\r\n\r\n<!DOCTYPE a><a/>", "sends an unusable description"),
        (HERE, b"HTTP/1.1 200 OK\r\n\r\n<a/>", "has no connection to the internet"),
        (HERE, b"garbage", "does not answer by HTTP"),
        (b"http://127.0.0.2:5000/d.xml", b"", ""),
    ],
)
def test_a_upnp_router_that_misbehaves_is_an_error_and_no_harm(
    netns, monkeypatch, location, response, said
):
    monkeypatch.setattr(upnp, "SEARCH_WAITS", (0.1, 0.1))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        writer.close()

    class Ssdp(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: Any) -> None:
            self.transport.sendto(PLACE % location, address)

    async def work() -> str:
        loop = asyncio.get_running_loop()
        ssdp, _ = await loop.create_datagram_endpoint(Ssdp, ("127.0.0.1", 1900))
        server = await asyncio.start_server(serve, "127.0.0.1", 5000)
        router = UpnpRouter(IPv4Address("127.0.0.1"), IPv4Address("127.0.0.1"), "lo", 0)
        try:
            await router.find()
        except UpnpFailure as exc:
            return str(exc)
        finally:
            await router.close()
            ssdp.close()
            server.close()
        return "found"

    found = netns.call(lambda: asyncio.run(work()))
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_upnp_router_that_would_overwrite_is_not_let_to(netns):
    kind = b"urn:schemas-upnp-org:service:WANIPConnection:1"
    values = (
        b"<a><NewExternalIPAddress>11.0.1.2</NewExternalIPAddress>"
        b"<NewInternalPort>9</NewInternalPort><NewInternalClient>192.168.1.9</NewInternalClient>"
        b"<service><serviceType>%s</serviceType><controlURL>/c</controlURL></service></a>" % kind
    )
    calls: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + values)
        writer.close()

    async def work() -> tuple[int, int]:
        here = IPv4Address("127.0.0.1")
        server = await asyncio.start_server(serve, "127.0.0.1", 5000)
        router = UpnpRouter(here, here, "lo", 0)
        router._service = UpnpService(kind.decode(), "http://127.0.0.1:5000/c")
        with pytest.raises(UpnpFailure) as mapped:
            await router.map(PORT, Endpoint(here, PORT), 60)
        with pytest.raises(UpnpFailure) as checked:
            await router.check(PORT, Endpoint(here, PORT))
        await router.unmap(PORT, Endpoint(here, PORT))
        assert await router.map(9, Endpoint(IPv4Address("192.168.1.9"), 9), 60)
        await router.close()
        server.close()
        return mapped.value.number, checked.value.number

    assert netns.call(lambda: asyncio.run(work())) == (718, 718)
    assert [b"AddPortMapping" in call for call in calls].count(True) == 1
    assert not [call for call in calls if b"DeletePortMapping" in call]
