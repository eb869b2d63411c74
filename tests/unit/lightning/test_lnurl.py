"""Lightning addresses (LUD-06, LUD-16)."""

import pytest

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.lightning.lnurl import (
    PayTerms,
    address_url,
    check_invoice,
    invoice_url,
    parse_pay_terms,
)
from tests.unit.lightning.test_bolt11 import COFFEE, LIST

ANSWER = {
    "tag": "payRequest",
    "callback": "https://wallet.example/pay?x=1",
    "minSendable": 1000,
    "maxSendable": 10**12,
    "metadata": '[["text/plain","me"]]',
}
TERMS = parse_pay_terms(ANSWER)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("Me@Wallet.example", "https://wallet.example/.well-known/lnurlp/me"),
        (" a.b+c@x.onion ", "http://x.onion/.well-known/lnurlp/a.b+c"),
        ("me@127.0.0.1:8080", "http://127.0.0.1:8080/.well-known/lnurlp/me"),
    ],
)
def test_an_address_leads_to_its_host(address, url):
    assert address_url(address) == url


@pytest.mark.parametrize(
    "address", ["", "me", "me@", "@host", "me@host/path", "me@a b", "me@x?y", "a@b@c", "me@h\nX: y"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError):
        address_url(address)


@pytest.mark.parametrize(
    "change",
    [
        {"tag": "withdrawRequest"},
        {"callback": "http://wallet.example/pay"},
        {"callback": "https:///pay"},
        {"callback": "https://[/"},
        {"callback": "https://wallet.example:70000/pay"},
        {"callback": "http://127.0.0.1:80@wallet.example/pay"},
        {"callback": "https://me:word@wallet.example/pay"},
        {"callback": 3},
        {"minSendable": 0},
        {"minSendable": 2.5},
        {"minSendable": 10**13},
        {"metadata": None},
    ],
)
def test_odd_terms_are_refused(change):
    with pytest.raises(PeerMisbehaved):
        parse_pay_terms(ANSWER | change)


def test_the_hosts_reason_is_told():
    with pytest.raises(UserError, match="closed"):
        parse_pay_terms({"status": "ERROR", "reason": "closed"})
    with pytest.raises(UserError, match="busy"):
        check_invoice(TERMS, 1000, {"status": "ERROR", "reason": "busy"})


def test_an_invoice_is_asked_for_within_the_bounds():
    assert invoice_url(TERMS, 5000) == "https://wallet.example/pay?x=1&amount=5000"
    for amount in (999, 10**12 + 1):
        with pytest.raises(UserError, match="takes 1 to"):
            invoice_url(TERMS, amount)


def test_the_invoice_must_be_over_the_amount_and_for_these_terms():
    assert check_invoice(TERMS, 250_000_000, {"pr": COFFEE}).amount_sat == 250_000
    with pytest.raises(PeerMisbehaved, match="another amount"):
        check_invoice(TERMS, 249_999_999, {"pr": COFFEE})
    with pytest.raises(PeerMisbehaved, match="something else"):
        check_invoice(TERMS, 2_000_000_000, {"pr": LIST})
    bodies: list[object] = [{}, [], {"pr": 3}, {"pr": "lnbc1"}]
    for body in bodies:
        with pytest.raises(PeerMisbehaved):
            check_invoice(TERMS, 1000, body)


def test_an_invoice_with_the_hash_of_the_metadata_is_taken():
    # What the list of the specification's example holds.
    things = (
        *("piece of chocolate cake", "icecream cone", "pickle", "slice of swiss cheese"),
        *("slice of salami", "lollypop", "piece of cherry pie", "sausage", "cupcake"),
    )
    text = (
        ", ".join(f"one {thing}" for thing in things).capitalize() + ", and one slice of watermelon"
    )
    terms = PayTerms(TERMS.callback, 1, 10**12, text)
    assert check_invoice(terms, 2_000_000_000, {"pr": LIST}).description_hash
