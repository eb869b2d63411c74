"""Who gets in, by which invite, and who has to leave: with real daemons and a real relay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from nostrvpn.io.store import Record, Store
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.mesh.invites import parse_link, render_link
from tests.lab.homes import (
    Homes,
    admit,
    homes,
    join,
    launch,
    peer_of,
    ping,
    problems,
    wait_direct,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(90))]


@pytest.fixture(scope="module")
def lab() -> Iterator[Homes]:
    """Three homes; the first two nodes have met, the third is up and alone."""
    with homes(3) as lab:
        join(*lab.nodes[:2])
        launch(lab.nodes[2])
        yield lab


@pytest.fixture
def trio(lab: Homes) -> tuple[LabNode, LabNode, LabNode]:
    """The owner, the member, and the guest."""
    a, b, c = lab.nodes
    return a, b, c


def refused(guest: LabNode, link: str) -> str:
    """Let ``guest`` join in vain; return the error's text, as its command line tells it."""
    done = guest.attempt("join", link)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert hint.startswith("hint: ask for a")
    assert error.startswith("error: ")
    return error


def assert_both_know(owner: LabNode, guest: LabNode, link: str, reason: str) -> None:
    """Join in vain: both sides must say who was refused, and why."""
    assert reason in refused(guest, link)
    assert reason in problems(guest.status())["join_refused"]
    told = owner.wait_for(
        lambda status: guest.npub in problems(status).get("applicant_refused", ""), "the refusal"
    )
    assert reason in problems(told)["applicant_refused"]
    assert guest.npub not in {peer["npub"] for peer in told["peers"]}


def test_a_used_invite_is_refused(trio: tuple[LabNode, LabNode, LabNode]) -> None:
    owner, member, guest = trio
    owner.query("peer", "remove", member.npub)
    member.wait_for(lambda status: status["peers"] == [], "its removal")
    link = owner.query("invite", "--once")["link"]
    assert member.query("join", link)["state"] == "joined"
    assert_both_know(owner, guest, link, "another node has used it")
    wait_direct(owner, member)


def test_an_invite_for_somebody_else_is_refused(trio: tuple[LabNode, LabNode, LabNode]) -> None:
    owner, member, guest = trio
    owner.query("peer", "remove", member.npub)
    link = owner.query("invite", member.npub)["link"]
    assert f"this invite is for {member.npub}, and this node is" in refused(guest, link)
    # Whoever takes the name out of the link comes as far as the owner.
    unbound = render_link(replace(parse_link(link), bound_to=None))
    assert_both_know(owner, guest, unbound, "it was made for another npub")
    member.query("join", link)
    wait_direct(owner, member)


def test_an_expired_invite_is_refused(trio: tuple[LabNode, LabNode, LabNode]) -> None:
    owner, _, guest = trio
    link = owner.query("invite", guest.npub)["link"]
    old = render_link(replace(parse_link(link), expires=1_600_000_000))
    assert "this invite has expired" in refused(guest, old)
    # The owner's own record decides, whatever the link says.
    owner.stop()
    store = Store.open(str(owner.directory / "state/state.db"), backup_spaces=("invite",))
    identity = parse_link(link).invite_id
    record = store.get("invite", identity)
    assert isinstance(record, dict)
    store.put([Record("invite", identity, {**record, "expires": int(time.time()) - 60})])
    store.close()
    owner.start()
    owner.wait_for_relay()
    assert_both_know(owner, guest, link, "it has expired")


def test_nobody_joins_with_a_guessed_secret(trio: tuple[LabNode, LabNode, LabNode]) -> None:
    owner, _, guest = trio
    link = owner.query("invite", guest.npub)["link"]
    guessed = render_link(replace(parse_link(link), secret=bytes(16)))
    argv = (*guest.command, "join", guessed)
    vain = Process(guest.namespace, argv, log=guest.directory / "join.log")
    # Nobody even answers.
    guest.wait_for(lambda status: status["joining"] and status["joining"]["attempts"] > 2, "tries")
    assert "join_waiting" in problems(guest.status())
    assert guest.npub not in {peer["npub"] for peer in owner.status()["peers"]}
    # A proper invite replaces the vain one.
    assert guest.query("join", link)["state"] == "joined"
    assert "join_waiting" not in problems(guest.status())
    wait_until(lambda: vain.exit_code == 0, "the answer to the first command")


def test_a_new_member_meets_everybody(trio: tuple[LabNode, LabNode, LabNode]) -> None:
    owner, member, guest = trio
    wait_direct(owner, member, guest)
    ping(guest, member)
    ping(member, guest)
    assert peer_of(member, guest)["name"] == "laptop-c"
    refusal = member.attempt("invite", "--once")
    assert refusal.returncode == 1
    assert f"only the network's owner and admins can invite: {owner.npub}" in refusal.stderr


def test_a_removed_member_is_gone_everywhere(trio: tuple[LabNode, LabNode, LabNode]) -> None:
    owner, member, guest = trio
    wait_direct(owner, member, guest)
    forbidden = guest.attempt("peer", "remove", "laptop-b")
    assert forbidden.returncode == 1
    assert (
        f"only the network's owner and admins can remove members: {owner.npub}" in forbidden.stderr
    )
    address = peer_of(owner, member)["addresses"][0]

    removed = owner.query("peer", "remove", "laptop-b")
    assert removed == {"npub": member.npub, "name": "laptop-b", "applied": True}
    for node in (owner, guest):
        node.wait_for(
            lambda status: member.npub not in {peer["npub"] for peer in status["peers"]},
            "the member's removal",
        )
        wait_until(partial(has_tunnels, node, 1), "one tunnel")
        argv = ("ping", "-n", "-c", "1", "-W", "1", address)
        assert node.namespace.run(*argv, check=False).returncode != 0
    status = member.wait_for(lambda status: "removed" in problems(status), "its removal")
    assert (status["peers"], status["addresses"]) == ([], [])
    wait_until(partial(has_tunnels, member, 0), "no tunnel")
    ping(owner, guest)

    admit(owner, member)
    wait_direct(owner, member, guest)


def has_tunnels(node: LabNode, count: int) -> bool:
    """Say whether WireGuard itself has so many peers."""
    shown = node.namespace.run("wg", "show", node.interface, "peers").stdout
    return len(shown.splitlines()) == count


def test_the_inviter_may_come_later() -> None:
    with homes(2) as lab:
        owner, guest = lab.nodes
        launch(owner)
        guest.init()
        link = owner.query("invite", guest.npub)["link"]
        owner.stop()
        guest.start()
        guest.wait_for_relay()
        told = guest.query("join", link)
        assert (told["state"], told["inviter"]) == ("waiting", owner.npub)
        guest.restart()
        status = guest.wait_for_relay()
        assert "laptop-a" in problems(status)["join_waiting"] or owner.npub[:12] in str(status)
        assert status["peers"][0]["state"] == "joining"
        owner.start()
        wait_direct(owner, guest)
        ping(owner, guest)
        assert problems(guest.status()) == {}
