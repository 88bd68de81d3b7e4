"""The guard: protects a running kernel's constant memory and answers every write to it.

One thread does nothing but answer (``answer``).  It never talks to the monitor, for a vCPU that
waits for our answer cannot answer the monitor.  Everything else that has to happen in order with
the answers (ending an epoch) is done by that thread when asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import gc
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from undercroft.base import EnvironmentFault, UndercroftError
from undercroft.formats.evidence.interval import (
    BlindWindow,
    Change,
    CoveredRange,
    Epoch,
    Uncovered,
)
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.traps import freeze
from undercroft.securekernel.traps.answer import Answerer
from undercroft.securekernel.traps.journal import Clock, Journal
from undercroft.securekernel.traps.judge import Cover, TextJudge
from undercroft.securekernel.traps.pages import Pages, runs_of
from undercroft.securekernel.traps.regions import Region, pages_of
from undercroft.securekernel.traps.snapshot import save_ram
from undercroft.securekernel.traps.threads import Threads
from undercroft.securekernel.traps.writetrap import HostRange, Lend, WriteTraps

_T = TypeVar("_T")
EPOCH_S = 60.0
"""An epoch ends by itself after so long, if nothing else is said."""
_IDLE_S, _BUSY_S = 0.25, 0.002
_SETTLE_EVERY_S = 0.25
_SWITCH_S = 0.0005
_PRIORITY, _NICE, _TIMER_SLACK = 1, -15, 29
_ASK_TIMEOUT_S = 30.0
CHANNEL = "write-trap:userfaultfd"
_TOLD_S, _ASK_AGAIN_S = 0.05, 1.0
"""How long a violation waits for the news that the machine was reset, and how often at most."""


class MemoryReplacedError(UndercroftError):
    """The guest's memory is no longer what its kernel made of it: a reset, a snapshot."""


