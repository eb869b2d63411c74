"""The books: twice for each sum, once for each ref."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.effects import Keep
from nostrvpn.market.ledger import Entry, Ledger

ACCOUNTS = st.sampled_from(["wallet:m", "lease:1", "lease:2", "earned", "fees"])
ENTRIES = st.builds(
    Entry,
    st.integers(0, 20).map(str),
    st.integers(0, 10),
    ACCOUNTS,
    ACCOUNTS,
    st.integers(0, 10**15),
)


@given(st.lists(ENTRIES, max_size=30))
def test_books_are_balanced_and_come_back(entries):
    ledger, disk = Ledger("book"), {}
    for entry in entries:
        try:
            for keep in ledger.post(entry):
                assert keep.space == "book"
                disk[keep.key] = json.loads(json.dumps(keep.value))
        except ValueError:
            continue
    assert ledger.check() == []
    assert sum(ledger.accounts().values()) == 0
    again = Ledger("book")
    again.restore(disk)
    assert again.accounts() == ledger.accounts()
    assert list(again) == list(ledger)


def test_a_ref_is_posted_once():
    ledger = Ledger("book")
    entry = Entry("paid:1", 5, "wallet:m", "lease:1", 7000)
    assert ledger.post(entry) == [Keep("book", "paid:1", [5, "wallet:m", "lease:1", 7000, ""])]
    assert ledger.post(entry) == []
    assert ledger.balance("wallet:m") == 7000
    assert ledger.balance("lease:1") == -7000
    with pytest.raises(ValueError, match="another sum"):
        ledger.post(Entry("paid:1", 5, "wallet:m", "lease:1", 7001))


@pytest.mark.parametrize(
    "entry",
    [Entry("x", 0, "a", "a", 1), Entry("x", 0, "a", "b", -1), Entry("x", 0, "a", "b", 10**30)],
)
def test_what_is_no_entry_is_refused(entry):
    with pytest.raises(ValueError, match="x is no entry"):
        Ledger("book").post(entry)


def test_damage_is_found():
    ledger = Ledger("book")
    with pytest.raises(PeerMisbehaved):
        ledger.restore({"x": [1, "a", "b"]})
    ledger.restore({"y": [1, "a", "a", 5, ""]})
    assert ledger.check() == ["y moves 5 msat to a"]
    less = Ledger("book")
    less.post(Entry("z", 0, "fees", "locked:m", 3))
    assert less.check() == ["locked:m has -3 msat"]
