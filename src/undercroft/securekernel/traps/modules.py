"""Covers the code and constants of modules, as they come and go.

The guest's list of modules is looked at often, by a thread of its own.  A module is covered when it
has been loaded, its init code is gone and its constants are read-only (do_init_module() in
kernel/module/main.c); what stands in its code then has to be what its package's replay asks for.
Between the end of its loading and that moment it is not covered: it appears in the epochs from
then on.  A module that no package has, has no known places: it is named, and not covered.

Modules are freed without notice.  A write to a covered page is no violation if the guest has given
the page up: the module is in no list any more, and its address leads elsewhere.  An entry of a
page table may be changed when the module has left the list.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from undercroft.base import EnvironmentFault, MemoryFault
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.module_replay import ModuleReplay
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.linux.facts import WALK_ERRORS
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.locate import LocatedKernel
from undercroft.securekernel.linux.mapped import Extent, map_range
from undercroft.securekernel.linux.modules import Module, Span, module_list, read_module
from undercroft.securekernel.linux.modules_text import ModuleProofs
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.securekernel.traps.explain import GuestsWord, ModuleExplainer, own_copy
from undercroft.securekernel.traps.guard import Guard
from undercroft.securekernel.traps.judge import Cover, TextJudge
from undercroft.securekernel.traps.regions import PAGE, Region, page_table_entries
from undercroft.securekernel.traps.sites import TextSites
from undercroft.securekernel.traps.watch import Watch, live_kernel

POLL_S = 0.1
LOADING_S = 5.0
"""A module whose init code is not freed after so long is covered all the same."""
EXPLAIN_S = 2.0
"""How long the code of a module may be in the middle of being patched when it is covered."""
_TORN_TRIES = 5
_MOD_RODATA, _MOD_RO_AFTER_INIT = 2, 3  # enum mod_mem_type, since 6.4


def region_name(module: str, part: str) -> str:
    """Return the name of a module's region: its ``text``, ``constants`` or ``page-tables``."""
    return f"module.{module}.{part}"


@dataclass(frozen=True, slots=True)
class _Covered:
    """A module that is covered: enough to tell it from the next one of the same name."""

    address: int
    text: Span


