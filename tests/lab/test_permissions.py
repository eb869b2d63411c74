"""What members may do at each other's nodes: real daemons, real packets, the product's own default."""

from __future__ import annotations

import errno
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.host.inbound import inbound_table
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.lab.topology import Host, Server
from tests.lab.homes import Homes, join, launch, ping, problems, wait_direct, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(90))]

OPEN, CLOSED = 2200, 2201
LIMIT = 20.0
# Two retransmissions of a SYN would be 3 s.
REFUSED_S = 1.5
# Spec: RFC 8200 section 4.2: next header, length, and a PadN option of four bytes.
PADDED = bytes([0, 0, 1, 4, 0, 0, 0, 0])


class Guarded(Homes):
    """Homes whose nodes let in what nodes let in where nobody said anything."""

    def node(self, host: Host, server: Server, **settings: object) -> LabNode:
        return super().node(host, server, permissions={"inbound": "network"}, **settings)


@pytest.fixture(scope="module")
def lab() -> Iterator[Guarded]:
    """Two homes whose nodes are direct to each other."""
    with watched(Guarded(2)) as lab:
        join(*lab.nodes)
        yield lab


@pytest.fixture
def pair(lab: Guarded) -> Iterator[tuple[LabNode, LabNode]]:
    """The two nodes; afterwards no rule is left."""
    a, b = lab.nodes
    yield a, b
    b.cli("shields-up", "off")
    for rule in b.query("rules")["local"]:
        verb = "allow" if rule["allow"] else "deny"
        who = "all" if rule["who"] == "*" else rule["who"]
        b.cli(verb, who, rule["what"], "--undo")
    assert b.query("rules")["local"] == []


def addresses(node: LabNode) -> list[str]:
    """Return a node's overlay addresses: IPv6, then IPv4."""
    return sorted(node.status()["addresses"], key=lambda address: ":" not in address)


