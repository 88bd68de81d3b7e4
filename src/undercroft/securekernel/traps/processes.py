"""Covers the code of chosen processes: what user mode can execute, page by page, as it is mapped.

A process maps its code as it needs it, and the kernel takes pages away and brings them back in
other frames.  So the pages are looked up often, and the cover follows.  A page that is found in
another frame must hold the same bytes; code that appears is covered from then on.  Pages that are
writable as well (a JIT's) are left out: nothing could be said of them.

Frames of the page cache are shared: a write to a library's page through any process, or to its
file, is seen.  The page tables of the process are not trapped: that an address leads elsewhere
is seen at the next look.
"""

from __future__ import annotations

import hashlib

from undercroft.base import EnvironmentFault, MemoryFault
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.arch.x86_64.walk import U, W, X, walk
from undercroft.securekernel.linux.locate import LocatedKernel
from undercroft.securekernel.linux.mapped import Extent
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.securekernel.linux.user import Process, processes
from undercroft.securekernel.traps.guard import Guard
from undercroft.securekernel.traps.judge import Cover
from undercroft.securekernel.traps.regions import PAGE, Region
from undercroft.securekernel.traps.watch import Watch, live_kernel

POLL_S = 0.1
MAX_PAGES = 1 << 16
_USER = range(256)

Frames = dict[int, int]
"""Virtual address of each page of code -> its guest-physical address."""


def region_name(pid: int) -> str:
    """Return the name of a process's region."""
    return f"process.{pid}.code"


class ProcessWatch(Watch):
    """Covers the code of processes ``pids`` (the guest's numbers) until they end.

    Raises EnvironmentFault if the kernel is not located.
    """

    def __init__(
        self, guard: Guard, proof: KernelTextProof, pids: tuple[int, ...], *, poll_s: float = POLL_S
    ) -> None:
        if proof.kernel is None:
            raise EnvironmentFault("there is no kernel whose processes could be covered")
        super().__init__(guard, "processes", poll_s)
        self._memory = proof.memory
        self._kernel: LocatedKernel = proof.kernel
        self._reader = live_kernel(proof.memory, proof.image, proof.kernel)
        self._pids = pids
        self._known: dict[int, tuple[Process, Frames]] = {}
        self._digests: dict[tuple[int, int], bytes] = {}
        self.start()

    def look(self) -> None:
        """Look at the chosen processes once; cover what they can execute now."""
        found = processes(self._reader.fresh())
        here = {process.pid: process for process in found if process.pid in self._pids}
        for pid, (process, _) in list(self._known.items()):
            if here.get(pid) != process:  # it ended, or executes another program now
                self._guard.uncover(region_name(pid), "ended")
                del self._known[pid]
                self._digests = {key: each for key, each in self._digests.items() if key[0] != pid}
        for pid, process in here.items():
            frames = self._frames(process)
            before = self._known.get(pid)
            lost = region_name(pid) not in self._guard.covers()
            if frames and (before is None or before[1] != frames or lost):
                self._follow(process, frames)

    def _frames(self, process: Process) -> Frames:
        pages = walk(
            self._memory, process.root, self._kernel.la57, slots=_USER, executable_only=True
        ).with_rights(X | U, W)
        frames = {}
        for vaddr, paddr, size in zip(
            pages.vaddr.tolist(), pages.paddr.tolist(), pages.size.tolist(), strict=True
        ):
            for offset in range(0, size, PAGE):
                frames[vaddr + offset] = paddr + offset
                if len(frames) > MAX_PAGES:
                    raise MemoryFault(vaddr, kind="virtual", why="too much code to be covered")
        return frames

    def _follow(self, process: Process, frames: Frames) -> None:
        """Cover ``frames``, and look at each page that is new now that it cannot change unseen."""
        extents = tuple(Extent(vaddr, frames[vaddr], PAGE) for vaddr in sorted(frames))
        region = Region(region_name(process.pid), extents)
        root, la57 = process.root, self._kernel.la57

        def is_free(_region: Region, vaddr: int, page: int) -> bool:
            try:
                found = AddressSpace(self._memory, root, la57).translate(vaddr & -PAGE)
            except MemoryFault:
                return True
            return found != page

        self._guard.cover(Cover(region.name, (region,), None, is_free))
        self._known[process.pid] = (process, frames)
        for vaddr, paddr in frames.items():
            digest = hashlib.sha256(self._memory.read(paddr, PAGE)).digest()
            if self._digests.setdefault((process.pid, vaddr), digest) != digest:
                self._digests[process.pid, vaddr] = digest
                reason = f"the page at {vaddr:#x} holds other code than before"
                self._guard.note_violation(region.name, reason)
