"""The answer to one trapped write: let it through or not, and what became of it.

Per write:

1. *Before it lands*, by its exact address: a place that the kernel's own patching may change, or
   not.  If not, it is a violation, and whoever enforces stops the hypervisor now.
2. A lawful one is let through: the page is opened, the store lands, the page is closed again, and
   only then looked at.  Every byte of the page that changed has to lie in such a place.
3. What stands there has to be a state that the mechanism can leave there.  Whether it is the one
   that the guest's variables ask for is decided by the replay, as soon as no write waits.  A
   place that is neither that nor one that the guest says it is at work on for ``SETTLE_S``, or
   that it is at work on for ``MOVING_S``, is a violation too, found after it landed.

While a page is open (some 100 us) another vCPU can write to it unseen.  What it leaves is found in
step 2; what it takes back in that time is not: each change says how long its page was open.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from undercroft.formats.evidence.interval import MAX_BYTES, BlindWindow, Change
from undercroft.reference.kernel.nops import NOPS
from undercroft.reference.kernel.rules import Rule
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.traps.explain import Explainer
from undercroft.securekernel.traps.journal import Journal
from undercroft.securekernel.traps.judge import Cover, TextJudge
from undercroft.securekernel.traps.pages import Page, Pages, Span
from undercroft.securekernel.traps.regions import PAGE, Region
from undercroft.securekernel.traps.sites import Site
from undercroft.securekernel.traps.threads import Threads
from undercroft.securekernel.traps.writetrap import TrappedWrite, WriteTraps

SETTLE_S = 1.0
"""How long a patched place may be neither what the guest's variables ask for nor at work on."""
MOVING_S = 120.0
"""How long the guest may be at work on one place: a static key may wait for a tracer that
switches 40,000 places, each of them trapped."""
STORM_WRITES, STORM_PERIOD_S, COOLING_S = 4000, 1.0, 0.5
"""A page written so often in so long a time is left open for so long, and that is said."""
LOSING_S = 0.02
"""How long after a page was discarded it is protected and looked at again."""
_SPIN_NS, _NAP_S = 100_000, 0.00002
_STORES_NS, _LANDING_NS = 15_000, 50_000_000
"""A thread that runs again stores within the first; the second is how long we wait for it."""
_CONTEXT = 8
"""Bytes shown on each side of a write that lies in no known place."""
_SEEN = 16
_CALL, _JMP = 0xE8, 0xE9
_ACCESSED, _DIRTY = 1 << 5, 1 << 6


def _target(site: Site, found: bytes) -> int:
    """Return the position that the call or jump ``found`` leads to."""
    return site.position + 5 + int.from_bytes(found[1:5], "little", signed=True)


Refuse = Callable[[], bool]
"""Stops the hypervisor before a write is answered; False if violations are only observed."""


@dataclass(slots=True)
class _Pending:
    """A place that was patched and is not settled yet."""

    text: TextJudge
    site: Site
    before: bytes
    span: Span
    paddr: int
    thread: str
    began: int
    since: float
    doubted: float | None = None
    writes: int = 0
    open_ns: int = 0


