"""How long an event log of ordinary size takes: parsed, decoded and replayed.

Timed in CPU time of the one thread that does it.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.figures import Against, Figure, from_samples, timed
from undercroft.formats.eventlog import parse_eventlog
from undercroft.verify.eventlog import replay_eventlog

LOG = Path(__file__).parents[1] / "tests" / "vectors" / "eventlog" / "secureboot-grub.bin"
"""41 KB and 99 events: OVMF, Secure Boot with a dbx of 371 hashes, shim, GRUB."""

LIMIT_MS = 1.0
RUNS = 400


def once(data: bytes) -> None:
    """Parse, decode and replay the log ``data``; a refusal would be faster, and raises."""
    # A copy, so that nothing can be remembered by the identity of the bytes.
    replayed = replay_eventlog(parse_eventlog(bytes(bytearray(data))))
    if replayed.events != 99 or not replayed.banks:
        raise RuntimeError("the log did not replay")


def figures() -> list[Figure]:
    """Return ``eventlog_ms``: the milliseconds of one log, from bytes to PCR values.

    Every event is decoded and every digest that can be is recomputed; nothing is kept from one
    run to the next.
    """
    data = LOG.read_bytes()
    seconds = timed(lambda: once(data), n=RUNS, warm_up=20, clock=time.thread_time)
    samples = [1000 * second for second in seconds]
    return [from_samples("eventlog_ms", "ms", samples, against=Against("limit", LIMIT_MS))]
