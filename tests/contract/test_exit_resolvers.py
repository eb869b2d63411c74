"""While an exit is used: every question comes to us by the host's real resolver, and to nobody else."""

from __future__ import annotations

import re
import sys

import pytest

from tests.contract.resolver_room import Log, Room
from tests.contract.test_resolvers import DESIRED, SETTLE
from tests.contract.test_resolvers import resolved as resolved

pytestmark = pytest.mark.timeout(120)

# Our server with the forwarder behind it; it asks the room's dnsmasq at 192.0.2.3, which stands for the
# exit, with one member's name of our own.
_SERVER = """
import asyncio, sys
from ipaddress import ip_address, ip_network
from nostrvpn.endpoint import parse_endpoint
from nostrvpn.host.dns_message import read_question
from nostrvpn.io.blocklists import Blocklists
from nostrvpn.io.dns_forwarder import Forwarder, Way
from nostrvpn.io.dns_server import DnsServer
from nostrvpn.io.guest_names import GuestNames
from nostrvpn.mesh.zone import Resident, make_zone
from nostrvpn.mesh.zone_answers import answer

zone = make_zone("home", [Resident("a" * 64, "nas", "", (ip_address("10.64.0.7"),))],
                 [ip_network("10.64.0.0/16")])
way = Way((parse_endpoint("192.0.2.3:53"),))
forwarder = Forwarder()

def answered(query, tcp):
    name = read_question(query).name
    print("asked", name, flush=True)
    ours = name.endswith(("nvpn", "64.10.in-addr.arpa"))
    return answer(query, zone, tcp=tcp) if ours else forwarder.ask(query, way, tcp=tcp)

async def serve():
    server = DnsServer(answered)
    endpoint = await server.start()
    if len(sys.argv) > 1:
        allowed = ip_address(sys.argv[1])
        guests = GuestNames(lambda ip: ip == allowed, lambda: way, frozenset, Blocklists(()))
        await server.offer_at([ip_address("10.64.0.5")], "nvpn0", guests=guests.answer)
    print("serving", endpoint, flush=True)
    await asyncio.Event().wait()

asyncio.run(serve())
"""
EVERYTHING = (
    DESIRED + "from dataclasses import replace\ndesired = replace(desired, everything=True)\n"
)
OURS = "127.118.112.1:53"


def serve(room: Room, *arguments: str) -> Log:
    return room.start(sys.executable, "-c", _SERVER, *arguments, until="serving")


def serve_internet(room: Room) -> Log:
    """The server that the exit asks, which knows the internet."""
    room.run("ip", "addr", "add", "192.0.2.3/24", "dev", "eth0")
    told: tuple[str, ...] = (
        "no-daemon",
        "no-hosts",
        "no-resolv",
        "conf-file=/dev/null",
        "user=root",
        "pid-file=",
    )
    told += ("bind-interfaces", "log-queries", "log-facility=-")
    told += ("listen-address=192.0.2.3", "address=/www.example.org/198.51.100.7")
    large = [f"host-record=large.example.org,198.51.100.{number}" for number in range(1, 120)]
    words = (f"--{word}" for word in (*told, *large, "local=/#/"))
    return room.start("dnsmasq", *words, until="started")


def address(room: Room, name: str) -> str:
    found = room.run("getent", "ahostsv4", name, check=False).split()
    return found[0] if found else ""


def test_systemd_resolved_asks_us_for_everything_while_an_exit_is_used(resolved):
    internet = serve_internet(resolved)
    ours = serve(resolved)
    # The host's own server, for everything and of another link with a default route.
    other = resolved.start(
        *("dnsmasq", "--no-daemon", "--no-hosts", "--no-resolv", "--conf-file=/dev/null"),
        *("--user=root", "--pid-file=", "--bind-interfaces", "--listen-address=192.0.2.1"),
        *("--log-queries", "--log-facility=-", "--address=/#/203.0.113.66"),
        until="started",
    )
    resolved.run("resolvectl", "dns", "eth0", "192.0.2.1")
    resolved.run("resolvectl", "default-route", "eth0", "yes")
    before = resolved.run("resolvectl", "status", "eth0")
    operations = resolved.python(EVERYTHING.format(server=OURS) + SETTLE)
    assert "resolvectl default-route nvpn0 yes" in operations
    assert "resolvectl domain nvpn0 home.nvpn ~nvpn ~64.10.in-addr.arpa ~." in operations
    assert resolved.python(EVERYTHING.format(server=OURS) + SETTLE) == []
    assert resolved.run("resolvectl", "status", "eth0") == before  # other links stay as they are
    assert address(resolved, "www.example.org") == "198.51.100.7"
    assert address(resolved, "nas.home.nvpn") == "10.64.0.7"
    assert address(resolved, "nas") == "10.64.0.7"
    # Off again: the others are asked as before, and nothing that was said through the exit is kept.
    off = DESIRED.format(server=OURS) + SETTLE.replace("result =", "flush_caches()\nresult =")
    assert "resolvectl default-route nvpn0 no" in resolved.python(off)
    assert address(resolved, "www.example.org") == "203.0.113.66"
    other.until("query[A] www.example.org")
    assert sum("query[A] www.example.org" in line for line in other.lines) == 1
    ours.until("www.example.org")
    internet.until("query[A] www.example.org")


