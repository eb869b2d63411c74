"""The published vectors are what the code does, and what others compute from the documents alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import nostr_sdk
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from nostrvpn.mesh.invites import parse_link
from nostrvpn.mesh.log_text import unpack_operations
from nostrvpn.mesh.roster import open_roster
from nostrvpn.mesh.tokens import parse_token_link
from nostrvpn.nostr.event import parse_event
from nostrvpn.nostr.nip59 import open_seal, open_wrap
from nostrvpn.signaling.messages import parse_message
from tests.vectors.protocol import DIRECTORY, membership, signaling

SIGNALING = json.loads((DIRECTORY / "signaling.json").read_text(encoding="utf-8"))
MEMBERSHIP = json.loads((DIRECTORY / "membership.json").read_text(encoding="utf-8"))
NAMES = [message["wrap"]["kind"] for message in SIGNALING["messages"]]


def keys(secret: str) -> nostr_sdk.Keys:
    return nostr_sdk.Keys(nostr_sdk.SecretKey.parse(secret))


def decrypted(secret: str, author: str, payload: str) -> Any:
    """What the other implementation of NIP-44 reads."""
    key, public = nostr_sdk.SecretKey.parse(secret), nostr_sdk.PublicKey.parse(author)
    return json.loads(nostr_sdk.nip44_decrypt(key, public, payload))


def digest(label: str, network: str, key: str = "") -> bytes:
    data = f"nostrvpn/{label}/v1".encode() + bytes.fromhex(network) + bytes.fromhex(key)
    return hashlib.sha256(data).digest()


def test_the_code_makes_the_published_vectors():
    assert signaling() == SIGNALING
    assert membership() == MEMBERSHIP


def test_mailboxes_by_other_means():
    shared = bytes.fromhex(SIGNALING["conversation_key"])
    for given in SIGNALING["pair_mailboxes"]:
        day = given["unix_time"] // 86_400
        info = b"pair/v1/" + bytes.fromhex(given["recipient"]) + day.to_bytes(8, "big")
        prk = hmac.digest(b"nostrvpn/mailbox", shared, "sha256")
        assert given["secret"] == hmac.digest(prk, info + b"\x01", "sha256").hex()
        assert given["public_key"] == keys(given["secret"]).public_key().to_hex()
    for given in SIGNALING["invite_mailboxes"]:
        material = bytes.fromhex(given["invite_secret"])
        prk = hmac.digest(b"nostrvpn/mailbox", material, "sha256")
        assert given["secret"] == hmac.digest(prk, b"invite/v1\x01", "sha256").hex()
        assert given["public_key"] == keys(given["secret"]).public_key().to_hex()
    secrets = [given["secret"] for given in SIGNALING["pair_mailboxes"]]
    assert len(set(secrets)) == len(secrets) == 6


def test_the_network_key_by_other_means():
    """The ratchet, mailboxes, keys of seals and a rekey's entry, with hmac and another AEAD call."""

    def derived(secret: bytes, salt: bytes, info: bytes) -> bytes:
        return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")

    shared = bytes.fromhex(SIGNALING["conversation_key"])
    bob = SIGNALING["bob"]["public_key"]
    first, second = SIGNALING["network_key"]
    for name in ("secret", "pair_secret"):
        stepped = derived(bytes.fromhex(first[name]), b"nostrvpn/ratchet", b"day/v1")
        assert stepped.hex() == second[name]
    assert second["day"] == first["day"] + 1
    for given in (first, second):
        secret, pair = bytes.fromhex(given["secret"]), bytes.fromhex(given["pair_secret"])
        prk = hmac.digest(b"nostrvpn/mailbox", secret, "sha256")
        infos = {"inbox_of_bob": b"inbox/v2/" + bytes.fromhex(bob), "board": b"board/v2"}
        for name, info in infos.items():
            assert given[name]["secret"] == hmac.digest(prk, info + b"\x01", "sha256").hex()
            public = keys(given[name]["secret"]).public_key().to_hex()
            assert given[name]["public_key"] == public
        salt = derived(secret, b"nostrvpn/seal", b"pair/v2")
        on_board = derived(secret, b"nostrvpn/seal", b"board/v2")
        assert [given["inbox_of_bob"]["salt"], given["board"]["salt"]] == [
            salt.hex(),
            on_board.hex(),
        ]
        assert given["seal_key"] == derived(shared, salt, b"nostrvpn/seal/v2").hex()
        with_secret = derived(shared + pair, salt, b"nostrvpn/seal-with-secret/v2")
        assert given["seal_key_with_secret"] == with_secret.hex()
        assert given["entry_key"] == derived(shared, on_board, b"nostrvpn/rekey/v1").hex()
        entry_with = derived(shared + pair, on_board, b"nostrvpn/rekey-with-secret/v1")
        assert given["entry_key_with_secret"] == entry_with.hex()
        entry = given["rekey_under_32_zeros"]
        place = bytes.fromhex(entry["id"] + bob) + entry["day"].to_bytes(8, "big")
        nonce = derived(place, b"nostrvpn/rekey", b"nonce/v1")[:12]
        aad = f"{entry['id']}/{entry['day']}/{bob}".encode()
        sealed = base64.b64decode(entry["entries"])
        assert ChaCha20Poly1305(bytes(32)).decrypt(nonce, sealed, aad) == secret