def make(node: LabNode, address: str, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with node.namespace.enter():
        made = socket.socket(family, kind)
    made.settimeout(patient(LIMIT))
    return made


@contextmanager
def listening(node: LabNode, address: str, port: int) -> Iterator[socket.socket]:
    with make(node, address, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        yield listener


def connect(node: LabNode, address: str, port: int, limit: float = LIMIT) -> socket.socket | None:
    """Open a TCP connection; None if nothing answers, or there is no way to it any more."""
    made = make(node, address, socket.SOCK_STREAM)
    made.settimeout(limit)
    try:
        made.connect((address, port))
    except OSError as error:
        made.close()
        if isinstance(error, TimeoutError) or error.errno == errno.ENETUNREACH:
            return None
        raise
    made.settimeout(patient(LIMIT))
    return made


def opens(source: LabNode, target: LabNode, address: str, port: int, *, expect: bool) -> bool:
    """Say whether a TCP connection can be opened and carries data."""
    with listening(target, address, port) as listener:
        client = connect(source, address, port, patient(LIMIT) if expect else REFUSED_S)
        if client is None:
            return False
        accepted, _ = listener.accept()
        with client, accepted:
            client.sendall(b"x")
            return accepted.recv(1) == b"x"


def test_by_default_only_ping_is_let_in(pair: tuple[LabNode, LabNode]) -> None:
    a, b = pair
    ping(a, b)
    for address in addresses(b):
        assert not opens(a, b, address, OPEN, expect=False)
    assert a.query("ping", b.npub)["rtt_ms"] is not None
    told = a.query("policy", "test", "me", b.npub, "tcp/22")
    assert (told["allowed"], told["layer"]) == (False, "default")
    assert a.query("policy", "test", "me", b.npub, "ping")["allowed"]


def test_a_port_that_is_allowed_is_open_and_no_other(pair: tuple[LabNode, LabNode]) -> None:
    a, b = pair
    said = b.cli("allow", a.name, f"inbound:tcp/{OPEN}")
    assert said == f"At this node: allow {a.name} inbound:tcp/{OPEN}.\n"
    for address in addresses(b):
        assert opens(a, b, address, OPEN, expect=True)
        assert not opens(a, b, address, CLOSED, expect=False)
    told = b.query("policy", "test", a.name, "me", f"tcp/{OPEN}")
    assert (told["allowed"], told["layer"]) == (True, "local")
    assert told["text"].endswith(f"allow {a.name} inbound:tcp/{OPEN}")
    # What b itself begins was never in question.
    assert not opens(b, a, addresses(a)[0], OPEN, expect=False)


def test_a_denial_cuts_what_is_open_within_a_second(pair: tuple[LabNode, LabNode]) -> None:
    a, b = pair
    address = addresses(b)[0]
    b.cli("allow", a.npub, "inbound:tcp")
    with listening(b, address, OPEN) as listener, ExitStack() as stack:
        client = connect(a, address, OPEN)
        assert client is not None
        accepted = stack.enter_context(listener.accept()[0])
        stack.enter_context(client)
        accepted.settimeout(patient(LIMIT))
        client.sendall(b"before")
        assert accepted.recv(100) == b"before"
        b.cli("deny", a.npub, "inbound:tcp")
        denied = time.monotonic()
        accepted.settimeout(0.2)
        heard = denied
        while time.monotonic() - denied < 3.0:
            client.sendall(b"after")
            try:
                accepted.recv(1000)
                heard = time.monotonic()
            except TimeoutError:
                pass
        assert heard - denied < 1.0
        b.cli("allow", a.npub, "inbound:tcp")
        accepted.settimeout(patient(LIMIT))
        assert accepted.recv(1000).startswith(b"after")


def test_shields_up_lets_nothing_in_and_everything_out(pair: tuple[LabNode, LabNode]) -> None:
    a, b = pair
    b.cli("allow", a.npub)
    b.cli("shields-up", "on")
    assert "shields_up" in problems(b.status())
    assert not opens(a, b, addresses(b)[0], OPEN, expect=False)
    done = a.namespace.run("ping", "-c1", "-w2", addresses(b)[0], check=False)
    assert done.returncode == 1
    ping(b, a)
    b.cli("shields-up", "off")
    assert opens(a, b, addresses(b)[0], OPEN, expect=True)


def test_extension_headers_and_fragments_pass_no_filter(pair: tuple[LabNode, LabNode]) -> None:
    a, b = pair
    b.cli("allow", a.npub, f"inbound:udp/{OPEN}")
    address = addresses(b)[0]
    with ExitStack() as stack:
        heard = {
            port: stack.enter_context(make(b, address, socket.SOCK_DGRAM))
            for port in (OPEN, CLOSED)
        }
        for port, sock in heard.items():
            sock.bind((address, port))
        sender = stack.enter_context(make(a, address, socket.SOCK_DGRAM))
        for option, data in (
            (None, b"plain"),
            (socket.IPV6_DSTOPTS, b"destination options"),
            (socket.IPV6_HOPOPTS, b"hop by hop"),
            (None, bytes(4000)),
        ):
            if option is not None:
                sender.setsockopt(socket.IPPROTO_IPV6, option, PADDED)
            for port in (CLOSED, OPEN):
                sender.sendto(data, (address, port))
            # The tunnel keeps their order.
            assert heard[OPEN].recv(65536) == data
            if option is not None:
                sender.setsockopt(socket.IPPROTO_IPV6, option, b"")
        heard[CLOSED].setblocking(False)
        with pytest.raises(BlockingIOError):
            heard[CLOSED].recv(65536)


def test_rules_and_shields_outlive_a_restart(pair: tuple[LabNode, LabNode]) -> None:
    a, b = pair
    b.cli("allow", a.npub, f"inbound:tcp/{OPEN}")
    b.cli("deny", "all", "inbound:icmp")
    b.cli("shields-up", "on")
    before = b.query("rules")
    b.restart()
    assert b.query("rules") == before
    assert [rule["text"] for rule in before["local"]] == [
        f"allow {a.name} inbound:tcp/{OPEN}",
        "deny * inbound:icmp",
    ]
    b.cli("shields-up", "off")
    b.wait_for_peer(a.npub, path="direct")
    assert opens(a, b, addresses(b)[0], OPEN, expect=True)


def test_refusals_say_what_to_do(pair: tuple[LabNode, LabNode]) -> None:
    a, b = pair
    for arguments, words in (
        (("allow", "nobody"), "no peer is called"),
        (("allow", a.npub, "inbound:22"), "is no port"),
        (("allow", a.npub, "lan:tcp/22"), "takes no ports"),
        (("allow", a.npub, "--undo"), "no such rule"),
        (("allow", "me"), "is about others"),
        (("allow", a.npub, "--at", a.npub), "rules of the network"),
        (("policy", "test", "me", a.npub, "tcp/1-2"), "one port at a time"),
    ):
        done = b.attempt(*arguments)
        assert done.returncode in (1, 2), arguments
        error, hint = done.stderr.splitlines()
        assert words in error
        assert hint.startswith("hint: ")


@contextmanager
def tools_without_nft(directory: Path) -> Iterator[str]:
    """Yield a PATH on which everything of this host's is, but not nft."""
    directory.mkdir()
    for place in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for tool in Path(place).iterdir():
            link = directory / tool.name
            if tool.name != "nft" and not link.exists() and not link.is_symlink():
                link.symlink_to(tool)
    yield str(directory)


def test_what_cannot_be_enforced_is_not_begun(tmp_path: Path) -> None:
    """Without nft there is no daemon, unless the user prefers one that lets everything in."""
    with watched(Guarded(1)) as lab, tools_without_nft(tmp_path / "bin") as path:
        (node,) = lab.nodes
        node.init()
        daemon = Process(
            node.namespace,
            (*node.command, "daemon"),
            log=tmp_path / "log",
            environment={"PATH": path},
        )
        wait_until(lambda: not daemon.alive, "its end", timeout=LIMIT)
        assert daemon.exit_code == 1
        assert "permissions cannot be enforced: nftables is not installed" in daemon.output()
        assert "permissions.enforce: best-effort" in daemon.output()
        text = node.config.read_text()
        node.config.write_text(text.replace("inbound: network", "enforce: best-effort"))
        node.start(PATH=path)
        told = problems(node.wait_for(lambda status: problems(status).get("not_enforced"), "it"))
        assert "all members reach everything here" in told["not_enforced"]
        node.stop()


def test_another_firewall_in_the_way_is_named(tmp_path: Path) -> None:
    with watched(Guarded(1)) as lab:
        (node,) = lab.nodes
        node.namespace.run(
            "nft",
            "add table inet host;"
            "add chain inet host input { type filter hook input priority 0; policy drop; };"
            "add rule inet host input iifname lo accept;"
            "add rule inet host input ct state established accept",
        )
        node.init()
        node.start()
        told = node.wait_for(lambda status: problems(status).get("firewall_drops"), "the firewall")
        found: dict[str, Any] = next(p for p in told["problems"] if p["code"] == "firewall_drops")
        assert "inet host input" in found["text"]
        command = found["hint"].partition(": ")[2]
        assert command.startswith("sudo nft insert rule")
        node.namespace.run(*command.split()[1:])
        node.restart()
        assert "firewall_drops" not in problems(node.status())


def test_what_is_answered_is_in_force(pair: tuple[LabNode, LabNode]) -> None:
    """Whoever starts a service after the answer relies on it."""
    a, b = pair
    for _ in range(5):
        b.cli("allow", a.name, f"inbound:tcp/{OPEN}")
        assert has_rule(b, OPEN)
        b.cli("deny", a.name, f"inbound:tcp/{OPEN}")
        assert not has_rule(b, OPEN)


def test_who_flushes_all_tables_opens_nothing_for_long(pair: tuple[LabNode, LabNode]) -> None:
    """A restart of nftables.service does. Looking every 30 s would be too late."""
    a, b = pair
    ping(a, b)
    for _ in range(3):
        b.namespace.nft("flush ruleset")
        wait_until(lambda: "to_us" in filter_text(b), "the filter", timeout=patient(3))
    assert not opens(a, b, addresses(b)[0], OPEN, expect=False)
    ping(a, b)


def filter_text(node: LabNode) -> str:
    table = inbound_table(node.interface)
    run = node.namespace.run("nft", "list", "table", "inet", table, check=False)
    return "" if run.returncode else run.stdout


def has_rule(node: LabNode, port: int) -> bool:
    """Whether the filter of this moment lets TCP in at a port."""
    return re.search(rf"tcp dport {{? ?{port}\b", filter_text(node)) is not None


def test_cleanup_removes_what_a_killed_daemon_left(tmp_path: Path) -> None:
    with watched(Guarded(1)) as lab:
        (node,) = lab.nodes
        node.init()
        node.start()
        table = inbound_table(node.interface)
        assert table in node.namespace.run("nft", "list", "tables").stdout
        node.kill()
        assert table in node.namespace.run("nft", "list", "tables").stdout
        assert f"Removed table inet {table}" in node.cli("cleanup")
        assert node.namespace.run("nft", "list", "tables").stdout == ""


def test_owners_devices_tags_and_removal_decide_too() -> None:
    """A device of the founder may everything, a tag what the network allows, a removed one nothing."""
    with watched(Guarded(3)) as lab:
        founder, own, other = lab.nodes
        launch(*lab.nodes)
        own.query("join", founder.query("invite", own.npub, "--mine")["link"])
        other.query("join", founder.query("invite", other.npub, "--tag", "web")["link"])
        wait_direct(*lab.nodes)
        home = addresses(founder)[0]
        assert opens(own, founder, home, OPEN, expect=True)
        assert not opens(other, founder, home, OPEN, expect=False)
        founder.cli("allow", "tag:web", f"inbound:tcp/{OPEN}", "--network")
        assert opens(other, founder, home, OPEN, expect=True)
        assert not opens(other, founder, home, CLOSED, expect=False)
        # It came as a signed operation, and holds at the others' nodes too.
        own.wait_for(lambda _status: own.query("rules")["network"], "the rule")
        assert opens(other, own, addresses(own)[0], OPEN, expect=True)
        assert "rules" in own.attempt("allow", "all", "--network").stderr
        founder.cli("peer", "remove", other.npub)
        assert not opens(other, founder, home, OPEN, expect=False)
