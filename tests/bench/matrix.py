"""Every kind of network against every other: the paths, and how long they took."""

from __future__ import annotations

from nostrvpn.lab.matrix import measure_matrix


def measure_pairs() -> dict[str, object]:
    """All pairs; ``make matrix`` makes a page of the same."""
    pairs = measure_matrix(tell=print)["pairs"]
    expected = sum(row["path"] in str(row["expected"]).split(" or ") for row in pairs)
    return {"pairs": pairs, "as_expected": expected, "of": len(pairs)}