@pytest.mark.parametrize("message", SIGNALING["messages"], ids=NAMES)
def test_nostr_sdk_reads_the_published_messages(message):
    wrap, seal = message["wrap"], message["seal"]
    for event in (wrap, seal):
        assert nostr_sdk.Event.from_json(json.dumps(event)).verify()
    assert keys(message["wrap_author_secret"]).public_key().to_hex() == wrap["pubkey"]
    assert decrypted(message["mailbox"]["secret"], wrap["pubkey"], wrap["content"]) == seal
    bob, alice = SIGNALING["bob"]["secret"], SIGNALING["alice"]["public_key"]
    assert decrypted(bob, seal["pubkey"], seal["content"]) == message["rumor"]
    assert seal["pubkey"] == message["rumor"]["pubkey"] == alice
    assert message["rumor"]["content"] == message["envelope"]


@pytest.mark.parametrize("message", SIGNALING["messages"], ids=NAMES)
def test_keys_and_nonces_of_the_published_messages(message):
    for name, key in (("seal", "conversation_key"), ("wrap", "wrap_conversation_key")):
        payload = base64.b64decode(message[name]["content"])
        nonce, ciphertext, mac = payload[1:33], payload[33:-32], payload[-32:]
        assert payload[0] == 2
        assert nonce.hex() == message[f"{name}_nonce"]
        shared = bytes.fromhex((SIGNALING | message)[key])
        blocks, last = b"", b""
        for number in (1, 2, 3):  # HKDF-Expand to 76 bytes (RFC 5869)
            last = hmac.digest(shared, last + nonce + bytes([number]), "sha256")
            blocks += last
        assert hmac.digest(blocks[44:76], nonce + ciphertext, "sha256") == mac
        if name == "seal":
            told = [bytes.fromhex(part) for part in message["seal_message_keys"]]
            assert told == [blocks[:32], blocks[32:44], blocks[44:76]]


@pytest.mark.parametrize("message", SIGNALING["messages"], ids=NAMES)
def test_the_published_messages_open(message):
    seal = open_wrap(parse_event(message["wrap"]), bytes.fromhex(message["mailbox"]["secret"]))
    rumor = open_seal(seal, bytes.fromhex(SIGNALING["bob"]["secret"]))
    assert rumor.id == message["rumor"]["id"]
    assert parse_message(rumor.content).body == json.loads(message["envelope"])["body"]


def test_the_published_roster_by_other_means():
    """Ids, signatures, order and names of predecessors, without the code that made them."""
    network, heights = MEMBERSHIP["network_id"], dict[str, int]()
    followed, places = set(), []
    for operation in MEMBERSHIP["log"]:
        assert nostr_sdk.Event.from_json(json.dumps(operation)).verify()
        content = json.loads(operation["content"])
        assert list(content)[:4] == ["v", "net", "prev", "op"]
        assert content["v"] == 2
        assert content["net"] == ("" if content["op"] == "create" else network)
        assert content["prev"] == sorted(content["prev"])
        heights[operation["id"]] = 1 + max((heights[key] for key in content["prev"]), default=0)
        followed |= set(content["prev"])
        places.append((heights[operation["id"]], operation["id"]))
    assert places == sorted(places)
    assert [height for height, _ in places].count(6) == 2, "the log branches once"
    heads = sorted(set(heights) - followed)
    assert hashlib.sha256("".join(heads).encode()).hexdigest()[:16] == MEMBERSHIP["digest"]
    roster = open_roster(parse_event(operation) for operation in MEMBERSHIP["log"])
    assert (roster.network_id, roster.key_id) == (network, MEMBERSHIP["key_id"])
    members = {key: [m.name, m.role.value, m.host] for key, m in roster.members.items()}
    assert members == MEMBERSHIP["members"]


