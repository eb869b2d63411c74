"""The command line against a fake daemon on a real socket: output, exit codes, errors."""

from __future__ import annotations

import asyncio
import json
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.cli import main
from nostrvpn.config.options import FIRST, Options
from nostrvpn.control.server import ControlServer
from nostrvpn.errors import UserError
from nostrvpn.identity.keys import RootSecret, wireguard_public_key
from nostrvpn.io.lock import StateLock

NPUB = RootSecret(b"\x11" * 32).npub
PEER = RootSecret(b"\x22" * 32).npub

RELAY: dict[str, Any] = {
    "url": "wss://nos.lol",
    "state": "connected",
    "rtt_ms": 41.5,
    "fitness": "fit",
    "reason": "",
    "counters": {},
}
STATUS: dict[str, Any] = {
    "npub": NPUB,
    "name": "laptop",
    "wireguard_public_key": "QxYMuMaDKeDu6LZQB9jjNEZmdr9R/e1ORfb24R+BiXc=",
    "addresses": ["fd00::1", "10.64.0.1"],
    "network": "abcdef0123456789",
    "interface": "nvpn0",
    "backend": "kernel",
    "listen_port": 23456,
    "relays": [RELAY, RELAY | {"url": "wss://x.example", "state": "down", "rtt_ms": None}],
    "peers": [
        {
            "npub": PEER,
            "name": "home",
            "addresses": ["fd00::2"],
            "state": "connected",
            "path": "direct",
            "endpoint": "198.51.100.7:4242",
            "rtt_ms": 12.25,
            "rx_bytes": 10 * 1024 * 1024,
            "tx_bytes": 512,
            "last_handshake_age_s": 42.0,
            "connected_in_ms": 180.0,
        }
    ],
    "problems": [
        {"code": "hard_nat", "severity": "warning", "text": "this NAT is hard", "hint": "use IPv6"}
    ],
}
ECHO: dict[str, Any] = {
    "peer": PEER,
    "name": "home",
    "address": "fd00::2",
    "path": "direct",
    "endpoint": "198.51.100.7:4242",
    "rtt_ms": 12.5,
}


