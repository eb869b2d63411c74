"""A burst of samples: ports that our NAT gave to queries, and what lies between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from nostrvpn.paths.hard_nat.plan import PortSpan
from nostrvpn.paths.hard_nat.ports import MIN_SAMPLES, PortSteps, port_distance, steps_of

__all__ = ["Samples", "openings_of"]


@dataclass(slots=True)
class Samples:
    """``count`` queries were sent, an opening after each but the last; answers until ``until``.

    ``towards`` are the peer's ports the openings went to; empty if all went to its endpoint.
    """

    count: int
    towards: tuple[int, ...]
    until: float
    seen: dict[int, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all answers came."""
        return len(self.seen) == self.count

    @property
    def too_few(self) -> bool:
        """Whether nothing can be said from so few."""
        return len(self.seen) < MIN_SAMPLES

    @property
    def ports(self) -> list[int]:
        """The ports in the order of the queries."""
        return [self.seen[number] for number in sorted(self.seen)]

    @property
    def steps(self) -> PortSteps | None:
        """How our NAT counts; None if it does not."""
        return steps_of(self.ports)

    @property
    def lattice(self) -> int:
        """The distance of the ports that an opening can have got.

        Half of what the samples have in common, as an opening lies between each two.
        """
        steps = self.steps
        return 1 if steps is None else max(1, abs(steps.step) // 2)


def openings_of(samples: Samples) -> tuple[PortSpan, ...]:
    """Return where the openings lie: strictly between the samples before and after each.

    Empty if there was no room between: then the openings made no mapping of their own.
    """
    spans = []
    numbers = sorted(samples.seen)
    distances = {port_distance(samples.seen[a], samples.seen[b]) for a, b in pairwise(numbers)}
    for before, after in pairwise(numbers):
        if samples.towards and after != before + 1:
            # An answer between was lost: which of two openings has which port is not known.
            continue
        first, last = sorted((samples.seen[before], samples.seen[after]))
        if last - first > abs(port_distance(first, last)):
            continue
        inside = range(first + 1, last)
        if len(distances) == 1 and len(inside) % 2:
            # Nobody else's flow came between any of them: each opening is in the middle.
            middle = inside[len(inside) // 2]
            inside = range(middle, middle + 1)
        else:
            inside = range(first + samples.lattice, last - samples.lattice + 1)
        if inside:
            towards = samples.towards[before] if samples.towards else 0
            spans.append(PortSpan(inside[0], inside[-1], towards))
    return tuple(spans)
