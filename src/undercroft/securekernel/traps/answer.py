"""The answer to one trapped write: let it through or not, and what became of it.

Per write:

1. *Before it lands*, by its exact address: a place that the kernel's own patching may change, or
   not.  If not, it is a violation, and whoever enforces stops the hypervisor now.
2. A lawful one is let through: the page is opened, the store lands, the page is closed again, and
   only then looked at.  Every byte of the page that changed has to lie in such a place.
3. What stands there has to be a state that the mechanism can leave there.  Whether it is the one
   that the guest's variables ask for is decided by the replay, as soon as no write waits; if it
   is not within ``SETTLE_S``, that is a violation too, found after it landed.

While a page is open (some 100 us) another vCPU can write to it unseen.  What it leaves is found in
step 2; what it takes back in that time is not: each change says how long its page was open.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from undercroft.formats.evidence.interval import MAX_BYTES, BlindWindow, Change
from undercroft.reference.kernel.nops import NOPS
from undercroft.reference.kernel.rules import Rule
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.traps.explain import Explainer
from undercroft.securekernel.traps.journal import Journal
from undercroft.securekernel.traps.pages import Page, Pages, Span
from undercroft.securekernel.traps.regions import PAGE, PAGE_TABLES
from undercroft.securekernel.traps.sites import Site, TextSites, probe_site
from undercroft.securekernel.traps.threads import Threads
from undercroft.securekernel.traps.writetrap import TrappedWrite, WriteTraps

SETTLE_S = 1.0
"""How long a patched place may differ from what the guest's variables ask for."""
PATCHING_S = 30.0
"""The same while the guest says that a batch of patches is under way."""
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
class TextJudge:
    """What is needed to judge writes to text.  ``base`` is the virtual address of _text."""

    base: int
    sites: TextSites
    explainer: Explainer

    def site_at(self, vaddr: int, probes: Callable[[], list[int]]) -> Site | None:
        """Return the place at a virtual address; the guest's kprobes are read only if asked."""
        position = vaddr - self.base
        return self.sites.at(position) or probe_site(position, probes())

    def objection(self, vaddr: int) -> str:
        """Return why code must not be written at this address now; empty if it may be.

        The kernel announces what it is about to patch, and with which bytes.  SMP locks and
        kprobes are written without that (text_poke); probes are in a table of their own.
        """
        site = self.site_at(vaddr, self.explainer.probes)
        if site is None:
            return "nothing patches the code here"
        if site.rule in (Rule.SMP_LOCK, Rule.KPROBE):
            return ""
        announced = self.explainer.announced()
        if announced is None:
            return ""
        new = announced.get(site.position)
        if new is None:
            probed = probe_site(vaddr - self.base, self.explainer.probes())
            return "" if probed else "the kernel has not announced a patch here"
        if site.states and not site.is_complete(new):
            return "the patch that was announced is none that this mechanism makes"
        return ""

    def take(self, vaddr: int, data: bytes) -> None:
        """Keep the copy of the live text up to date."""
        at = vaddr - self.base
        self.explainer.live.data[at : at + len(data)] = data


@dataclass(slots=True)
class _Pending:
    """A place that was patched and is not settled yet."""

    site: Site
    before: bytes
    span: Span
    paddr: int
    thread: str
    began: int
    since: float
    writes: int = 0
    open_ns: int = 0


