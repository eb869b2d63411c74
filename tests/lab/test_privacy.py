"""What a relay operator could learn from all that ever reached the relay: nothing but addresses.

The relay's recorder keeps every frame in both directions. The network layer shows a relay the
router's public address; nothing else of a node may occur in any frame, in any usual spelling.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

import pytest

from nostrvpn.identity.keys import parse_npub
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient
from nostrvpn.signaling.mailboxes import invite_mailbox
from tests.lab.homes import Homes, homes, join, launch, peer_of, ping, wait_direct

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

WRAPS = {1059, 21059}
AUTHENTICATION = 22242
MAX_OFF = 60
"""Seconds that a wrap may be dated off the moment it reached the relay."""

SHORT = 4
"""Bytes: shorter needles, such as a packed IPv4 address, occur by chance in encrypted text."""


def spellings(raw: bytes) -> set[str]:
    """Return how bytes may be written: hex, base64 at each alignment, both alphabets."""
    found = {raw.hex(), raw.hex().upper()}
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + raw).decode().rstrip("=")
        # The characters at both ends also depend on what stands beside.
        inner = text[(shift * 8 + 5) // 6 : (shift + len(raw)) * 8 // 6]
        found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return found


def secrets_of(node: LabNode) -> dict[str, str]:
    """Return what must not be seen of one node: what it is, by its spelling."""
    identity, status = node.query("id"), node.status()
    key = bytes.fromhex(parse_npub(identity["npub"]))
    raw = {
        "public key": key,
        "WireGuard key": base64.b64decode(identity["wireguard_public_key"]),
        "network id": bytes.fromhex(identity["network"]),
        "name": node.name.encode(),
        "interface": node.interface.encode(),
        "npub": identity["npub"].encode(),
    }
    texts = {identity["npub"]: "npub", identity["npub"][5:30]: "npub", node.name: "name"}
    ours = [address["local"] for address in addresses(node)]
    for address in (*status["addresses"], *ours):
        packed = ip_address(address).packed
        texts[address] = "address"
        raw[f"address {address}"] = address.encode()
        if len(packed) > SHORT:
            raw[f"packed {address}"] = packed
    return {spelling: what for what, data in raw.items() for spelling in spellings(data)} | texts


def addresses(node: LabNode) -> list[dict[str, str]]:
    """Return the machine's own addresses on its cable and its tunnel."""
    listed = json.loads(node.namespace.run("ip", "-j", "addr").stdout)
    return [
        address
        for link in listed
        if link["ifname"] != "lo"
        for address in link["addr_info"]
        if address["scope"] == "global"
    ]


def frames(lab: Homes) -> list[dict[str, object]]:
    """Return every frame that passed the relay so far."""
    assert lab.server.recording is not None
    return [json.loads(line) for line in lab.server.recording.read_text().splitlines()]


def decoded(frame: str) -> str:
    """Return the bytes that an event's content stands for, each as the character of its number."""
    for part in json.loads(frame):
        if isinstance(part, dict) and isinstance(part.get("content"), str):
            return base64.b64decode(part["content"]).decode("latin-1")
    return ""


@pytest.fixture(scope="module")
def lab() -> Iterator[Homes]:
    """Three nodes that met through a recorded relay, one of which was restarted since."""
    with homes(3, record=True) as lab:
        join(*lab.nodes[:2])
        lab.nodes[1].restart()
        wait_direct(*lab.nodes[:2])
        yield lab


@pytest.mark.parametrize("before", range(4))
def test_a_spelling_is_found_wherever_it_stands(before: int) -> None:
    secret = bytes(range(200, 216))
    surrounded = bytes(before) + secret + b"\xff\xff"
    for text in (surrounded.hex(), base64.b64encode(surrounded).decode()):
        assert any(spelling in text for spelling in spellings(secret))


def test_no_frame_names_anybody(lab: Homes) -> None:
    a, b, guest = lab.nodes
    launch(guest)
    link = a.query("invite", "--once")["link"]
    guest.query("join", link)
    wait_direct(a, b, guest)
    ping(guest, b)
    a.query("peer", "remove", guest.npub)
    guest.wait_for(lambda status: status["peers"] == [], "its removal")

    parts = urlsplit(link)
    invite = base64.urlsafe_b64decode(parts.path.lstrip("/") + "==")
    needles = dict.fromkeys(spellings(invite), "invite secret")
    needles |= {parts.path.lstrip("/"): "invite secret", parse_qs(parts.query)["net"][0]: "network"}
    for node in (a, b):
        needles |= secrets_of(node)
        needles[peer_of(*((a, b) if node is b else (b, a)))["endpoint"]] = "endpoint"
    needles |= {router.address.exploded: "router" for router in lab.routers}
    needles |= {guest.npub: "npub", parse_npub(guest.npub): "public key", guest.name: "name"}
    needles = {text: what for text, what in needles.items() if len(text) > SHORT}
    assert len(needles) > 100

    seen = [str(record["frame"]) for record in frames(lab)]
    seen += [decoded(frame) for frame in seen]
    found = {(what, text) for text, what in needles.items() for frame in seen if text in frame}
    assert found == set()
    # That there is something to be found: the guest's first message, to the invite's mailbox.
    assert any(invite_mailbox(invite).public_key in frame for frame in seen)


def test_only_wraps_by_throwaway_keys_dated_now(lab: Homes) -> None:
    authors: list[str] = []
    for record in frames(lab):
        message = json.loads(str(record["frame"]))
        if record["from"] != "client":
            continue
        assert message[0] in ("EVENT", "REQ", "CLOSE", "AUTH")
        if message[0] == "REQ":
            for wanted in message[2:]:
                assert set(wanted) <= {"kinds", "#p", "since", "limit"}
                assert set(wanted["kinds"]) <= WRAPS
        if message[0] == "AUTH":
            assert message[1]["kind"] == AUTHENTICATION
        if message[0] == "EVENT":
            event = message[1]
            assert event["kind"] in WRAPS
            assert abs(event["created_at"] - float(str(record["at"]))) < MAX_OFF
            assert {tag[0] for tag in event["tags"]} <= {"p", "expiration"}
            authors.append(event["pubkey"])
    assert len(authors) > 10
    assert len(set(authors)) == len(authors)  # no two wraps share an author
