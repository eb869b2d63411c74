"""One mint is one entry of the list, and what only looks like it is none."""

from __future__ import annotations

import pytest

from nostrvpn.cashu.mint_url import BadMintUrl, parse_mint_url


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://Mint.Example", "https://mint.example"),
        (" https://mint.example:443/ ", "https://mint.example"),
        ("HTTPS://mint.example:8443/Bitcoin/", "https://mint.example:8443/Bitcoin"),
        ("http://127.0.0.1:3338", "http://127.0.0.1:3338"),
        ("http://[::1]:3338/", "http://[::1]:3338"),
        ("http://localhost", "http://localhost"),
        ("http://10.1.2.3:80", "http://10.1.2.3"),
        ("http://abcdef.onion/", "http://abcdef.onion"),
    ],
)
def test_a_mint_is_written_in_one_way(text, kept):
    assert parse_mint_url(text) == kept
    assert parse_mint_url(kept) == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mint.example",
        "http://mint.example",
        "http://1.1.1.1",
        "ftp://mint.example",
        "https://",
        "https://mint.example@evil.example",
        "https://mint.example\\@evil.example",
        "https://mint.example?x=1",
        "https://mint.example#x",
        "https://mint.example/../x",
        "https://mint.example//x",
        "https://mint.example:99999",
        "https://m\u0456nt.example",  # a Cyrillic letter
        "https://mint .example",
        "https://mint\x1b[31m.example",
        "https://[::1",
        "https://" + "a" * 200,
    ],
)
def test_what_money_is_not_sent_to(text):
    with pytest.raises(BadMintUrl):
        parse_mint_url(text)
