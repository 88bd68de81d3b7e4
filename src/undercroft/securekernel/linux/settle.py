"""Settle whether code that differs is being patched by its kernel, or by somebody else.

The code and the variables that decide it are read one after the other while the guest runs, and
the kernel itself changes a variable before the code that follows it.  So a difference is at
first only a question about a few *places*, and this is how each is answered:

* While the guest runs, code and variables are read again, a few times: mostly that is all.
* Then the guest is held still for no longer than it takes to read a few places and the
  variables that decide them.  A place is now as its variables say, and the question is answered;
  or it is *moving*: its bytes are of those that its rule may leave there, and the kernel says
  that it is at work on it (reference/kernel/text_poke.py); or it is *wrong*.
* What is wrong in two such looks is a mismatch.  Two, for a guest may be stopped between two
  bytes of one store.
* What is moving has to come to rest: the guest goes on and is looked at again.  A place that
  does not, while nothing else that the kernel says it is changing changes for MOVING_S, is a
  mismatch too, and so it is after MOVING_MAX_S: or a lock held for ever would hide a change for
  ever.

So code is called equal only if every place was seen at rest, as its variables said, at some
moment of the look.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from undercroft.base import MemoryFault, Outcome
from undercroft.reference.kernel.canvas import Canvas, Mask, Positions
from undercroft.reference.kernel.explain import Mismatch, Owner, describe, differences
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.run_time import PAGE_SHIFT, RunTime, RunTimeState
from undercroft.reference.kernel.text_poke import UnderWay
from undercroft.securekernel.linux.region import Region

RUNNING_LOOKS = 3
"""Looks at a running guest before it is held still for the first time."""
MOVING_S, MOVING_MAX_S = 20.0, 120.0
"""A batch is 256 sites, and three interrupts to all CPUs: that is milliseconds, and seconds where
the CPUs are emulated on a busy machine.  A site may wait for many of them: a static key that is
switched waits for text_mutex until a tracer has all of its 40,000 sites."""
PAUSE_EVERY_S = 0.5
"""How often the guest is held still for places that are known to be moving."""
STILL_S = 1.0
"""A guest whose clock has not moved for so long stands still: nothing will come to rest."""
PLACES = 32
"""Places that are looked at in one pause."""
MANY, MANY_LOOKS = 4 * PLACES, 12
"""As long as there are many places, the guest is not held still for them until MANY_LOOKS."""
WAITS_S = (0.002, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_SITE = 6
_STRIKES = 2


class Followed(Protocol):
    """The expected code of a kernel or a module, which follows the guest's variables."""

    canvas: Canvas
    run_time: RunTime
    state: RunTimeState | None

    def follow(self, values: GuestValues, live: Canvas, narrowed: RunTime | None = None) -> None:
        """Repaint what follows the variables, or only the ``narrowed`` sites."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What is left: positions whose bytes nothing explains, as they are in ``live``.

    ``stuck`` were moving for MOVING_S; ``still`` tells that the guest did not run meanwhile.
    """

    live: Canvas
    wrong: Positions
    stuck: Positions
    still: bool = False

    @property
    def clean(self) -> bool:
        """Whether every place was seen at rest."""
        return not len(self.wrong) and not len(self.stuck)

    @property
    def outcome(self) -> Outcome:
        """PASS if it is clean; UNKNOWN if only a guest that stands still keeps it from rest."""
        if self.clean:
            return Outcome.PASS
        return Outcome.UNKNOWN if self.still and not len(self.wrong) else Outcome.FAIL

    def mismatches(self, canvas: Canvas, base: int, owner: Owner) -> list[Mismatch]:
        """Describe what is left; ``canvas`` is the expected code, as it was painted last."""
        found = describe(self.wrong, canvas, self.live, base, owner)
        why = "it has been in the middle of a patch for too long"
        if self.still:
            why = "it is in the middle of a patch, and the guest stands still"
        found += [
            replace(each, reason=f"{why} ({each.reason})")
            for each in describe(self.stuck, canvas, self.live, base, owner)
        ]
        return found


@dataclass(slots=True)
class Settler:
    """How to look, and how to wait.  ``clock`` reads the guest's clock, for whether it runs."""

    values: Callable[[], GuestValues]
    paused: Callable[[], AbstractContextManager[None]]
    clock: Callable[[], int]
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic

    def settle(
        self, code: Followed, region: Region, *, valid: Callable[[], bool] = lambda: True
    ) -> Settled | None:
        """Follow the guest's state until all code is explained, or it is clear that it is not.

        ``valid`` tells, while the guest is held still, whether the code is still what it was: a
        module may be gone.  If not, None is returned.  Raises MemoryFault if the code or the
        variables cannot be read even in a guest that is held still.
        """
        try:
            return _Settling(self, code, region, valid).run()
        except _Gone:
            return None


class _Gone(Exception):  # noqa: N818 - an answer on its way out, not an error
    pass


@dataclass(slots=True)
class _Places:
    """Byte positions in question, as groups of neighbours: [start, stop) each.

    ``strikes`` counts the pauses in which a place was wrong; ``known`` tells of which the last
    pause showed that they are moving.
    """

    start: Positions
    stop: Positions
    strikes: Positions
    known: Mask

    def __len__(self) -> int:
        return len(self.start)

    def has(self, positions: Positions) -> Mask:
        """Tell which places hold one of ``positions`` (ascending)."""
        first, last = (np.searchsorted(positions, edge) for edge in (self.start, self.stop))
        found: Mask = last > first
        return found

    def only(self, mask: Mask) -> _Places:
        return _Places(self.start[mask], self.stop[mask], self.strikes[mask], self.known[mask])

    def bytes(self) -> Positions:
        """Return every position in the places, ascending."""
        sizes = self.stop - self.start
        before = np.cumsum(sizes) - sizes
        return np.sort(np.arange(int(sizes.sum())) + np.repeat(self.start - before, sizes))


