"""Who owns executable kernel memory: what the kernel itself says it made executable, and why.

An owner's word is only a claim: what a range holds is proven elsewhere, by comparing it with
what its owner must have put there.  Here it matters that there is nothing without an owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from undercroft.securekernel.arch.x86_64.paging import PAGE_SIZE
from undercroft.securekernel.linux.containers import list_entries
from undercroft.securekernel.linux.live import LiveKernel, StructureError
from undercroft.securekernel.linux.modules import MAX_MODULE_SIZE, modules_by_view, read_module

TEXT, MODULE, BPF, FTRACE, KPROBE = "text", "module", "bpf", "ftrace", "kprobe"
TRAMPOLINE, EFI, ITS, KEXEC = "real-mode trampoline", "EFI runtime", "ITS thunks", "kexec"

_BPF_PACK_SIZE = 2 << 20
_MAX_IMAGES = 1 << 16
_MAX_TRAMPOLINE = 1 << 20
_EFI_EXECUTABLE = frozenset({3, 4, 5, 11})
"""Boot services code and data, runtime services code, memory-mapped I/O: of the first two only
regions that the kernel kept (it marks them EFI_MEMORY_RUNTIME, arch/x86/platform/efi/quirks.c)."""
_EFI_MEMORY_RUNTIME = 1 << 63
_MAX_EFI_DESCRIPTORS = 4096


@dataclass(frozen=True, slots=True)
class Owner:
    """A claim to executable memory: [start, end), page-aligned guest-virtual addresses."""

    kind: str
    name: str
    start: int
    end: int


def _owner(kind: str, name: str, start: int, size: int) -> Owner:
    end = start + size
    return Owner(kind, name, start & ~(PAGE_SIZE - 1), (end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1))


def kernel_text(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield the kernel's own text."""
    start, end = kernel.symbol("_text"), kernel.symbol("_etext")
    yield _owner(TEXT, "vmlinux", start, end - start)


