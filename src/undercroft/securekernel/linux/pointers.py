"""Function pointers in the kernel's own data, all of them.

The relocation table in the signed kernel says where every pointer is that the file initialises,
and the file says what to.  Those that still lead to where the file says need no more looking at;
of the few that do not, each must lead to the start of a function of the kernel, to a module that
is vouched for, or nowhere (NULL).  That holds for every ops table, notifier, timer and hook in
.data, whatever its type.

Besides, no word of .data, .bss or the read-only-after-init data may lead into code that nobody
vouches for: a foreign module, or executable memory without an owner.  Left out are the few places
that hold addresses of code and are never called through.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from undercroft.base import Finding, JsonValue
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.linux.code import CodeMap
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import MASK64, LiveKernel

U64 = npt.NDArray[np.uint64]

SPEC = FactSpec(
    "kernel.pointers.data",
    "every function pointer in the kernel's data leads to lawful code",
    "function pointers in the kernel's data were redirected",
    (
        "pointers that are not in the kernel's own image (on the heap) are looked at by type",
        "a pointer moved from one function of the kernel to another is listed, not judged",
        "without the modules' package that one is signed is the kernel's own word",
    ),
)
_MAX_LISTED = 64

_NO_POINTERS = (
    # What the kernel gives back to its allocator (arch/x86/mm/mem_encrypt_amd.c,
    # mem_encrypt_free_decrypted_mem) is no longer its data: anything may lie there.
    ("__start_bss_decrypted_unused", "__end_bss_decrypted"),
    # The stack of the first task, with the return addresses of calls long done
    # (include/asm-generic/vmlinux.lds.h, INIT_TASK_DATA; other names since Linux 6.10).
    ("__start_init_task", "__end_init_task"),
    ("__start_init_stack", "__end_init_stack"),
    # Where the modules' memory starts and ends (kernel/module/main.c, struct mod_tree_root), and
    # the deepest stack that the stack tracer saw (kernel/trace/trace_stack.c, 500 entries).
    ("mod_tree", "mod_tree_root"),
    ("stack_dump_trace", 500 * 8),
)
"""Data that holds addresses of code and is never called through: a first symbol, and where it
ends: a symbol, the size of a struct, or a size in bytes."""


class DataPointers:
    """The pointers that the signed kernel's file initialises in data that stays: made once.

    ``image`` is the kernel's file.  Positions are offsets from the link base.
    """

    def __init__(self, image: KernelImage) -> None:
        self._base = image.link_base
        self.spans = [
            (image.offset("__start_ro_after_init"), image.offset("__end_ro_after_init")),
            (image.offset("_sdata"), image.offset("_edata")),
        ]
        bss = (image.offset("__bss_start"), image.offset("__bss_stop"))
        self.scanned = without([*self.spans, bss], _no_pointers(image))
        memory = np.frombuffer(image.memory, dtype=np.uint8)
        places = image.relocations.r64
        places = places[(places >= 0) & (places + 8 <= len(memory))]
        inside = np.zeros(len(places), dtype=bool)
        for start, end in self.spans:
            inside |= (places >= start) & (places + 8 <= end)
        self.places = np.sort(places[inside])
        eight = np.arange(8)
        values = memory[self.places[:, None] + eight].copy().view("<u8").reshape(-1)
        text = np.uint64(image.link_base), np.uint64(image.link_base + image.text_size)
        code = (values >= text[0]) & (values < text[1])
        self.places = self.places[code]
        self.values = values[code]

    def look(self, kernel: LiveKernel) -> Look:
        """Compare once."""
        code = CodeMap(kernel)
        anomalies: dict[Hashable, Anomaly] = {}
        moved: list[JsonValue] = []
        for start, end in self.spans:
            data = kernel.read(self._base + start + kernel.slide, end - start)
            chosen = (self.places >= start) & (self.places < end)
            live = _gather(data, self.places[chosen] - start)
            expected = self.values[chosen] + np.uint64(kernel.slide & MASK64)
            for index in np.flatnonzero((live != expected) & (live != 0)).tolist():
                place = int(self.places[chosen][index]) + self._base + kernel.slide
                target = int(live[index])
                if problem := code.problem(target, generated=True):
                    was = f"{problem}; in the file it is {kernel.name_of(int(expected[index]))}"
                    anomalies[place] = _anomaly(kernel, code, place, target, was)
                moved.append(f"{kernel.name_of(place)} -> {code.describe(target)}")
        self._scan(kernel, code, anomalies)
        details: dict[str, JsonValue] = {
            "pointers": len(self.places),
            "moved": len(moved),
            "moved_to": moved[:_MAX_LISTED],
        }
        return Look(anomalies, details)

    def _scan(self, kernel: LiveKernel, code: CodeMap, anomalies: dict[Hashable, Anomaly]) -> None:
        """Find every word that leads into code that nobody vouches for."""
        suspects = code.suspects()
        for start, end in self.scanned if suspects else ():
            first = (start + 7) & ~7
            address = self._base + first + kernel.slide
            words = np.frombuffer(kernel.read(address, (end - first) & ~7), dtype="<u8")
            for suspect in suspects:
                hit = (words >= np.uint64(suspect.start)) & (words < np.uint64(suspect.end))
                for index in np.flatnonzero(hit).tolist()[:_MAX_LISTED]:
                    place, target = address + 8 * index, int(words[index])
                    anomalies.setdefault(
                        place,
                        _anomaly(kernel, code, place, target, f"it leads into {suspect.name}"),
                    )


def _no_pointers(image: KernelImage) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of each part of ``_NO_POINTERS`` that this kernel has."""
    for first, last in _NO_POINTERS:
        address = image.symbols.get(first)
        if address is None:
            continue
        start = address - image.link_base
        if isinstance(last, int):
            yield start, start + last
        elif (end := image.symbols.get(last)) is not None:
            yield start, end - image.link_base
        else:
            yield start, start + image.btf.size_of(last)


def without(
    spans: Iterable[tuple[int, int]], holes: Iterable[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return what is left of ``spans`` once ``holes`` are cut out; all are [start, end)."""
    left = list(spans)
    for low, high in holes:
        cut = [
            part
            for start, end in left
            for part in ((start, min(end, low)), (max(start, high), end))
        ]
        left = [(start, end) for start, end in cut if start < end]
    return left


def _anomaly(kernel: LiveKernel, code: CodeMap, place: int, target: int, rule: str) -> Anomaly:
    return Anomaly(
        {
            "pointer": kernel.name_of(place),
            "address": f"{place:#x}",
            "got": code.describe(target),
            "target": f"{target:#x}",
            "rule": rule,
        },
        certain=code.is_certain(target),
    )


def _gather(data: bytes, places: npt.NDArray[np.int64]) -> U64:
    """Return the 8-byte words at ``places``, which need not be aligned."""
    raw = np.frombuffer(data, dtype=np.uint8)
    words: U64 = raw[places[:, None] + np.arange(8)].copy().view("<u8").reshape(-1)
    return words


def collect(kernel: LiveKernel, pointers: DataPointers, observer: Observer) -> Finding:
    """Return ``kernel.pointers.data``."""
    return observer.settle(SPEC, kernel, pointers.look)
