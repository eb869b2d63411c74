"""What is sold as values: an exit, and that leases do not care what they are of."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, ip_address

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy
from nostrvpn.market.effects import Counted, Counters
from nostrvpn.market.exit_access import ExitAccess
from nostrvpn.market.exit_service import ExitService
from nostrvpn.market.service import Allowance, Service
from nostrvpn.market.terms import MIB, PayMode
from tests.market_shop import PLACE, Buyer, Shop, books

ENTROPY = Entropy(b"service")
KEYS = [chr(ord("B") + n) * 42 + "A=" for n in range(8)]


def test_each_lease_has_addresses_and_a_key_of_its_own():
    service = ExitService(8, PLACE)
    found = [service.activate(f"{n}", KEYS[n], Allowance(100), ENTROPY) for n in range(3)]
    access = [ExitAccess.parse(each or {}) for each in found]
    assert [each.ipv4 for each in access] == ["198.18.0.2", "198.18.0.3", "198.18.0.4"]
    assert [each.ipv6 for each in access] == ["fd00:5::2", "fd00:5::3", "fd00:5::4"]
    assert len({each.psk for each in access}) == 3
    assert access[0].control == ("fd00:5::1", "198.18.0.1")
    assert service.activate("1", KEYS[1], Allowance(1), ENTROPY) == found[1]
    assert service.teardown("1")
    assert not service.teardown("1")
    again = service.activate("9", KEYS[1], Allowance(1), ENTROPY)
    assert again is not None
    assert again["ipv4"] == "198.18.0.5"  # who had .3 may still be spoken to there


def test_there_are_as_many_as_sessions_and_addresses():
    service = ExitService(2, PLACE)
    assert service.activate("a", KEYS[0], Allowance(1), ENTROPY)
    assert service.admit(KEYS[0]) == "policy-denied"
    assert service.activate("b", KEYS[1], Allowance(1), ENTROPY)
    assert service.admit(KEYS[2]) == "too-busy"
    assert service.activate("c", KEYS[2], Allowance(1), ENTROPY) is None
    small = ExitService(100, replace(PLACE, ipv4=IPv4Interface("198.18.0.1/30"), ipv6=None))
    assert small.activate("a", KEYS[0], Allowance(1), ENTROPY)
    assert small.activate("b", KEYS[1], Allowance(1), ENTROPY) is None
    assert ExitService(2).admit(KEYS[0]) == "too-busy"


def test_the_kernel_counts_anew_with_each_allowance():
    service = ExitService(2, PLACE)
    service.activate("a", KEYS[0], Allowance(1000, 60.0), ENTROPY)
    [first] = service.sold_leases()
    service.resume("a", Allowance(1000, 60.0))
    [second] = service.sold_leases()
    assert (first.quota_bytes, first.seconds_left) == (1000, 60.0)
    assert second.quota_bytes == 999
    assert second.seconds_left == 59.999
    assert service.suspend("a")
    assert not service.suspend("a")
    assert not service.sold_leases()[0].serves


def test_a_lease_of_an_earlier_run_is_the_same():
    service = ExitService(2, PLACE)
    access = service.activate("a", KEYS[0], Allowance(1000), ENTROPY)
    assert access is not None
    later = ExitService(2, PLACE)
    later.restore("a", KEYS[0], access)
    [old], [new] = service.sold_leases(), later.sold_leases()
    assert replace(new, serves=True, quota_bytes=1000) == old
    assert not new.serves
    assert later.owns("a", ip_address("fd00:5::2"))
    assert not later.owns("a", ip_address("fd00:5::3"))
    with pytest.raises(PeerMisbehaved):
        later.restore("b", KEYS[1], {"psk": "x"})


@pytest.mark.parametrize(
    "change",
    [
        {"endpoints": []},
        {"endpoints": ["exit.example:1"]},
        {"ipv4": "::1"},
        {"ipv6": "1.2.3.4"},
        {"control": ["nowhere"]},
        {"psk": "short"},
        {"mtu": 100},
        {"port": 0},
        {"dns": ["1.2.3.4"] * 5},
        {"control": ["fd00:5::1%lo"]},
        {"ipv6": "fd00:5::2%lo"},
    ],
)
def test_access_from_outside_is_checked(change):
    access = ExitService(2, PLACE).activate("a", KEYS[0], Allowance(1), ENTROPY)
    assert ExitAccess.parse(access or {}).mtu == 1420
    with pytest.raises(PeerMisbehaved):
        ExitAccess.parse({**(access or {}), **change})


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"endpoints": ["203.0.113.5:51821", f"{ip}:51820"]}
            for ip in (
                *("127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "0.0.0.0"),
                *("169.254.169.254", "224.0.0.1", "255.255.255.255", "198.18.0.9", "[::1]"),
                *("[fe80::1]", "[ff02::1]", "[fd00::1]", "[::ffff:192.168.1.1]", "[fd00:ec2::254]"),
                *("[64:ff9b::c0a8:101]", "[2002:c0a8:101::1]"),
            )
        ),
        *({"ipv4": ip} for ip in ("127.0.0.1", "192.168.1.1", "10.64.0.1", "8.8.8.8", "224.0.0.1")),
        *({"ipv6": ip} for ip in ("::1", "2001:db8::1", "fe80::2", "ff02::1", "::ffff:10.0.0.1")),
        *(
            {"control": [ip]}
            for ip in (
                *("192.168.1.1", "8.8.8.8", "127.0.0.1", "198.19.0.1", "::1", "fd00:6::1"),
                *("2001:db8::1", "fe80::1", "198.18.0.2", "fd00:5::2"),
            )
        ),
        {"key": "A" * 43 + "="},
        *({"dns": [ip]} for ip in ("192.168.1.1", "127.0.0.53", "fd00:6::1", "fe80::1")),
    ],
)
def test_a_grant_leads_nowhere_but_to_the_seller_and_its_tunnel(change):
    """What a seller says becomes addresses, routes and packets of the buyer's host."""
    access = ExitService(2, PLACE).activate("a", KEYS[0], Allowance(1), ENTROPY)
    ExitAccess.parse(access or {}).check()
    ExitAccess.parse({**(access or {}), "dns": ["9.9.9.9"]}).check()
    hostile = ExitAccess.parse({**(access or {}), **change})
    with pytest.raises(PeerMisbehaved) as caught:
        hostile.check()
    assert caught.value.code == "hostile_access"


