"""Twelve words, and the secrets that come from them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.cashu.secrets import BadWords, SeedSource, entropy_of, seed_of, words_of

WORDS = "half depart obvious quality work element tank gorilla view sugar picture humble"


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=16))
def test_words_stand_for_their_bytes(entropy):
    words = words_of(entropy)
    assert len(words.split()) == 12
    assert entropy_of(f"  {words.upper()}\n") == entropy


def test_a_seed_is_that_of_bip_39():
    # The first of the vectors of BIP-39's reference implementation, without its passphrase.
    assert (
        seed_of("abandon " * 11 + "about")
        .hex()
        .startswith("5eb00bbddcf069084889a8ab9155568165f5c4")
    )


@pytest.mark.parametrize(
    "words",
    [
        "",
        "half",
        WORDS.replace("humble", "humbel"),
        WORDS.replace("half depart", "depart half"),
        WORDS + " humble",
        "\0 " * 12,
        "half " * 1000,
    ],
)
def test_words_that_are_not_a_wallets_are_refused_without_being_repeated(words):
    with pytest.raises(BadWords) as refused:
        seed_of(words)
    assert "half" not in str(refused.value) + refused.value.hint
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__  # it would name the word


def test_secrets_differ_by_keyset_counter_and_seed():
    made = {
        SeedSource(seed).output(keyset, counter)
        for seed in (bytes(64), b"\1" * 64)
        for keyset in ("00" + "11" * 7, "00" + "12" * 7, "01" + "11" * 32)
        for counter in range(4)
    }
    assert len(made) == 24
    with pytest.raises(ValueError, match="version"):
        SeedSource(bytes(64)).output("02" + "11" * 32, 0)
