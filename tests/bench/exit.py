"""What leaving through an exit costs: throughput, the first byte, an exit that dies, many guests.

A laptop behind a NAT, two exits and a site (``tests/lab/abroad.py``). What is by hand stands between
the same two namespaces, on the same engine with the same MTU, set up as ``wg-quick`` does it.
"""

from __future__ import annotations

import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.patience import wait_until
from nostrvpn.wireguard.device import SecretKey
from tests.bench.connect import client
from tests.bench.exit_provider import measure_provider
from tests.lab.abroad import Abroad

__all__ = ["measure_exit"]

SIZE = 40_000_000
CHUNK = 1 << 18
PAIRS = 7
FIRST_BYTES = 7
FAILOVERS = 5
LIMIT_S = 30.0
ASK_EVERY_S = 0.05
TRY_EVERY_S = 0.01
TRIES_AT_ONCE = 100
# So long the flow goes on before the exit dies and after the other one carries.
STEADY_S = 2.0

# Ours: nothing of the lab lies there.
HAND, HAND_PORT, HAND_TABLE, HAND_MARK = "byhand", 40404, 40404, 0x9D94
LAPTOP4, EXIT4 = "10.99.0.2", "10.99.0.1"


def measure_exit() -> dict[str, object]:
    """Return the four figures, and what they are made of."""
    with Abroad() as lab:
        gather(lab.laptop, lab.exits)
        for node in lab.exits:
            node.cli("exit", "offer", "--to", "members")
        _until(lambda: len(_exits(lab)) == len(lab.exits), "the exits' offers")
        result = measure_throughput(lab) | measure_first_byte(lab) | measure_failover(lab)
    return result | measure_provider()


# -- throughput -------------------------------------------------------------------------------


def measure_throughput(lab: Abroad) -> dict[str, object]:
    """Alternating runs of one TCP flow from the site, through the exit and by hand."""
    own, hand = [], []
    with _by_hand(lab) as set_hand:
        for number in range(PAIRS + 1):
            _use(lab, lab.exits[0].name)
            through = _download(lab, _outside(lab, 0))
            lab.laptop.cli("exit", "off")
            set_hand(True)
            beside = _download(lab, _outside(lab, 0))
            set_hand(False)
            if number:  # the first pair warms up
                own.append(through)
                hand.append(beside)
            _say(f"throughput {number}/{PAIRS}: {through:.0f} and by hand {beside:.0f} Mbit/s")
    ratios = [mine / other for mine, other in zip(own, hand, strict=True)]
    return {
        "throughput_ratio": round(statistics.median(ratios), 3),
        "throughput_ratios": [round(ratio, 3) for ratio in ratios],
        "mbit_per_s": {
            "exit": round(statistics.median(own)),
            "by_hand": round(statistics.median(hand)),
        },
    }


@contextmanager
def _by_hand(lab: Abroad) -> Iterator[Any]:
    """WireGuard between the laptop and the first exit, which masquerades; the value routes into it."""
    laptop, exit_node = lab.laptop.namespace, lab.exits[0].namespace
    mtu = laptop.run("cat", f"/sys/class/net/{lab.laptop.interface}/mtu").stdout.strip()
    keys = [SecretKey.generate() for _ in range(2)] if hasattr(SecretKey, "generate") else []
    raise NotImplementedError(mtu, keys, exit_node, UserspaceBackend)
