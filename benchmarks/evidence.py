"""Evidence: parsing, verifying and appraising, one core, ratios within one run.

``eventlog_ms``, ``quote_verify_ratio``, ``ima_entries_per_s`` and ``steady_appraisals_per_s``, each
with the figures beside it; and Keylime's functions on the same input, where Keylime installs.
Everything here is one thread's work without waiting, so it is timed in that thread's CPU time, and
what a figure is compared with is timed turn and turn about with it: a busy machine slows both.
"""

from __future__ import annotations

import os

from benchmarks import (
    _evidence_appraisal,
    _evidence_eventlog,
    _evidence_ima,
    _evidence_quote,
    _keylime,
)
from benchmarks.figures import Figure


def run() -> list[Figure]:
    """Return the figures, on the first core that we may use."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return [
        *_evidence_eventlog.figures(),
        *_evidence_quote.figures(),
        *_evidence_ima.figures(),
        *_evidence_appraisal.figures(),
        *_keylime.figures(),
    ]
