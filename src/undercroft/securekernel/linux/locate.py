"""Find the running kernel by what the processor itself uses: the IDT and LSTAR.

KASLR moves the kernel by one number.  Two hardware roots give it independently: IDT gate 0
leads to asm_exc_divide_error, and LSTAR to entry_SYSCALL_64.  They must agree, on every vCPU.
Nothing that the guest writes in its memory to be helpful (vmcoreinfo, phys_base, banners) is
believed.

A dump without registers has no such roots.  There the package's build is looked for in all of
memory, and the page table that lies inside it has to lead back to it: enough to compare the
code, not enough to say that a processor runs it, so the finding stays UNKNOWN.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from undercroft.base import Finding, JsonValue, MemoryFault, Outcome
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.arch.x86_64.paging import PAGE_SIZE, AddressSpace
from undercroft.securekernel.linux.mapped import MappedRange, map_range
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.vcpu import VcpuState

FINDING = "kernel.located"
_CR0_PG, _CR4_LA57, _EFER_LMA = 1 << 31, 1 << 12, 1 << 10
_PTI_USER_BIT = 0x1000
"""With page-table isolation the user's half of a pair of root tables is the upper page."""
_GATE = struct.Struct("<HHHHII")
_KERNEL_MAP, _KERNEL_MAP_SIZE = 0xFFFF_FFFF_8000_0000, 1 << 30
_ALIGN = 0x20_0000
_BANNER = b"Linux version "
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class LocatedKernel:
    """Where the kernel of ``image`` runs.

    ``slide`` is how far KASLR moved it, ``cr3`` the kernel's own root table (init_top_pgt) and
    ``text`` its code as that table maps it.
    """

    slide: int
    cr3: int
    la57: bool
    text: MappedRange

    @property
    def base(self) -> int:
        """The virtual address of _text."""
        return self.text.vaddr


@dataclass(frozen=True, slots=True)
class Location:
    """The outcome: ``finding`` always, ``kernel`` if there is one place where it can be.

    The finding is UNKNOWN, with a kernel, if LSTAR could not be read, or no register at all.
    """

    finding: Finding
    kernel: LocatedKernel | None


class _NotLocated(Exception):  # noqa: N818 - an answer on its way out, not an error
    def __init__(self, outcome: Outcome, summary: str, **details: JsonValue) -> None:
        self.finding = Finding(FINDING, outcome, summary, details)


def locate(memory: PhysicalMemory, vcpus: Sequence[VcpuState], image: KernelImage) -> Location:
    """Find ``image`` in a guest.  Never raises for what the guest holds: the finding tells."""
    try:
        return _locate(memory, vcpus, image) if vcpus else _search(memory, image)
    except _NotLocated as answer:
        return Location(answer.finding, None)


def _locate(memory: PhysicalMemory, vcpus: Sequence[VcpuState], image: KernelImage) -> Location:
    running = [vcpu for vcpu in vcpus if _runs_a_kernel(vcpu)]
    if not running:
        raise _NotLocated(
            Outcome.UNKNOWN, "no vCPU runs a kernel yet", vcpus=len(vcpus), cause="not-booted"
        )
    slides = [_slides(memory, vcpu, image) for vcpu in running]
    slide = _agreed(memory, running[0], image, slides)
    la57 = bool(running[0].cr4 & _CR4_LA57)
    base = image.link_base + slide
    cr3, text = _own_table(memory, running, image, slide, la57)
    _check_build(AddressSpace(memory, cr3, la57), image, base, running[0])
    both = all(vcpu.lstar is not None for vcpu in running)
    details: dict[str, JsonValue] = {
        "slide": f"{slide:#x}",
        "roots": ["idt", "lstar"] if both else ["idt"],
        "text": f"{base:#x}",
        "release": image.release,
        "build_id": image.build_id,
        "vcpus": len(running),
        "paging_levels": 5 if la57 else 4,
    }
    finding = Finding(
        FINDING,
        Outcome.PASS if both else Outcome.UNKNOWN,
        f"Linux {image.release} runs at {base:#x}: "
        + (
            f"the IDT and LSTAR of {len(running)} vCPU(s) agree"
            if both
            else "the IDT leads there, but LSTAR cannot be read here to confirm it"
        ),
        details,
        source=f"vmlinuz sha256:{image.sha256}",
    )
    return Location(finding, LocatedKernel(slide, cr3, la57, text))


