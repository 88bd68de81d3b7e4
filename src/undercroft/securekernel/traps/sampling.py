"""Look at what has no frame (control registers, MSRs) at times that the guest cannot foresee.

The times follow from the open epoch's secret seed, whose digest the epoch commits to and whose
value the next epoch reveals: so a verifier can check afterwards that we looked when we had to, and
nobody could know beforehand when that would be.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from undercroft.base import EnvironmentFault, Finding, Outcome
from undercroft.formats.evidence.interval import sample_times
from undercroft.securekernel.traps.guard import Guard

MEAN_NS = 1_000_000_000


class RegisterSampler:
    """Calls ``look`` at random times, in a thread of its own, until closed.

    A finding that fails becomes a violation of the guard.  ``look`` may pause the guest; it must
    not share a monitor session with another thread.
    """

    def __init__(
        self, guard: Guard, look: Callable[[], Sequence[Finding]], *, mean_ns: int = MEAN_NS
    ) -> None:
        self._guard = guard
        self._look = look
        self._mean_ns = mean_ns
        self._stop = threading.Event()
        self._reported: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        guard.begin_sampling(mean_ns)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._epoch()
        except EnvironmentFault as error:
            self._guard.note_fault(f"registers are no longer looked at: {error}")

    def _epoch(self) -> None:
        """Sample until the open epoch ends."""
        journal = self._guard.journal
        sequence, seed, t0 = self._guard.sampling()
        for at in sample_times(seed, t0, self._mean_ns):
            while (left := at - journal.clock.now()) > 0:
                if self._stop.wait(min(left / 1e9, 0.05)) or journal.sequence != sequence:
                    return
            if self._guard.status().frozen or self._stop.is_set():
                self._stop.set()
                return
            found = self._look()
            self._guard.note_sample(sequence, journal.clock.now())
            for finding in found:
                if finding.outcome is Outcome.FAIL and finding.id not in self._reported:
                    self._reported.add(finding.id)
                    self._guard.note_violation(finding.id, finding.summary)