class Machine(Protocol):
    """What the hypervisor tells of the machine as a whole (hypervisor.events)."""

    replaced: str
    stopped: bool

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when something is told."""

    def look(self, timeout: float) -> None:
        """Take what was told; wait so many seconds at most for what says ``replaced``."""


class Mode(enum.Enum):
    """What is done about a violation.

    OBSERVE: it lands and is reported.  ENFORCE: the hypervisor is stopped before it lands, and
    stays so.  KILL: it is ended.  SNAPSHOT: as ENFORCE, and guest RAM is saved.
    """

    OBSERVE = "observe"
    ENFORCE = "enforce"
    KILL = "kill"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """What a guard can say now.  ``since`` is in ns since the epoch, by the session's clock.

    ``ended`` says why nothing is covered any more (empty while it is), and ``replaced`` that it
    is because memory was; ``fault`` what is wrong although it is covered; ``answer_us`` how long
    lawful writes waited for their answer.
    """

    mode: Mode
    session: bytes
    since: int
    writes: int
    lawful: int
    violations: int
    pending: int
    frozen: bool
    uncovered: tuple[Uncovered, ...]
    ended: str
    replaced: bool
    fault: str
    answer_us: tuple[float, ...]


class Guard:
    """Protects ``regions`` of the guest that process ``pid`` runs, from construction to close().

    ``memory`` reads the guest's RAM; ``ranges`` say where the hypervisor maps it; ``text`` is
    needed if a region is patched.  ``machine`` tells of resets; without it only the writes do,
    and they are violations.  ``lend`` is for a hypervisor without privileges.  An epoch ends by
    itself after ``epoch_s`` seconds; ``log`` gets the epochs as they end.  ``snapshot`` is the
    file that the mode of that name writes.  ``on_change`` is called by the answering thread for
    every change and must return at once.

    Raises EnvironmentFault if the hypervisor cannot be attached to, GuestGone if it ended.
    """

    def __init__(
        self,
        pid: int,
        memory: PhysicalMemory,
        ranges: Sequence[HostRange],
        regions: Sequence[Region],
        *,
        mode: Mode = Mode.OBSERVE,
        text: TextJudge | None = None,
        machine: Machine | None = None,
        lend: Lend | None = None,
        epoch_s: float = EPOCH_S,
        log: Path | None = None,
        snapshot: Path | None = None,
        on_change: Callable[[Change], None] = lambda _change: None,
    ) -> None:
        if mode is Mode.SNAPSHOT and snapshot is None:
            raise ValueError("the mode snapshot needs a file")
        self.pid = pid
        self.mode = mode
        self._memory = memory
        self._ranges = tuple(ranges)
        self._snapshot = snapshot
        self._uncovered: tuple[Uncovered, ...] = ()
        self._ended = ""
        self._faults: list[str] = []
        self._frozen = False
        self._machine = machine
        self._epoch_ns = epoch_s * 1e9
        self._replaced = False
        self._asked = 0.0
        self._stopping = False
        self._settled = 0.0
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pages = Pages(regions)
        self._threads = Threads(pid)
        self._pidfd = _open_pidfd(pid)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._traps = WriteTraps(pid, ranges, lend)
        except BaseException:
            os.close(self._pidfd)
            os.close(self._wake)
            raise
        try:
            for paddr, size in self._pages.runs():
                self._traps.protect(paddr, size)
            # Everything is protected: what stands there now stays, unless we let a write through.
            self.journal = Journal(mode.value, Clock(), log)
            self._pages.load(memory)
            if text is not None:
                _load_text(text, self._pages, regions)
        except BaseException:
            self._let_go()
            raise
        self._answerer = Answerer(
            traps=self._traps,
            memory=memory,
            pages=self._pages,
            journal=self.journal,
            text=text,
            refuse=self._refuse,
            on_change=on_change,
            on_free=lambda name: self._uncover(name, "given up by the guest"),
            ask_machine=self._ask_machine,
            threads=self._threads,
        )
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._thread.start()

    # --- for other threads -------------------------------------------------------------------

    def status(self) -> GuardStatus:
        """Return where things stand."""
        journal, answerer = self.journal, self._answerer
        fault = "; ".join([*self._faults, *([str(journal.fault)] if journal.fault else [])])
        return GuardStatus(
            mode=self.mode,
            session=journal.session,
            since=journal.began,
            writes=journal.writes,
            lawful=journal.lawful,
            violations=journal.violations,
            pending=len(answerer.pending),
            frozen=self._frozen,
            uncovered=self._uncovered,
            ended=self._ended,
            replaced=self._replaced,
            fault=fault,
            answer_us=tuple(answerer.answer_us),
        )

    @property
    def regions(self) -> tuple[Region, ...]:
        """What is protected."""
        return self._pages.regions

    def close_epoch(self, cause: str = "asked") -> Epoch:
        """End the open epoch now and return it; the next one has begun.

        Raises EnvironmentFault if the guard no longer answers.
        """
        return self._ask(lambda: self._close_epoch(cause))

    def chain(self) -> tuple[bytes, ...]:
        """Return the encoded epochs that have ended."""
        return tuple(self.journal.chain)

    def cover(self, cover: Cover) -> None:
        """Protect what has come into being in the guest: a module, a process's code.

        A cover of the same name is replaced without a gap.  An epoch ends, so that each epoch
        covers what it names from its beginning.  What stands there has to be looked at after
        this: see :meth:`explains`.
        """
        self._ask(lambda: self._cover(cover))

    def uncover(self, name: str, why: str) -> None:
        """Give up a cover, if it is still there; an epoch ends."""
        self._ask(lambda: self._uncover(name, why))

    def covers(self) -> frozenset[str]:
        """Return the names of what was covered with :meth:`cover`."""
        return frozenset(self._answerer.covers)

    def explains(self, name: str) -> bool:
        """Tell whether the code of a cover is what its replay asks for now."""

        def explains() -> bool:
            cover = self._answerer.covers.get(name)
            return cover is None or cover.text is None or cover.text.explainer.explains_all()

        return self._ask(explains)

    def set_uncovered(self, channels: Iterable[Uncovered]) -> None:
        """Say which channels a look at the host found; they stand in every epoch from now on."""
        found = tuple(channels)
        self._ask(lambda: self._set_uncovered(found))

    def note_blind(self, t0: int, t1: int, region: str, reason: str) -> None:
        """Add a blind window that somebody else knows of (a pause, a migration)."""
        self._ask(lambda: self.journal.blind.append(BlindWindow(t0, t1, region, reason)))

    def begin_sampling(self, mean_ns: int) -> None:
        """Begin an epoch in which registers are sampled, every ``mean_ns`` in the mean."""

        def begin() -> None:
            self._close_epoch("sampling begins")
            self.journal.mean_ns = mean_ns

        self._ask(begin)

    def sampling(self) -> tuple[int, bytes, int]:
        """Return the open epoch's number, secret seed and beginning."""
        journal = self.journal
        return self._ask(lambda: (journal.sequence, journal.seed, journal.opened_at))

    def note_sample(self, sequence: int, at: int) -> None:
        """Record that registers were looked at, if the epoch ``sequence`` is still open."""

        def note() -> None:
            if self.journal.sequence == sequence:
                self.journal.sample_times.append(at)

        self._ask(note)

    def note_fault(self, what: str) -> None:
        """Record that something is wrong although memory is covered."""
        self._faults.append(what)

    def note_violation(self, what: str, reason: str) -> None:
        """Record a violation that was found otherwise: a register that changed."""
        change = Change(
            time=self.journal.clock.now(), range=what, paddr=0, vaddr=0, symbol="", rule="",
            before=b"", after=b"", thread="", writes=0, open_ns=0,
            lawful=False, landed=True, reason=reason,
        )  # fmt: skip

        def note() -> None:
            self._refuse()
            self.journal.add(change)
            self._answerer.on_change(change)

        self._ask(note)

    def close(self) -> None:
        """Lift every protection, let go of the hypervisor and end the last epoch.

        A hypervisor that was frozen stays frozen.
        """
        if self._thread.is_alive():
            self._stopping = True
            os.eventfd_write(self._wake, 1)
        self._thread.join()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _ask(self, command: Callable[[], _T]) -> _T:
        """Have the answering thread run ``command`` between two answers; return its result."""
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(command())
            except UndercroftError as error:
                future.set_exception(error)

        if not self._thread.is_alive():
            raise EnvironmentFault(f"the guard has ended: {self._ended or 'closed'}")
        self._commands.put(run)
        os.eventfd_write(self._wake, 1)
        try:
            return future.result(_ASK_TIMEOUT_S)
        except TimeoutError:
            raise EnvironmentFault(f"the guard has ended: {self._ended or 'closed'}") from None

    # --- the answering thread ----------------------------------------------------------------

    def _run(self) -> None:
        _hurry()
        poll = select.poll()
        for descriptor in (self._traps.fileno(), self._wake, self._pidfd):
            poll.register(descriptor, select.POLLIN)
        if self._machine is not None:
            poll.register(self._machine.fileno(), select.POLLIN)
        try:
            while not self._stopping:
                self._turn(poll)
            self._answerer.close_storms()
            self._close_epoch("closed")
            self._ended = "closed"
        except GuestGone as error:
            self._end(f"the guest ended: {error}")
        except MemoryReplacedError as error:
            self._replaced = True
            self._end(str(error))
        except UndercroftError as error:
            self._end(str(error))
        finally:
            if not self._ended:  # a bug of ours
                self._ended = "the guard broke"
            if self._ended != "closed" and not self._replaced and not self._gone():
                # Where violations are refused, a guest must not go on unseen.
                self._refuse_quietly()
            self._let_go()

    def _turn(self, poll: select.poll) -> None:
        answerer = self._answerer
        busy = bool(answerer.pending) or answerer.is_cooling()
        ready = dict(poll.poll((_BUSY_S if busy else _IDLE_S) * 1000))
        if self._pidfd in ready:
            raise GuestGone("the hypervisor process ended", where=f"process {self.pid}")
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if self._machine is not None and self._machine.fileno() in ready:
            self._hear(0)
        if self._traps.fileno() in ready:
            self._answer_all(poll)
        elif answerer.pending and not self._frozen:
            answerer.settle()
        self._keep_house()

    def _answer_all(self, poll: select.poll) -> None:
        """Answer the writes that wait, until one of them is refused: what waits then, waits."""
        writes = self._traps.wait(0)
        for lost in self._traps.lost:
            if self._answerer.lose(lost.paddr, lost.size, lost.how):
                self._faults.append(f"protected memory at {lost.paddr:#x} was {lost.how}")
        self._traps.lost.clear()
        for write in writes:
            self._answerer.answer(write)
            if self._frozen:
                poll.unregister(self._traps.fileno())
                return

    def _hear(self, timeout: float) -> None:
        """Take what the hypervisor tells; raise MemoryReplacedError if that ends the session."""
        assert self._machine is not None
        self._machine.look(timeout)
        if self._machine.replaced:
            raise MemoryReplacedError(self._machine.replaced)

    def _ask_machine(self) -> None:
        """Raise MemoryReplacedError if a reset or a restore explains an unlawful write.

        After a reset the firmware writes wherever it likes, maybe before we have read the news.
        While every vCPU stands, only the hypervisor itself writes: a snapshot, or a migration
        that comes in (QEMU stops the vCPUs, and says so, before either).
        """
        now = time.monotonic()
        if self._machine is None or now - self._asked < _ASK_AGAIN_S:
            return
        self._asked = now
        self._hear(_TOLD_S)
        if self._machine.stopped:
            raise MemoryReplacedError("memory was written while the guest stood still: a restore")

    def _keep_house(self) -> None:
        """Do what is due whether or not writes wait."""
        answerer, journal = self._answerer, self.journal
        now = time.monotonic()
        if answerer.pending and not self._frozen and now - self._settled > _SETTLE_EVERY_S:
            self._settled = now
            answerer.settle()
        if not self._frozen:
            answerer.cool()
        if journal.is_full or journal.clock.now() - journal.opened_at > self._epoch_ns:
            self._close_epoch("full" if journal.is_full else "time")
        while True:
            try:
                self._commands.get_nowait()()
            except queue.Empty:
                return

    def _refuse(self) -> bool:
        """Stop the hypervisor, as the mode says; False if it is to go on."""
        if self.mode is Mode.OBSERVE:
            return False
        if self._frozen:
            return True
        self._frozen = True
        if self.mode is Mode.KILL:
            freeze.kill(self.pid, self._pidfd)
            return True
        try:
            freeze.freeze(self.pid, self._pidfd)
            if self.mode is Mode.SNAPSHOT and self._snapshot is not None:
                save_ram(self._memory, self._ranges, self._snapshot)
        except GuestGone:
            raise
        except EnvironmentFault as error:
            self._faults.append(str(error))
        return True

    def _gone(self) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _refuse_quietly(self) -> None:
        try:
            self._refuse()
        except UndercroftError as error:
            self._faults.append(str(error))

    def _set_uncovered(self, found: tuple[Uncovered, ...]) -> None:
        self._uncovered = found

    def _close_epoch(self, cause: str) -> Epoch:
        answerer = self._answerer
        if answerer.pending and not self._frozen and not self._ended:
            answerer.settle()
        ranges = tuple(
            CoveredRange(
                region.name,
                tuple((e.vaddr, e.paddr, e.size) for e in region.extents),
                self._pages.digest(region),
                answerer.modified.get(region.name, 0),
            )
            for region in self._pages.regions
        )
        return self.journal.close(cause, ranges, (CHANNEL,), self._uncovered, len(answerer.pending))

    def _cover(self, cover: Cover) -> None:
        for paddr, size in runs_of(self._pages_of(cover)):  # before anything is changed
            self._traps.protect(paddr, size)
        if cover.name in self._answerer.covers:
            before = self._forget(cover.name, "covers other pages from now on")
        else:
            before = []
            self._close_epoch(f"covers {cover.name} from now on")
        fresh = self._pages.add(cover.regions)
        for paddr, size in runs_of(sorted(set(before) - set(fresh))):
            self._traps.lift(paddr, size)
        self._answerer.take(cover)
        self._pages.load(self._memory, fresh)
        if cover.text is not None:
            _load_text(cover.text, self._pages, cover.regions)

    def _pages_of(self, cover: Cover) -> list[int]:
        return pages_of(extent for region in cover.regions for extent in region.extents)

    def _uncover(self, name: str, why: str) -> None:
        if name in self._answerer.covers:
            for paddr, size in runs_of(sorted(self._forget(name, why))):
                self._traps.lift(paddr, size)

    def _forget(self, name: str, why: str) -> list[int]:
        """Forget a cover; return the pages, still protected, that nobody needs any more."""
        self._answerer.conclude(name)
        self._close_epoch(f"{name}: {why}")
        freed: list[int] = []
        for region in self._answerer.covers[name].regions:
            freed += self._pages.remove(region.name)
        self._answerer.drop(name, freed)
        return freed

    def _end(self, why: str) -> None:
        """Note that nothing is covered from now on, and end the chain with that."""
        self._ended = why
        now = self.journal.clock.now()
        self.journal.blind.append(BlindWindow(now, now, "", why))
        self._close_epoch("ended")

    def _let_go(self) -> None:
        self._threads.close()
        self._traps.close()
        os.close(self._wake)
        os.close(self._pidfd)


def _load_text(text: TextJudge, pages: Pages, regions: Iterable[Region]) -> None:
    """Give the judge the live text as the pages have it."""
    for region in regions:
        if region.patched:
            for vaddr, content in pages.content_of(region):
                text.take(vaddr, content)


def _hurry() -> None:
    """Run this thread before ordinary ones, where we may.

    A vCPU waits for every answer, and a page stays open until we get a processor again.  Other
    threads of this process give up the interpreter within the same time, and what is there by
    now is no longer searched for garbage, which takes tens of ms.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
    gc.freeze()
    ctypes.CDLL(None).prctl(_TIMER_SLACK, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: naps end on time
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise GuestGone("the hypervisor process ended", where=f"process {pid}") from error
