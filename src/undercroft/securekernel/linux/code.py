"""Which addresses are lawful targets: the kernel's own functions, and vouched-for modules.

Whether the bytes at a target are what they should be is proven elsewhere (``text``); that
nothing without an owner can run, in ``closure``.  Here it is asked where a pointer leads.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass

from undercroft.securekernel.arch.x86_64.walk import Run, U, runs, walk
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.modules import Module, modules_by_view, read_module
from undercroft.securekernel.linux.owners import (
    BPF,
    FTRACE,
    KPROBE,
    Owner,
    collect_owners,
    uncovered,
)

TAINT_OOT_MODULE, TAINT_UNSIGNED_MODULE = 12, 13  # include/linux/panic.h
_UNVOUCHED = 1 << TAINT_OOT_MODULE | 1 << TAINT_UNSIGNED_MODULE
_GENERATED = frozenset({BPF, FTRACE, KPROBE})
_KERNEL_HALF = range(256, 512)


@dataclass(frozen=True, slots=True)
class CodeRange:
    """[start, end) of one module's text; ``vouched`` as in :class:`CodeMap`.

    One that is not, and not ``foreign`` either, may be lawful: nobody can tell.
    """

    start: int
    end: int
    name: str
    vouched: bool
    foreign: bool = False

    @property
    def why(self) -> str:
        """Why nobody vouches for it."""
        return "not signed" if self.foreign else "whose code was not compared with a package"


class CodeMap:
    """The code of one kernel, as of now.

    A module is vouched for when its code was compared with its package (``LiveKernel.proven``).
    Only where no package is at hand does the kernel's own mark count: that it checked the
    signature as the module was loaded (no taint O or E in its ``struct module``).  One with that
    mark is foreign in any case.
    """

    def __init__(self, kernel: LiveKernel) -> None:
        self._kernel = kernel
        self.text = (kernel.symbol("_stext"), kernel.symbol("_etext"))
        self._rodata = (kernel.symbol("__start_rodata"), kernel.symbol("__end_rodata"))
        self.modules: list[CodeRange] = []
        modules = [read_module(kernel, address) for address in modules_by_view(kernel)]
        starts = frozenset(module.text.start for module in modules)
        proven = starts if kernel.proven is None else kernel.proven(starts)
        for module in modules:
            self.modules += _ranges(module, module.text.start in proven)
        self.modules.sort(key=lambda one: one.start)
        self._starts = [one.start for one in self.modules]
        self._owners = collect_owners(kernel)
        self._generated = [one for one in self._owners if one.kind in _GENERATED]
        self._executable = _executable_runs(kernel)
        self._run_starts = [run.vaddr for run in self._executable]

    def module_at(self, address: int) -> CodeRange | None:
        """Return the module text that holds the address, if any."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self.modules[index].end:
            return self.modules[index]
        return None

    def generated_at(self, address: int) -> Owner | None:
        """Return the generated code (BPF, trampoline, probe slot) that holds it, if any."""
        return next((one for one in self._generated if one.start <= address < one.end), None)

    def in_text(self, address: int) -> bool:
        """Whether the address is in the kernel's own text."""
        return self.text[0] <= address < self.text[1]

    def is_function(self, address: int) -> bool:
        """Whether the address is where a symbol of the kernel's own text starts."""
        link = address - self._kernel.slide
        return self.in_text(address) and self._kernel.image.symbols.locate(link)[1] == 0

    def is_executable(self, address: int) -> bool:
        """Whether the kernel could run what is at the address, whoever owns it."""
        index = bisect_right(self._run_starts, address) - 1
        return index >= 0 and address < self._executable[index].end

    def problem(self, address: int, *, generated: bool = False) -> str:
        """Return what is wrong with ``address`` as the target of a call, or "".

        With ``generated`` code that the kernel generates is a lawful target as well.
        """
        if self.in_text(address):
            return "" if self.is_function(address) else "it leads into the middle of a function"
        module = self.module_at(address)
        if module is not None:
            return "" if module.vouched else f"it leads into module {module.name}, {module.why}"
        if self.generated_at(address) is not None:
            return "" if generated else "it leads into generated code"
        return "it leads to memory that holds no known code"

    def is_certain(self, address: int) -> bool:
        """Whether a problem with ``address`` is one for certain, not a lack of knowledge."""
        module = self.module_at(address)
        return module is None or module.foreign

    def table_problem(self, address: int, struct_name: str) -> tuple[str, bool]:
        """Return what is wrong with a table of operations, or "", and whether that is certain.

        One in the kernel's constant data is compared with the package there.  Of any other each
        word that leads to code must lead to lawful code, whatever its name is.
        """
        if self._rodata[0] <= address < self._rodata[1]:
            return "", True
        size = self._kernel.size_of(struct_name) & ~7
        words = struct.unpack(f"<{size // 8}Q", self._kernel.read(address, size))
        for number, word in enumerate(words):
            if self.is_executable(word) and (problem := self.problem(word)):
                text = f"operation {number}: {problem} ({self.describe(word)})"
                return text, self.is_certain(word)
        return "", True

    def describe(self, address: int) -> str:
        """Return ``symbol``, ``[module]+0x12`` or digits, for a person."""
        module = self.module_at(address)
        if module is not None:
            return f"[{module.name}]+{address - module.start:#x}"
        owner = self.generated_at(address)
        if owner is not None:
            return f"[{owner.kind} {owner.name}]"
        return self._kernel.name_of(address)

    def suspects(self) -> tuple[CodeRange, ...]:
        """Return the code that nobody vouches for: modules, and what has no owner at all."""
        foreign = [one for one in self.modules if not one.vouched]
        for run in self._executable:
            foreign += [
                CodeRange(start, end, "memory without an owner", vouched=False, foreign=True)
                for start, end in uncovered(run.vaddr, run.end, self._owners)
            ]
        return tuple(foreign)


def _executable_runs(kernel: LiveKernel) -> tuple[Run, ...]:
    pages = walk(
        kernel.memory,
        kernel.space.root,
        kernel.space.la57,
        slots=_KERNEL_HALF,
        executable_only=True,
    )
    return runs(pages.with_rights(0, forbidden=U))


def _ranges(module: Module, proven: bool) -> list[CodeRange]:
    foreign = bool(module.taints & _UNVOUCHED)
    return [
        CodeRange(part.start, part.end, module.name, proven and not foreign, foreign)
        for part in (module.text, module.init_text)
        if part.size
    ]
