"""Our names through the real programs that manage resolv.conf: systemd-resolved and both resolvconfs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.contract.resolver_room import Room

pytestmark = pytest.mark.timeout(120)

STUB = "/run/systemd/resolve/stub-resolv.conf"
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
<auth>EXTERNAL</auth><policy context="default"><allow user="*"/>
<allow send_type="method_call"/><allow send_type="signal"/><allow send_requested_reply="true"/>
<allow receive_type="method_call"/><allow receive_type="signal"/>
<allow receive_requested_reply="true"/></policy>
<includedir>/usr/share/dbus-1/system.d</includedir></busconfig>
"""
DESIRED = """
import socket
from nostrvpn.endpoint import parse_endpoint
from nostrvpn.host.resolver import *
from nostrvpn.io.resolved import *
from nostrvpn.io.resolv_conf import find_resolver
from ipaddress import ip_address
desired = DesiredNames(parse_endpoint({server!r}), ip_address("10.64.0.5"), "home.nvpn",
                       ("nvpn", "64.10.in-addr.arpa"))
index = socket.if_nametoindex("nvpn0")
"""
SETTLE = """
found, wanted = observe_link(index), desired_link(desired)
operations = link_operations(found, wanted, "nvpn0")
apply_link(index, operations)
result = [str(operation) for operation in operations]
"""


@pytest.fixture
def resolved() -> Iterator[Room]:
    """A room in which systemd-resolved resolves, by the LAN's server where nobody says otherwise."""
    with Room("systemd-resolved") as room:
        room.run("ln", "-sf", STUB, "/etc/resolv.conf")
        room.write("/etc/nsswitch.conf", "hosts: files dns\n")
        room.write("/run/bus.conf", BUS)
        room.run("mkdir", "-p", "/run/dbus", "/run/systemd/resolve")
        passwd = room.read("/etc/passwd")
        if "systemd-resolve:" not in passwd:
            room.write("/etc/passwd", f"{passwd}systemd-resolve:x:994:994::/:/usr/sbin/nologin\n")
            group = room.read("/etc/group")
            room.write("/etc/group", f"{group}systemd-resolve:x:994:\n")
        room.run("chown", "systemd-resolve:systemd-resolve", "/run/systemd/resolve")
        room.write("/etc/systemd/resolved.conf", "[Resolve]\nDNS=192.0.2.1\nFallbackDNS=\n")
        room.start(
            "dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--print-pid", until=""
        )
        room.start("/usr/lib/systemd/systemd-resolved", until="Using system hostname")
        for _ in range(100):  # the name on the bus comes last
            if room.python("from nostrvpn.io.resolved import is_running as r\nresult = r()"):
                break
        yield room


def settle(room: Room, server: str) -> list[str]:
    operations: list[str] = room.python(DESIRED.format(server=server) + SETTLE)
    return operations


def test_systemd_resolved_asks_us_for_our_names_only(resolved):
    lan, ours = resolved.serve_lan(), resolved.serve_names()
    server = ours.lines[-1].split()[1]
    look = "result = choose_way(find_resolver(), may_edit=True).way.value"
    assert resolved.python(DESIRED.format(server=server) + look) == "systemd-resolved"
    assert settle(resolved, server)[-2:] == [
        "resolvectl domain nvpn0 home.nvpn ~nvpn ~64.10.in-addr.arpa",
        "resolvectl dns nvpn0 127.118.112.1",
    ]
    assert settle(resolved, server) == []  # a second run does nothing
    # Whole and short names, by the stub that every program asks; and back.
    for name in ("nas.home.nvpn", "nas"):
        assert resolved.run("getent", "ahostsv4", name).split()[0] == "10.64.0.7"
    assert "nas.home.nvpn" in resolved.run("getent", "hosts", "10.64.0.7")
    assert resolved.run("getent", "ahostsv4", "printer.lan").split()[0] == "192.0.2.7"
    assert resolved.run("getent", "ahostsv4", "nobody.home.nvpn", check=False) == ""
    resolved.run("resolvectl", "flush-caches")
    assert resolved.run("getent", "ahostsv4", "printer.lan")
    lan.until("query[A] printer.lan")
    assert not [line for line in lan.lines if "query" in line and "nvpn" in line]
    assert resolved.run("readlink", "/etc/resolv.conf").strip() == STUB


def test_systemd_resolved_is_told_of_another_port(resolved):
    ours = resolved.serve_names(5300)
    server = ours.lines[-1].split()[1]
    assert server == "127.118.112.1:5300"
    settle(resolved, server)
    assert resolved.run("getent", "ahostsv4", "nas.home.nvpn").split()[0] == "10.64.0.7"
    assert settle(resolved, server) == []