def _search(memory: PhysicalMemory, image: KernelImage) -> Location:
    """Find the kernel in a dump without registers."""
    found = [kernel for base in _builds(memory, image) for kernel in _rooted(memory, image, base)]
    if len(found) != 1:
        raise _NotLocated(
            Outcome.UNKNOWN,
            f"there are no registers, and {len(found) or 'no'} kernels of the package's build in "
            "memory whose own page table leads to them",
            cause="no-registers",
            found=[f"{kernel.base:#x}" for kernel in found],
        )
    kernel = found[0]
    details: dict[str, JsonValue] = {
        "slide": f"{kernel.slide:#x}",
        "roots": [],
        "text": f"{kernel.base:#x}",
        "release": image.release,
        "build_id": image.build_id,
        "vcpus": 0,
        "paging_levels": 5 if kernel.la57 else 4,
    }
    finding = Finding(
        FINDING,
        Outcome.UNKNOWN,
        f"Linux {image.release} lies at {kernel.base:#x}; without registers nothing shows that a "
        "processor runs it",
        details,
        source=f"vmlinuz sha256:{image.sha256}",
    )
    return Location(finding, kernel)


def _builds(memory: PhysicalMemory, image: KernelImage) -> Iterator[int]:
    """Yield where _text would be in physical memory, by every copy of the package's .notes."""
    section = image.sections[".notes"]
    at = section.address - image.link_base
    notes = image.read(at, section.size)
    for start in range(0, memory.size, _ALIGN):
        size = min(_ALIGN + len(notes) - 1, memory.size - start)
        try:
            content = memory.read(start, size)
        except MemoryFault:
            continue
        inside = content.find(notes)
        while inside >= 0:
            base = start + inside - at
            if base >= 0 and base % PAGE_SIZE == 0:
                yield base
            inside = content.find(notes, inside + 1)


def _rooted(memory: PhysicalMemory, image: KernelImage, physical: int) -> Iterator[LocatedKernel]:
    """Yield the kernel at ``physical`` if its own init_top_pgt maps it into the kernel's half."""
    cr3 = physical + image.offset("init_top_pgt")
    for la57 in (False, True):
        space = AddressSpace(memory, cr3, la57)
        for slide in range(0, _KERNEL_MAP_SIZE, _ALIGN):
            base = image.link_base + slide
            try:
                if base >> 63 and space.translate(base) == physical:
                    text = map_range(memory, cr3, la57, base, image.executable_size)
                    yield LocatedKernel(slide, cr3, la57, text)
            except MemoryFault:
                continue


def _runs_a_kernel(vcpu: VcpuState) -> bool:
    """Tell whether the vCPU pages in long mode, with an IDT in the kernel's half and an LSTAR.

    A CPU that comes up has an early IDT and no LSTAR: cpu_init() sets it, last of the two
    (arch/x86/kernel/cpu/common.c).  Until then it can take no system call either.
    """
    long_mode = vcpu.efer is None or bool(vcpu.efer & _EFER_LMA)
    paging = bool(vcpu.cr0 & _CR0_PG)
    return long_mode and paging and bool(vcpu.idtr.base >> 63) and vcpu.lstar != 0


def _slides(memory: PhysicalMemory, vcpu: VcpuState, image: KernelImage) -> tuple[int, int | None]:
    """Return how far the kernel moved by IDT gate 0 and by LSTAR (None: unknown) of one vCPU."""
    space = AddressSpace(memory, vcpu.cr3, bool(vcpu.cr4 & _CR4_LA57))
    try:
        low, _, _, middle, high, _ = _GATE.unpack(space.read(vcpu.idtr.base, _GATE.size))
    except MemoryFault as fault:
        raise _NotLocated(
            Outcome.UNKNOWN, f"the IDT of vCPU {vcpu.index} cannot be read: {fault}", cause="idt"
        ) from fault
    handler = low | middle << 16 | high << 32
    by_idt = (handler - image.symbols.address("asm_exc_divide_error")) & _MASK64
    if vcpu.lstar is None:
        return by_idt, None
    return by_idt, (vcpu.lstar - image.symbols.address("entry_SYSCALL_64")) & _MASK64


def _agreed(
    memory: PhysicalMemory,
    vcpu: VcpuState,
    image: KernelImage,
    slides: Sequence[tuple[int, int | None]],
) -> int:
    """Return the one slide that all roots give, or say who disagrees."""
    distinct = {slide for pair in slides for slide in pair if slide is not None}
    if len(distinct) == 1:
        slide = distinct.pop()
        if slide % _ALIGN == 0 and slide < _KERNEL_MAP_SIZE:
            return slide
    banner = running_banner(memory, vcpu)
    details: dict[str, JsonValue] = {
        "idt": [f"{idt:#x}" for idt, _ in slides],
        "lstar": [None if lstar is None else f"{lstar:#x}" for _, lstar in slides],
        "package": image.version,
        "guest_banner": banner,
    }
    if image.release not in banner.split():
        raise _NotLocated(
            Outcome.FAIL,
            f"the guest does not run the package's kernel {image.release}"
            + (f": it says {banner[:80]!r}" if banner else ""),
            cause="other-kernel",
            **details,
        )
    raise _NotLocated(
        Outcome.FAIL,
        "the IDT and LSTAR do not lead into one kernel: an entry point is redirected, "
        "or this is another build",
        cause="roots-disagree",
        **details,
    )