@pytest.mark.parametrize("package", ["openresolv", "resolvconf"])
def test_resolvconf_leaves_every_other_server_out_and_puts_them_back(package):
    with Room(package) as room:
        room.run("mkdir", "-p", "/run/resolvconf/interface")
        room.write("/etc/nsswitch.conf", "hosts: files dns\n")
        if package == "resolvconf":
            room.run("ln", "-sf", "/run/resolvconf/resolv.conf", "/etc/resolv.conf")
            room.run("resolvconf", "--enable-updates")
        else:
            room.write("/etc/resolv.conf", "# Generated by resolvconf\n")
        room.run("resolvconf", "-a", "eth0", stdin="nameserver 192.0.2.9\nsearch lan\n")
        before = room.read("/etc/resolv.conf")
        serve_internet(room)
        serve(room)
        head = "from nostrvpn.io.resolvconf import *\n"
        code = head + EVERYTHING.format(server=OURS)
        add = "result = add_record('nvpn0', resolvconf_record(desired), alone=desired.everything)"
        room.python(code + add)
        # A network that comes meanwhile (DHCP) is left out too, and known to us all the same.
        room.run("resolvconf", "-a", "wlan0", stdin="nameserver 192.0.2.10\n")
        servers = re.findall(r"^nameserver (\S+)", room.read("/etc/resolv.conf"), re.MULTILINE)
        assert servers == ["127.118.112.1"]
        look = "from nostrvpn.io.host_servers import HostServers\n"
        found = room.python(look + "result = [str(s.ip) for s in HostServers().outside()]")
        assert found == ["192.0.2.9"]
        assert address(room, "www.example.org") == "198.51.100.7"
        assert address(room, "nas.home.nvpn") == "10.64.0.7"
        room.run("resolvconf", "-d", "wlan0")
        assert room.python(code + "result = remove_records(None)") == ["tun0.nvpn0.nostrvpn"]
        assert room.read("/etc/resolv.conf") == before
        # And from alone to beside the others, as when an exit is used no more.
        room.python(code + add)
        plain = head + DESIRED.format(server=OURS)
        room.python(plain + "remove_records('nvpn0')\n" + add)
        servers = re.findall(r"^nameserver (\S+)", room.read("/etc/resolv.conf"), re.MULTILINE)
        assert servers == ["10.64.0.5", "192.0.2.9"]


def test_an_edited_resolv_conf_has_our_server_alone_and_large_answers_come_by_tcp():
    with Room("resolvconf") as room:
        room.write("/etc/nsswitch.conf", "hosts: files dns\n")
        original = "# by hand\nnameserver 192.0.2.9\nsearch lan\nnameserver 192.0.2.10"
        room.write("/etc/resolv.conf", original)
        serve_internet(room)
        ours = serve(room)
        code = "from nostrvpn.io.resolv_conf import *\n" + EVERYTHING.format(server=OURS)
        assert room.python(code + "result = put_blocks(desired, 'nvpn0')") is True
        assert address(room, "www.example.org") == "198.51.100.7"
        assert len(room.run("getent", "ahostsv4", "large.example.org").split()) > 300
        ours.until("large.example.org")
        assert room.python(code + "result = take_blocks(None)") is True
        assert room.read("/etc/resolv.conf") == original


ASK = """
import socket, sys
import dns.message, dns.query, dns.rcode
query = dns.message.make_query({name!r}, "A")
try:
    found = dns.query.udp(query, "10.64.0.5", timeout=2, source={source!r})
    result = [dns.rcode.to_text(found.rcode()), [str(i) for r in found.answer for i in r]]
except Exception as exc:
    result = [type(exc).__name__, []]
"""


def test_guests_are_answered_through_the_tunnel_and_nobody_else_anywhere():
    with Room("resolvconf") as room:
        serve_internet(room)
        # The tunnel's other end, in a network of its own.
        room.run("ip", "netns", "add", "guest")
        room.run("ip", "link", "set", "nvpn0-end", "netns", "guest")
        room.run("ip", "link", "set", "nvpn0", "up")
        room.run("ip", "route", "add", "10.64.0.0/16", "dev", "nvpn0")
        inside = ("ip", "netns", "exec", "guest")
        for own in ("10.64.0.8/16", "10.64.0.9/16"):
            room.run(*inside, "ip", "addr", "add", own, "dev", "nvpn0-end")
        room.run(*inside, "ip", "link", "set", "nvpn0-end", "up")
        room.run("ip", "netns", "add", "lan")
        room.run("ip", "link", "set", "eth0-end", "netns", "lan")
        room.run(
            "ip", "netns", "exec", "lan", "ip", "addr", "add", "192.0.2.8/24", "dev", "eth0-end"
        )
        room.run("ip", "netns", "exec", "lan", "ip", "link", "set", "eth0-end", "up")
        room.run(
            "ip", "netns", "exec", "lan", "ip", "route", "add", "10.64.0.5", "via", "192.0.2.1"
        )
        serve(room, "10.64.0.8")

        def ask(netns: str, name: str, source: str) -> list[object]:
            code = ASK.format(name=name, source=source) + "\nimport json\nprint(json.dumps(result))"
            import json

            answered: list[object] = json.loads(
                room.run("ip", "netns", "exec", netns, sys.executable, "-c", code)
            )
            return answered

        assert ask("guest", "www.example.org", "10.64.0.8") == ["NOERROR", ["198.51.100.7"]]
        assert ask("guest", "printer.lan", "10.64.0.8") == ["REFUSED", []]
        # This host's own programs at the same address know more.
        own = room.python(ASK.format(name="nas.home.nvpn", source="10.64.0.5"))
        assert own == ["NOERROR", ["10.64.0.7"]]
        assert ask("guest", "nas.home.nvpn", "10.64.0.8") == ["REFUSED", []]
        assert ask("guest", "www.example.org", "10.64.0.9")[0] == "Timeout"
        assert ask("lan", "www.example.org", "192.0.2.8")[0] != "NOERROR"