@dataclass(slots=True)
class Answerer:
    """Answers writes.  Used by one thread.

    ``refuse`` is called at a violation that has not landed and, with the same meaning, at one
    that has: it returns True if the hypervisor now stands still.
    """

    traps: WriteTraps
    memory: PhysicalMemory
    pages: Pages
    journal: Journal
    text: TextJudge | None
    refuse: Refuse
    on_change: Callable[[Change], None]
    threads: Threads
    answer_us: list[float] = field(default_factory=list)
    modified: dict[str, int] = field(default_factory=dict)
    pending: dict[int, _Pending] = field(default_factory=dict)
    _cooling: dict[int, tuple[float, int, str]] = field(default_factory=dict)
    _seen: set[tuple[Rule, int]] = field(default_factory=set)

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
        span = page.span_at(offset)
        if span is None:
            return ""
        if span.region.patched and self.text is not None:
            return self.text.objection(span.vaddr + offset - span.start)
        if span.region.name == PAGE_TABLES:
            entry = page.content[span.start]
            if entry & _ACCESSED and entry & _DIRTY:
                return "an entry that leads to protected memory"
            return ""  # the processor may set its accessed and dirty bits
        return "nothing writes here once the kernel has booted"

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
        foreign, touched = [], {}
        for offset in changed:
            span = page.span_at(offset)
            if span is None:
                continue
            self.modified[span.region.name] = self.journal.sequence
            if span.region.patched and self.text is not None:
                self.text.take(span.vaddr + offset - span.start, content[offset : offset + 1])
                site = self.text.site_at(
                    span.vaddr + offset - span.start, self.text.explainer.probes
                )
                if site is not None:
                    touched[site.position] = (site, span)
                    continue
            elif (
                span.region.name == PAGE_TABLES
                and offset == span.start
                and not ((before[offset] ^ content[offset]) & ~(_ACCESSED | _DIRTY))
            ):
                continue
            foreign.append(offset)
        if reason or foreign:
            why = reason or "changed while the page was open for a lawful write"
            self._report(page, write, tuple(foreign), why, landed=True, before=before)
            if not reason:
                self.refuse()
        for site, span in touched.values():
            self._patched(page, write, site, span, before, open_ns)

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
        assert self.text is not None
        pending = self.pending.get(site.position)
        found = self.text.explainer.live.get(site.position, site.size)
        if pending is None:
            vaddr = self.text.base + site.position
            old = bytearray(found)
            for at in range(site.size):  # a place may reach into the next page
                offset = vaddr + at - span.vaddr + span.start
                if 0 <= offset < PAGE:
                    old[at] = before[offset]
            pending = self.pending[site.position] = _Pending(
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
        pending.since = time.monotonic()
        if site.is_complete(found) or self._is_usual(site, found):
            return
        if site.may_be_in_flight(found, pending.before):
            return
        if site.states:
            self._unexplained(pending, found, "no state that this mechanism leaves here")
        else:
            self.settle(only=site.position)

    def _is_usual(self, site: Site, found: bytes) -> bool:
        """Tell whether it is a state that need not be checked before the next write is answered.

        Thousands of functions call the same trampoline when they are traced.
        """
        if found == NOPS[5]:
            return site.rule is Rule.FTRACE
        return found[0] in (_CALL, _JMP) and (site.rule, _target(site, found)) in self._seen

    def settle(self, only: int | None = None) -> None:
        """Let the replay decide about the places that were patched.

        With ``only``, about that one, which stands in a state not seen before.
        """
        if self.text is None:
            return
        explainer = self.text.explainer
        patching = explainer.patching()
        oldest = time.monotonic() - min(each.since for each in self.pending.values())
        if only is None and patching and oldest < SETTLE_S:
            return  # it goes on: do not keep the next write waiting
        mine = [only] if only is not None else list(self.pending)
        followed = explainer.follow(mine)
        for position in mine:
            pending = self.pending[position]
            size = pending.site.size
            found = explainer.live.get(position, size)
            at_rest = pending.site.rule is not Rule.KPROBE
            if followed and explainer.explains(position, size, at_rest=at_rest):
                self._explained(pending, found)
                continue
            age = time.monotonic() - pending.since
            if age > (PATCHING_S if patching else SETTLE_S):
                self._unexplained(pending, found, "not what the guest's variables ask for")

    def _explained(self, pending: _Pending, found: bytes) -> None:
        if found[0] in (_CALL, _JMP):
            self._seen.add((pending.site.rule, _target(pending.site, found)))
        self._settled(pending, found, "", lawful=True)

    def _unexplained(self, pending: _Pending, found: bytes, reason: str) -> None:
        self.refuse()
        self._settled(pending, found, reason, lawful=False)

    def _settled(self, pending: _Pending, found: bytes, reason: str, *, lawful: bool) -> None:
        assert self.text is not None
        del self.pending[pending.site.position]
        self._add(
            Change(
                time=pending.began,
                range=pending.span.region.name,
                paddr=pending.paddr,
                vaddr=self.text.base + pending.site.position,
                symbol=self.text.explainer.symbol(pending.site.position),
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
        after = self.memory.read(page.paddr, PAGE)
        symbol = ""
        if self.text is not None and span.vaddr:
            symbol = self.text.explainer.symbol(span.vaddr + offset - span.start - self.text.base)
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
        assert page is not None
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
