"""Prove the running kernel's code equal to its package, and keep proving it.

``KernelTextProof.attach`` builds the expected image once; ``sweep`` compares it with the
guest's frames at the speed of a memory comparison.  When they differ, the guest may just be
patching itself: the state that its rules follow is read again, at last with the guest paused,
and only what then still differs is a mismatch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from undercroft.base import Finding, JsonValue, MemoryFault, Outcome
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel import text_poke
from undercroft.reference.kernel.canvas import Canvas, Positions
from undercroft.reference.kernel.explain import Mismatch, find_mismatches
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.notable import Notable, notable
from undercroft.reference.kernel.replay import Replay, replay
from undercroft.securekernel.arch.x86_64.paging import PAGE_SHIFT, AddressSpace
from undercroft.securekernel.linux.locate import LocatedKernel, locate
from undercroft.securekernel.linux.mapped import MappedRange, map_range
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.vcpu import VcpuState

TEXT, RODATA, NOTABLE = "kernel.text", "kernel.rodata", "kernel.notable"
SETTLE_TRIES = 3
POKE_TRIES = 20
SETTLE_WAIT_S = 0.002
_SITE = 15
"""No instruction, so no site's instruction, is longer."""
LISTED = 16
"""Mismatches that a finding lists; it counts all of them."""


@dataclass(slots=True)
class _Region:
    """A range of the image that is compared: [start, start + size) from _text.

    ``frames`` and ``expected`` run in parallel: what lies in each physical extent.
    """

    start: int
    mapped: MappedRange
    expected: list[bytearray]

    def refresh(self, canvas: Canvas) -> None:
        """Take the expected bytes from the canvas again."""
        base = self.mapped.vaddr
        self.expected = [
            canvas.data[at : at + extent.size]
            for extent in self.mapped.extents
            for at in (self.start + extent.vaddr - base,)
        ]

    def equal(self, memory: PhysicalMemory) -> bool:
        """Compare every byte (bytearray == buffer is one memcmp)."""
        return all(
            expected == memory.view(extent.paddr, extent.size)
            for extent, expected in zip(self.mapped.extents, self.expected, strict=True)
        )

    def copy_pages(self, memory: PhysicalMemory, canvas: Canvas, pages: Positions) -> None:
        """Copy the live bytes of some pages (position >> 12) into ``canvas`` again."""
        base = self.mapped.vaddr - self.start
        for extent in self.mapped.extents:
            first = extent.vaddr - base
            for page in pages.tolist():
                low = max(first, page << PAGE_SHIFT)
                high = min(first + extent.size, (page + 1) << PAGE_SHIFT)
                if low < high:
                    view = memory.view(extent.paddr + low - first, high - low)
                    canvas.data[low - canvas.start : high - canvas.start] = view

    def copy(self, memory: PhysicalMemory) -> Canvas:
        """Return the live bytes as they are now."""
        data = bytearray()
        for extent in self.mapped.extents:
            data += memory.view(extent.paddr, extent.size)
        return Canvas(self.start, data)