def _places(positions: Positions) -> _Places:
    """Group positions (ascending); a place reaches as far as a site that touches it may."""
    edges = np.flatnonzero(np.diff(positions) > 2 * _SITE)
    first = np.concatenate((positions[:1], positions[edges + 1]))
    last = np.concatenate((positions[edges], positions[-1:]))
    strikes = np.zeros(len(first), dtype=np.int64)
    return _Places(first - _SITE + 1, last + _SITE, strikes, strikes > 0)


class _Patience:
    """How long moving places are waited for."""

    def __init__(self, how: Settler) -> None:
        self._how = how
        self._begun = self._changed = how.now()
        self._clock = how.clock()
        self._under_way: UnderWay | None = None

    def look(self, under_way: UnderWay) -> None:
        """Note what the kernel says that it is changing: if that changes, it goes on."""
        if under_way != self._under_way:
            self._under_way = under_way
            self._changed = self._how.now()

    @property
    def still(self) -> bool:
        """Whether the guest's clock has not moved for STILL_S."""
        return self._how.now() - self._begun > STILL_S and self._how.clock() == self._clock

    @property
    def over(self) -> bool:
        """Whether to wait no longer."""
        now = self._how.now()
        return self.still or now - self._changed > MOVING_S or now - self._begun > MOVING_MAX_S


@dataclass(slots=True)
class _Settling:
    how: Settler
    code: Followed
    region: Region
    valid: Callable[[], bool]
    live: Canvas = field(init=False)
    wrong: Positions = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def run(self) -> Settled:
        open_ = self._first()
        patience = _Patience(self.how)
        held = -PAUSE_EVERY_S
        attempt = 1
        while len(open_):
            self.how.sleep(WAITS_S[min(attempt, len(WAITS_S)) - 1])
            many = len(open_) > MANY and attempt < MANY_LOOKS
            waiting = np.all(open_.known) and self.how.now() - held < PAUSE_EVERY_S
            if attempt < RUNNING_LOOKS or many or waiting:
                open_ = self._running_look(open_)
            else:
                open_ = self._still_look(open_)
                held = self.how.now()
            if len(self.wrong):
                return Settled(self.live, self.wrong, self.wrong[:0])
            if self.code.state is not None:
                patience.look(self.code.state.under_way)
            if len(open_) and patience.over:
                stuck = np.intersect1d(self._restless(), open_.bytes())
                return Settled(self.live, self.wrong, stuck, patience.still)
            attempt += 1
        if attempt > 1:  # the places are answered; take the rest as it is now
            self._first()
        return Settled(self.live, self.wrong, self.wrong[:0])

    def _check(self) -> None:
        if not self.valid():
            raise _Gone

    def _restless(self) -> Positions:
        """Return the positions that differ or move, after the last look."""
        assert self.code.state is not None
        differing = differences(self.code.canvas, self.live)
        return np.union1d(differing, self.code.state.moving)

    def _first(self) -> _Places:
        """Look at everything while the guest runs.  What cannot be read is for the next look."""
        for attempt in range(RUNNING_LOOKS):
            try:
                if not self.region.unchanged():
                    self.region.remap()
                self.live = self.region.copy()
                self.code.follow(self.how.values(), self.live)
            except MemoryFault:
                if attempt == RUNNING_LOOKS - 1:
                    break
                self.how.sleep(WAITS_S[attempt])
            else:
                return _places(self._restless())
        with self.how.paused():
            self._check()
            self.region.remap()
            self.live = self.region.copy()
            self.code.follow(self.how.values(), self.live)
        return _places(self._restless())

    def _running_look(self, open_: _Places) -> _Places:
        try:
            positions = open_.bytes()
            self.region.copy_pages(self.live, np.unique(positions >> PAGE_SHIFT))
            narrowed = self.code.run_time.near(positions)
            self.code.follow(self.how.values(), self.live, narrowed)
        except MemoryFault:
            return open_
        return open_.only(open_.has(self._restless()))

    def _still_look(self, open_: _Places) -> _Places:
        """Hold the guest still and look at some of the places; return those still in question."""
        chosen = np.arange(len(open_)) < PLACES
        mine, others = open_.only(chosen), open_.only(~chosen)
        positions = mine.bytes()
        pages, narrowed = np.unique(positions >> PAGE_SHIFT), self.code.run_time.near(positions)
        with self.how.paused():
            self._check()
            self.region.copy_pages(self.live, pages)
            self.code.follow(self.how.values(), self.live, narrowed)
        assert self.code.state is not None
        moving = mine.has(self.code.state.moving)
        differing = differences(self.code.canvas, self.live)
        # A painted mixture is not among the differences: it is moving all the same.
        covered = np.add.outer(self.code.state.moving, np.arange(_SITE)).ravel()
        wrong = mine.has(np.setdiff1d(differing, covered))
        mine.strikes[wrong] += 1
        final = mine.only(wrong & (mine.strikes >= _STRIKES))
        self.wrong = np.intersect1d(differing, final.bytes())
        mine.known[:] = moving & ~wrong
        # What is wrong is asked again at once; what moves, when the others have had their turn.
        return _joined(mine.only(wrong), others, mine.only(moving & ~wrong))


def _joined(*parts: _Places) -> _Places:
    return _Places(
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.stop for part in parts]),
        np.concatenate([part.strikes for part in parts]),
        np.concatenate([part.known for part in parts]),
    )