@dataclass
class FakeDaemon:
    """A control server in a thread; ``answers`` maps command to a result, list or error."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    async def handle(self, command: str, arguments: dict[str, object], _admin: bool) -> object:
        self.asked.append((command, arguments))
        answer = self.answers[command]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)["error"]


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PASSPHRASE_FILE", "INTERFACE"):
        monkeypatch.delenv(f"NOSTRVPN_{name}", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("NOSTRVPN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NOSTRVPN_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("NOSTRVPN_CONFIG", str(tmp_path / "etc" / "config.yaml"))
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def execute(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Result(code, said.out, said.err)

    return execute


@pytest.fixture
def daemon(places: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon({"status": STATUS, "peers": {"peers": STATUS["peers"]}, "ping": ECHO})
    started, loop = threading.Event(), asyncio.new_event_loop()
    server = ControlServer(str(places / "run" / "control.sock"), fake.handle)

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(server.start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(server.stop())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert started.wait(5)
    yield fake
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


# -- init and id ------------------------------------------------------------------------------


def test_init_then_id(run: Run, places: Path) -> None:
    made = run("init", "--name", "bob", "--relay", "wss://Nos.lol/", "--json")
    assert made.code == 0
    identity = places / "state" / "identity"
    assert stat.S_IMODE(identity.stat().st_mode) == 0o600
    nsec = identity.read_text().strip()
    assert nsec not in made.out + made.err
    shown = run("id", "--json").json
    assert shown["npub"] == made.json["npub"]
    assert shown["addresses"] == []
    assert "name: bob" in (places / "etc" / "config.yaml").read_text()
    again = run("init")
    assert again.code == 1
    assert "not overwritten" in again.err
    assert identity.read_text().strip() == nsec


def test_init_imports(run: Run, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = RootSecret(b"\x33" * 32)
    key = places / "key"
    key.write_text(root.nsec())
    refused = run("init", "--nsec-file", str(key))
    assert refused.code == 1
    assert "chmod 600" in refused.err
    assert not (places / "state").exists()
    key.chmod(0o600)
    assert run("init", "--nsec-file", str(key), "--json").json["npub"] == root.npub
    private = root.wireguard_private_key()
    assert run("id", "--json").json["wireguard_public_key"] == wireguard_public_key(private)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--name", "Bob's"], 2, "--name"),
        (["--relay", "http://x"], 2, "must start with wss://"),
        (["--nsec-file", "a", "--words-file", "b"], 2, "exclude each other"),
        (["--nsec-file", "/nonexistent"], 1, "there is no file"),
        (["--words-file", "/nonexistent"], 1, "there is no file"),
    ],
)
def test_init_refuses_before_it_writes(
    run: Run, places: Path, arguments: list[str], code: int, said: str
) -> None:
    result = run("init", *arguments)
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert not (places / "state").exists()
    assert not (places / "etc").exists()


def test_init_keeps_a_users_configuration(run: Run, places: Path) -> None:
    (places / "etc").mkdir()
    config = places / "etc" / "config.yaml"
    config.write_text("name: alice\n")
    refused = run("init", "--name", "bob")
    assert refused.code == 1
    assert "already sets name to alice" in refused.err
    assert not (places / "state").exists()
    assert run("init", "--name", "alice").code == 0
    assert config.read_text() == "name: alice\n"


def test_id_shows_a_qr_code(run: Run) -> None:
    run("init")
    assert "▀" in run("id", "--qr").out


def test_id_without_identity(run: Run) -> None:
    result = run("id", "--json")
    assert result.code == 1
    assert result.error["code"] == "no_identity"
    assert result.error["hint"] == "create one with: nostrvpn init"


# -- status and the other questions -----------------------------------------------------------


def test_status(run: Run, daemon: FakeDaemon) -> None:
    assert run("status", "--json").json == STATUS
    shown = run("status").out
    for word in (NPUB, "fd00::1", "wss://nos.lol", "home", "direct", "10.0 MiB", "use IPv6"):
        assert word in shown
    assert daemon.asked == [("status", {}), ("status", {})]


def test_status_shows_whatever_text_comes(run: Run, daemon: FakeDaemon) -> None:
    peer = STATUS["peers"][0] | {"name": "[bold]x[/nope]", "endpoint": None, "rtt_ms": None}
    daemon.answers["status"] = STATUS | {"peers": [peer], "relays": [], "listen_port": None}
    assert "[bold]x[/nope]" in run("status").out


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["peers"],
        ["invite", "--once"],
        ["join", "nostrvpn://x"],
        ["netcheck"],
        ["ping", "home"],
        ["why", "home"],
        ["resolve", "home"],
        ["peer", "remove", "home"],
        ["peer", "rename", "home", "house"],
        ["export", "wg-quick"],
    ],
)
def test_without_a_daemon(run: Run, command: list[str]) -> None:
    result = run(*command)
    assert (result.code, result.out) == (1, "")
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: nostrvpn is not running")
    assert lines[1] == "hint: start it with: sudo nostrvpn up"
    assert run(*command, "--json").error["code"] == "daemon_not_running"


def test_invite_and_join(run: Run, daemon: FakeDaemon) -> None:
    link = "nostrvpn://invite?x=1"
    daemon.answers["invite"] = {"link": link, "npub": PEER, "expires_at": 4_000_000_000}
    made = run("invite", PEER, "--expires", "15m", "--qr")
    assert made.code == 0
    assert made.out.splitlines()[0] == link
    assert "▀" in made.out
    name, asked = daemon.asked[-1]
    assert name == "invite"
    assert (
        asked.items() >= {"npub": PEER, "once": False, "expires_s": 900, "role": "member"}.items()
    )
    assert run("invite", "--once", "--json").json["link"] == link
    daemon.answers["network"] = {"id": None, "members": None, "joining": None, "name": None}
    daemon.answers["join"] = [
        {"network": "n", "inviter": PEER, "state": "joined"},
        {"network": "n", "inviter": PEER, "state": "waiting"},
    ]
    assert "Joined" in run("join", link).out
    assert "when that node is online" in run("join", link).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["invite"], "one NPUB or --once"),
        (["invite", PEER, "--once"], "one NPUB or --once"),
        (["invite", PEER[:-1]], "checksum"),
        (["invite", "--once", "--expires", "soon"], "not a time span"),
        (["invite", "--once", "--expires", "5s"], "between"),
        (["invite", "--once", "--expires", "400d"], "between"),
        (["join", "https://x"], "not an invite"),
        (["peer", "rename", "home", "Bad Name"], "is not a name"),
        (["ping", "home", "--count", "0"], "--count"),
        (["ping", "home", "--count", "x"], "'x' is not a valid integer"),
        (["ping", "home", "--timeout", "0"], "--timeout"),
        (["why"], "Missing argument 'PEER'"),
        (["up", "--relay-for", "friends"], "'friends' is not one of 'none', 'members', 'anyone'"),
        (["up", "--relay-address", "home"], "--relay-address: 'home' is not an IP address"),
        (["up", "--relay-address", "127.0.0.1"], "--relay-address: '127.0.0.1' is not an address"),
        (["up", "--relay-websocket", "443"], "--relay-websocket: '443' has no port"),
        (["up", "--relay-websocket", "a.example:443"], "'a.example:443' is no IP address"),
        (["up", "--relay-websocket", ""], "--relay-websocket: '' has no port"),
        (["up", "--relay-pairs", "0"], "0 is not in the range 1<=x<=1000"),
        (["up", "--relay-mbit", "fast"], "'fast' is not a valid integer"),
        (["daemon", "--relay-gigabytes", "-1"], "-1 is not in the range"),
        (["status", "--interval", "0"], "--interval"),
        (["stauts"], "did you mean: nostrvpn status?"),
        (["status", "--jsn"], "--jsn"),
        (["peer"], "Usage"),
        (["--interface", "a/b", "status"], "not a name for an interface"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert said in result.err
    assert result.out == ""


def test_daemon_errors_are_shown(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["peer_remove"] = UserError("no peer is called x", "see: nostrvpn peers")
    result = run("peer", "remove", "x")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: no peer is called x\nhint: see: nostrvpn peers\n"


def test_peers(run: Run, daemon: FakeDaemon) -> None:
    assert run("peers", "--json").json == {"peers": STATUS["peers"]}
    assert "198.51.100.7:4242" in run("peers").out
    daemon.answers["peer_rename"] = {"npub": PEER, "name": "house"}
    assert "house" in run("peer", "rename", "home", "house").out
    daemon.answers["peer_remove"] = {"npub": PEER, "name": "house"}
    assert "Removed house" in run("peer", "remove", "house").out


# -- ping and netcheck ------------------------------------------------------------------------


def test_ping_counts(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["ping"] = [ECHO, ECHO | {"rtt_ms": None}, ECHO | {"rtt_ms": 14.5}]
    result = run("ping", "home", "--count", "3", "--interval", "0", "--json")
    assert result.code == 0
    assert (result.json["sent"], result.json["received"]) == (3, 2)
    assert result.json["rtt_ms"] == {"min": 12.5, "mean": 13.5, "max": 14.5}
    # The first call names the peer as typed, the others by the npub that came back.
    assert [arguments["peer"] for _, arguments in daemon.asked] == ["home", PEER, PEER]


RELAYED = ECHO | {"path": "relayed", "via": "vps", "carrier": "udp"}


def test_ping_until_direct(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["ping"] = [RELAYED, ECHO | {"rtt_ms": None}, RELAYED, ECHO]
    result = run("ping", "home", "--until-direct", "--interval", "0")
    assert result.code == 0
    assert len(daemon.asked) == 4
    assert result.out.splitlines() == [
        "home fd00::2: via relay vps in 12.5 ms",
        "home fd00::2: no echo (timeout) via direct 198.51.100.7:4242",
        "home fd00::2: via relay vps in 12.5 ms",
        "home fd00::2: via direct 198.51.100.7:4242 in 12.5 ms",
        "3 of 4 answered, min 12.5 / mean 12.5 / max 12.5 ms",
    ]
    daemon.answers["ping"] = RELAYED
    result = run("ping", "home", "--until-direct", "--interval", "0", "--deadline", "0.05")
    assert result.code == 1
    assert "the path is relayed, no echo came over a direct one in time" in result.err
    assert "hint: see: nostrvpn why home" in result.err


def test_ping_until_direct_ends_after_the_count(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["ping"] = RELAYED
    result = run("ping", "home", "--until-direct", "-c", "3", "--interval", "0", "--json")
    assert result.code == 1
    assert (result.json["sent"], result.json["path"]) == (3, "relayed")
    assert [echo["via"] for echo in result.json["echoes"]] == ["vps"] * 3
    assert "relayed" in result.error["text"]
    # An echo that did not come back proves no path, whatever the path was when it left.
    daemon.answers["ping"] = [ECHO, RELAYED, ECHO | {"rtt_ms": None}]
    assert run("ping", "home", "--until-direct", "-c", "3", "--interval", "0").code == 0
    assert len(daemon.asked) == 4


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"path": "relayed", "via": "turn a.example"}, "via turn a.example in 12.5 ms"),
        (
            {"path": "relayed", "via": "vps", "carrier": "websocket"},
            "via relay vps (websocket) in 12.5 ms",
        ),
        ({"path": "relayed"}, "via relay of unknown name in 12.5 ms"),
        ({"path": "none", "asleep": True}, "while asleep in 12.5 ms"),
        ({"path": "none"}, "without a proven path in 12.5 ms"),
        ({"path": "none", "rtt_ms": None}, "no echo (timeout) without a proven path"),
        ({"path": "direct", "endpoint": None}, "via direct in 12.5 ms"),
    ],
)
def test_ping_says_by_which_path(
    run: Run, daemon: FakeDaemon, changes: dict[str, object], line: str
) -> None:
    daemon.answers["ping"] = ECHO | changes
    assert run("ping", "home", "-c", "1").out.splitlines()[0] == f"home fd00::2: {line}"


def test_ping_without_an_echo(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["ping"] = ECHO | {"rtt_ms": None, "path": "none", "endpoint": None}
    result = run("ping", "home", "--count", "2", "--interval", "0")
    assert result.code == 1
    assert "no echo came back from home" in result.err


def test_doctor_gathers_what_the_daemon_says(
    run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nostrvpn.io.privilege.has_net_admin", lambda: False)
    lost = {"code": "x", "severity": "error", "text": "it is broken", "hint": "mend it"}
    daemon.answers["status"] = STATUS
    assert run("doctor").code == 0
    daemon.answers["status"] = STATUS | {"problems": [lost], "peers": [{"path": "none"}]}
    result = run("doctor", "--json")
    assert result.code == 1
    found = {item["code"]: (item["severity"], item["hint"]) for item in result.json["findings"]}
    assert found["x"] == ("error", "mend it")
    assert found["peers"] == ("warning", "see: nostrvpn why PEER")
    assert found["privilege"] == ("info", "run it as root: sudo nostrvpn doctor")


def test_netcheck(run: Run, daemon: FakeDaemon) -> None:
    report = {
        "nat": {"mapping": "dependent", "reflexive_v4": "203.0.113.9:1", "reflexive_v6": None},
        "udp": True,
        "listen_port": 23456,
        "stun": [{"server": "198.51.100.1:3478", "rtt_ms": 20.0}],
        "unresolved_stun": [],
        "relays": STATUS["relays"],
    }
    daemon.answers["netcheck"] = report
    assert run("netcheck", "--json").json == report
    shown = run("netcheck").out
    for word in ("dependent (hard", "203.0.113.9:1", "wss://nos.lol", "20 ms"):
        assert word in shown


def test_netcheck_shows_all_there_is(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["netcheck"] = {
        "nat": {
            "mapping": "predictable",
            "step": 2,
            "filtering": "address and port",
            "hairpin": False,
            "reflexive_v4": "203.0.113.9:1",
            "reflexive_v6": None,
        },
        "udp": True,
        "udp_v4": True,
        "udp_v6": None,
        "listen_port": 23456,
        "port_mapping": {
            "pcp": False,
            "nat_pmp": None,
            "upnp": True,
            "external": "100.64.0.9:23456",
            "public": False,
            "error": "no public address",
        },
        "mtu": {"interface": 1280, "largest": 1492, "peers": {"home": 1492}},
        "stun": [],
        "unresolved_stun": [],
        "relays": [],
        "mesh_relays": [
            {"name": "vps", "rtt_ms": 35.0, "websocket": True, "carries": ["home", "phone"]},
            {"name": "far", "rtt_ms": None, "websocket": False, "carries": []},
        ],
        "turn": [{"server": "a.example", "state": "failed: error 401"}],
        "relay_service": {
            "pairs": 3,
            "bytes": 10_485_760,
            "month": "2026-11",
            "exhausted": True,
            "limits": {"pairs": 64, "bytes": 1_073_741_824},
            "forward_dropped": 2,
        },
    }
    lines = run("netcheck").out.splitlines()
    for line in (
        "NAT mapping     predictable, step 2 (hard: another port for each destination, in steps "
        "that can be guessed)",
        "NAT filtering   address and port",
        "NAT hairpin     no",
        "UDP             IPv4 yes, IPv6 unknown",
        "Port mapping    PCP no, NAT-PMP unknown, UPnP yes, outside 100.64.0.9:23456 "
        "(behind another NAT), no public address",
        "MTU             1280 in the tunnel, largest packet known to pass 1492",
        "Mesh relay      vps: 35 ms, websocket too, carries home, phone",
        "Mesh relay      far: -",
        "TURN            a.example: failed: error 401",
        "Own relay       3 of 64 pairs, 10.0 MiB of 1.0 GiB in 2026-11, which is all for this month; "
        "2 pairs were kept from the kernel by another firewall",
    ):
        assert line in lines


# -- why --------------------------------------------------------------------------------------

WHY: dict[str, Any] = {
    "peer": PEER,
    "name": "home",
    "path": "relayed",
    "via": "vps",
    "summary": "relayed via vps (35.0 ms), because both NATs are hard",
    "tried": [
        {
            "kind": "srflx",
            "address": "198.51.100.7:4242",
            "result": "silent",
            "rtt_ms": None,
            "text": "its public address: no answer",
        },
        {
            "kind": "relay",
            "address": "vps",
            "result": "answered",
            "rtt_ms": 35.0,
            "text": "a relay",
        },
    ],
    "blocks": [{"code": "both_random", "text": "both NATs are hard"}],
    "helps": [{"code": "ipv6", "text": "IPv6 on both sides"}],
    "next_try_in_s": 34.6,
}


def test_why(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["why"] = WHY
    assert run("why", "home", "--json").json == WHY
    assert daemon.asked == [("why", {"peer": "home"})]
    assert run("why", "home").out == (
        "home: relayed via vps (35.0 ms), because both NATs are hard\n"
        "\nTried:\n"
        "  198.51.100.7:4242  silent          -  its public address: no answer\n"
        "  vps                answered    35 ms  a relay\n"
        "\nIn the way:\n  - both NATs are hard\n"
        "\nWhat would help:\n  - IPv6 on both sides\n"
        "\nNext try in 35 s.\n"
    )


def test_why_of_a_direct_path_is_one_line(run: Run, daemon: FakeDaemon) -> None:
    bare: dict[str, Any] = {
        "tried": [],
        "blocks": [],
        "helps": [],
        "next_try_in_s": None,
        "via": None,
    }
    daemon.answers["why"] = WHY | bare | {"summary": "direct to 198.51.100.7:4242 (12.2 ms)"}
    assert run("why", "home").out == "home: direct to 198.51.100.7:4242 (12.2 ms)\n"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "direct"),
        ({"path": "relayed", "via": "vps"}, "relayed via vps"),
        ({"path": "relayed"}, "relayed"),
        ({"path": "none", "asleep": True}, "asleep"),
        ({"path": "none"}, "none"),
    ],
)
def test_status_shows_the_path_in_words(
    run: Run, daemon: FakeDaemon, changes: dict[str, object], word: str
) -> None:
    daemon.answers["peers"] = {"peers": [STATUS["peers"][0] | changes]}
    rows = [" ".join(line.split()) for line in run("peers").out.splitlines()]
    [row] = [row for row in rows if row.startswith("home ")]
    assert f" connected {word} 198.51.100.7:4242 " in row


# -- export and the rest ----------------------------------------------------------------------


def test_export(run: Run, daemon: FakeDaemon, places: Path) -> None:
    root = RootSecret(b"\x44" * 32)
    import base64

    daemon.answers["export"] = {
        "private_key": base64.b64encode(root.wireguard_private_key()).decode(),
        "listen_port": 23456,
        "fwmark": 0,
        "mtu": 1280,
        "addresses": ["10.64.0.1/32", "fd00::1/128"],
        "peers": [
            {
                "public_key": STATUS["wireguard_public_key"],
                "allowed_ips": ["10.64.0.2/32", "fd00::2/128"],
                "endpoint": "[2001:db8::1]:4242",
                "persistent_keepalive": 25,
            }
        ],
    }
    text = run("export", "wg-quick").out
    for line in ("[Interface]", "MTU = 1280", "[Peer]", "Endpoint = [2001:db8::1]:4242"):
        assert line in text
    target = places / "wg0.conf"
    assert run("export", "wg-quick", "-o", str(target)).code == 0
    assert target.read_text() == text
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert run("export", "wg-quick", "-o", str(target)).code == 1
    assert run("export", "wg-quick", "--json").json == {"config": text}


def test_version_help_and_completion(run: Run) -> None:
    assert run("version").out.startswith("nostrvpn ")
    assert run("--version").out == run("version").out
    assert set(run("version", "--json").json) == {"version", "python", "system"}
    shown = run("--help")
    assert shown.code == 0
    for command in ("init", "up", "down", "status", "invite", "join", "ping", "export", "lab"):
        assert f"\n  {command} " in shown.out
    for shell in ("bash", "zsh", "fish"):
        assert "_NOSTRVPN_COMPLETE" in run("completion", shell).out


def test_completion_offers_peers(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_NOSTRVPN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "nostrvpn ping ho")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        main([])
    assert daemon.asked == [("peers", {})]
    assert capsys.readouterr().out == "plain,home\n"


# -- up and down ------------------------------------------------------------------------------


def test_up_when_it_is_up(run: Run, daemon: FakeDaemon) -> None:
    down = STATUS | {"relays": [RELAY | {"state": "connecting"}]}
    daemon.answers["status"] = [down, down, STATUS]
    result = run("up")
    assert result.code == 0
    assert "1 connected: wss://nos.lol" in result.out
    assert run("up", "--json").json == STATUS
    assert run("up", "--foreground").code == 1


def test_up_without_a_relay_says_why(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["status"] = STATUS | {
        "relays": [RELAY | {"state": "down", "reason": "connection refused"}],
        "problems": [],
    }
    result = run("up", "--timeout", "0.2")
    assert result.code == 1
    assert "no relay is connected: wss://nos.lol: connection refused" in result.err


def test_up_explains_a_bad_configuration(run: Run, places: Path) -> None:
    (places / "etc").mkdir()
    (places / "etc" / "config.yaml").write_text("realys: x\n")
    result = run("up")
    assert result.code == 1
    assert "line 1: realys: there is no such key" in result.err
    assert "did you mean relays?" in result.err


def test_any_relay_option_is_taken_or_refused_in_a_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nostrvpn.cli.running._run", lambda _options: 0)
    drawn = random.Random(1)
    flags = ("for", "address", "websocket", "pairs", "mbit", "gigabytes", "nonsense")
    values = ["members", "anyone", "1.2.3.4", "::", "2001:db8::5", "[::]:443", "1.2.3.4:80", "0"]
    values += ["8", "-1", "1e3", "", " ", "\n", "\x1b[31m", "🦤", "9" * 400, "1.2.3.4:99999"]
    codes = set()
    for _ in range(150):
        chosen = [f"--relay-{drawn.choice(flags)}={drawn.choice(values)}" for _ in range(2)]
        result = run("daemon", *chosen)
        codes.add(result.code)
        lines = result.err.splitlines()
        if result.code:
            assert [line.split(":")[0] for line in lines] == ["error", "hint"], (chosen, lines)
    assert codes == {0, 2}


def test_up_refuses_relay_options_that_would_do_nothing(run: Run, places: Path) -> None:
    result = run("up", "--relay-pairs", "3")
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[1] == "hint: add --relay-for members"
    assert not (places / "state").exists()


def test_up_says_that_options_come_too_late(run: Run, daemon: FakeDaemon) -> None:
    result = run("up", "--relay-for", "members")
    assert result.code == 0
    assert "Already up: these options take effect after nostrvpn down." in result.err


@pytest.mark.parametrize("command", ["up", "daemon"])
def test_without_rights(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr("nostrvpn.io.privilege._has", lambda _capability: False)
    result = run(command)
    assert result.code == 1
    assert "CAP_NET_ADMIN and CAP_NET_RAW missing" in result.err
    assert "sudo" in result.err


def test_down_waits_for_the_lock(run: Run, daemon: FakeDaemon, places: Path) -> None:
    daemon.answers["stop"] = {"stopping": True}
    assert run("down").code == 0
    assert daemon.asked == [("stop", {})]


@pytest.mark.skipif(os.geteuid() != 0, reason="a start needs root")
def test_up_shows_the_last_words_of_a_daemon_that_ends(
    run: Run, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "echo noise; echo 'error: no port' >&2; echo 'hint: free one' >&2; exit 1"
    monkeypatch.setattr(
        "nostrvpn.cli.spawn.daemon_command_line", lambda _options: ["sh", "-c", words]
    )
    result = run("up")
    assert result.code == 1
    assert result.err == "error: no port\nhint: free one\n"
    assert (places / "state" / "daemon.log").exists()


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_watch_goes_on_until_ctrl_c(
    run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    looks = iter([None, None])

    def sleep(_seconds: float) -> None:
        try:
            next(looks)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("nostrvpn.cli.status.time.sleep", sleep)
    result = run("status", "--watch", *form)
    assert result.code == 0
    assert len(daemon.asked) == 3
    if form:
        assert [json.loads(line) for line in result.out.splitlines()] == [STATUS] * 3
    else:
        assert "198.51.100.7:4242" in result.out


# -- names --------------------------------------------------------------------------------------

DNS = {
    "enabled": True,
    "server": "127.118.112.1:53",
    "domain": "home.nvpn",
    "manager": "systemd-resolved",
    "problem": None,
    "failure": None,
}
RESOLVED: dict[str, Any] = {
    "name": "nas.home.nvpn",
    "answer": "NOERROR",
    "npub": PEER,
    "addresses": ["fd00::2", "10.64.0.2"],
    "pointer": None,
    "text": "a member, by its name in the network",
    "dns": DNS,
}


def test_resolve_says_whose_a_name_is(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["resolve"] = RESOLVED
    assert run("resolve", "nas", "--json").json == RESOLVED
    shown = run("resolve", "nas")
    assert shown.code == 0
    for word in ("nas.home.nvpn", PEER, "10.64.0.2", "its name in the network"):
        assert word in shown.out
    assert "Other programs" not in shown.out
    assert daemon.asked[0] == ("resolve", {"name": "nas"})


def test_resolve_of_nobody_fails_and_says_what_other_programs_see(
    run: Run, daemon: FakeDaemon
) -> None:
    missing: dict[str, Any] = {
        "answer": "NXDOMAIN",
        "npub": None,
        "addresses": [],
        "text": "nobody has this name",
    }
    dns = DNS | {"manager": "none", "problem": "neither of them manages resolv.conf"}
    daemon.answers["resolve"] = RESOLVED | missing | {"dns": dns}
    shown = run("resolve", "nas")
    assert shown.code == 1
    assert "nobody has this name" in shown.out
    assert "do not know it: neither of them" in shown.out
    assert run("resolve", "nas", "--json").code == 1


def test_status_shows_where_names_are_asked(run: Run, daemon: FakeDaemon) -> None:
    daemon.answers["status"] = STATUS | {"dns": DNS}
    assert "NAME.home.nvpn at 127.118.112.1:53, asked by systemd-resolved" in run("status").out
    daemon.answers["status"] = STATUS | {"dns": DNS | {"manager": "none", "problem": "why not"}}
    assert "not asked: why not" in run("status").out


def test_nip05_shows_an_npub_and_that_nobody_verified_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(identifier: Any) -> str:
        assert identifier.url == "https://example.org/.well-known/nostr.json?name=alice"
        return RootSecret(b"\x22" * 32).public_key

    monkeypatch.setattr("nostrvpn.io.nip05.ask_domain", asked)
    shown = run("nip05", "alice@example.org")
    assert shown.out.strip() == PEER
    assert "not verified" in shown.err
    assert run("nip05", "alice@example.org", "--json").json["verified"] is False
    assert run("nip05", "alice").code == 2


@pytest.mark.parametrize(
    "command",
    [
        ("status", "--interval", "nan"),
        ("ping", "x", "--interval", "inf"),
        ("ping", "x", "--deadline", "nan"),
        ("down", "--timeout", "-1"),
        ("down", "--timeout", "nan"),
        ("rotate", "--timeout", "1e300"),
        ("network", "leave", "--yes", "--timeout", "nan"),
        ("up", "--timeout", "nan"),
    ],
)
def test_a_time_that_is_none_is_wrong_usage(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runtime-dir", "/nonexistent", *command]) == 2
    assert command[-2] in capsys.readouterr().err


def test_a_relay_listens_on_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["relay", "--listen", "localhost:7777"]) == 1
    assert "localhost is none" in capsys.readouterr().err


@pytest.mark.parametrize("network", [FIRST, "work"])
def test_cleanup_beside_a_daemon_says_that_it_would_be_put_back(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    network: str,
) -> None:
    removed: list[object] = []

    def remove(interface: str | None, _home: object, **_more: object) -> list[str]:
        removed.append(interface)
        return []

    monkeypatch.setattr("nostrvpn.cli.tools.remove_leftovers", remove)
    monkeypatch.setattr("nostrvpn.cli.tools.check_privilege", lambda **_: None)
    words = ["--state-dir", str(tmp_path), "cleanup"]
    lock = StateLock(Options(state_dir=str(tmp_path)).of_network(network).lock_path)
    lock.acquire()
    try:
        assert main(words) == 1
        said = capsys.readouterr().err
        assert f"a daemon runs (pid {os.getpid()}) and would put back what is removed" in said
        assert "nostrvpn down" in said
        assert removed == []
    finally:
        lock.release()
    assert main(words) == 0
    assert removed == [None]
