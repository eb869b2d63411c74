"""``make bench``: measure, print, and write one JSON file per part to ``build/bench/``.

Figures are of this machine at this time: compare within one run, quote medians. Nothing here fails a
test; a part that cannot finish says so and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import connect, exit, idle, market, matrix, relay, scale, simulated, switch

PARTS: dict[str, Callable[[], dict[str, object]]] = {
    "connect": connect.measure_connect,
    "restart": connect.measure_restart,
    "idle": idle.measure_idle,
    "status": idle.measure_status,
    "relay": relay.measure_relay,
    "switch": switch.measure_switch,
    "exit": exit.measure_exit,
    "market": market.measure_market,
    "matrix": matrix.measure_pairs,
    "scale": lambda: simulated.measure_simulated() | scale.measure_scale(),
}
# Others write to these files too; their figures stay.
SHARED = frozenset({"scale", "market"})
TARGET = Path("build/bench")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main(wanted: list[str]) -> int:
    """Run the parts that are named, or all."""
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        print(f"error: no part {unknown[0]!r}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    TARGET.mkdir(parents=True, exist_ok=True)
    complete = True
    for name in wanted or PARTS:
        before = machine()
        try:
            result = PARTS[name]()
        except Exception as exc:  # the other parts still run; this one is told
            print(f"{name}: could not finish: {exc}", file=sys.stderr)
            complete = False
            continue
        result["machine"] = before
        file = TARGET / f"{name}.json"
        if name in SHARED and file.exists():
            result = json.loads(file.read_text()) | result
        text = json.dumps(result, indent=2)
        file.write_text(text + "\n")
        print(f"{name}: {text}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
