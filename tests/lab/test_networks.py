"""One node in several networks at the same time, and the commands by which a network is run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Network
from typing import Any

import pytest

from nostrvpn.config.options import Options
from nostrvpn.io.identity_file import load_identity
from nostrvpn.io.profiles import create_profile
from nostrvpn.io.store import Record, Store
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.mesh.addressing import ipv4_prefix
from nostrvpn.mesh.roster import create_network
from nostrvpn.nostr.event import event_json
from tests.lab.homes import (
    Homes,
    homes,
    join,
    launch,
    peer_of,
    ping,
    problems,
    wait_direct,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(150))]

Json = dict[str, Any]


def networks(node: LabNode) -> dict[str, Json]:
    """Return ``network list`` by profile."""
    return {row["profile"]: row for row in node.query("network", "list")["networks"]}


def status_in(node: LabNode, profile: str) -> Json:
    """Return the status of one of a node's networks."""
    status: Json = json.loads(node.cli("--network", profile, "status", "--json"))
    return status


def wait_in(node: LabNode, profile: str, what: str, holds: Callable[[Json], object]) -> Json:
    """Return the first status of one of a node's networks that ``holds``."""

    def look() -> Json | None:
        status = status_in(node, profile)
        return status if holds(status) else None

    return wait_until(look, f"{node.name} in {profile}: {what}", timeout=30.0, poll=0.2)


def has_direct(npub: str) -> Callable[[Json], bool]:
    """Say whether a status has this peer on a direct path."""
    return lambda status: any(
        peer["npub"] == npub and peer["path"] == "direct" for peer in status["peers"]
    )


def reaches(source: LabNode, address: str) -> bool:
    """Say whether an echo comes back."""
    argv = ("ping", "-n", "-c", "1", "-W", "2", address)
    return source.namespace.run(*argv, check=False).returncode == 0


def texts(node: LabNode) -> list[str]:
    """Return the network's log in words."""
    return [entry["text"] for entry in node.query("network", "log")["operations"]]


def has_logged(node: LabNode, text: str) -> bool:
    """Say whether the daemon's log holds a text."""
    return text in node.process.output()


@pytest.fixture
def trio() -> Iterator[Homes]:
    """Three homes: the first two are in one network, the third owns another."""
    with homes(3) as lab:
        first, second, third = lab.nodes
        join(second, first)
        launch(third)
        third.query("network", "create", "work")
        yield lab
        first.cli("down")


def test_one_host_in_two_networks(trio: Homes) -> None:
    both, home, work = trio.nodes
    link = work.query("invite", both.npub)["link"]
    joined = both.query("join", link)
    assert joined["new"] is True
    assert joined["state"] == "joined"
    profile = joined["profile"]
    assert joined["interface"] != both.interface

    # Members of both are reached at the same time, by interfaces and ports of their own.
    there = wait_in(both, profile, "direct", has_direct(work.npub))
    wait_direct(both, home)
    here = both.status()
    assert there["npub"] == here["npub"] == both.npub
    assert there["listen_port"] != here["listen_port"]
    assert here["network"] != there["network"]
    ping(both, home)
    for address in work.status()["addresses"]:
        assert reaches(both, address)

    # Neither network reaches the other, not even when it routes there.
    far, near = work.status()["addresses"][0], home.status()["addresses"][0]
    assert not reaches(home, far)
    home.namespace.ip(f"route add {far}/128 dev {home.interface}", family=6)
    assert not reaches(home, far)
    home.namespace.ip(f"route del {far}/128 dev {home.interface}", family=6)
    assert not reaches(work, near)
    for outsider, status in ((home, work.status()), (work, home.status())):
        assert outsider.npub not in {peer["npub"] for peer in status["peers"]}

    listed = networks(both)
    assert {row["role"] for row in listed.values()} == {"member"}
    assert listed[profile]["name"] == "work"
    assert f"Network {profile} (work): 2 members" in both.cli("status")
    both.cli("network", "switch", "work")
    assert both.status()["network"] == there["network"]
    assert networks(both)[profile]["selected"] is True

    # Both stop and start by one command.
    ports = {name: status_in(both, name)["listen_port"] for name in listed}
    both.stop()
    both.query("down")
    assert not any(row["running"] for row in networks(both).values())
    assert both.query("up")["networks"][0]["profile"] == "default"
    wait_in(both, profile, "direct again", has_direct(work.npub))
    wait_in(both, "default", "direct again", has_direct(home.npub))
    assert {name: status_in(both, name)["listen_port"] for name in listed} == ports

    # One stops alone.
    both.query("down", "--network", profile)
    assert {name for name, row in networks(both).items() if row["running"]} == {"default"}
    both.query("up", profile)

    # Leaving takes this node out there, and only there.
    left = both.query("network", "leave", profile, "--yes")
    assert left["told"] is True
    work.wait_for(lambda status: status["peers"] == [], "that the member has left")
    assert texts(work)[-1] == "left" or "left" in texts(work)
    assert list(networks(both)) == ["default"]
    wait_in(both, "default", "still there", has_direct(home.npub))


