"""Which addresses are lawful targets: the kernel's own functions, and vouched-for modules.

Whether the bytes at a target are what they should be is proven elsewhere (``text``); that
nothing without an owner can run, in ``closure``.  Here it is asked where a pointer leads.
"""

from __future__ import annotations

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
    """[start, end) of one module's text; ``vouched`` as in :class:`CodeMap`."""

    start: int
    end: int
    name: str
    vouched: bool


class CodeMap:
    """The code of one kernel, as of now.

    A module is vouched for when the kernel checked its signature as it was loaded and did not
    mark it as foreign (taints O and E of its ``struct module``).  That is the guest's own word:
    it holds for a module that does not forge it, and no longer than its text is unchanged.
    """

    def __init__(self, kernel: LiveKernel) -> None:
        self._kernel = kernel
        self.text = (kernel.symbol("_stext"), kernel.symbol("_etext"))
        self.modules: list[CodeRange] = []
        for address in modules_by_view(kernel):
            module = read_module(kernel, address)
            self.modules += _ranges(module)
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
            return "" if module.vouched else f"it leads into module {module.name}, not signed"
        if self.generated_at(address) is not None:
            return "" if generated else "it leads into generated code"
        return "it leads to memory that holds no known code"

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
                CodeRange(start, end, "memory without an owner", vouched=False)
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


def _ranges(module: Module) -> list[CodeRange]:
    vouched = not module.taints & _UNVOUCHED
    return [
        CodeRange(part.start, part.end, module.name, vouched)
        for part in (module.text, module.init_text)
        if part.size
    ]
