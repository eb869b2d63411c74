"""The name servers of the networks around, whoever wrote what the host's programs read."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.host.resolver import DesiredNames, with_blocks
from nostrvpn.io import host_servers, resolv_conf
from nostrvpn.io.host_servers import HostServers

OURS = DesiredNames(
    parse_endpoint("127.118.112.1:53"), ip_address("10.64.0.5"), "home.nvpn", ("nvpn",), (), True
)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(host_servers, "_FILES", (tmp_path / "resolved", tmp_path / "manager"))
    monkeypatch.setattr(host_servers, "_RECORDS", tmp_path / "records")
    monkeypatch.setattr(resolv_conf, "PATH", tmp_path / "resolv.conf")
    return Path(tmp_path)


def told(servers: tuple[object, ...]) -> list[str]:
    return [str(server) for server in servers]


def test_the_servers_outside_are_those_behind_systemd_resolved(root):
    (root / "resolv.conf").write_text("nameserver 127.0.0.53\nsearch lan\n")
    (root / "resolved").write_text("nameserver 127.118.112.1\nnameserver 192.0.2.1\nsearch corp\n")
    servers = HostServers()
    assert told(servers.outside()) == told(servers.own()) == ["192.0.2.1:53"]
    assert servers.searched() == {"lan", "corp"}


def test_after_a_kill_they_are_read_below_our_lines(root):
    text = with_blocks("nameserver 192.0.2.1\nnameserver 127.0.0.1\n", OURS, "nvpn0")
    (root / "resolv.conf").write_text(text)
    servers = HostServers()
    assert told(servers.outside()) == ["192.0.2.1:53"]
    assert told(servers.own()) == ["192.0.2.1:53", "127.0.0.1:53"]


def test_records_of_resolvconf_tell_them_where_ours_is_alone(root):
    (root / "resolv.conf").write_text("nameserver 127.118.112.1\n")
    (root / "records" / "interfaces").mkdir(parents=True)
    (root / "records" / "interfaces" / "eth0").write_text("nameserver 192.0.2.1\n")
    ours = root / "records" / "interfaces" / "tun0.nvpn0.nostrvpn"
    ours.write_text("nameserver 10.64.0.5\n")
    assert told(HostServers().outside()) == ["192.0.2.1:53"]


def test_where_nobody_says_any_more_those_of_before_are_asked(root):
    (root / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    servers = HostServers()
    servers.outside()
    (root / "resolv.conf").write_text("nameserver 127.118.112.1\n")
    assert told(servers.outside()) == ["192.0.2.1:53"]
    assert servers.own() == ()
    (root / "manager").write_text("nameserver 198.51.100.1\n")  # another network
    assert told(servers.outside()) == ["198.51.100.1:53"]
