"""The executable closure: nothing but owned code can run in the kernel, and nobody can write it.

All page tables in use are walked: init_mm, every vCPU's CR3, every process, the user halves
under page-table isolation, efi_mm, poking_mm and the trampoline's.  Four facts come of it:

====================== ========================================================================
kernel.closure.owned   every page that the kernel can execute has an owner
kernel.closure.wx      no such page is writable through the mapping it is executed by
kernel.closure.alias   no frame of such a page, or of .rodata, is writable through any mapping
kernel.closure.roots   every page table in use is one that the kernel made
====================== ========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from undercroft.base import Finding, FormatError, JsonValue, MemoryFault
from undercroft.securekernel.arch.x86_64 import cpu
from undercroft.securekernel.arch.x86_64.paging import CR3_ADDRESS, PAGE_SIZE, AddressSpace
from undercroft.securekernel.arch.x86_64.walk import (
    Pages,
    Run,
    Slots,
    U,
    W,
    X,
    overlapping,
    runs,
    walk_all,
)
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel
from undercroft.securekernel.linux.owners import collect_owners, efi_runtime, uncovered
from undercroft.securekernel.linux.tasks import task_list
from undercroft.securekernel.vcpu import VcpuState

_ACCESSED_DIRTY = np.uint64(0x60)
_USER_HALF = range(256)
_PTI_USER = PAGE_SIZE
"""Under page-table isolation a root is a pair: the kernel's, and one page up the user's."""
_X86_FEATURE_PTI = 7 * 32 + 11
_LOW_MEMORY = 1 << 20
POKING_MM = "poking_mm"
_GP_SHIFT, _GP_RUNNING = 2, 3  # kernel/rcu/rcu.h, RCU_SEQ_CTR_SHIFT and RCU_SEQ_STATE_MASK

_LIMITS = (
    "without SMEP the kernel could execute user pages: see cpu.control",
    "the firmware's EFI runtime code is owned by its memory map and not compared with a file; "
    "page 0 and device registers are writable and executable in efi_mm",
    "efi_mm keeps writable mappings of memory that the firmware gave back, where code may lie "
    "by now; they are counted, for it is in use only while the firmware is called",
    "an entry changed and changed back between two looks is for the write traps",
)

OWNED = FactSpec(
    "kernel.closure.owned",
    "every page that the kernel can execute has an owner",
    "there is executable kernel memory that nobody owns",
    _LIMITS,
    patient=True,
)
WX = FactSpec(
    "kernel.closure.wx",
    "no executable kernel page is writable",
    "kernel memory is writable and executable",
    _LIMITS,
)
ALIAS = FactSpec(
    "kernel.closure.alias",
    "no frame of kernel code is writable through any mapping",
    "kernel code can be written through another mapping",
    _LIMITS,
)
ROOTS = FactSpec(
    "kernel.closure.roots",
    "every page table in use is one that the kernel made",
    "a processor runs on page tables that no process owns",
    _LIMITS,
)
SPECS = (OWNED, WX, ALIAS, ROOTS)


@dataclass(frozen=True, slots=True)
class Root:
    """A page-table root in use: its physical address, and for a person what it belongs to."""

    name: str
    paddr: int
    efi: bool = False


def known_roots(kernel: LiveKernel) -> list[Root]:
    """Return every root that the kernel made, init_mm's first; both halves of each PTI pair."""
    roots = [Root("init_mm", kernel.space.root)]
    for name, pointer in (("efi_mm", False), (POKING_MM, True)):
        symbol = kernel.find_symbol(name)
        if symbol is None:
            continue
        mm = kernel.u64(symbol) if pointer else symbol
        pgd = kernel.member_u64(mm, "mm_struct", "pgd") if mm else 0
        if pgd:
            roots.append(Root(name, kernel.space.translate(pgd), efi=name == "efi_mm"))
    roots += _process_roots(kernel)
    if page_table_isolation(kernel):
        roots += [Root(f"{root.name} (user)", root.paddr + _PTI_USER, root.efi) for root in roots]
    header = kernel.u64(kernel.symbol("real_mode_header"))
    trampoline = kernel.member_u32(header, "real_mode_header", "trampoline_pgd")
    roots.append(Root("real-mode trampoline", trampoline))
    return roots


def _process_roots(kernel: LiveKernel) -> list[Root]:
    """Return the roots of every process in the task list, by its mm and by what it borrows."""
    found: dict[int, Root] = {}
    mms: set[int] = set()
    pid_at, comm_at = (kernel.offset("task_struct", name) for name in ("pid", "comm"))
    for task in task_list(kernel):
        for member in ("mm", "active_mm"):
            mm = kernel.member_u64(task, "task_struct", member)
            if not mm or mm in mms:
                continue
            mms.add(mm)
            paddr = kernel.space.translate(kernel.member_u64(mm, "mm_struct", "pgd"))
            name = f"{kernel.text(task + comm_at, 16)} ({kernel.u32(task + pid_at)})"
            found.setdefault(paddr, Root(name, paddr))
    found.pop(kernel.space.root, None)
    return list(found.values())


