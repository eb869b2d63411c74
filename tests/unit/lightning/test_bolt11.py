"""Invoices: the examples of BOLT 11, and everything that is none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.lightning.bolt11 import parse_invoice

PAYEE = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad"
HASH = "0001020304050607080900010203040506070809000102030405060708090102"
HASHED = "3925b6f67e2c340036ed12093dd44e0368df1b6ea26c53dbe4811f58fd5db8c1"
CREATED = 1496314658
DONATION = (
    "lnbc1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpl2pkx2ctnv5sxxmmwwd5kgetjypeh2"
    "ursdae8g6twvus8g6rfwvs8qun0dfjkxaq8rkx3yf5tcsyz3d73gafnh3cax9rn449d9p5uxz9ezhhypd0elx87sjle52x86fux2y"
    "patgddc6k63n7erqz25le42c4u4ecky03ylcqca784w"
)
COFFEE = (
    "lnbc2500u1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpua"
    "ztrnwngzn3kdzw5hydlzf03qdgm2hdq27cqv3agm2awhz5se903vruatfhq77w3ls4evs3ch9zw97j25emudupq63nyw24cg27h2r"
    "spfj9srp"
)
NONSENSE = (
    "lnbc2500u1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpquwpc4curk03c9wlrswe78q4eyq"
    "c7d8d0xqzpuyk0sg5g70me25alkluzd2x62aysf2pyy8edtjeevuv4p2d5p76r4zkmneet7uvyakky2zr4cusd45tftc9c5fh0nnq"
    "pnl2jfll544esqchsrny"
)
LIST = (
    "lnbc20m1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqhp58yjmdan79s6qqdhdzgynm4zwqd5d"
    "7xmw5fk98klysy043l2ahrqscc6gd6ql3jrc5yzme8v4ntcewwz5cnw92tz0pc8qcuufvq7khhr8wpald05e92xw006sq94mg8v2n"
    "df4sefvf9sygkshp5zfem29trqq2yxxz7"
)
WITH_SECRET = (
    "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5"
    "rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8n"
    "hedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh"
)


@pytest.mark.parametrize(
    ("text", "amount", "description", "hashed", "lasts"),
    [
        (DONATION, None, "Please consider supporting this project", "", 3600),
        (COFFEE, 250_000_000, "1 cup coffee", "", 60),
        (NONSENSE, 250_000_000, "ナンセンス 1杯", "", 60),
        (LIST, 2_000_000_000, "", HASHED, 3600),
        (WITH_SECRET, 250_000_000, "1 cup coffee", "", 60),
    ],
)
def test_examples_of_the_specification(text, amount, description, hashed, lasts):
    for given_text in (text, text.upper(), f"lightning:{text}", f" {text}\n"):
        invoice = parse_invoice(given_text)
        assert (invoice.network, invoice.payee, invoice.payment_hash) == ("bc", PAYEE, HASH)
        assert (invoice.amount_msat, invoice.created_at) == (amount, CREATED)
        assert invoice.expires_at == CREATED + lasts
        assert (invoice.description, invoice.description_hash) == (description, hashed)
    assert text not in repr(invoice)


def test_a_satoshi_is_rounded_up():
    assert parse_invoice(COFFEE).amount_sat == 250_000
    assert parse_invoice(DONATION).amount_sat == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lnbc1",
        COFFEE[:-1],
        COFFEE.replace("fj9srp", "fj9srq"),
        COFFEE[:40] + "B" + COFFEE[41:],
        "lnbx" + COFFEE[4:],
        COFFEE.replace("2500u", "2500x"),
        "cashuA" + COFFEE,
        COFFEE + "q" * 5000,
        "lnbc1" + "é" * 50,
    ],
)
def test_what_is_no_invoice_is_refused(text):
    with pytest.raises(PeerMisbehaved) as caught:
        parse_invoice(text)
    assert caught.value.code == "bad_invoice"


@given(st.text(max_size=300))
@settings(max_examples=300)
def test_any_text_is_an_invoice_or_refused(text):
    for made in (text, "lnbc1" + text, "lnbc2500u1" + text):
        with pytest.raises(PeerMisbehaved):
            parse_invoice(made)


@given(st.integers(10, len(COFFEE) - 1), st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
@settings(max_examples=300)
def test_no_mistyped_letter_is_overlooked(at, letter):
    if COFFEE[at] != letter:
        with pytest.raises(PeerMisbehaved):
            parse_invoice(COFFEE[:at] + letter + COFFEE[at + 1 :])
