"""The range that modules live in, as its allocator knows it.

Every allocation there belongs to a module, or to code that the kernel generates.  So the memory
of a module that took itself out of all lists is found here even where it is not executable.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from undercroft.base import Finding, JsonValue
from undercroft.securekernel.arch.x86_64.paging import PAGE_SIZE
from undercroft.securekernel.linux.closure import GracePeriods
from undercroft.securekernel.linux.containers import rbtree_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel, StructureError
from undercroft.securekernel.linux.modules import modules_by_view
from undercroft.securekernel.linux.owners import MODULE, Owner, collect_owners, uncovered

_START, _END = 0xFFFFFFFFA0000000, 0xFFFFFFFFFF000000  # MODULES_VADDR without KASLR, MODULES_END
_MAX_AREAS = 1 << 20
_MAX_NODES = 1 << 12
_MODULE_MEMORY = 7  # MOD_MEM_NUM_TYPES
_MAX_SIZE = 1 << 30

SPEC = FactSpec(
    "kernel.modules.memory",
    "all memory in the modules' range belongs to a module or to generated code",
    "there is memory in the modules' range that belongs to nothing",
    ("the allocator's tree is the kernel's own: an entry taken out of it is found by its pages "
     "(kernel.closure.owned) where they can be executed",),
    patient=True,
)  # fmt: skip


def areas(kernel: LiveKernel) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of every allocation in the modules' range (mm/vmalloc.c)."""
    member = kernel.offset("vmap_area", "rb_node")
    start_at, end_at = (kernel.offset("vmap_area", name) for name in ("va_start", "va_end"))
    for root in _roots(kernel):
        for area in rbtree_entries(kernel, root, member, limit=_MAX_AREAS):
            start, end = kernel.u64(area + start_at), kernel.u64(area + end_at)
            if _START <= start < end <= _END:
                yield start, end


def _roots(kernel: LiveKernel) -> Iterator[int]:
    """Yield the trees of areas in use: one, or since Linux 6.9 one of each node."""
    tree = kernel.find_symbol("vmap_area_root")
    if tree is not None:
        yield tree
        return
    nodes = kernel.u64(kernel.symbol("vmap_nodes"))
    count = kernel.u32(kernel.symbol("nr_vmap_nodes"))
    if not 0 < count <= _MAX_NODES:
        raise StructureError("there are absurdly many nodes of areas", nodes, got=count)
    busy = kernel.offset("vmap_node", "busy") + kernel.offset("rb_list", "root")
    for number in range(count):
        yield nodes + number * kernel.size_of("vmap_node") + busy


def module_memory(kernel: LiveKernel) -> Iterator[Owner]:
    """Yield everything that a module was loaded into, code and data."""
    for address in modules_by_view(kernel):
        name = kernel.text(address + kernel.offset("module", "name"), 56)
        for start, size in _parts(kernel, address):
            if size > _MAX_SIZE:
                raise StructureError("a module is absurdly large", address, got=size)
            if size:
                end = start + size + PAGE_SIZE - 1 & ~(PAGE_SIZE - 1)
                yield Owner(MODULE, name, start, end)


def _parts(kernel: LiveKernel, address: int) -> Iterator[tuple[int, int]]:
    if kernel.has("module", "mem"):  # since 6.4
        memory, step = address + kernel.offset("module", "mem"), kernel.size_of("module_memory")
        for kind in range(_MODULE_MEMORY):
            part = memory + kind * step
            yield (
                kernel.member_u64(part, "module_memory", "base"),
                kernel.member_u32(part, "module_memory", "size"),
            )
        return
    for layout in ("core_layout", "init_layout"):
        yield (
            kernel.member_u64(address, "module", f"{layout}.base"),
            kernel.member_u32(address, "module", f"{layout}.size"),
        )


def look(kernel: LiveKernel) -> Look:
    """Look once for memory that nobody owns."""
    owners = sorted(
        [*module_memory(kernel), *collect_owners(kernel)],
        key=lambda owner: (owner.start, owner.end),
    )
    anomalies: dict[Hashable, Anomaly] = {}
    size = 0
    for start, end in areas(kernel):
        size += end - start
        gaps = uncovered(start, end, owners)
        left = sum(high - low for low, high in gaps)
        if left == end - start:  # a guard page follows what was asked for
            anomalies[start] = Anomaly({"address": f"{start:#x}", "size": end - start})
    details: dict[str, JsonValue] = {"bytes": size}
    return Look(anomalies, details)


def collect(kernel: LiveKernel, observer: Observer) -> Finding:
    """Return ``kernel.modules.memory``."""
    grace = GracePeriods(kernel.fresh())
    (finding,) = observer.settle_all(
        (SPEC,), kernel, lambda fresh: {SPEC.id: look(fresh)}, more=grace.pending
    )
    return finding