class KernelTextProof:
    """The proof about one running kernel.  Make it with :meth:`attach`."""

    def __init__(
        self,
        memory: PhysicalMemory,
        image: KernelImage,
        located: Finding,
        kernel: LocatedKernel | None,
        paused: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.memory = memory
        self.image = image
        self.located = located
        self.kernel = kernel
        self.replay: Replay | None = None
        self.settled = 0
        """How often a difference turned out to be the kernel patching itself."""
        self._paused = paused
        self._text: _Region | None = None
        self._rodata: list[_Region] = []

    @classmethod
    def attach(
        cls,
        memory: PhysicalMemory,
        vcpus: Sequence[VcpuState],
        image: KernelImage,
        *,
        paused: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> KernelTextProof:
        """Locate the kernel and build its expected image.

        ``paused`` holds the guest still for a moment; it is entered only to settle a mismatch.
        If the kernel is not located, :meth:`sweep` says so and compares nothing.
        """
        location = locate(memory, vcpus, image)
        proof = cls(memory, image, location.finding, location.kernel, paused)
        if location.kernel is not None:
            proof._build(location.kernel)
        return proof

    def _build(self, kernel: LocatedKernel) -> None:
        text = _Region(0, kernel.text, [])
        try:
            self.replay = replay(
                self.image, kernel.slide, text.copy(self.memory), self._values(kernel)
            )
            self._rodata = [
                _Region(start, self._map(kernel, start, stop), [])
                for start, stop in rodata_ranges(self.image)
            ]
        except MemoryFault as fault:
            self.located = Finding(
                self.located.id,
                Outcome.FAIL,
                f"the kernel is there but part of it cannot be read: {fault}",
                {**self.located.details, "address": f"{fault.address:#x}"},
                self.located.source,
            )
            self.kernel = None
            return
        self._text = text
        for region in (text, *self._rodata):
            region.refresh(self.replay.canvas)

    def _values(self, kernel: LocatedKernel) -> GuestValues:
        return GuestValues(AddressSpace(self.memory, kernel.cr3, kernel.la57).read, kernel.base)

    def _map(self, kernel: LocatedKernel, start: int, stop: int) -> MappedRange:
        return map_range(self.memory, kernel.cr3, kernel.la57, kernel.base + start, stop - start)

    def text_equal(self) -> bool:
        """Compare all kernel text with the expected image, once: the fast path of a sweep.

        False also if the page tables that map the text have changed.
        """
        text = self._text
        return text is not None and text.mapped.unchanged(self.memory) and text.equal(self.memory)

    def sweep(self) -> list[Finding]:
        """Compare everything and return the findings: located, text, rodata, notable."""
        if self.kernel is None or self.replay is None or self._text is None:
            return [self.located]
        try:
            mismatches = [] if self.text_equal() else self._settle()
        except MemoryFault as fault:
            return [self.located, _unreadable(TEXT, fault)]
        findings = [self.located, self._text_finding(mismatches), self._rodata_finding()]
        return [*findings, self._notable_finding()]

    def _settle(self) -> list[Mismatch]:
        """Follow the guest's state until the text is explained, or it is clear that it is not.

        First the guest runs on.  Then it is held still, for no longer than it takes to copy the
        pages that differ and the variables that decide them.  A kernel that was stopped in the
        middle of patching itself (text_poke_bp) is let go on, a few times.
        """
        assert self.kernel is not None
        assert self.replay is not None
        assert self._text is not None
        text = self._text
        if not text.mapped.unchanged(self.memory):
            text.mapped = self._map(self.kernel, 0, self.image.text_size)
        mismatches: list[Mismatch] = []
        for attempt in range(SETTLE_TRIES + POKE_TRIES):
            live = text.copy(self.memory)
            self.replay.follow(self._values(self.kernel), live)
            mismatches = find_mismatches(self.replay, live, self.kernel.base)
            poking = False
            if mismatches and attempt >= SETTLE_TRIES - 1:
                mismatches, poking = self._look_closely(text, mismatches)
            text.refresh(self.replay.canvas)
            if not mismatches:
                self.settled += 1
                break
            if attempt >= SETTLE_TRIES - 1 and not poking:
                break
            time.sleep(SETTLE_WAIT_S)
        return mismatches

    def _look_closely(
        self, text: _Region, mismatches: list[Mismatch]
    ) -> tuple[list[Mismatch], bool]:
        """Hold the guest still and look again at the pages that differ.

        Returns what still differs, and whether text_poke_bp() is in the middle of a patch.
        """
        assert self.kernel is not None
        assert self.replay is not None
        offsets = np.array([at for each in mismatches for at in each.offsets], dtype=np.int64)
        pages = np.unique(
            np.concatenate((offsets >> 12, (offsets - 15) >> 12, (offsets + 15) >> 12))
        )
        narrowed = self.replay.run_time.within(pages)
        live = text.copy(self.memory)
        with self._paused():
            values = self._values(self.kernel)
            text.copy_pages(self.memory, live, pages)
            self.replay.follow(values, live, narrowed)
            poking = bool(text_poke.under_way(self.image, values))
        return find_mismatches(self.replay, live, self.kernel.base), poking

    def _text_finding(self, mismatches: list[Mismatch]) -> Finding:
        assert self.replay is not None
        unexplained = sum(len(mismatch.offsets) for mismatch in mismatches)
        size = self.image.text_size
        details: dict[str, JsonValue] = {
            "bytes": size,
            "unexplained": unexplained,
            "rules": self.replay.statistics(),
            "choices": self.replay.choices.as_json(),
            "settled": self.settled,
        }
        if not mismatches:
            summary = f"all {size:,} bytes of kernel text are explained"
            return Finding(TEXT, Outcome.PASS, summary, details, self._source())
        details["places"] = len(mismatches)
        details["mismatches"] = [mismatch.as_json() for mismatch in mismatches[:LISTED]]
        where = ", ".join(dict.fromkeys(mismatch.function for mismatch in mismatches[:4]))
        summary = f"{unexplained:,} bytes of kernel text are not explained, in {where}"
        return Finding(TEXT, Outcome.FAIL, summary, details, self._source())

    def _rodata_finding(self) -> Finding:
        assert self.replay is not None
        assert self.kernel is not None
        size = sum(region.mapped.size for region in self._rodata)
        changed: list[Mismatch] = []
        try:
            for region in self._rodata:
                if not region.mapped.unchanged(self.memory):
                    stop = region.start + region.mapped.size
                    region.mapped = self._map(self.kernel, region.start, stop)
                    region.refresh(self.replay.canvas)
                if not region.equal(self.memory):
                    live = region.copy(self.memory)
                    changed += find_mismatches(self.replay, live, self.kernel.base)
        except MemoryFault as fault:
            return _unreadable(RODATA, fault)
        details: dict[str, JsonValue] = {
            "bytes": size,
            "unexplained": sum(len(mismatch.offsets) for mismatch in changed),
        }
        if not changed:
            summary = f"all {size:,} bytes of constant data equal the package"
            return Finding(RODATA, Outcome.PASS, summary, details, self._source())
        details["mismatches"] = [mismatch.as_json(code=False) for mismatch in changed[:LISTED]]
        where = ", ".join(dict.fromkeys(mismatch.function for mismatch in changed[:4]))
        summary = f"constant data was changed, in {where}"
        return Finding(RODATA, Outcome.FAIL, summary, details, self._source())

    def notable(self) -> list[Notable]:
        """Return what is lawful but worth knowing, as of the last look at the run-time state."""
        if self.replay is None or self.replay.state is None or self.kernel is None:
            return []
        return notable(self.image, self.replay.state, self.kernel.base)

    def _notable_finding(self) -> Finding:
        found = self.notable()
        summary = "; ".join(each.text for each in found) or "nothing lawful but unusual is active"
        details: dict[str, JsonValue] = {"notable": [each.as_json() for each in found]}
        return Finding(NOTABLE, Outcome.PASS, summary, details, self._source())

    def _source(self) -> str:
        return f"vmlinuz sha256:{self.image.sha256}"


def _unreadable(finding: str, fault: MemoryFault) -> Finding:
    return Finding(
        finding,
        Outcome.FAIL,
        f"the kernel's own memory cannot be read: {fault}",
        {"address": f"{fault.address:#x}"},
    )


def rodata_ranges(image: KernelImage) -> list[tuple[int, int]]:
    """Return what of .rodata never changes: all but the part that boot code writes.

    [__start_ro_after_init, __end_ro_after_init) is set up by the kernel's init code and then
    made read-only; its contents are state, not constants.
    """
    start, stop = image.offset("__start_rodata"), image.offset("__end_rodata")
    hole, after = image.offset("__start_ro_after_init"), image.offset("__end_ro_after_init")
    return [(start, hole), (after, stop)]


__all__ = ["KernelTextProof", "Mismatch", "rodata_ranges"]