def test_several_commands_for_one_network() -> None:
    with homes(2) as lab:
        owner, member = lab.nodes
        launch(owner, member)
        made = owner.query("network", "create", "crew")
        assert (made["name"], made["role"], made["profile"]) == ("crew", "owner", "default")
        link = owner.query("invite", member.npub, "--role=admin", "--tag=desk", "--name=table")
        assert member.query("join", link["link"])["state"] == "joined"
        wait_direct(owner, member)
        assert peer_of(owner, member)["name"] == "table"
        # An admin decides too, and the owner hears of it.
        token = member.query("token", "create", "--uses=3", "--tag=lab")
        owner.query("peer", "tag", "table", "desk", "west")
        member.query("network", "settings", "--inbound=all")
        wait_until(lambda: owner.ask("network_settings")["inbound"] == "all", "the new setting")
        [listed] = owner.query("token", "list")["tokens"]
        assert (listed["id"], listed["state"], listed["tags"]) == (token["id"], "open", ["lab"])
        owner.query("token", "revoke", token["id"])
        wait_until(lambda: member.ask("token_list")["tokens"][0]["state"] == "revoked", "the end")
        assert texts(owner) == texts(member)
        assert texts(owner)[:2] == [
            "created the network crew",
            "let table in as admin, tagged desk",
        ]
        assert "tagged table desk, west" in texts(owner)
        refused = member.attempt("peer", "role", "laptop-a", "member")
        assert refused.returncode == 1


def test_a_token_admits_while_the_owner_is_away() -> None:
    with homes(3) as lab:
        owner, member, machine = lab.nodes
        join(owner, member)
        link = owner.query("token", "create", "--uses=2", "--tag=server")["link"]
        wait_until(lambda: member.ask("token_list")["tokens"], "that the member knows of it")
        owner.stop()

        environment = (f"NOSTRVPN_JOIN={link}",)
        first = machine.namespace.run("env", *environment, *machine.command, "up", "--json")
        answer = json.loads(first.stdout)
        assert answer["join"]["state"] in ("joined", "waiting")
        wait_in(machine, "default", "direct", has_direct(member.npub))
        assert (
            link.partition("?")[0]
            not in machine.namespace.run(
                "sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'"
            ).stdout
        )
        # A reboot: the same command, and nothing changes.
        before = texts(machine)
        again = machine.namespace.run("env", *environment, *machine.command, "up", "--json")
        assert json.loads(again.stdout)["join"]["state"] == "member"
        machine.query("down")
        third = machine.namespace.run("env", *environment, *machine.command, "up")
        assert "is a member of" in third.stdout
        assert texts(machine) == before
        # The owner hears of it when it is back.
        owner.start()
        owner.wait_for_peer(machine.query("id")["npub"], path="direct", timeout=40.0)
        machine.cli("down")


def test_a_token_waits_until_somebody_is_online() -> None:
    with homes(2) as lab:
        owner, machine = lab.nodes
        launch(owner)
        owner.query("network", "create", "crew")
        link = owner.query("token", "create")["link"]
        owner.stop()
        argv = ("env", f"NOSTRVPN_JOIN={link}", *machine.command, "up")
        done = machine.namespace.run(*argv, check=False, timeout=60.0)
        assert done.returncode == 0, done
        assert "It completes when one of them is online" in done.stdout
        owner.start()
        wait_in(machine, "default", "direct", has_direct(owner.npub))
        machine.cli("down")


def test_a_service_joins_by_its_environment() -> None:
    with homes(2) as lab:
        owner, machine = lab.nodes
        launch(owner)
        owner.query("network", "create", "crew")
        link = owner.query("token", "create")["link"]
        machine.init()
        for said in ("'state': 'joined'", "a member already of the network"):
            machine.start(NOSTRVPN_JOIN=link)
            wait_direct(owner, machine)
            wait_until(partial(has_logged, machine, said), "what came of it")
            machine.stop()


def test_a_bad_link_in_the_environment_is_an_error() -> None:
    with homes(1) as lab:
        [node] = lab.nodes
        for link, said in (
            ("nostrvpn://join/x", "damaged or incomplete"),
            ("https://a.example", "is not an invite"),
        ):
            argv = ("env", f"NOSTRVPN_JOIN={link}", *node.command, "up")
            done = node.namespace.run(*argv, check=False, timeout=60.0)
            assert done.returncode != 0
            assert said in done.stderr
        node.cli("down")


