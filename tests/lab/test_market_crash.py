"""Killing who buys and who sells at any moment of a lease: money is conserved, to the msat."""

from __future__ import annotations

import random
import time

import pytest

from nostrvpn.lab.patience import patient, wait_until
from tests.lab.homes import watched
from tests.lab.strangers import LIMIT, Strangers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(150))]

KILLS = 7
SEED = 6
# From an order to a few payments; a lease is made in about a second.
LATEST_S = 3.0


def test_money_is_conserved_whenever_either_side_is_killed() -> None:
    drawn = random.Random(SEED)
    with watched(Strangers(fee_ppk=100)) as lab:
        lab.open_up()
        seller = lab.sellers[0]
        for number in range(KILLS):
            lab.laptop.query("exit", "buy", "--max-price", "1000sat/GiB", "--wait", "0")
            download = lab.download(200_000_000, seconds=30, rate="4M")
            victim = drawn.choice((lab.laptop, seller))
            time.sleep(drawn.uniform(0, LATEST_S))  # the moment is what is tried
            victim.kill()
            victim.start()
            download.kill()
            if number % 3 == 2:
                lab.laptop.cli("exit", "off")
        lab.buy()
        # WireGuard needs 15 s to see that a seller without its keys of before answers nothing.
        there = str(lab.hosts[0].address)
        wait_until(lambda: lab.seen() == there, "the way through the seller", timeout=LIMIT)
        assert lab.received(lab.download(4_000_000)) == 4_000_000
        books = lab.settle()
        assert len(books.bought) > 1, "leases ended, and others began"
        assert books.spent["spent"] > 0, "and some were used"
