"""What a network costs its relays at 10, 100 and 1,000 members: the real machines in virtual time.

Paths sleep, as in a large network that nobody uses: what is counted is what the network itself says.
What all nodes compute alike is computed once (``tests/sim/meshes.py``: ``shared_work``).

Of 1,000 members 250 run (``running_1000``): a million links take 11 GB and an hour. What a node reads
is then what it read from those, times four; what it publishes and when all agree is measured as it is.
"""

from __future__ import annotations

import random
from typing import Any

from tests.sim.meshes import Meshes, shared_work

__all__ = ["SIZES", "measure_simulated"]

SIZES = (10, 100, 1_000)
MOST_RUNNING = 250
# Until all have said that they are there.
SETTLE_S = 600.0
# Of steady life; shorter where there are many to be counted.
WATCHED_S = {10: 24 * 3_600.0, 100: 3 * 3_600.0, 1_000: 3_600.0}
GIVE_UP_S = 600.0


def measure_simulated() -> dict[str, object]:
    """Return the figures for ``scale.json``."""
    result: dict[str, object] = {}
    for size in SIZES:
        with shared_work():
            found = _measure(size)
        result |= {f"{name}_{size}": value for name, value in found.items()}
        print(f"simulated: {size} members: {found}", flush=True)
    return result


def _measure(size: int) -> dict[str, Any]:
    world = Meshes(1)
    world.relay()
    hosts = world.network("n", size)[:MOST_RUNNING]
    for host in hosts:
        world.start(host)
    world.run(SETTLE_S)
    published, delivered = sum(world.published.values()), sum(world.delivered.values())
    watched = WATCHED_S[size]
    world.run(watched)
    hours = watched / 3_600
    published = sum(world.published.values()) - published
    delivered = sum(world.delivered.values()) - delivered
    by = random.Random(1).choice(hosts[1:])
    began = world.now
    done: list[float] = []

    def agreed() -> bool:
        if len({world.roster(host).digest for host in hosts}) == 1:
            done.append(world.now)
        return bool(done)

    before = world.roster(hosts[0]).digest
    world.call(hosts[0], "peer_tag", peer=by.secret.npub, tags=["web"])
    if world.roster(hosts[0]).digest == before:
        raise RuntimeError("the operation was not signed")
    if not agreed():
        world.run(GIVE_UP_S, agreed)
    if not done:
        raise RuntimeError(f"{size} members did not agree within {GIVE_UP_S:.0f} s")
    return {
        "running": len(hosts),
        "published_per_node_hour": round(published / len(hosts) / hours, 2),
        "read_per_node_hour": round(delivered / len(hosts) / hours * size / len(hosts), 2),
        "roster_convergence_s": round(done[0] - began, 3),
    }