def test_rotate() -> None:
    with homes(2) as lab:
        owner, member = lab.nodes
        join(owner, member)
        old, address = member.npub, peer_of(owner, member)["addresses"][1]
        answer = member.query("rotate", timeout=90.0)
        assert answer["npub"] != old
        member.npub = answer["npub"]
        assert member.query("id")["npub"] == answer["npub"]
        wait_direct(owner, member)
        renewed = peer_of(owner, member)
        assert (renewed["name"], renewed["addresses"][1]) == ("laptop-b", address)
        assert old not in {peer["npub"] for peer in owner.status()["peers"]}
        ping(owner, member)
        # And the owner itself.
        owner.npub = owner.query("rotate", timeout=90.0)["npub"]
        wait_direct(owner, member)
        assert networks(owner)["default"]["role"] == "owner"
        ping(member, owner)
        # The WireGuard key alone.
        before = owner.query("id")
        assert owner.query("rotate", "--wireguard")["epoch"] == 1
        after = owner.query("id")
        assert after["npub"] == before["npub"]
        assert after["wireguard_public_key"] != before["wireguard_public_key"]
        wait_direct(owner, member)
        ping(member, owner)


def test_rotate_survives_a_crash() -> None:
    with homes(2) as lab:
        owner, member = lab.nodes
        join(owner, member)
        argv = (*member.command, "rotate")
        rotating = Process(member.namespace, argv, log=member.directory / "rotate.log")
        prepared = member.directory / "state/identity.next"
        wait_until(prepared.exists, "the new secret")
        rotating.kill()
        member.kill()
        member.start()
        member.wait_for_relay()
        member.npub = member.query("rotate", timeout=90.0)["npub"]
        assert not prepared.exists()
        wait_direct(owner, member)
        ping(owner, member)
        assert "key_replaced" not in problems(member.status())


def test_a_device_is_replaced() -> None:
    with homes(3) as lab:
        owner, old, new = lab.nodes
        join(owner, old)
        launch(new)
        owner.query("peer", "tag", "laptop-b", "desk")
        address = peer_of(owner, old)["addresses"][1]
        replaced = owner.query("peer", "replace", "laptop-b", new.npub)
        assert new.query("join", replaced["link"])["state"] == "joined"
        wait_direct(owner, new)
        entry = peer_of(owner, new)
        assert (entry["name"], entry["addresses"][1]) == ("laptop-b", address)
        old.wait_for(lambda status: status["peers"] == [], "that it is out")
        assert "key_replaced" in problems(old.status())
        ping(owner, new)


def test_a_guest_expires() -> None:
    with homes(2) as lab:
        owner, guest = lab.nodes
        join(owner, guest)
        # The shortest span that the command line takes is a minute: long enough to see it both ways.
        owner.query("peer", "role", "laptop-b", "guest", "--expires-member=60s")
        wait_until(lambda: networks(guest)["default"]["role"] == "guest", "the role")
        ping(owner, guest)
        address = peer_of(owner, guest)["addresses"][0]
        wait_until(lambda: not reaches(owner, address), "the end of the membership", timeout=90.0)
        owner.wait_for(lambda status: status["peers"] == [], "that it is gone", timeout=90.0)
        assert texts(owner)[-1] in ("removed laptop-b", "renewed the network's key")


def test_two_networks_with_the_same_ipv4_range() -> None:
    with homes(1) as lab:
        [node] = lab.nodes
        node.cli("up")
        node.query("network", "create", "home")
        status = node.status()
        wanted = IPv4Network(f"{status['addresses'][1]}/16", strict=False)
        _put_twin(node, wanted)
        # Whoever comes second gives way, and says so; both keep IPv6.
        node.query("up")
        twin = wait_in(node, "twin", "the overlap", lambda told: "ipv4_overlap" in problems(told))
        assert str(wanted) in problems(twin)["ipv4_overlap"]
        assert len(twin["addresses"]) == 1
        assert len(node.status()["addresses"]) == 2
        # And gets it when the first one has gone.
        node.query("down", "--network", "default")
        wait_in(node, "twin", "IPv4", lambda told: len(told["addresses"]) == 2)
        node.query("up")
        first = wait_in(node, "default", "the overlap", lambda told: len(told["addresses"]) == 1)
        assert "ipv4_overlap" in problems(first)
        node.cli("down")


def _put_twin(node: LabNode, wanted: IPv4Network) -> None:
    """Store a network of this node's own whose IPv4 range is ``wanted``: one in 64 is."""
    options = Options(
        state_dir=str(node.directory / "state"),
        runtime_dir=str(node.directory / "run"),
        config=str(node.config),
        interface=node.interface,
    )
    secret = load_identity(options.state_dir, {}).reveal()
    place = create_profile(options, "twin")
    for attempt in range(2_000):
        roster = create_network(
            secret,
            "twin",
            "laptop-a",
            wall=time.time() - 60,
            nonce=attempt.to_bytes(16, "big"),
            key_id="0" * 16,
            aux=bytes(32),
        )
        if ipv4_prefix(roster.network_id) == wanted:
            break
    store = Store.open(place.store_path)
    store.put([Record("network", event.id, event_json(event)) for event in roster.log])
    store.close()
