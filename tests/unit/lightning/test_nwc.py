"""Requests to a wallet and its answers (NIP-47)."""

import json

import pytest

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.lightning.nwc import (
    INFO,
    NOTIFICATION,
    REQUEST,
    RESPONSE,
    WalletError,
    filters,
    parse_info,
    parse_notification,
    parse_response,
    parse_wallet_link,
    request_event,
)
from nostrvpn.machine import Entropy, Moment
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import public_key, sign_event, verify_event

WALLET, CLIENT = bytes([7]) * 32, bytes([9]) * 32
LINK_TEXT = (
    f"nostr+walletconnect://{public_key(WALLET)}?relay=wss%3A%2F%2Frelay.example&relay=ws://two.example"
    f"&secret={CLIENT.hex()}&lud16=me@wallet.example"
)
LINK = parse_wallet_link(LINK_TEXT)
MOMENT = Moment(0.0, 1_800_000_000.9, Entropy(bytes(32)))


def from_wallet(kind, body, *, by=WALLET, to=None, tags=()):
    key = nip44.conversation_key(by, LINK.client)
    text = body if isinstance(body, str) else json.dumps(body)
    return sign_event(
        by,
        kind=kind,
        tags=(("p", to or LINK.client), *tags),
        content=nip44.encrypt(key, text.encode(), bytes(32)),
        created_at=1,
        aux=bytes(32),
    )


def answer(body, **more):
    return from_wallet(RESPONSE, body, tags=(("e", "a" * 64),), **more)


def test_a_link_is_read_and_its_secret_is_not_shown():
    assert LINK.wallet == public_key(WALLET)
    assert LINK.client == public_key(CLIENT)
    assert LINK.relays == ("wss://relay.example", "ws://two.example")
    assert LINK.lud16 == "me@wallet.example"
    assert CLIENT.hex() not in repr(LINK)


@pytest.mark.parametrize(
    "change",
    [
        ("nostr+walletconnect", "https"),
        (public_key(WALLET), "ff" * 32),
        (public_key(WALLET), "abc"),
        (CLIENT.hex(), "00" * 32),
        (CLIENT.hex(), "zz"),
        ("relay=", "rely="),
        ("wss%3A%2F%2Frelay.example", "https://relay.example"),
        ("&secret", "&" + "x" * 2000 + "secret"),
    ],
)
def test_what_is_no_link_is_refused_without_its_text(change):
    text = LINK_TEXT.replace(*change)
    with pytest.raises(UserError) as caught:
        parse_wallet_link(text)
    assert CLIENT.hex() not in str(caught.value) + caught.value.hint


def test_a_request_is_for_the_wallet_alone_and_lapses():
    event = request_event(LINK, "pay_invoice", {"invoice": "lnbc1"}, MOMENT)
    verify_event(event)
    assert (event.kind, event.pubkey) == (REQUEST, LINK.client)
    assert event.tags == (
        ("p", LINK.wallet),
        ("encryption", "nip44_v2"),
        ("expiration", "1800000060"),
    )
    opened = nip44.decrypt(nip44.conversation_key(WALLET, LINK.client), event.content)
    assert json.loads(opened) == {"method": "pay_invoice", "params": {"invoice": "lnbc1"}}


def test_only_the_wallets_events_to_us_are_asked_for():
    told, info = filters(LINK, 5)
    assert told["authors"] == info["authors"] == [LINK.wallet]
    assert told["#p"] == [LINK.client]


def test_what_a_wallet_can_do():
    def info(*tags):
        return sign_event(
            WALLET,
            kind=INFO,
            tags=tags,
            content="pay_invoice get_info",
            created_at=1,
            aux=bytes(32),
        )

    found = parse_info(info(("encryption", "nip44_v2 nip04"), ("notifications", "payment_sent")))
    assert found.methods == {"pay_invoice", "get_info"}
    assert found.notifications == {"payment_sent"}
    for tags in ((), (("encryption", "nip04"),)):
        with pytest.raises(UserError, match="NIP-04"):
            parse_info(info(*tags))


def test_answers():
    found = parse_response(LINK, answer({"result_type": "get_balance", "result": {"balance": 3}}))
    assert (found.request_id, found.method, found.result) == (
        "a" * 64,
        "get_balance",
        {"balance": 3},
    )
    refused = {"result_type": "pay_invoice", "error": {"code": "QUOTA_EXCEEDED", "message": "no"}}
    with pytest.raises(WalletError, match="refused: no") as caught:
        parse_response(LINK, answer(refused))
    assert (caught.value.code, caught.value.request_id) == ("QUOTA_EXCEEDED", "a" * 64)


@pytest.mark.parametrize(
    "event",
    [
        answer("no json"),
        answer([]),
        answer({}),
        answer({"result_type": "x"}),
        answer({"result_type": 3, "result": {}}),
        answer({"result_type": "x", "result": []}),
        from_wallet(RESPONSE, {"result_type": "x", "result": {}}),
        answer({"result_type": "x", "result": {}}, by=bytes([8]) * 32),
        answer({"result_type": "x", "result": {}}, to="b" * 64),
    ],
)
def test_what_is_no_answer_of_this_wallet_is_dropped(event):
    with pytest.raises(PeerMisbehaved):
        parse_response(LINK, event)


def test_notifications():
    body = {"notification_type": "payment_received", "notification": {"amount": 5}}
    found = parse_notification(LINK, from_wallet(NOTIFICATION, body))
    assert (found.kind, found.what) == ("payment_received", {"amount": 5})
    with pytest.raises(PeerMisbehaved):
        parse_notification(LINK, from_wallet(NOTIFICATION, {"notification": {}}))