def test_systemd_resolved_forgets_when_told_and_when_the_link_goes(resolved):
    before = resolved.python(
        DESIRED.format(server="127.118.112.1:53") + "result = str(observe_link(index))"
    )
    settle(resolved, "127.118.112.1:53")
    revert = "revert_link(index)\nresult = str(observe_link(index))"
    assert resolved.python(DESIRED.format(server="127.118.112.1:53") + revert) == before
    settle(resolved, "127.118.112.1:53")
    assert "home.nvpn" in resolved.run("resolvectl", "domain")
    resolved.run("ip", "link", "del", "nvpn0")  # as `nostrvpn cleanup` does after a kill
    for _ in range(100):
        if "home.nvpn" not in resolved.run("resolvectl", "domain"):
            break
    else:
        raise AssertionError("it remembers a link that is gone")


@pytest.mark.parametrize("is_refused", [False, True])
def test_cleanup_leaves_no_question_to_a_server_that_is_gone(resolved, is_refused):
    """After a kill systemd-resolved still sends everything to the link; also if that cannot go."""
    whole = DESIRED.replace('"64.10.in-addr.arpa")', '"64.10.in-addr.arpa"), everything=True')
    resolved.python(whole.format(server="127.118.112.1:53") + SETTLE)
    resolved.run("ip", "link", "set", "nvpn0", "alias", "nostrvpn /var/lib/nostrvpn")
    assert "~." in resolved.run("resolvectl", "domain", "nvpn0")
    refuse = "cleanup._delete = lambda link: (_ for _ in ()).throw(SystemRefused('busy'))\n"
    resolved.python(
        "import nostrvpn.io.cleanup as cleanup\n"
        "from nostrvpn.errors import SystemRefused\n"
        f"{refuse if is_refused else ''}"
        "try: result = cleanup.remove_marked('nvpn0')\n"
        "except cleanup.NotAllRemoved as told: result = str(told)\n"
    )
    for _ in range(100):
        if "~." not in (said := resolved.run("resolvectl", "domain")):
            break
    else:
        raise AssertionError(said)
    assert ("nvpn0" in said) is is_refused


def test_without_systemd_resolved_nothing_is_started():
    with Room("systemd-resolved") as room:
        assert (
            room.python("from nostrvpn.io.resolved import is_running as r\nresult = r()") is False
        )


@pytest.mark.parametrize("package", ["openresolv", "resolvconf"])
def test_resolvconf_puts_us_first_and_itself_back(package):
    with Room(package) as room:
        room.run("mkdir", "-p", "/run/resolvconf/interface")
        room.write("/etc/nsswitch.conf", "hosts: files dns\n")
        if package == "resolvconf":
            room.run("ln", "-sf", "/run/resolvconf/resolv.conf", "/etc/resolv.conf")
            room.run("resolvconf", "--enable-updates")
        else:
            room.write("/etc/resolv.conf", "# Generated by resolvconf\n")
        room.run("resolvconf", "-a", "eth0", stdin="nameserver 192.0.2.1\nsearch lan\n")
        before = room.read("/etc/resolv.conf")
        assert "nameserver 192.0.2.1" in before
        room.serve_lan()
        room.serve_names()
        made = "from nostrvpn.io.resolvconf import *\n" + DESIRED.format(server="127.118.112.1:53")
        look = "result = choose_way(find_resolver(), may_edit=True).way.value"
        assert room.python(made + look) == "resolvconf"
        room.python(made + "result = add_record('nvpn0', resolvconf_record(desired))")
        servers = re.findall(r"^nameserver (\S+)", room.read("/etc/resolv.conf"), re.MULTILINE)
        assert servers == ["10.64.0.5", "192.0.2.1"]
        for name, address in {
            "nas.home.nvpn": "10.64.0.7",
            "nas": "10.64.0.7",
            "printer.lan": "192.0.2.7",
            "printer": "192.0.2.7",
        }.items():
            assert room.run("getent", "ahostsv4", name).split()[0] == address
        # By the mark alone, as after a kill; another interface's record stays.
        assert room.python(made + "result = remove_records('nvpn1')") == []
        assert room.python(made + "result = remove_records(None)") == ["tun0.nvpn0.nostrvpn"]
        assert room.read("/etc/resolv.conf") == before
        assert room.python(made + "result = remove_records(None)") == []