def test_the_packed_log_by_other_means():
    text = MEMBERSHIP["packed"]
    packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    size = int.from_bytes(packed[:4], "big")
    network, authors, rows = json.loads(zlib.decompress(packed[4 : 4 + size]))
    assert network == MEMBERSHIP["network_id"]
    ids: list[str] = []
    for number, (author, created_at, back, action, fields) in enumerate(rows):
        event = MEMBERSHIP["log"][number]
        prev = [ids[-item] if isinstance(item, int) else item for item in back]
        content = {"v": 2, "net": network if number else "", "prev": prev, "op": action, **fields}
        assert json.dumps(content, separators=(",", ":"), ensure_ascii=False) == event["content"]
        assert (authors[author], created_at) == (event["pubkey"], event["created_at"])
        start = 4 + size + 64 * number
        assert packed[start : start + 64].hex() == event["sig"]
        ids.append(event["id"])
    assert [event.id for event in unpack_operations(text)] == ids


def test_tokens_by_other_means():
    given, salt = MEMBERSHIP["token"], b"nostrvpn"
    secret = bytes.fromhex(given["secret"])
    assert hashlib.sha256(b"nostrvpn/token/v1" + secret).hexdigest()[:16] == given["id"]
    prk = hmac.digest(salt, secret, "sha256")
    mailbox = hmac.digest(prk, b"nostrvpn/token-mailbox/v1\x01", "sha256")
    assert mailbox.hex() == given["mailbox"]
    info = b"nostrvpn/token-signer/v1"
    first = hmac.digest(prk, info + b"\x01", "sha256")
    wide = int.from_bytes(first + hmac.digest(prk, first + info + b"\x02", "sha256")[:16], "big")
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    signer = nostr_sdk.SecretKey.parse((wide % (order - 1) + 1).to_bytes(32, "big").hex())
    assert nostr_sdk.Keys(signer).public_key().to_hex() == given["signer"]
    assert parse_token_link(given["link"]).secret == secret


def test_overlay_addresses_by_other_means():
    network = MEMBERSHIP["network_id"]
    ula = b"\xfd" + digest("ula", network)[:5]
    assert MEMBERSHIP["ipv6_prefix"] == str(IPv6Network((ula + bytes(10), 48)))
    base = IPv4Address("10.64.0.0") + (digest("ipv4-prefix", network)[0] % 64) * 65_536
    assert MEMBERSHIP["ipv4_prefix"] == str(IPv4Network((base, 16)))
    taken: list[int] = []
    for given in MEMBERSHIP["addresses"]:
        key = given["public_key"]
        assert given["ipv6"] == str(IPv6Address(ula + digest("ipv6-host", network, key)[:10]))
        host = int.from_bytes(digest("ipv4-host", network, key)[:8], "big") % 65_534
        assert given["hashed_host"] == host
        while host in taken:
            host = (host + 1) % 65_534
        taken.append(host)
        assert given["host"] == host
        assert given["ipv4"] == str(base + 1 + host)
    moved = [given for given in MEMBERSHIP["addresses"] if given["host"] != given["hashed_host"]]
    assert len(moved) == 1, "one of the members had to give way"


def test_invite_links_by_other_means():
    for given in MEMBERSHIP["links"]:
        scheme, _, rest = given["link"].partition("://")
        path, _, query = rest.partition("?")
        inviter, _, secret = path.partition("/")
        assert scheme == "nostrvpn"
        assert inviter == nostr_sdk.PublicKey.parse(given["inviter"]).to_bech32()
        assert base64.urlsafe_b64decode(secret + "==").hex() == given["secret"]
        assert query.startswith("net=")
        net = query.removeprefix("net=").partition("&")[0]
        assert base64.urlsafe_b64decode(net + "=").hex() == given["network_id"]
        assert f"&exp={given['expires']}" in query
        parsed = parse_link(given["link"])
        assert (parsed.inviter, parsed.bound_to) == (given["inviter"], given["bound_to"])
        assert (parsed.expires, list(parsed.relays)) == (given["expires"], given["relays"])
        label = b"nostrvpn/invite/v1" + bytes.fromhex(given["secret"])
        assert hashlib.sha256(label).hexdigest()[:16] == MEMBERSHIP["invite_id"]
