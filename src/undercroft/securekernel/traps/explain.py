"""Does the replay explain what stands in patched text now?  The strict half of a trap's answer.

It keeps its own copy of the replay and of the live text, so that nothing else in the process has
to be locked out, and it looks at single pages, so that an answer takes milliseconds.  A module's
code is small enough to be looked at whole.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from undercroft.base import MemoryFault
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel import kprobes
from undercroft.reference.kernel.canvas import Canvas, Positions
from undercroft.reference.kernel.guest import GuestStructs, GuestValues
from undercroft.reference.kernel.module_replay import ModuleReplay
from undercroft.reference.kernel.nops import INT3
from undercroft.reference.kernel.replay import Replay
from undercroft.reference.kernel.run_time import RunTimeState
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.linux.locate import LocatedKernel
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.traps.regions import PAGE

_MAX_BATCH = 4096
_SPAN = 1 << 64
_SITE = 15
"""No site is longer, so a site that touches a page begins at most this far before it."""


class GuestsWord:
    """What the guest says about its patching, read anew at each question."""

    def __init__(self, image: KernelImage, memory: PhysicalMemory, kernel: LocatedKernel) -> None:
        self.image = image
        self._memory = memory
        self._kernel = kernel
        self._batch: tuple[bytes, dict[int, bytes]] = (b"", {})
        """The last batch, as it was read and decoded: each of its writes asks for it."""

    def values(self) -> GuestValues:
        """Return the guest's variables as mapped now.

        An address space remembers its translations.  The kernel stacks that hold the batches of
        text_poke_bp() come and go, so that each question asks the page tables anew.
        """
        kernel = self._kernel
        return GuestValues(AddressSpace(self._memory, kernel.cr3, kernel.la57).read, kernel.base)

    def probes(self) -> list[int]:
        """Return the positions that the guest's table of kprobes lists now."""
        try:
            found = kprobes.read_probes(self.image, GuestStructs(self.values(), self.image.btf))
        except MemoryFault:
            return []
        return [probe.site for probe in found]

    def patching(self) -> bool:
        """Tell whether the guest says that it is in the middle of a patch (text_poke_bp)."""
        return bool(self.announced())

    def announced(self) -> dict[int, bytes] | None:
        """Return the batch of patches that the guest says is under way: position -> new bytes.

        text_poke_bp_batch() publishes its vector before it writes the first INT3
        (arch/x86/kernel/alternative.c: bp_desc, struct text_poke_loc), so that a CPU that runs
        into an INT3 knows what to do.  Empty if none is; None if this kernel has no such
        variable.  The guest's word, which a thorough attacker can forge: what lands is checked
        all the same.
        """
        image = self.image
        descriptor = image.find("bp_desc")
        types = image.btf
        if descriptor is None or "bp_patching_desc" not in types or "text_poke_loc" not in types:
            return None
        values = self.values()
        structs = GuestStructs(values, types)
        address = values.address(descriptor)
        try:
            if structs.u32(address, "bp_patching_desc", "refs") == 0:
                return {}
            vector = structs.u64(address, "bp_patching_desc", "vec")
            count = structs.u32(address, "bp_patching_desc", "nr_entries")
            size = types.size_of("text_poke_loc")
            if count > _MAX_BATCH:
                return {}
            raw = values.read(values.position(vector), size * count)
        except MemoryFault:
            return {}
        if raw == self._batch[0]:
            return self._batch[1]
        text, length = (types.offset_of("text_poke_loc", name) for name in ("text", "len"))
        start = image.offset("_stext")
        where = types.offset_of("text_poke_loc", "rel_addr")
        decoded = {
            start + int.from_bytes(raw[at + where : at + where + 4], "little", signed=True): raw[
                at + text : at + text + min(raw[at + length], size - text)
            ]
            for at in range(0, len(raw), size)
        }
        self._batch = (raw, decoded)
        return decoded


class Explainer:
    """The expected text of one running kernel, repainted page by page.

    ``live`` is the text as the traps know it; the guard keeps it up to date.
    """

    def __init__(
        self, replay: Replay, memory: PhysicalMemory, kernel: LocatedKernel, live: Canvas
    ) -> None:
        self._replay = own_copy(replay)
        self.word = GuestsWord(replay.image, memory, kernel)
        self.live = live

    def follow(self, positions: list[int]) -> bool:
        """Repaint the pages that hold ``positions``; False if the guest's state is not readable."""
        at = np.array(positions, dtype=np.int64)
        pages = np.unique(np.concatenate(((at - _SITE) // PAGE, at // PAGE, (at + _SITE) // PAGE)))
        try:
            self._repaint(self.word.values(), pages)
        except MemoryFault:
            return False
        return True

    def _repaint(self, values: GuestValues, pages: Positions) -> None:
        self._replay.follow(values, self.live, self._replay.run_time.within(pages))

    @property
    def expected(self) -> Canvas:
        """The text as it should be, as of the last look at the guest's state."""
        return self._replay.canvas

    def moving(self) -> frozenset[int]:
        """Return the places that the guest says it is at work on, as of the last look.

        Their variable has changed and their turn has not come (reference.kernel.text_poke), and
        what stands there is of what their rule may leave.
        """
        state = self._state()
        return frozenset(state.moving.tolist()) if state is not None else frozenset()

    def _state(self) -> RunTimeState | None:
        return self._replay.state

    def explains(self, position: int, size: int, *, at_rest: bool) -> bool:
        """Tell whether the live bytes at a position are the expected ones.

        With ``at_rest`` the INT3 of a patch in progress, which the replay takes for what it is,
        is not yet an explanation.
        """
        found = self.live.get(position, size)
        if at_rest and found[0] == INT3[0]:
            return False
        return found == self.expected.get(position, size)

    def explains_all(self) -> bool:
        """Tell whether all live bytes are the expected ones now."""
        live = self.live
        return self.follow([live.start]) and live.data == self.expected.get(
            live.start, len(live.data)
        )

    def symbol(self, position: int) -> str:
        """Return ``function+0x12`` for a position."""
        image = self._replay.image
        name, distance = image.symbols.locate(image.link_base + position)
        return f"{name}+{distance:#x}"


class ModuleExplainer(Explainer):
    """The same for the code of one module, which nobody else may use the replay of."""

    def __init__(self, module: ModuleReplay, word: GuestsWord, live: Canvas) -> None:
        self._module = module
        self.word = word
        self.live = live

    def _repaint(self, values: GuestValues, _pages: Positions) -> None:
        self._module.follow(values, self.live)

    @property
    def expected(self) -> Canvas:
        """The text as it should be, as of the last look at the guest's state."""
        return self._module.canvas

    def _state(self) -> RunTimeState | None:
        return self._module.state

    def symbol(self, position: int) -> str:
        """Return ``function+0x12 [module]`` for a position."""
        name, distance = self._module.symbols.locate(position % _SPAN)
        return f"{name}+{distance:#x} [{self._module.placed.module.name}]"


def own_copy(replay: Replay) -> Replay:
    """Return a replay that can be repainted without a thought of who else uses ``replay``.

    With what the overlays hide: a probe that is there now may be taken away later.
    """
    canvas, records = copy.deepcopy((replay.canvas, replay.records))
    return replace(replay, canvas=canvas, records=records)