def page_table_isolation(kernel: LiveKernel) -> bool:
    """Whether the kernel set X86_FEATURE_PTI for this boot.

    The kernel's own variable: a lie here means user halves walked in vain or vCPUs in user mode
    on unknown roots, which is a finding.
    """
    capability = kernel.symbol("boot_cpu_data") + kernel.offset("cpuinfo_x86", "x86_capability")
    word = kernel.u32(capability + 4 * (_X86_FEATURE_PTI // 32))
    return bool(word >> (_X86_FEATURE_PTI % 32) & 1)


def _entries(kernel: LiveKernel, root: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    table = np.frombuffer(kernel.memory.read(root, PAGE_SIZE), dtype="<u8")
    return table.astype(np.uint64) & ~_ACCESSED_DIRTY


def walk_roots(kernel: LiveKernel, roots: Sequence[Root]) -> Pages:
    """Walk the first root whole, and of each other the entries that the first does not share."""
    first = roots[0]
    shared = _entries(kernel, first.paddr)
    slots: dict[int, Slots] = {first.paddr: np.ones(512, dtype=bool)}
    for root in roots[1:]:
        own = _entries(kernel, root.paddr)
        slots.setdefault(root.paddr, (own != shared) & ((own & np.uint64(1)) != 0))
    return walk_all(kernel.memory, slots, kernel.space.la57)


class Closure:
    """One look over all page tables."""

    def __init__(self, kernel: LiveKernel, vcpus: Sequence[VcpuState]) -> None:
        self._kernel = kernel
        self._vcpus = vcpus
        self._owners = collect_owners(kernel)
        self._efi_owners = sorted(
            [*self._owners, *efi_runtime(kernel)], key=lambda owner: (owner.start, owner.end)
        )
        self.owned: dict[Hashable, Anomaly] = {}
        self.wx: dict[Hashable, Anomaly] = {}
        self.alias: dict[Hashable, Anomaly] = {}
        self.roots: dict[Hashable, Anomaly] = {}
        self._executable = 0
        self._poking = False
        self._names: dict[int, Root] = {}
        self._efi_aliases = 0

    def look(self) -> Mapping[str, Look]:
        """Walk everything once and return what each fact saw."""
        roots = known_roots(self._kernel)
        roots += self._vcpu_roots(roots)
        self._names = {root.paddr: root for root in reversed(roots)}
        pages = walk_roots(self._kernel, roots)
        for table in pages.unreadable:  # it maps what we cannot see
            details: dict[str, JsonValue] = {"page_table": f"{table:#x}"}
            self.owned["table", table] = Anomaly({**details, "rule": "tables are in RAM"})
        executable = pages.with_rights(X, forbidden=U)
        self._check_executable(executable)
        efi = [root.paddr for root in roots if root.efi]
        proven = executable.select(~np.isin(executable.root, np.array(efi, dtype=np.uint64)))
        ends = proven.paddr + proven.size
        spans = [*self._rodata_frames(), *zip(proven.paddr.tolist(), ends.tolist(), strict=True)]
        self._check_writable(pages, spans)
        return self._looks(len(roots), spans)

    def _looks(self, tables: int, spans: Sequence[tuple[int, int]]) -> Mapping[str, Look]:
        return {
            OWNED.id: Look(
                self.owned,
                {
                    "page_tables": tables,
                    "executable_bytes": self._executable,
                    "owners": [
                        f"{owner.kind} {owner.name} {owner.start:#x}+{owner.end - owner.start:#x}"
                        for owner in self._owners
                    ],
                },
            ),
            WX.id: Look(self.wx, {"page_tables": tables}),
            ALIAS.id: Look(
                self.alias,
                {
                    "frames": sum(end - at for at, end in spans) >> 12,
                    "text_poke_in_flight": self._poking,
                    "frames_in_efi_mm": self._efi_aliases,
                },
            ),
            ROOTS.id: Look(self.roots, {"page_tables": tables}),
        }

    def _vcpu_roots(self, known: Sequence[Root]) -> list[Root]:
        """Return the roots that a vCPU runs on and nobody owns, each an anomaly."""
        addresses = {root.paddr for root in known}
        strange = []
        for vcpu in self._vcpus:
            paddr = vcpu.cr3 & CR3_ADDRESS
            if paddr in addresses or not vcpu.cr0 & cpu.CR0_PG:
                continue
            addresses.add(paddr)
            strange.append(Root(f"vCPU {vcpu.index}", paddr))
            self.roots[paddr] = Anomaly({"vcpu": vcpu.index, "cr3": f"{vcpu.cr3:#x}"})
        return strange

    def _rodata_frames(self) -> list[tuple[int, int]]:
        start, end = self._kernel.symbol("__start_rodata"), self._kernel.symbol("__end_rodata")
        spans = []
        while start < end:
            page = self._kernel.space.lookup(start)
            inside = start - page.vaddr
            size = min(page.size - inside, end - start)
            spans.append((page.paddr + inside, page.paddr + inside + size))
            start += size
        return spans

    def _check_executable(self, executable: Pages) -> None:
        for run in runs(executable):
            self._executable += run.size
            root = self._names[run.root]
            owners = self._efi_owners if root.efi else self._owners
            for start, end in uncovered(run.vaddr, run.end, owners):
                self.owned[start, end] = Anomaly(
                    {"address": f"{start:#x}", "size": end - start, "in": root.name}
                )
        for run in runs(executable.with_rights(W)):
            root = self._names[run.root]
            if root.efi and not self._is_high_ram(root, run):
                continue
            self.wx[run.vaddr, run.size] = Anomaly(
                {"address": f"{run.vaddr:#x}", "size": run.size, "in": root.name}
            )

    def _is_high_ram(self, root: Root, run: Run) -> bool:
        """Tell RAM above 1 MiB from what the kernel maps with all rights for the firmware.

        That is device registers, and page 0, which some firmware writes to
        (arch/x86/platform/efi/efi_64.c, efi_setup_page_tables; quirks.c).
        """
        space = AddressSpace(self._kernel.memory, root.paddr, self._kernel.space.la57)
        for vaddr in range(run.vaddr, run.end, PAGE_SIZE):
            try:
                paddr = space.translate(vaddr)
                self._kernel.memory.view(paddr, 1)
            except MemoryFault:
                continue
            if paddr >= _LOW_MEMORY:
                return True
        return False

    def _check_writable(self, pages: Pages, spans: list[tuple[int, int]]) -> None:
        writable = pages.with_rights(W)
        hit = writable.select(overlapping(writable, spans))
        for run in runs(hit):
            root = self._names[run.root]
            if root.name.startswith(POKING_MM) and self._is_text_poke(run):
                self._poking = True
                continue
            if root.efi:
                self._efi_aliases += run.size // PAGE_SIZE
                continue
            self.alias[root.paddr, run.vaddr, run.size] = Anomaly(
                {
                    "address": f"{run.vaddr:#x}",
                    "size": run.size,
                    "in": root.name,
                    "user": bool(run.rights & U),
                }
            )

    def _is_text_poke(self, run: Run) -> bool:
        """Whether this is the window through which the kernel patches itself, while it does.

        It maps the two pages that it patches at poking_addr, in poking_mm only
        (arch/x86/kernel/alternative.c, __text_poke).  What it writes there is compared with the
        package like all text.
        """
        window = self._kernel.u64(self._kernel.symbol("poking_addr"))
        return window <= run.vaddr and run.end <= window + 2 * PAGE_SIZE


class GracePeriods:
    """Tells whether memory that was given up before our first look must be gone by now.

    A module, a kprobe slot and the like leave their lists first and stay executable until an RCU
    grace period has passed (free_module, collect_one_slot): one that was running then, and a
    whole one after it.  While none is running, nobody waits for one, unless somebody holds a lock
    under which that is done: then it has still to be asked for.
    """

    def __init__(self, kernel: LiveKernel) -> None:
        self._first = _grace_period(kernel)
        self._idle = 0

    def pending(self, kernel: LiveKernel) -> bool:
        """Return whether something could still be waiting; call it once for each look.

        Nothing is waited for where the kernel's count cannot be read.
        """
        sequence = _grace_period(kernel)
        if self._first is None or sequence is None:
            return False
        if _frees(kernel):
            self._idle = 0
            return True
        completed = (sequence >> _GP_SHIFT) - (self._first >> _GP_SHIFT)
        self._idle = self._idle + 1 if not sequence & _GP_RUNNING else 0
        return completed < 3 and self._idle < 2


_FREEING_LOCKS = (
    ("module_mutex", ""),
    ("kprobe_insn_slots", "kprobe_insn_cache"),
    ("kprobe_optinsn_slots", "kprobe_insn_cache"),
    ("ftrace_lock", ""),
)
"""Locks held from when code leaves its list until its grace period is over: free_module() in
kernel/module/main.c, collect_one_slot() in kernel/kprobes.c, ftrace_trampoline_free() in
kernel/trace/ftrace.c.  With the struct that a mutex is a member of."""
_MUTEX_FLAGS = 7


def _frees(kernel: LiveKernel) -> bool:
    """Tell whether somebody may be in the middle of giving code up."""
    for name, struct in _FREEING_LOCKS:
        try:
            at = kernel.symbol(name) + (kernel.offset(struct, "mutex") if struct else 0)
            if kernel.member_u64(at, "mutex", "owner") & ~_MUTEX_FLAGS:
                return True
        except (MemoryFault, FormatError):
            continue
    return False


def _grace_period(kernel: LiveKernel) -> int | None:
    """Return rcu_state.gp_seq, or None if it cannot be read."""
    try:
        return kernel.member_u64(kernel.symbol("rcu_state"), "rcu_state", "gp_seq")
    except (MemoryFault, FormatError):
        return None


def collect(
    kernel: LiveKernel, vcpus: Callable[[], Sequence[VcpuState]], observer: Observer
) -> tuple[Finding, ...]:
    """Return the four closure findings; ``vcpus`` reads the registers anew for each look."""
    grace = GracePeriods(kernel.fresh())
    return observer.settle_all(
        SPECS, kernel, lambda fresh: Closure(fresh, vcpus()).look(), more=grace.pending
    )
