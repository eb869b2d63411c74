"""Exits one behind the other: who is told of the chain, and what would go in a circle does not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.exits.offer import MAX_HOPS, ExitOffer, offer_to_json, parse_offer
from nostrvpn.host.inbound import Inbound
from nostrvpn.node.events import HostChanged
from nostrvpn.paths.candidates import LocalAddress
from tests.sim.nodes import Host
from tests.unit.node.test_exits import OFFER, Abroad

OUTSIDE = LocalAddress(ip_address("198.51.100.7"), "eth0", 24)
OFFERED: dict[str, Any] = {
    "to": ["members"], "policy": "open", "allow": [], "deny": [], "allow_lan": False,
    "client_rate": 0, "bandwidth": 0, "connections": None, "budget": 0, "country": "", "ipv6": True,
}  # fmt: skip


class Middle(Abroad):
    """``me`` offers to be an exit too."""

    def __init__(self) -> None:
        super().__init__()
        self.step(
            self.me,
            HostChanged((OUTSIDE,), sources=frozenset({OUTSIDE.ip, ip_address("2001:db8::7")})),
        )
        self.call(self.me, "exit_offer", **OFFERED)

    def told(self, host: Host) -> ExitOffer | None:
        """What ``host`` is told that ``me`` offers."""
        self.run(2.0)
        return parse_offer(self.node.exit_offer.tell(host.secret.public_key))

    def guests(self) -> frozenset[IPAddress]:
        inbound = self.node.desired(self.now).inbound
        assert isinstance(inbound, Inbound)
        return inbound.exit.sources

    def addresses(self, host: Host) -> set[IPAddress]:
        roster = self.node.membership.roster
        assert roster is not None
        at = roster.address(host.secret.public_key)
        return {at.ipv4, at.ipv6}


@pytest.fixture
def middle() -> Middle:
    return Middle()


def test_guests_are_told_by_whom_they_leave(middle: Middle) -> None:
    offer = middle.told(middle.ams)
    assert offer is not None
    assert offer.through == ()
    middle.connect(middle.fra)
    offer = middle.told(middle.ams)
    assert offer is not None
    assert offer.through == (middle.fra.secret.public_key,)
    middle.offer(middle.fra, replace(OFFER, through=("ab" * 32,)))
    offer = middle.told(middle.ams)
    assert offer is not None
    assert offer.through == (middle.fra.secret.public_key, "ab" * 32)


def test_what_comes_from_the_exits_ahead_is_never_sent_there_again(middle: Middle) -> None:
    assert middle.addresses(middle.fra) <= middle.guests()
    middle.offer(middle.fra, replace(OFFER, through=(middle.ams.secret.public_key,)))
    middle.connect(middle.fra)
    assert not middle.guests()
    middle.offer(middle.fra, OFFER)
    middle.run(1.0)
    assert middle.guests() == middle.addresses(middle.ams)
    middle.off()
    assert middle.addresses(middle.fra) <= middle.guests()


def test_a_circle_of_exits_is_refused_and_said(middle: Middle) -> None:
    circle = replace(OFFER, through=("ab" * 32, middle.node.me))
    middle.offer(middle.fra, circle)
    assert "circle" in str(middle.refusal("exit_use", **_use(middle.fra.name)).text)
    [listed] = [one for one in middle.call(middle.me, "exit_list")["exits"] if one["through"]]
    assert (listed["name"], listed["state"]) == (middle.fra.name, "loops")
    middle.use("auto")
    middle.answers(middle.ams)
    assert middle.node.exits.used == middle.ams.secret.public_key


def test_an_exit_that_begins_a_circle_is_left_at_once(middle: Middle) -> None:
    middle.connect(middle.fra)
    assert middle.state == "connected"
    middle.offer(middle.fra, replace(OFFER, through=(middle.node.me,)))
    middle.run(1.0)
    assert middle.state == "blocked"
    assert "exit_not_permitted" in middle.problems()
    assert "circle" in middle.call(middle.me, "exit_status")["text"]
    told = middle.told(middle.ams)  # and nobody is led into it
    assert told is not None
    assert (told.versions, told.down) == (frozenset(), "exit")


def test_a_chain_is_bounded() -> None:
    longest = replace(OFFER, through=tuple(f"{n:064x}" for n in range(MAX_HOPS)))
    assert parse_offer(offer_to_json(longest)) == longest
    for bad in (["x"] * 2, "ab" * 32, [f"{n:064x}" for n in range(MAX_HOPS + 1)], [1]):
        with pytest.raises(PeerMisbehaved):
            parse_offer(offer_to_json(OFFER) | {"through": bad})


def test_too_long_a_chain_is_not_made_longer(middle: Middle) -> None:
    middle.offer(middle.fra, replace(OFFER, through=tuple(f"{n:064x}" for n in range(MAX_HOPS))))
    middle.use("auto")
    assert middle.fra.secret.public_key not in middle.node.exits.candidates


def _use(peer: str) -> dict[str, Any]:
    given = {"kill_switch": None, "allow_lan": None, "resolver": None, "dry_run": False}
    return {"peer": peer, **given}