def _own_table(
    memory: PhysicalMemory,
    vcpus: Sequence[VcpuState],
    image: KernelImage,
    slide: int,
    la57: bool,
) -> tuple[int, MappedRange]:
    """Return init_top_pgt's physical address and the text as it maps it.

    Every vCPU's own table must lead to the same frames; a vCPU in user mode under page-table
    isolation is looked at through the kernel's half of its pair.
    """
    base = image.link_base + slide
    frames: MappedRange | None = None
    cr3 = 0
    for vcpu in vcpus:
        mine, root = _kernel_half(memory, vcpu, image, base, la57)
        if frames is not None and frames.extents != mine.extents:
            raise _NotLocated(
                Outcome.FAIL, "two vCPUs see different frames as kernel text", cause="split-text"
            )
        frames = mine
        space = AddressSpace(memory, root, la57)
        cr3 = space.translate((image.symbols.address("init_top_pgt") + slide) & _MASK64)
    try:
        own = map_range(memory, cr3, la57, base, image.executable_size)
    except MemoryFault as fault:
        raise _NotLocated(
            Outcome.FAIL, f"the kernel's own page table does not map its text: {fault}", cause="pgt"
        ) from fault
    if frames is None or own.extents != frames.extents:
        raise _NotLocated(
            Outcome.FAIL,
            "a vCPU sees other frames as kernel text than the kernel's own page table",
            cause="split-text",
        )
    return cr3, own


def _kernel_half(
    memory: PhysicalMemory, vcpu: VcpuState, image: KernelImage, base: int, la57: bool
) -> tuple[MappedRange, int]:
    fault: MemoryFault | None = None
    for root in (vcpu.cr3, vcpu.cr3 & ~_PTI_USER_BIT):
        try:
            mapped = map_range(memory, root, la57, base, image.executable_size)
            AddressSpace(memory, root, la57).translate(
                (base + image.offset("init_top_pgt")) & _MASK64
            )
        except MemoryFault as error:
            fault = error
        else:
            return mapped, root
    raise _NotLocated(
        Outcome.FAIL,
        f"vCPU {vcpu.index} does not map the kernel where its entry points are: {fault}",
        cause="not-mapped",
    )


def _check_build(space: AddressSpace, image: KernelImage, base: int, vcpu: VcpuState) -> None:
    """Compare the .notes section: the build id, before anything else is said of the text."""
    notes = image.sections[".notes"]
    at = notes.address - image.link_base
    try:
        found = space.read(base + at, notes.size)
    except MemoryFault as fault:
        raise _NotLocated(
            Outcome.FAIL, f"the kernel's notes are not mapped: {fault}", cause="not-mapped"
        ) from fault
    if found != image.read(at, notes.size):
        banner = running_banner(space.memory, vcpu)
        raise _NotLocated(
            Outcome.FAIL,
            f"the guest runs another build than the package's {image.release}"
            + (f": it says {banner[:80]!r}" if banner else ""),
            cause="other-build",
            expected_build_id=image.build_id,
            package=image.version,
            guest_banner=banner,
        )


def running_banner(memory: PhysicalMemory, vcpu: VcpuState) -> str:
    """Return what the guest's kernel says it is ("Linux version ..."), or "".

    For a person who has to find the right package: the guest may lie here.
    """
    at = vcpu.lstar if vcpu.lstar is not None else vcpu.rip
    if not _KERNEL_MAP <= at < _KERNEL_MAP + _KERNEL_MAP_SIZE:
        return ""
    start = max(_KERNEL_MAP, (at & ~(_ALIGN - 1)) - 16 * _ALIGN)
    for root in (vcpu.cr3, vcpu.cr3 & ~_PTI_USER_BIT):
        space = AddressSpace(memory, root, bool(vcpu.cr4 & _CR4_LA57))
        for vaddr in range(start, start + 32 * _ALIGN, _ALIGN):
            try:
                data = space.read(vaddr, _ALIGN)
            except MemoryFault:
                continue
            found = _banner_in(data)
            if found:
                return found
    return ""


def _banner_in(data: bytes) -> str:
    found = data.find(_BANNER)
    while found >= 0:
        text = data[found : found + 256].split(b"\n", 1)[0].split(b"\0", 1)[0]
        if text.isascii() and text[len(_BANNER) : len(_BANNER) + 1].isdigit():
            return text.decode("ascii")
        found = data.find(_BANNER, found + 1)
    return ""