class Jukebox:
    """Another service: songs by the byte, no tunnel, no addresses."""

    kind = "jukebox"

    def __init__(self):
        self.plays: dict[str, Allowance | None] = {}
        self.keys: dict[str, str] = {}

    def admit(self, key):
        return None

    def activate(self, lease_id, key, allowance, entropy):
        self.plays[lease_id], self.keys[lease_id] = allowance, key
        return {"room": "blue", "volume": 7}

    def restore(self, lease_id, key, access):
        self.plays[lease_id], self.keys[lease_id] = None, key

    def meter(self, lease_id, counted: Counted) -> Counters | None:
        return counted.by_key.get(self.keys[lease_id])

    def address(self, lease_id):
        return None

    def owns(self, lease_id, address):
        return False

    def suspend(self, lease_id):
        self.plays[lease_id] = None
        return True

    def resume(self, lease_id, allowance):
        self.plays[lease_id] = allowance
        return True

    def teardown(self, lease_id):
        return self.plays.pop(lease_id, self) is not self


def test_leases_do_not_care_what_they_are_of():
    songs = Jukebox()
    as_service: Service = songs

    class Bar(Shop):
        def make_service(self):
            return as_service

        def apply(self):
            self.kernel = {
                songs.keys[one]: self.kernel.get(songs.keys[one], [0, 0]) for one in songs.plays
            }

    shop = Bar(PayMode.PLAIN)
    buyer = Buyer(shop)
    buyer.ask()
    grant = buyer.fund(buyer.token(8))
    assert grant.access == {"room": "blue", "volume": 7}
    shop.kernel[buyer.wg_pub][1] += 3 * MIB
    shop.wait(5)
    assert songs.plays[buyer.lease_id] is not None
    shop.kernel[buyer.wg_pub][1] += 8 * MIB
    shop.wait(5)
    assert songs.plays[buyer.lease_id] is None
    shop.start()
    buyer.top_up(buyer.token(16), 1)
    assert songs.plays[buyer.lease_id] is not None
    receipt = buyer.close()
    assert (receipt.due_msat, receipt.refund_sat) == (10_000, 14)
    assert songs.plays == {}
    assert books(shop).earned == 10_000
