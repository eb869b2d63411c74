"""What an exit's guests are answered about names, and what is blocked."""

from __future__ import annotations

import pytest

from nostrvpn.exits import blocklist
from nostrvpn.exits.blocklist import Blocklist, listed_names
from nostrvpn.exits.guest_names import is_private_name

HOSTS = """# a hosts file
127.0.0.1 localhost localhost.localdomain
0.0.0.0 Ads.Example.com tracker.example.net  # two
::1%lo ip6.example.org
! a comment of another kind
plain.example
zip
0.0.0.0
\xff\xfe
"""


def labels(name: str) -> tuple[str, ...]:
    return tuple(name.split(".")) if name else ()


@pytest.mark.parametrize(
    "name", ["", "example.org", "lan.example.org", "8.8.8.8.in-addr.arpa", "arpa.example"]
)
def test_names_of_the_internet_are_asked_for(name):
    assert not is_private_name(labels(name), ["corp.example"])


@pytest.mark.parametrize(
    "name",
    [
        *("printer", "nas.lan", "tv.local", "x.home.arpa", "wiki.corp.example", "corp.example"),
        *("nas.home.nvpn", "router.internal", "_dns.resolver.arpa", "x.onion"),
        *(
            "1.1.168.192.in-addr.arpa",
            "10.in-addr.arpa",
            "168.192.in-addr.arpa",
            "7.0.64.100.in-addr.arpa",
        ),
        *("d.f.ip6.arpa", "x.in-addr.arpa", "254.169.in-addr.arpa", "0.8.e.f.ip6.arpa"),
    ],
)
def test_guests_are_told_no_name_of_the_providers_lan(name):
    assert is_private_name(labels(name), ["Corp.Example."])


def test_hosts_files_and_plain_lists_are_read():
    assert list(listed_names(HOSTS.splitlines())) == [
        *("localhost.localdomain", "ads.example.com", "tracker.example.net"),
        *("ip6.example.org", "plain.example"),
    ]


def test_a_listed_name_is_blocked_and_all_below_it():
    made = Blocklist(listed_names(HOSTS.splitlines()), b"key")
    for name in ("ads.example.com", "x.y.ads.example.com", "plain.example"):
        assert made.blocks(labels(name))
    for name in ("", "example.com", "com", "badplain.example", "ads.example.org"):
        assert not made.blocks(labels(name))
    assert not Blocklist().blocks(labels("ads.example.com"))


def test_a_list_without_end_is_cut(monkeypatch):
    monkeypatch.setattr(blocklist, "MAX_NAMES", 10)
    made = Blocklist(f"n{number}.example" for number in range(1 << 60))
    assert len(made) == 10
    assert made.is_cut