@dataclass(slots=True)
class Answerer:
    """Answers writes.  Used by one thread.

    ``refuse`` is called at a violation that has not landed and, with the same meaning, at one
    that has: it returns True if the hypervisor now stands still.  ``on_free`` is told the name of
    a cover that the guest has given up; it has to uncover it.  ``ask_machine`` is asked before a
    violation is called one, and raises MemoryReplacedError if there is another reason.
    """

    traps: WriteTraps
    memory: PhysicalMemory
    pages: Pages
    journal: Journal
    text: TextJudge | None
    refuse: Refuse
    on_change: Callable[[Change], None]
    on_free: Callable[[str], None]
    ask_machine: Callable[[], None]
    threads: Threads
    answer_us: list[float] = field(default_factory=list)
    modified: dict[str, int] = field(default_factory=dict)
    pending: dict[int, _Pending] = field(default_factory=dict)
    _cooling: dict[int, tuple[float, int, str]] = field(default_factory=dict)
    _seen: set[tuple[Rule, int]] = field(default_factory=set)
    covers: dict[str, Cover] = field(default_factory=dict)
    """What comes and goes, by name."""
    _cover_of: dict[str, Cover] = field(default_factory=dict)

    # --- what comes and goes -----------------------------------------------------------------

    def take(self, cover: Cover) -> None:
        """Judge writes to the regions of a cover from now on; its pages are protected."""
        self.covers[cover.name] = cover
        for region in cover.regions:
            self._cover_of[region.name] = cover

    def drop(self, name: str, freed: Sequence[int]) -> None:
        """Forget a cover, and the pages that nobody protects any more."""
        cover = self.covers.pop(name)
        for region in cover.regions:
            del self._cover_of[region.name]
        for paddr in freed:
            self._cooling.pop(paddr, None)

    def conclude(self, name: str) -> None:
        """Settle now what was patched in a cover that ends: there will be nothing to look at."""
        mine = [at for at, each in self.pending.items() if each.text is self.covers[name].text]
        if not mine:
            return
        self.settle(at=mine)
        for position in mine:
            if (pending := self.pending.get(position)) is not None:
                found = pending.text.explainer.live.get(position, pending.site.size)
                if pending.site.is_complete(found) or self._is_usual(pending.site, found):
                    self._settled(pending, found, "given up before it came to rest", lawful=True)
                else:
                    self._unexplained(pending, found, "given up in the middle of a patch")

    def _judge(self, region: Region) -> TextJudge | None:
        """Return who judges a region, or at least knows its symbols."""
        cover = self._cover_of.get(region.name)
        return (cover.text if cover is not None else None) or self.text

    def _is_free(self, page: Page, span: Span, offset: int) -> bool:
        """Tell whether the guest has given this place up; then it is covered no longer."""
        cover = self._cover_of.get(span.region.name)
        if cover is None:
            return False
        vaddr = span.vaddr + offset - span.start if span.vaddr else 0
        if not cover.is_free(span.region, vaddr, page.paddr):
            return False
        self.on_free(cover.name)
        return True

    # --- one write ---------------------------------------------------------------------------

    def answer(self, write: TrappedWrite) -> None:
        """Answer one write.  If it is refused it stays unanswered."""
        started = time.perf_counter_ns()
        page = self.pages.get(write.page)
        if page is None:  # not ours: a page shared with a range that is no longer covered
            self.traps.lift(write.page, PAGE)
            return
        self.journal.writes += 1
        reason = self._objection(page, write.paddr - write.page)
        if not page.spans:  # the guest has given it up
            self.traps.lift(write.page, PAGE)
            return
        if reason:
            self.ask_machine()
        if reason and self.refuse():
            self._report(page, write, (), reason, landed=False)
            return
        at = write.paddr - page.paddr
        slices = self.threads.slices(write.thread)
        opened = time.perf_counter_ns()
        self.traps.lift(write.page, PAGE)
        self._await_landing(write, page.content[at : at + _SEEN], slices)
        if self._is_storm(page):
            self._cooling[page.paddr] = (
                time.monotonic() + COOLING_S,
                self.journal.clock.now(),
                "storm of writes",
            )
            return
        self.traps.protect(write.page, PAGE)
        open_ns = time.perf_counter_ns() - opened
        if not reason and len(self.answer_us) < 1 << 16:
            self.answer_us.append((time.perf_counter_ns() - started) / 1000)
        self.examine(page, write, reason, open_ns)

    def _objection(self, page: Page, offset: int) -> str:
        """Return why a write at this byte is unlawful whatever it writes; empty if it may be."""
        for span in list(page.spans_at(offset)):
            reason = self._objection_of(page, span, offset)
            if reason and not self._is_free(page, span, offset):
                return reason
        return ""

    def _objection_of(self, page: Page, span: Span, offset: int) -> str:
        judge = self._judge(span.region)
        if span.region.patched and judge is not None:
            return judge.objection(span.vaddr + offset - span.start)
        if span.region.entries:
            entry = page.content[span.start]
            if entry & _ACCESSED and entry & _DIRTY:
                return "an entry that leads to protected memory"
            return ""  # the processor may set its accessed and dirty bits
        return "nothing writes here once it has been set up"

    def _await_landing(self, write: TrappedWrite, before: bytes, slices: int) -> None:
        """Wait until the store has happened: its bytes changed, or its thread ran for a moment.

        A store may leave the bytes as they were, or be undone at once, so that its thread is
        watched too.  One that got no processor in time has not stored: it is trapped again.
        The wait is short and busy, for as long as it takes the page is open.
        """
        read, paddr, size = self.memory.read, write.paddr, len(before)
        clock = time.monotonic_ns
        began = clock()
        ran_at = 0
        while read(paddr, size) == before:
            now = clock()
            if ran_at:
                if now - ran_at > _STORES_NS:
                    return
            elif self.threads.slices(write.thread) != slices:
                ran_at = now
            elif now - began > _LANDING_NS:
                return
            if now - began > _SPIN_NS:
                time.sleep(_NAP_S)  # the thread may need the processor that we are on
            else:
                os.sched_yield()

    def _is_storm(self, page: Page) -> bool:
        now = time.monotonic()
        if now - page.counted_since > STORM_PERIOD_S:
            page.counted_since, page.writes = now, 0
        page.writes += 1
        return page.writes > STORM_WRITES

    # --- what became of it -------------------------------------------------------------------

    def examine(self, page: Page, write: TrappedWrite | None, reason: str, open_ns: int) -> None:
        """Look at a page that is protected again and account for every byte that changed.

        ``reason`` says that the write was unlawful already.
        """
        content = self.memory.read(page.paddr, PAGE)
        changed = page.differences(content)
        before = page.content
        if not changed and not reason:
            return
        self.pages.update(page, content)
        foreign: list[int] = []
        touched: dict[int, tuple[Site, Span]] = {}
        for offset in changed:
            for span in list(page.spans_at(offset)):
                if self._is_lawful(span, offset, before[offset], content[offset], touched):
                    continue
                if not self._is_free(page, span, offset) and offset not in foreign:
                    foreign.append(offset)
        if reason or foreign:
            why = reason or "changed while the page was open for a lawful write"
            self._report(page, write, tuple(foreign), why, landed=True, before=before)
            if not reason:
                self.refuse()
        for site, span in touched.values():
            if span not in page.spans:
                continue  # given up meanwhile
            self._patched(page, write, site, span, before, open_ns)

    def _is_lawful(
        self,
        span: Span,
        offset: int,
        before: int,
        after: int,
        touched: dict[int, tuple[Site, Span]],
    ) -> bool:
        """Account for one byte that changed; add the place in code that it is in to ``touched``."""
        self.modified[span.region.name] = self.journal.sequence
        judge = self._judge(span.region)
        if span.region.patched and judge is not None:
            vaddr = span.vaddr + offset - span.start
            judge.take(vaddr, bytes((after,)))
            site = judge.site_at(vaddr)
            if site is None:
                return False
            touched[site.position] = (site, span)
            return True
        bits = (before ^ after) & ~(_ACCESSED | _DIRTY)
        return span.region.entries and offset == span.start and not bits

    def _patched(
        self,
        page: Page,
        write: TrappedWrite | None,
        site: Site,
        span: Span,
        before: bytes,
        open_ns: int,
    ) -> None:
        """Note that a place changed, and check at once what can be checked at once."""
        judge = self._judge(span.region)
        assert judge is not None
        pending = self.pending.get(site.position)
        found = judge.explainer.live.get(site.position, site.size)
        if pending is None:
            vaddr = judge.base + site.position
            old = bytearray(found)
            for at in range(site.size):  # a place may reach into the next page
                offset = vaddr + at - span.vaddr + span.start
                if 0 <= offset < PAGE:
                    old[at] = before[offset]
            pending = self.pending[site.position] = _Pending(
                text=judge,
                site=site,
                before=bytes(old),
                span=span,
                paddr=page.paddr + span.start + vaddr - span.vaddr,
                thread=self._thread_of(write),
                began=self.journal.clock.now(),
                since=time.monotonic(),
            )
        pending.writes += 1
        pending.open_ns += open_ns
        pending.since, pending.doubted = time.monotonic(), None
        if site.is_complete(found) or self._is_usual(site, found):
            return
        if site.may_be_in_flight(found, pending.before):
            return
        if site.states:
            self._unexplained(pending, found, "no state that this mechanism leaves here")
        else:
            self.settle(at=[site.position])

    def _is_usual(self, site: Site, found: bytes) -> bool:
        """Tell whether it is a state that need not be checked before the next write is answered.

        Thousands of functions call the same trampoline when they are traced.
        """
        if found == NOPS[5]:
            return site.rule is Rule.FTRACE
        return found[0] in (_CALL, _JMP) and (site.rule, _target(site, found)) in self._seen

    def settle(self, at: Sequence[int] | None = None) -> None:
        """Let the replay decide about the places that were patched.

        With ``at``, about those only, whatever else goes on.
        """
        if self.text is None:
            return
        patching = self.text.explainer.word.patching()
        oldest = time.monotonic() - min(each.since for each in self.pending.values())
        if at is None and patching and oldest < SETTLE_S:
            return  # it goes on: do not keep the next write waiting
        by_text: dict[int, tuple[Explainer, list[int]]] = {}
        for position in self.pending if at is None else at:
            explainer = self.pending[position].text.explainer
            by_text.setdefault(id(explainer), (explainer, []))[1].append(position)
        for explainer, mine in by_text.values():
            self._settle(explainer, mine)

    def _settle(self, explainer: Explainer, mine: Sequence[int]) -> None:
        followed = explainer.follow(list(mine))
        moving, now = explainer.moving(), time.monotonic()
        for position in mine:
            pending = self.pending[position]
            size = pending.site.size
            found = explainer.live.get(position, size)
            at_rest = pending.site.rule is not Rule.KPROBE
            if followed and explainer.explains(position, size, at_rest=at_rest):
                self._explained(pending, found)
                continue
            if position in moving and now - pending.since < MOVING_S:
                pending.doubted = None
                continue
            pending.doubted = now if pending.doubted is None else pending.doubted
            if now - pending.doubted > SETTLE_S:
                self._unexplained(pending, found, "not what the guest's variables ask for")

    def _explained(self, pending: _Pending, found: bytes) -> None:
        if found[0] in (_CALL, _JMP):
            self._seen.add((pending.site.rule, _target(pending.site, found)))
        self._settled(pending, found, "", lawful=True)

    def _unexplained(self, pending: _Pending, found: bytes, reason: str) -> None:
        self.refuse()
        self._settled(pending, found, reason, lawful=False)

    def _settled(self, pending: _Pending, found: bytes, reason: str, *, lawful: bool) -> None:
        del self.pending[pending.site.position]
        self._add(
            Change(
                time=pending.began,
                range=pending.span.region.name,
                paddr=pending.paddr,
                vaddr=pending.text.base + pending.site.position,
                symbol=pending.text.explainer.symbol(pending.site.position),
                rule=pending.site.rule.label,
                before=pending.before,
                after=found,
                thread=pending.thread,
                writes=pending.writes,
                open_ns=pending.open_ns,
                lawful=lawful,
                landed=True,
                reason=reason,
            )
        )

    def _report(
        self,
        page: Page,
        write: TrappedWrite | None,
        changed: tuple[int, ...],
        reason: str,
        *,
        landed: bool,
        before: bytes = b"",
    ) -> None:
        """Record a violation with the bytes around it."""
        before = before or page.content
        offset = write.paddr - page.paddr if write is not None else changed[0]
        first, last = min((offset, *changed)), max((offset, *changed))
        start = max(0, first - _CONTEXT)
        stop = min(PAGE, max(last + 1, offset + 1) + _CONTEXT, start + MAX_BYTES)
        span = page.span_at(offset) or page.spans[0]
        vaddr = span.vaddr + start - span.start if span.vaddr else 0
        try:
            after = self.memory.read(page.paddr, PAGE)
        except GuestGone:  # we ended it, so that the write never lands
            after = page.content
        judge, symbol = self._judge(span.region), ""
        if judge is not None and span.vaddr:
            symbol = judge.explainer.symbol(span.vaddr + offset - span.start - judge.base)
        self._add(
            Change(
                time=self.journal.clock.now(),
                range=span.region.name,
                paddr=page.paddr + start,
                vaddr=vaddr,
                symbol=symbol,
                rule="",
                before=before[start:stop],
                after=after[start:stop],
                thread=self._thread_of(write),
                writes=1,
                open_ns=0,
                lawful=False,
                landed=landed,
                reason=reason,
            )
        )

    def _add(self, change: Change) -> None:
        self.journal.add(change)
        self.on_change(change)

    # --- storms ------------------------------------------------------------------------------

    def lose(self, paddr: int, size: int, how: str) -> bool:
        """Note that pages are going; tell whether protected ones are among them.

        The hypervisor goes on as soon as the message is read.  What stands there afterwards is
        protected and looked at again a moment later.
        """
        now, until = self.journal.clock.now(), time.monotonic() + LOSING_S
        pages = [at for at in range(paddr, paddr + size, PAGE) if self.pages.get(at)]
        for at in pages:
            self._cooling[at] = (until, now, f"the hypervisor {how} it")
        return bool(pages)

    def cool(self) -> None:
        """Protect the pages again that were left open because of a storm, when it is time."""
        now = time.monotonic()
        for paddr in [p for p, (until, _, _) in self._cooling.items() if until <= now]:
            self.close_storm(paddr)

    def close_storm(self, paddr: int) -> None:
        """Protect one page again, say for how long it was open, and look at it."""
        _, since, why = self._cooling.pop(paddr)
        self.traps.protect(paddr, PAGE)
        page = self.pages.get(paddr)
        if page is None:
            self.traps.lift(paddr, PAGE)
            return
        page.counted_since, page.writes = time.monotonic(), 0
        name = page.spans[0].region.name
        self.journal.blind.append(
            BlindWindow(since, self.journal.clock.now(), name, f"{why}, at {paddr:#x}")
        )
        self.examine(page, None, "", 0)

    def close_storms(self) -> None:
        """Protect every page again that was left open."""
        for paddr in list(self._cooling):
            self.close_storm(paddr)

    def is_cooling(self) -> bool:
        """Whether a page is left open because of a storm."""
        return bool(self._cooling)

    def _thread_of(self, write: TrappedWrite | None) -> str:
        return self.threads.name(write.thread) if write is not None else ""
