"""What every benchmark returns, how it is timed and how it is printed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Against:
    """What a figure is compared with: a limit or a peer, by name, in the figure's unit."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.  ``value`` is the headline; ``n`` samples gave median and p99."""

    name: str
    value: float
    unit: str
    n: int
    median: float
    p99: float
    against: Against | None = None

    def as_json(self) -> dict[str, object]:
        """Return the figure as a JSON object."""
        return asdict(self)


def from_samples(
    name: str, unit: str, samples: Sequence[float], *, against: Against | None = None
) -> Figure:
    """Return a figure whose value is the median of ``samples``."""
    ordered = sorted(samples)
    median = statistics.median(ordered)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return Figure(name, median, unit, len(ordered), median, p99, against)


def timed(
    action: Callable[[], object],
    *,
    n: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the seconds that each of ``n`` calls took, after ``warm_up`` calls.

    ``clock`` is :func:`time.thread_time` where the work is one thread's and waits for nothing: what
    else the machine does then costs no more than what it takes of the caches.
    """
    for _ in range(warm_up):
        action()
    gc.collect()
    samples = []
    for _ in range(n):
        start = clock()
        action()
        samples.append(clock() - start)
    return samples
