"""Prove the running kernel's code equal to its package, and keep proving it.

``KernelTextProof.attach`` builds the expected image once; ``sweep`` compares it with the
guest's frames at the speed of a memory comparison.  When they differ, the guest may just be
patching itself: ``settle`` tells that from a mismatch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from undercroft.base import Finding, FormatError, JsonValue, MemoryFault, Outcome
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.explain import Mismatch, find_mismatches, kernel_owner
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.notable import Notable, notable
from undercroft.reference.kernel.replay import Replay, replay
from undercroft.reference.kernel.standing import standing
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.linux.generated_text import GeneratedCode
from undercroft.securekernel.linux.locate import LocatedKernel, locate
from undercroft.securekernel.linux.modules_text import ModuleLibrary, ModuleProofs
from undercroft.securekernel.linux.region import Region
from undercroft.securekernel.linux.settle import Settled, Settler
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.vcpu import VcpuState

TEXT, RODATA, NOTABLE = "kernel.text", "kernel.rodata", "kernel.notable"
SETTLE_TRIES = 3
SETTLE_WAIT_S = 0.002
SYSTEM_RUNNING = 3
"""enum system_states (include/linux/kernel.h): boot is over, and what it needed is freed."""
LISTED = 16
"""Mismatches that a finding lists; it counts all of them."""


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
        self.modules: ModuleProofs | None = None
        self.settled = 0
        """How often a difference turned out to be the kernel patching itself."""
        self._paused = paused
        self.settler = Settler(self._values, paused, self._clock)
        self._at_rest = False
        self._owner = kernel_owner(image)
        self._text: Region | None = None
        self._rodata: list[Region] = []

    @classmethod
    def attach(
        cls,
        memory: PhysicalMemory,
        vcpus: Sequence[VcpuState],
        image: KernelImage,
        *,
        paused: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        library: ModuleLibrary | None = None,
    ) -> KernelTextProof:
        """Locate the kernel and build its expected image.

        ``paused`` holds the guest still for a moment; it is entered only to settle a mismatch.
        ``library`` gives the modules of the package.  If the kernel is not located,
        :meth:`sweep` says so and compares nothing.
        """
        location = locate(memory, vcpus, image)
        proof = cls(memory, image, location.finding, location.kernel, paused)
        if location.kernel is not None:
            try:
                proof._build(location.kernel, library)
            except MemoryFault as fault:
                proof._give_up(
                    Outcome.FAIL,
                    f"the kernel is there but part of it cannot be read: {fault}",
                    {"address": f"{fault.address:#x}"},
                )
            except FormatError as error:
                proof._give_up(
                    Outcome.UNKNOWN,
                    f"the package's kernel lacks what the proof needs: {error}",
                    {"missing": error.reason},
                )
        return proof

    def _build(self, kernel: LocatedKernel, library: ModuleLibrary | None) -> None:
        if self._boots():
            why = "the kernel is there but still boots: it has not finished patching itself"
            self._give_up(Outcome.UNKNOWN, why, {"cause": "booting"})
            return
        text = Region(self.memory, kernel.cr3, kernel.la57, 0, kernel.text)
        result = self._replay(text, kernel)
        self._rodata = [self._region(start, stop) for start, stop in rodata_ranges(self.image)]
        for region in self._rodata:
            region.refresh(result.canvas)
        self._text = text
        self.replay = result
        self._take(result)
        if library is not None:
            self.modules = ModuleProofs(result, library, self._region, self._values, self.settler)

    def _boots(self) -> bool:
        """Tell whether the kernel says that it is not up yet.  Then nothing is proved: UNKNOWN."""
        state = self.image.find("system_state")
        return state is not None and self._values().u32(state) < SYSTEM_RUNNING

    def _replay(self, text: Region, kernel: LocatedKernel) -> Replay:
        """Replay; a list that changed under our hands is read again."""
        for _ in range(SETTLE_TRIES - 1):
            with contextlib.suppress(MemoryFault):
                return replay(self.image, kernel.slide, text.copy(), self._values())
            time.sleep(SETTLE_WAIT_S)
        return replay(self.image, kernel.slide, text.copy(), self._values())

    def _give_up(self, outcome: Outcome, summary: str, details: dict[str, JsonValue]) -> None:
        self.located = Finding(
            self.located.id,
            outcome,
            summary,
            {**self.located.details, **details},
            self.located.source,
        )
        self.kernel = None

    def _values(self) -> GuestValues:
        assert self.kernel is not None
        space = AddressSpace(self.memory, self.kernel.cr3, self.kernel.la57)
        return GuestValues(space.read, self.kernel.base)

    def _region(self, start: int, stop: int) -> Region:
        assert self.kernel is not None
        kernel = self.kernel
        return Region.at(self.memory, kernel.cr3, kernel.la57, kernel.base, start, stop)

    def text_equal(self) -> bool:
        """Compare all kernel text with the expected image, once: the fast path of a sweep.

        False also if the page tables that map the text have changed, or if a patch was in
        progress at the last look.
        """
        text = self._text
        return text is not None and self._at_rest and text.unchanged() and text.equal()

    def sweep(self) -> list[Finding]:
        """Compare everything; return the findings: located, text, rodata, modules, generated,
        notable.

        Modules are compared only if a library of them was given.
        """
        if self.kernel is None or self.replay is None:
            return [self.located]
        try:
            result = None if self.text_equal() else self._settle()
        except MemoryFault as fault:
            return [self.located, _unreadable(TEXT, fault)]
        return [
            self.located,
            self._text_finding(result),
            self._rodata_finding(),
            *([self.modules.check()] if self.modules is not None else []),
            self._generated_finding(),
            self._notable_finding(),
        ]

    def _settle(self) -> Settled:
        """Follow the guest's state until the text is explained, or it is clear that it is not."""
        assert self.replay is not None
        assert self._text is not None
        result = self.settler.settle(self.replay, self._text)
        assert result is not None
        self._take(self.replay)
        if result.clean:
            self.settled += 1
        return result

    def _take(self, replayed: Replay) -> None:
        """Expect from now on what the replay says; a patch in progress is asked about again."""
        assert self._text is not None
        self._text.refresh(replayed.canvas)
        self._at_rest = replayed.state is not None and not len(replayed.state.moving)

    def _clock(self) -> int:
        """Return the guest's clock (jiffies_64), or 0 if there is none to read."""
        clock = self.image.find("jiffies_64")
        return self._values().u64(clock) if clock is not None else 0

    def _compare(self, live: Canvas) -> list[Mismatch]:
        assert self.kernel is not None
        assert self.replay is not None
        return find_mismatches(self.replay.canvas, live, self.kernel.base, self._owner)

    def _text_finding(self, result: Settled | None) -> Finding:
        assert self.kernel is not None
        assert self.replay is not None
        size = self.image.executable_size
        details: dict[str, JsonValue] = {
            "bytes": size,
            "unexplained": 0,
            "rules": self.replay.statistics(),
            "choices": self.replay.choices.as_json(),
            "settled": self.settled,
        }
        if result is None or result.clean:
            summary = f"all {size:,} bytes of kernel text are explained"
            return Finding(TEXT, Outcome.PASS, summary, details, self._source())
        mismatches = result.mismatches(self.replay.canvas, self.kernel.base, self._owner)
        unexplained = sum(len(mismatch.offsets) for mismatch in mismatches)
        details["unexplained"] = unexplained
        details["places"] = len(mismatches)
        details["mismatches"] = [mismatch.as_json() for mismatch in mismatches[:LISTED]]
        where = ", ".join(dict.fromkeys(mismatch.function for mismatch in mismatches[:4]))
        summary = f"{unexplained:,} bytes of kernel text are not explained, in {where}"
        if result.still:
            summary = f"the guest stands still in the middle of patching its text, in {where}"
        return Finding(TEXT, result.outcome, summary, details, self._source())

    def _rodata_finding(self) -> Finding:
        assert self.replay is not None
        size = sum(region.mapped.size for region in self._rodata)
        changed: list[Mismatch] = []
        try:
            for region in self._rodata:
                if not region.unchanged():
                    region.remap()
                    region.refresh(self.replay.canvas)
                if not region.equal():
                    changed += self._compare(region.copy())
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

    def _generated_finding(self) -> Finding:
        assert self.replay is not None
        modules = self.modules
        pages = modules.its_pages() if modules is not None else frozenset()
        return GeneratedCode(self.replay, self._values, self._code_at, pages).check()

    def _code_at(self, position: int) -> Canvas | None:
        """Return the expected code that a position falls in: the kernel's or a module's."""
        assert self.replay is not None
        if 0 <= position < self.image.text_size:
            return self.replay.canvas
        return self.modules.code_at(position) if self.modules is not None else None

    def notable(self) -> list[Notable]:
        """Return what is lawful but worth knowing, as of the last look at the run-time state."""
        if self.replay is None or self.replay.state is None or self.kernel is None:
            return []
        found = notable(self.image, self.replay.state, self.kernel.base)
        return [*found, *standing(self.image, self._values())]

    def _notable_finding(self) -> Finding:
        found = self.notable()
        summary = "; ".join(each.text for each in found) or "nothing lawful but unusual is active"
        details: dict[str, JsonValue] = {"notable": [each.as_json() for each in found]}
        return Finding(NOTABLE, Outcome.PASS, summary, details, self._source())

    def translate(self, address: int) -> int:
        """Return the physical address of a kernel address; MemoryFault if it has none."""
        assert self.kernel is not None
        return AddressSpace(self.memory, self.kernel.cr3, self.kernel.la57).translate(address)

    def rodata_addresses(self) -> list[tuple[int, int]]:
        """Return [start, stop) of the constant data that is compared, as virtual addresses."""
        return [
            (region.mapped.vaddr, region.mapped.vaddr + region.mapped.size)
            for region in self._rodata
        ]

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


__all__ = ["KernelTextProof", "Mismatch", "Notable", "rodata_ranges"]
