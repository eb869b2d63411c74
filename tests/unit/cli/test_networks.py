"""Several networks of one node on the command line: a fake daemon for each, on real sockets."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.cli import main
from nostrvpn.config.options import Options
from nostrvpn.control.server import ControlServer
from nostrvpn.errors import UserError
from nostrvpn.identity.keys import RootSecret
from nostrvpn.io.profiles import create_profile, profiles, select_profile, selected_profile
from nostrvpn.io.wireguard_claim import _base
from nostrvpn.mesh.invites import Link, render_link
from nostrvpn.mesh.tokens import TokenLink, render_token_link
from tests.unit.cli.test_cli import NPUB, PEER, STATUS, FakeDaemon, Result, Run

HOME, WORK = "a" * 64, "b" * 64
NETWORK: dict[str, Any] = {
    "id": HOME,
    "name": "home",
    "interface": "nvpn0",
    "members": 3,
    "role": "member",
    "owner": PEER,
    "joining": None,
    "run": "1.0",
}
ALONE = NETWORK | {"id": None, "name": None, "members": None, "role": None, "owner": None}
LINK = render_token_link(TokenLink(b"\x01" * 16, WORK, 4_000_000_000, ()))
Daemon = Callable[..., FakeDaemon]


@pytest.fixture(autouse=True)
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Options]:
    for name in ("PASSPHRASE_FILE", "INTERFACE", "NETWORK", "JOIN"):
        monkeypatch.delenv(f"NOSTRVPN_{name}", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    # The path of a socket is short, a test's directory is not.
    with tempfile.TemporaryDirectory(prefix="nvt") as sockets:
        yield _placed(Options(str(tmp_path / "s"), sockets, str(tmp_path / "c.yaml")), monkeypatch)


def _placed(made: Options, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setenv("NOSTRVPN_STATE_DIR", made.state_dir)
    monkeypatch.setenv("NOSTRVPN_RUNTIME_DIR", made.runtime_dir)
    monkeypatch.setenv("NOSTRVPN_CONFIG", made.config)
    return made


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
def daemon(options: Options) -> Iterator[Daemon]:
    """Start the fake daemon of a profile, by default in the network ``home``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers: list[ControlServer] = []

    def start(profile: str = "default", **network: Any) -> FakeDaemon:
        fake = FakeDaemon({"status": STATUS, "network": NETWORK | network})
        place = options.of_network(profile)
        if profile not in profiles(options):
            create_profile(options, profile)
        Path(place.home).mkdir(parents=True, exist_ok=True)
        Path(place.store_path).touch()
        server = ControlServer(place.control_socket, fake.handle)
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
        servers.append(server)
        return fake

    yield start
    for server in servers:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture
def two(daemon: Daemon) -> tuple[FakeDaemon, FakeDaemon]:
    """The daemons of ``home`` (profile default) and ``office`` (profile work)."""
    return daemon(), daemon("work", id=WORK, name="office", interface="nvpn1", role="owner")


def asked(fake: FakeDaemon) -> list[str]:
    return [name for name, _ in fake.asked]


# -- which network is meant -------------------------------------------------------------------


