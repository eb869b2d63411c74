"""Behind a proxy: each mailbox and each publication on connections of its own."""

from __future__ import annotations

import json
from typing import Any

from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.nostr.event import event_json, public_key, sign_event
from nostrvpn.nostr.nip59 import STORED_WRAP
from nostrvpn.signaling.lanes import MAX_PUBLICATIONS, PUBLISHING_S, Lanes
from nostrvpn.signaling.relays import (
    CloseRelay,
    Listen,
    OpenRelay,
    Publish,
    Published,
    Received,
    RelayClosed,
    RelayOpened,
    RelayText,
    SendText,
    UseRelays,
)

URL = "wss://relay"
WALL = 1_700_000_000
SECRETS = [bytes(31) + bytes([n]) for n in (1, 2, 3)]
BOXES = {public_key(secret): secret for secret in SECRETS}


class World:
    """Lanes, and a relay that takes everything; what each connection said is kept by its name."""

    def __init__(self, *, is_isolated: bool = True) -> None:
        self.now = 0.0
        self.lanes = Lanes([URL], active=1, is_isolated=is_isolated)
        self.said: dict[str, list[list[Any]]] = {}
        self.open: set[str] = set()
        self.closed: list[str] = []
        self.published: list[Published] = []
        self.received: list[Received] = []

    def step(self, event) -> None:
        moment = Moment(self.now, WALL + self.now, Entropy(f"{self.now}{event}".encode()))
        todo = [event]
        while todo:
            for effect in self.lanes.step(todo.pop(0), moment):
                match effect:
                    case OpenRelay(name):
                        assert name not in self.open
                        self.open.add(name)
                        self.said.setdefault(name, [])
                        todo.append(RelayOpened(name))
                    case CloseRelay(name):
                        self.open.discard(name)
                        self.closed.append(name)
                        todo.append(RelayClosed(name, "closed"))
                    case SendText(name, text):
                        frame = json.loads(text)
                        self.said[name].append(frame)
                        if frame[0] == "EVENT":
                            todo.append(
                                RelayText(name, json.dumps(["OK", frame[1]["id"], True, ""]))
                            )
                        elif frame[0] == "REQ":
                            todo.append(RelayText(name, json.dumps(["EOSE", frame[1]])))
                    case Published():
                        self.published.append(effect)
                    case Received():
                        self.received.append(effect)

    def boxes_of(self, name: str) -> set[str]:
        """The mailboxes of ours that a connection asked for."""
        return {
            key
            for frame in self.said[name]
            if frame[0] == "REQ"
            for flt in frame[2:]
            for key in flt["#p"]
        } & set(BOXES)

    def events_of(self, name: str) -> list[str]:
        return [f[1]["id"] for f in self.said[name] if f[0] == "EVENT" and f[1]["id"] in WRAPS]


def wrap(number: int):
    return sign_event(
        bytes(31) + bytes([50 + number]),
        kind=STORED_WRAP,
        tags=(("p", "0" * 63 + "1"),),
        content="x",
        created_at=WALL,
        aux=bytes(32),
    )


WRAPS = {wrap(number).id: wrap(number) for number in range(40)}


def started(**settings) -> World:
    world = World(**settings)
    world.step(Tick())
    world.step(Listen(BOXES))
    for number in range(2):
        world.step(Publish(f"m{number}", {STORED_WRAP: wrap(number)}))
    return world


def test_no_connection_reads_two_mailboxes_or_reads_and_publishes():
    world = started()
    shown = [(len(world.boxes_of(name)), len(world.events_of(name))) for name in world.said]
    assert all(reads + writes <= 1 for reads, writes in shown)
    assert sum(reads for reads, _ in shown) == len(BOXES)
    assert sum(writes for _, writes in shown) == 2
    assert [p.accepted for p in world.published] == [1, 1]


def test_a_connection_that_published_is_closed_and_readers_stay():
    world = started()
    assert len(world.open) == 1 + len(BOXES)
    assert len(world.closed) == 2
    world.step(Listen({}))
    assert world.open == {URL}


def test_lanes_names_are_not_used_again():
    world = started()
    names = [name.partition("#")[2] for name in world.said]
    assert len(set(names)) == len(names)
    assert all(len(name) in (0, 16) for name in names)


def test_what_comes_to_a_mailbox_is_received_under_the_relays_name():
    world = started()
    mailbox = next(iter(BOXES))
    name = next(name for name in world.said if mailbox in world.boxes_of(name))
    subscription = next(f[1] for f in world.said[name] if f[0] == "REQ")
    event = sign_event(
        bytes(31) + b"\x63",
        kind=STORED_WRAP,
        tags=(("p", mailbox),),
        content="x",
        created_at=WALL,
        aux=bytes(32),
    )
    world.step(RelayText(name, json.dumps(["EVENT", subscription, event_json(event)])))
    assert [(r.event.id, r.url) for r in world.received] == [(event.id, URL)]


def test_a_relay_that_never_answers_a_publication_is_given_up():
    world = World()
    world.step(Tick())
    lanes = world.lanes
    moment = Moment(0.0, WALL, Entropy(b"x"))
    opened = [
        e
        for e in lanes.step(Publish("m", {STORED_WRAP: wrap(1)}), moment)
        if isinstance(e, OpenRelay)
    ]
    assert len(opened) == 1
    late = Moment(PUBLISHING_S + 1, WALL, Entropy(b"y"))
    effects = lanes.step(Tick(), late)
    assert any(isinstance(e, CloseRelay) and e.url == opened[0].url for e in effects)
    assert any(isinstance(e, Published) and not e.accepted for e in effects)


def test_publications_at_once_are_bounded():
    world = World()
    world.step(Tick())
    moment = Moment(0.0, WALL, Entropy(b"x"))
    refused = 0
    for number in range(MAX_PUBLICATIONS + 3):
        effects = world.lanes.step(Publish(f"m{number}", {STORED_WRAP: wrap(number)}), moment)
        refused += any(isinstance(e, Published) and not e.accepted for e in effects)
    assert refused == 3


def test_without_a_proxy_one_connection_carries_all():
    world = started(is_isolated=False)
    assert set(world.said) == {URL}
    assert world.boxes_of(URL) == set(BOXES)
    assert len(world.events_of(URL)) == 2


def test_a_list_of_other_relays_is_followed():
    world = started()
    world.step(UseRelays(["wss://other"]))
    world.step(Tick())
    assert {name.partition("#")[0] for name in world.open} == {"wss://other"}
