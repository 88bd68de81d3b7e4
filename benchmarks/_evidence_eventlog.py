"""How long an event log of ordinary size takes: parsed, decoded and replayed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import Against, Figure, from_samples, timed
from undercroft.formats.eventlog import parse_eventlog
from undercroft.verify.eventlog import replay_eventlog

LOG = Path(__file__).parents[1] / "tests" / "vectors" / "eventlog" / "secureboot-grub.bin"
"""41 KB and 99 events: OVMF, Secure Boot with a dbx of 371 hashes, shim, GRUB."""

LIMIT_MS = 1.0
RUNS = 400


def figures() -> list[Figure]:
    """Return ``eventlog_ms``: the milliseconds of one log, from bytes to PCR values.

    Every event is decoded and every digest that can be is recomputed; nothing is kept from one
    run to the next.
    """
    data = LOG.read_bytes()

    def once() -> None:
        # A copy, so that nothing can be remembered by the identity of the bytes either.
        replayed = replay_eventlog(parse_eventlog(bytes(bytearray(data))))
        if replayed.events != 99 or not replayed.banks:
            raise RuntimeError("the log did not replay")

    samples = [1000 * seconds for seconds in timed(once, n=RUNS, warm_up=20)]
    return [from_samples("eventlog_ms", "ms", samples, against=Against("limit", LIMIT_MS))]