def test_commands_speak_to_the_one_that_is_named(
    run: Run, two: tuple[FakeDaemon, FakeDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = two
    for fake in two:
        fake.answers["peers"] = {"peers": []}
    assert run("peers").code == 0
    assert asked(home) == ["peers"]
    for named in ("work", "office"):
        work.asked.clear()
        assert run("--network", named, "peers").code == 0
        assert asked(work)[-1] == "peers"
    monkeypatch.setenv("NOSTRVPN_NETWORK", "work")
    work.asked.clear()
    assert run("peers").code == 0
    assert asked(work) == ["peers"]


def test_switching_is_remembered(
    run: Run, options: Options, two: tuple[FakeDaemon, FakeDaemon]
) -> None:
    assert run("network", "switch", "office", "--json").json == {"profile": "work"}
    assert selected_profile(options) == "work"
    two[1].answers["peers"] = {"peers": []}
    assert run("peers").code == 0
    assert asked(two[1])[-1] == "peers"
    assert "default" in run("network", "switch", "home").out


def test_a_network_that_is_not_there(run: Run, two: tuple[FakeDaemon, FakeDaemon]) -> None:
    for command in (["--network", "x", "peers"], ["network", "switch", "x"], ["up", "x"]):
        refused = run(*command)
        assert refused.code == 1
        assert "there is no network 'x' on this node" in refused.err
        assert "default, work" in refused.err
    two[0].answers["network"] = NETWORK | {"name": "office"}
    assert "2 networks are called office" in run("--network", "office", "peers").err


def test_list_and_status_show_all(
    run: Run, options: Options, two: tuple[FakeDaemon, FakeDaemon]
) -> None:
    create_profile(options, "idle")
    rows = {row["profile"]: row for row in run("network", "list", "--json").json["networks"]}
    assert list(rows) == ["default", "idle", "work"]
    assert rows["work"] == {
        "profile": "work",
        "selected": False,
        "running": True,
        "id": WORK,
        "name": "office",
        "interface": "nvpn1",
        "members": 3,
        "role": "owner",
    }
    assert rows["default"]["selected"] is True
    assert (rows["idle"]["running"], rows["idle"]["name"]) == (False, None)
    shown = run("network", "list").out
    assert "default *" in shown
    lines = run("status").out.splitlines()
    assert "Network work (office): 3 members, on nvpn1; see: --network work" in lines
    assert "Network idle: down" in lines
    assert [row["profile"] for row in run("status", "--json").json["networks"]] == ["idle", "work"]


def test_one_network_is_shown_as_ever(run: Run, daemon: Daemon) -> None:
    daemon()
    assert run("status", "--json").json == STATUS
    assert "Network" not in run("status").out.split("Relays")[1]


# -- creating, joining ------------------------------------------------------------------------


def test_the_first_created_network_takes_the_first_place(run: Run, daemon: Daemon) -> None:
    fake = daemon()
    fake.answers["network"] = ALONE
    fake.answers["network_create"] = NETWORK | {"role": "owner"}
    made = run("network", "create", "home", "--json").json
    assert (made["profile"], made["name"]) == ("default", "home")
    assert fake.asked[-1] == ("network_create", {"name": "home"})
    assert "this node owns it" in run("network", "create", "home").out


def test_a_further_one_gets_a_place(
    run: Run, options: Options, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon()
    started: list[str] = []

    def start(place: Options, *, quiet: bool = True) -> Any:
        if place.network != "default":
            started.append(place.network)
            fake = daemon(place.network, id=None)
            fake.answers["network_create"] = NETWORK | {"name": place.network}
        return STATUS

    monkeypatch.setattr("nostrvpn.cli.running.start_network", start)
    made = run("network", "create", "work", "--json").json
    assert (made["profile"], made["name"], started) == ("work", "work", ["work"])
    assert profiles(options) == ("default", "work")
    for wrong, code in (("No Way", 2), ("x" * 64, 2)):
        assert run("network", "create", wrong).code == code


def test_a_name_is_not_given_twice(run: Run, two: tuple[FakeDaemon, FakeDaemon]) -> None:
    refused = run("network", "create", "work")
    assert refused.code == 1
    assert "work is the network office already" in refused.err


def test_a_link_of_another_network_gets_a_place_of_its_own(
    run: Run, options: Options, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = daemon()

    def start(place: Options, *, quiet: bool = True) -> Any:
        fake = daemon(place.network, id=WORK, name="office", interface="nvpn1")
        fake.answers["join"] = {"network": WORK, "inviter": None, "state": "joined"}
        return STATUS

    monkeypatch.setattr("nostrvpn.cli.running.start_network", start)
    said = run("join", LINK)
    assert said.code == 0
    assert "stays: this one is network-2 here, on nvpn1" in said.out
    assert "Joined office" in said.out
    assert "nostrvpn network switch network-2" in said.out
    assert "join" not in asked(home)
    # The same link again: it is a member there.
    again = run("join", LINK, "--json").json
    assert (again["state"], again["profile"], again["new"]) == ("member", "network-2", False)
    assert profiles(options) == ("default", "network-2")


@pytest.mark.parametrize(
    "present", [ALONE, NETWORK | {"members": 1, "role": "owner"}, ALONE | {"joining": HOME}]
)
def test_who_is_alone_joins_where_it_is(
    run: Run, options: Options, daemon: Daemon, present: dict[str, Any]
) -> None:
    fake = daemon()
    fake.answers["network"] = present
    fake.answers["join"] = {"network": WORK, "inviter": None, "state": "waiting"}
    said = run("join", LINK)
    assert said.code == 0
    assert "It completes when one of them is online" in said.out
    assert profiles(options) == ("default",)


def test_a_removed_member_is_told(run: Run, daemon: Daemon) -> None:
    daemon(id=WORK, role=None, members=None)
    refused = run("join", LINK)
    assert refused.code == 1
    assert "this node was removed from that network" in refused.err


def test_a_removed_member_may_be_invited_again(run: Run, daemon: Daemon) -> None:
    fake = daemon(id=WORK, role=None, members=None)
    fake.answers["join"] = {"network": WORK, "inviter": NPUB, "state": "joined"}
    invite = render_link(
        Link(RootSecret(bytes([7]) * 32).public_key, b"\x02" * 16, WORK, 4_000_000_000, None, ())
    )
    assert run("join", invite).code == 0
    assert ("join", {"link": invite}) in fake.asked


def test_a_named_network_is_joined_there_or_refused(
    run: Run, two: tuple[FakeDaemon, FakeDaemon]
) -> None:
    two[0].answers["join"] = UserError("this node is in another network already", "")
    refused = run("--network", "default", "join", LINK)
    assert refused.code == 1
    assert "in another network already" in refused.err


def test_up_joins_by_the_environment(
    run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = daemon(id=None, members=None)
    fake.answers["join"] = {"network": WORK, "inviter": None, "state": "joined"}
    monkeypatch.setenv("NOSTRVPN_JOIN", LINK)
    first = run("up", "--json")
    assert (first.code, first.json["join"]["state"]) == (0, "joined")
    fake.answers["network"] = NETWORK | {"id": WORK, "name": "office"}
    again = run("up")
    assert again.code == 0
    assert "This node is a member of office already." in again.out
    assert asked(fake).count("join") == 1
    monkeypatch.setenv("NOSTRVPN_JOIN", "https://x")
    assert run("up").code == 2
    monkeypatch.setenv("NOSTRVPN_JOIN", "")
    assert "join" not in run("up", "--json").json


# -- up and down ------------------------------------------------------------------------------


def test_up_tells_of_every_network(run: Run, two: tuple[FakeDaemon, FakeDaemon]) -> None:
    two[1].answers["status"] = STATUS | {"interface": "nvpn1"}
    assert "network work is up on nvpn1" in run("up").out
    assert [told["profile"] for told in run("up", "--json").json["networks"]] == ["work"]
    assert "networks" not in run("up", "work", "--json").json
    assert "networks" not in run("--network", "work", "up", "--json").json


@pytest.mark.skipif(os.geteuid() != 0, reason="a start needs root")
def test_up_starts_what_is_down_and_tells_what_fails(
    run: Run, options: Options, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon()
    create_profile(options, "work")
    lines: list[list[str]] = []

    def line(place: Options) -> list[str]:
        lines.append([place.network, place.log_path])
        return ["sh", "-c", "echo 'error: no port' >&2; exit 1"]

    monkeypatch.setattr("nostrvpn.cli.spawn.daemon_command_line", line)
    result = run("up")
    assert result.code == 1
    assert "network work: no port" in result.err
    assert "nostrvpn is up on nvpn0" in result.out
    assert lines == [["work", f"{options.state_dir}/networks/work/daemon.log"]]
    assert run("up", "work").err.splitlines()[0] == "error: no port"


def test_down_stops_all_or_one(run: Run, two: tuple[FakeDaemon, FakeDaemon]) -> None:
    for fake in two:
        fake.answers["stop"] = {"stopping": True}
    assert "The network work is down." in run("down", "--network", "office").out
    assert (asked(two[0]).count("stop"), asked(two[1]).count("stop")) == (0, 1)
    assert run("down").out == "nostrvpn is down.\n"
    assert (asked(two[0]).count("stop"), asked(two[1]).count("stop")) == (1, 2)


def test_a_service_runs_the_first_whatever_is_selected(
    run: Run, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Options] = []

    def note(given: Options) -> int:
        told.append(given)
        return 0

    monkeypatch.setattr("nostrvpn.cli.running._run", note)
    create_profile(options, "work")
    select_profile(options, "work")
    assert run("daemon").code == 0
    assert run("--network", "work", "daemon").code == 0
    assert [given.network for given in told] == ["default", "work"]


@pytest.mark.parametrize(
    ("home", "base"),
    [
        ("/s", "/s"),
        ("/s/networks/work", "/s"),
        ("/a/networks/b/networks/work", "/a/networks/b"),
        ("/a/networks/b/c", "/a/networks/b/c"),
    ],
)
def test_the_hint_of_cleanup_names_the_nodes_directory(home: str, base: str) -> None:
    assert _base(home) == base


# -- leaving, the log, settings ---------------------------------------------------------------


def test_leaving_asks_first(
    run: Run, options: Options, two: tuple[FakeDaemon, FakeDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = two
    work.answers["network_leave"] = {"name": "office", "told": True}
    work.answers["stop"] = {"stopping": True}
    monkeypatch.setattr("click.confirm", lambda *_a, **_k: False)
    refused = run("network", "leave", "work")
    assert refused.code == 1
    assert "This node owns office, and is not replaced: 2 other members stay" in refused.err
    assert run("network", "leave", "work", "--json").code == 1
    assert "network_leave" not in asked(work)
    assert profiles(options) == ("default", "work")
    left = run("network", "leave", "work", "--yes")
    assert (left.code, left.out) == (0, "Left office.\n")
    assert profiles(options) == ("default",)
    assert asked(home) == []


def test_leaving_untold_needs_a_word(run: Run, options: Options, daemon: Daemon) -> None:
    fake = daemon("work")
    fake.answers["network_leave"] = {"name": "home", "told": False}
    fake.answers["stop"] = {"stopping": True}
    left = run("network", "leave", "work", "--yes")
    assert "the others were not told" in left.out
    assert profiles(options) == ("default",)


def test_the_log(run: Run, daemon: Daemon) -> None:
    entry = {
        "at": 1_700_000_000,
        "author": {"npub": NPUB, "name": "laptop"},
        "text": "removed phone",
        "void": None,
    }
    answer = {"operations": [entry, entry | {"void": "laptop was removed"}], "pending": 2}
    daemon().answers["network_log"] = answer
    assert run("network", "log", "--json").json == answer
    lines = run("network", "log").out.splitlines()
    assert lines[0].endswith("laptop: removed phone")
    assert lines[1].endswith("laptop: removed phone  (void: laptop was removed)")
    assert lines[2].startswith("2 more wait")


def test_settings(run: Run, daemon: Daemon) -> None:
    fake = daemon()
    answer = {"name": "home", "inbound": "all", "same_owner": False}
    fake.answers["network_settings"] = answer
    assert run("network", "settings", "--json").json == answer
    assert fake.asked[-1][1] == {"name": None, "inbound": None, "same_owner": None}
    shown = run("network", "settings", "--inbound", "all", "--same-owner", "off").out
    assert fake.asked[-1][1] == {"name": None, "inbound": "all", "same_owner": False}
    assert "same owner  off" in shown
    assert run("network", "settings", "--inbound", "some").code == 2


# -- members and tokens -----------------------------------------------------------------------


def test_members_are_changed(run: Run, daemon: Daemon) -> None:
    fake = daemon()
    member = {"npub": PEER, "name": "phone", "role": "guest", "tags": ["a", "b"], "expires_at": 5}
    fake.answers |= dict.fromkeys(("peer_role", "peer_tag", "peer_name"), member)
    assert "phone" in run("peer", "role", "phone", "guest", "--expires-member", "7d").out
    assert fake.asked[-1][1] == {"peer": "phone", "role": "guest", "lasts_s": 7 * 86_400}
    assert "a, b" in run("peer", "tag", "phone", "b", "a", "b").out
    assert fake.asked[-1][1] == {"peer": "phone", "tags": ["a", "b"]}
    assert "The network now calls" in run("peer", "name", "phone", "cell").out
    fake.answers["peer_replace"] = {
        "link": LINK,
        "npub": NPUB,
        "name": "phone",
        "former": PEER,
        "expires_at": 4_000_000_000,
    }
    replaced = run("peer", "replace", "phone", NPUB)
    assert replaced.out == f"{LINK}\n"
    assert "is replaced" in replaced.err


def test_invites_say_as_what(run: Run, daemon: Daemon) -> None:
    fake = daemon()
    fake.answers["invite"] = {"link": LINK, "npub": None, "expires_at": 4_000_000_000}
    run(
        *("invite", "--once", "--role", "guest", "--expires-member", "7d", "--tag", "b"),
        *("--tag", "a", "--mine", "--name", "cell", "--ephemeral"),
    )
    assert fake.asked[-1][1] == {
        "npub": None,
        "once": True,
        "expires_s": 86_400,
        "role": "guest",
        "lasts_s": 7 * 86_400,
        "tags": ["a", "b"],
        "mine": True,
        "name": "cell",
        "ephemeral": True,
    }


def test_tokens(run: Run, daemon: Daemon) -> None:
    fake = daemon()
    fake.answers["token_create"] = {
        "link": LINK,
        "id": "0123456789abcdef",
        "uses": 5,
        "expires_at": 4_000_000_000,
    }
    made = run("token", "create", "--uses", "5", "--expires", "7d", "--tag", "lab")
    assert made.out == f"{LINK}\n"
    assert "For 5 nodes (token 0123456789abcdef)" in made.err
    assert fake.asked[-1][1] == {
        "uses": 5,
        "expires_s": 7 * 86_400,
        "role": "member",
        "tags": ["lab"],
        "ephemeral": False,
    }
    fake.answers["token_list"] = {"tokens": []}
    assert "No tokens" in run("token", "list").out
    token = {
        "id": "0123456789abcdef",
        "state": "open",
        "uses": 5,
        "used": 2,
        "expires_at": 4_000_000_000,
        "role": "guest",
        "tags": [],
        "ephemeral": True,
    }
    fake.answers["token_list"] = {"tokens": [token, token | {"state": "expired", "expires_at": 1}]}
    shown = run("token", "list").out
    for word in ("2 of 5", "guest, ephemeral", "expired"):
        assert word in shown
    fake.answers["token_revoke"] = {"id": token["id"]}
    assert "lets nobody in any more" in run("token", "revoke", "0123").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["invite", "--once", "--role", "owner"], "'owner' is not one of"),
        (["invite", "--once", "--tag", "A B"], "'A B' is not a tag"),
        (["invite", "--once", "--name", "A B"], "'A B' is not a name"),
        (["invite", "--once", "--expires-member", "soon"], "--expires-member: 'soon'"),
        (["peer", "role", "phone", "owner"], "'owner' is not one of"),
        (["peer", "role", "phone", "guest", "--expires-member", "5s"], "between 1m and 366d"),
        (["peer", "tag", "phone", "-"], "'-' is not a tag"),
        (["peer", "name", "phone", "A B"], "'A B' is not a name"),
        (["peer", "replace", "phone", "npub1x"], "is not an npub"),
        (["token", "create", "--uses", "0"], "--uses"),
        (["token", "create", "--role", "admin"], "'admin' is not one of"),
        (["token", "create", "--expires", "1s"], "--expires must be between"),
        (["network", "create", "A B"], "'A B' is not a name"),
        (["network", "settings", "--name", "A B"], "'A B' is not a name"),
        (["network"], "Usage"),
        (["token"], "Usage"),
    ],
)
def test_wrong_usage(run: Run, daemon: Daemon, arguments: list[str], said: str) -> None:
    fake = daemon()
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert asked(fake) == []


# -- rotating ---------------------------------------------------------------------------------


def node(options: Options, two: tuple[FakeDaemon, FakeDaemon]) -> tuple[RootSecret, list[str]]:
    """Give the node an identity, and let its daemons answer; return it, and what they were told."""
    from nostrvpn.io.identity_file import create_identity, generate_root

    root = generate_root()
    create_identity(options.state_dir, root, {})
    for fake in two:
        fake.answers["id"] = {"npub": root.npub}
        fake.answers["rotate"] = {"npub": "", "told": True}
        fake.answers["restart"] = {"run": "0.9"}
    return root, []


def test_rotating_tells_every_network_and_then_replaces_the_secret(
    run: Run, options: Options, two: tuple[FakeDaemon, FakeDaemon]
) -> None:
    old, _ = node(options, two)
    answer = run("rotate", "--json").json
    assert answer["npub"] != old.npub
    for fake in two:
        [told] = [given for name, given in fake.asked if name == "rotate"]
        assert told["npub"] == answer["npub"]
        assert len(str(told["proof"])) == 128
        assert asked(fake).index("rotate") < asked(fake).index("restart")
    state = Path(options.state_dir)
    assert (state / "identity.former").read_text() == old.nsec() + "\n"
    assert not (state / "identity.next").exists()


def test_rotating_goes_on_where_it_stopped(
    run: Run, options: Options, two: tuple[FakeDaemon, FakeDaemon]
) -> None:
    old, _ = node(options, two)
    state = Path(options.state_dir)
    two[1].answers["rotate"] = {"npub": "", "told": False}
    refused = run("rotate")
    assert refused.code == 1
    assert "no relay has taken the news for the network work yet" in refused.err
    assert (state / "identity").read_text() == old.nsec() + "\n"
    [first] = [given["npub"] for name, given in two[0].asked if name == "rotate"]
    two[1].answers["rotate"] = {"npub": "", "told": True}
    two[1].answers["restart"] = UserError("killed", "")
    assert run("rotate").code == 1  # the secret is replaced, one daemon is not begun anew
    assert {given["npub"] for name, given in two[0].asked if name == "rotate"} == {first}
    two[0].answers["id"] = {"npub": first}
    two[1].answers["restart"] = {"run": "0.9"}
    before = len(two[0].asked)
    assert run("rotate", "--json").json["npub"] == first
    assert "rotate" not in asked(two[0])[before:]
    assert asked(two[1])[-2:] == ["restart", "network"]
    assert (state / "identity.former").read_text() == old.nsec() + "\n"


def test_rotating_needs_all_networks(run: Run, options: Options, daemon: Daemon) -> None:
    daemon()
    create_profile(options, "work")
    refused = run("rotate")
    assert refused.code == 1
    assert "the network work is down" in refused.err
    assert not (Path(options.state_dir) / "identity.next").exists()


def test_rotating_wireguard_only(run: Run, options: Options, daemon: Daemon) -> None:
    fake = daemon()
    fake.answers |= {"rotate_wireguard": {"epoch": 1}, "restart": {"run": "0.9"}}
    assert "key is number 2 now" in run("rotate", "--wireguard").out
    assert asked(fake)[:2] == ["rotate_wireguard", "restart"]