class ModuleWatch(Watch):
    """Covers every module that has a reference, until closed.  ``proof`` has located the kernel.

    Raises EnvironmentFault if it has not.
    """

    def __init__(self, guard: Guard, proof: KernelTextProof, *, poll_s: float = POLL_S) -> None:
        if proof.kernel is None or proof.replay is None:
            raise EnvironmentFault("there is no kernel whose modules could be covered")
        super().__init__(guard, "modules", poll_s)
        self._memory = proof.memory
        self._kernel: LocatedKernel = proof.kernel
        self._reader = live_kernel(proof.memory, proof.image, proof.kernel)
        self._word = GuestsWord(proof.image, proof.memory, proof.kernel)
        self._proofs: ModuleProofs | None = (
            proof.modules.apart(own_copy(proof.replay)) if proof.modules is not None else None
        )
        self._covered: dict[str, _Covered] = {}
        self._since: dict[tuple[int, str], float] = {}
        self._unknown: tuple[str, ...] = ()
        self.start()

    def not_covered(self) -> tuple[str, ...]:
        """Return the modules that are loaded and not covered, as of the last look."""
        return self._unknown

    def _live(self) -> LiveKernel:
        return self._reader.fresh()

    def look(self) -> None:
        """Look at the list once; cover what has come, give up what has gone."""
        live = self._live()
        listed = [read_module(live, address) for address in module_list(live)]
        here = {module.name: _Covered(module.address, module.text) for module in listed}
        for name, covered in list(self._covered.items()):
            if here.get(name) != covered and self._is_unmapped(covered.text.start):
                self._guard.uncover(name, "unloaded")
        still = self._guard.covers()
        self._covered = {name: each for name, each in self._covered.items() if name in still}
        ready = self._loaded(listed)
        unknown = []
        for module in ready:
            if module.name in self._covered:
                continue
            replay = self._replay_of(module)
            if replay is None:
                unknown.append(module.name)
            else:
                self._cover(live, module, replay)
        self._unknown = tuple(unknown)

    def _loaded(self, listed: list[Module]) -> list[Module]:
        """Return the modules whose loading has come to its end."""
        now = time.monotonic()
        keys = {(module.address, module.name) for module in listed if module.live}
        self._since = {key: self._since.get(key, now) for key in keys}
        return [
            module
            for module in listed
            if module.live
            and (
                module.init_text.size == 0
                or now - self._since[module.address, module.name] > LOADING_S
            )
        ]

    def _replay_of(self, module: Module) -> ModuleReplay | None:
        """Return a replay of the module's code that nobody else repaints; None if it is unknown."""
        if self._proofs is None:
            return None
        found = self._proofs.replay_of(module.address, module.name)
        if found is None:
            return None
        kernel = replace(found.kernel, records=copy.deepcopy(found.kernel.records))
        return replace(found, canvas=copy.deepcopy(found.canvas), kernel=kernel)

    def _cover(self, live: LiveKernel, module: Module, replay: ModuleReplay) -> None:
        kernel, memory = self._kernel, self._memory

        def mapped(start: int, size: int) -> tuple[Extent, ...]:
            size = -(-size // PAGE) * PAGE
            return map_range(memory, kernel.cr3, kernel.la57, start, size).extents

        text = mapped(module.text.start, len(replay.canvas.data))
        constants = tuple(
            extent
            for span in _constants(live, module)
            if span.size
            for extent in mapped(span.start, span.size)
        )
        entries = page_table_entries(memory, kernel, (*text, *constants))
        regions = [
            Region(region_name(module.name, "text"), text, patched=True),
            Region(region_name(module.name, "page-tables"), entries, entries=True),
        ]
        if constants:
            regions.append(Region(region_name(module.name, "constants"), constants))
        canvas = Canvas(replay.canvas.start, bytearray(len(replay.canvas.data)))
        judge = TextJudge(
            kernel.base,
            TextSites(replay.run_time),
            ModuleExplainer(replay, self._word, canvas),
        )
        self._covered[module.name] = _Covered(module.address, module.text)
        self._guard.cover(
            Cover(module.name, tuple(regions), judge, self._is_free_of(module.address))
        )
        self._explain(module.name)

    def _explain(self, name: str) -> None:
        """Now that it cannot change unseen, look at it: it may be being patched right now."""
        deadline = time.monotonic() + EXPLAIN_S
        while not self._guard.explains(name):
            if time.monotonic() > deadline:
                reason = "its code is not what its package has"
                self._guard.note_violation(region_name(name, "text"), reason)
                return
            time.sleep(self._poll_s / 4)

    def _is_free_of(self, address: int) -> Callable[[Region, int, int], bool]:
        def is_free(region: Region, vaddr: int, page: int) -> bool:
            if self._is_listed(address):
                return False
            return region.entries or self._is_unmapped(vaddr & -PAGE, page)

        return is_free

    def _is_listed(self, address: int) -> bool:
        """Tell whether the module is in the list; a list that cannot be read leaves it there."""
        for _ in range(_TORN_TRIES):
            with contextlib.suppress(*WALK_ERRORS):
                return address in set(module_list(self._live()))
        return True

    def _is_unmapped(self, vaddr: int, page: int | None = None) -> bool:
        """Tell whether an address leads nowhere, or at least not to ``page``."""
        kernel = self._kernel
        try:
            found = AddressSpace(self._memory, kernel.cr3, kernel.la57).translate(vaddr)
        except MemoryFault:
            return True
        return page is not None and found & -PAGE != page


def _constants(kernel: LiveKernel, module: Module) -> tuple[Span, ...]:
    """Return what of a module is read-only once it is loaded."""
    if kernel.has("module", "mem"):  # since 6.4
        memory = module.address + kernel.offset("module", "mem")
        step = kernel.size_of("module_memory")
        return tuple(
            Span(
                kernel.member_u64(memory + step * kind, "module_memory", "base"),
                kernel.member_u32(memory + step * kind, "module_memory", "size"),
            )
            for kind in (_MOD_RODATA, _MOD_RO_AFTER_INIT)
        )
    text, end = (
        kernel.member_u32(module.address, "module", f"core_layout.{size}")
        for size in ("text_size", "ro_after_init_size")
    )
    return (Span(module.text.start + text, max(0, end - text)),)