def module_text(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield the text of every module that any list knows, and its pages of ITS thunks."""
    thunks = kernel.has("module", "its_page_array")
    for address in modules_by_view(kernel):
        module = read_module(kernel, address)
        for part in (module.text, module.init_text):
            if part.size:
                yield _owner(MODULE, module.name, part.start, part.size)
        if thunks:
            yield from _module_thunks(kernel, address, module.name)


def _module_thunks(kernel: LiveKernel, address: int, name: str) -> Iterator[Owner]:
    count = kernel.member_u32(address, "module", "its_num_pages")
    pages = kernel.member_u64(address, "module", "its_page_array")
    if count > MAX_MODULE_SIZE // PAGE_SIZE:
        raise StructureError("a module has absurdly many thunk pages", address, got=count)
    for number in range(count):
        yield _owner(ITS, name, kernel.u64(pages + 8 * number), PAGE_SIZE)


def kernel_thunks(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield the page of ITS thunks that the kernel allocated for itself."""
    symbol = kernel.find_symbol("its_page")
    page = kernel.u64(symbol) if symbol is not None else 0
    if page:
        yield _owner(ITS, "vmlinux", page, PAGE_SIZE)


def bpf_packs(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield the huge pages that BPF programs are packed into (kernel/bpf/core.c)."""
    head = kernel.find_symbol("pack_list")
    if head is None:
        return
    member = kernel.offset("bpf_prog_pack", "list")
    for pack in list_entries(kernel, head, member, limit=_MAX_IMAGES):
        start = kernel.member_u64(pack, "bpf_prog_pack", "ptr")
        yield _owner(BPF, "bpf_prog_pack", start, _BPF_PACK_SIZE)


def bpf_images(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield every JIT image that bpf_kallsyms knows: programs, trampolines, dispatchers."""
    head = kernel.find_symbol("bpf_kallsyms")
    if head is None:
        return
    member = kernel.offset("bpf_ksym", "lnode")
    for ksym in list_entries(kernel, head, member, limit=_MAX_IMAGES):
        start = kernel.member_u64(ksym, "bpf_ksym", "start")
        end = kernel.member_u64(ksym, "bpf_ksym", "end")
        if not 0 <= end - start <= _BPF_PACK_SIZE:
            raise StructureError("a BPF image is absurdly large", ksym, got=end - start)
        name = kernel.text(ksym + kernel.offset("bpf_ksym", "name"), 128)
        yield _owner(BPF, name, start, end - start)


def ftrace_trampolines(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield the trampolines of ftrace_ops: registered ones, and ones that wait to be freed.

    An ops that was unregistered leaves ``ftrace_ops_list`` at once, and keeps its trampoline
    until every task has left it, which may take seconds; until then it stays in
    ``ftrace_ops_trampoline_list`` (kernel/trace/ftrace.c, ftrace_trampoline_free).
    """
    for ops in (*registered_ops(kernel), *_ops_with_trampoline(kernel)):
        start = kernel.member_u64(ops, "ftrace_ops", "trampoline")
        size = kernel.member_u64(ops, "ftrace_ops", "trampoline_size")
        if size > _MAX_TRAMPOLINE:
            raise StructureError("an ftrace trampoline is absurdly large", ops, got=size)
        if start and size:
            function = kernel.member_u64(ops, "ftrace_ops", "func")
            yield _owner(FTRACE, kernel.name_of(function), start, size)


def registered_ops(kernel: LiveKernel) -> Iterator[int]:
    """Yield the ftrace_ops in the list that ends in ftrace_list_end."""
    head, end = kernel.find_symbol("ftrace_ops_list"), kernel.find_symbol("ftrace_list_end")
    if head is None or end is None:
        return
    ops = kernel.u64(head)
    for _ in range(_MAX_IMAGES):
        if ops in (end, 0):
            return
        yield ops
        ops = kernel.member_u64(ops, "ftrace_ops", "next")
    raise StructureError("ftrace_ops_list does not end", head)


def _ops_with_trampoline(kernel: LiveKernel) -> Iterator[int]:
    head = kernel.find_symbol("ftrace_ops_trampoline_list")
    if head is not None:
        member = kernel.offset("ftrace_ops", "list")
        yield from list_entries(kernel, head, member, limit=_MAX_IMAGES)


def kprobe_slots(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield the pages of out-of-line instructions, for probes and for optimised ones."""
    for name in ("kprobe_insn_slots", "kprobe_optinsn_slots"):
        cache = kernel.find_symbol(name)
        if cache is None:
            continue
        head = cache + kernel.offset("kprobe_insn_cache", "pages")
        member = kernel.offset("kprobe_insn_page", "list")
        for page in list_entries(kernel, head, member, limit=_MAX_IMAGES):
            start = kernel.member_u64(page, "kprobe_insn_page", "insns")
            yield _owner(KPROBE, name, start, PAGE_SIZE)


def real_mode_trampoline(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield the trampoline that starts processors, in the direct map and where it runs 1:1.

    arch/x86/realmode/init.c makes [text_start, ro_end) executable.
    """
    header = kernel.u64(kernel.symbol("real_mode_header"))
    start = kernel.member_u32(header, "real_mode_header", "text_start")
    end = kernel.member_u32(header, "real_mode_header", "ro_end")
    if not 0 < start <= end <= 1 << 20:
        raise StructureError("the real-mode trampoline is not below 1 MiB", header)
    direct_map = kernel.u64(kernel.symbol("page_offset_base"))
    yield _owner(TRAMPOLINE, "direct map", direct_map + start, end - start)
    yield _owner(TRAMPOLINE, "1:1", start, end - start)


def efi_runtime(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield the firmware's runtime code and registers, mapped in efi_mm only, high and 1:1.

    Runtime data is no owner: the firmware's memory attributes table takes its right to execute
    away (drivers/firmware/efi/memattr.c), and firmware without that table leaves a hole.
    """
    efi = kernel.symbol("efi")
    count = kernel.member_s32(efi, "efi", "memmap.nr_map")
    step = kernel.member_u64(efi, "efi", "memmap.desc_size")
    table = kernel.member_u64(efi, "efi", "memmap.map")
    if not table or not kernel.member_u64(kernel.symbol("efi_mm"), "mm_struct", "pgd"):
        return
    if not 0 <= count <= _MAX_EFI_DESCRIPTORS or not 40 <= step <= 1024:
        raise StructureError("the EFI memory map is absurd", efi, got=f"{count} of {step}")
    data = kernel.read(table, count * step)
    for at in range(0, count * step, step):
        kind = int.from_bytes(data[at : at + 4], "little")
        physical, virtual, pages, attributes = (
            int.from_bytes(data[at + place : at + place + 8], "little") for place in (8, 16, 24, 32)
        )
        if kind not in _EFI_EXECUTABLE or not attributes & _EFI_MEMORY_RUNTIME or pages > 1 << 20:
            continue
        for where, start in (("high", virtual), ("1:1", physical)):
            yield _owner(EFI, f"type {kind}, {where}", start, pages * PAGE_SIZE)


def kexec_pages(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield the control page of a loaded kexec image: lawful, but another kernel is waiting."""
    for name in ("kexec_image", "kexec_crash_image"):
        symbol = kernel.find_symbol(name)
        image = kernel.u64(symbol) if symbol is not None else 0
        if not image:
            continue
        page = kernel.member_u64(image, "kimage", "control_code_page")
        frame = (page - kernel.u64(kernel.symbol("vmemmap_base"))) // kernel.size_of("page") << 12
        start = kernel.u64(kernel.symbol("page_offset_base")) + frame
        yield _owner(KEXEC, name, start, 2 * PAGE_SIZE)


EVERYWHERE: tuple[Callable[[LiveKernel], Iterator[Owner]], ...] = (
    kernel_text,
    module_text,
    kernel_thunks,
    bpf_packs,
    bpf_images,
    ftrace_trampolines,
    kprobe_slots,
    real_mode_trampoline,
    kexec_pages,
)


def collect_owners(kernel: LiveKernel) -> list[Owner]:
    """Return every claim, in order of address.  Raises StructureError or MemoryFault."""
    claims = [owner for source in EVERYWHERE for owner in source(kernel)]
    return sorted(claims, key=lambda owner: (owner.start, owner.end))


def uncovered(start: int, end: int, owners: Sequence[Owner]) -> list[tuple[int, int]]:
    """Return the parts of [start, end) that no owner claims; ``owners`` in order of address."""
    gaps = []
    for owner in owners:
        if owner.end <= start:
            continue
        if owner.start >= end:
            break
        if owner.start > start:
            gaps.append((start, owner.start))
        start = max(start, owner.end)
        if start >= end:
            break
    if start < end:
        gaps.append((start, end))
    return gaps
