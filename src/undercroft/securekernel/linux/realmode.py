"""The real-mode trampoline: the code that starts processors and wakes the machine (rule 24).

The signed file has it as a blob.  The kernel copies it below 1 MiB, where it has to be for a
processor in real mode, and writes that address into the places that a table names
(setup_real_mode() in arch/x86/realmode/init.c).  Up to ``ro_end`` it is code and constants; what
follows is the trampoline's page table, its parameters and its stack.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from dataclasses import dataclass

from undercroft.base import Finding, FormatError, JsonValue
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import LiveKernel, StructureError

_PAGE = 4096
_LOW_MEMORY = 1 << 20
_MAX_SIZE = 1 << 17
_MAX_RELOCATIONS = 4096
_SHOWN = 16

SPEC = FactSpec(
    "kernel.realmode",
    "the code that starts processors equals the package",
    "the code that starts processors was changed",
    ("a change that was put back between two looks is not seen",),
)


@dataclass(frozen=True, slots=True)
class Trampoline:
    """The blob of the signed file; ``segments`` and ``linear`` are the offsets of relocations."""

    blob: bytes
    size: int
    segments: tuple[int, ...]
    linear: tuple[int, ...]

    def at(self, paddr: int) -> bytes:
        """Return the pages up to ``ro_end`` as they stand at a physical address."""
        code = bytearray(self.blob)
        for at in self.segments:
            struct.pack_into("<H", code, at, paddr >> 4)
        for at in self.linear:
            (value,) = struct.unpack_from("<I", code, at)
            struct.pack_into("<I", code, at, (value + paddr) % (1 << 32))
        return bytes(code[: self.size])


def read_trampoline(image: KernelImage) -> Trampoline:
    """Read the blob and its relocations.  Raises FormatError if they make no sense."""
    start, stop = image.offset("real_mode_blob"), image.offset("real_mode_blob_end")
    if not 0 < stop - start <= _MAX_SIZE:
        raise FormatError("real-mode blob", start, "its size makes no sense", got=stop - start)
    blob = image.read(start, stop - start)
    at = image.btf.offset_of("real_mode_header", "ro_end")
    if at + 4 > len(blob):
        raise FormatError("real-mode blob", at, "it is shorter than its header")
    end = int.from_bytes(blob[at : at + 4], "little")
    size = -(-end // _PAGE) * _PAGE
    if not 0 < size <= len(blob):
        raise FormatError("real-mode blob", at, "its code ends outside", got=end)
    table = image.offset("real_mode_relocs")
    segments, table = _relocations(image, table, len(blob) - 2)
    linear, _ = _relocations(image, table, len(blob) - 4)
    return Trampoline(blob, size, segments, linear)


def _relocations(image: KernelImage, table: int, limit: int) -> tuple[tuple[int, ...], int]:
    """Return the offsets of a table (a count, then u32 each) and where the next one starts."""
    count = int.from_bytes(image.read(table, 4), "little")
    if count > _MAX_RELOCATIONS:
        raise FormatError("real-mode blob", table, "too many relocations", got=count)
    found = struct.unpack(f"<{count}I", image.read(table + 4, 4 * count))
    if any(at > limit for at in found):
        raise FormatError("real-mode blob", table, "a relocation outside the blob")
    return found, table + 4 + 4 * count


def collect(kernel: LiveKernel, image: KernelImage, observer: Observer) -> Finding:
    """Compare the trampoline with the package."""
    return observer.settle(SPEC, kernel, lambda fresh: _look(fresh, image))


def _look(kernel: LiveKernel, image: KernelImage) -> Look:
    trampoline = read_trampoline(image)
    header = kernel.u64(kernel.symbol("real_mode_header"))
    paddr = kernel.space.translate(header)
    if paddr + len(trampoline.blob) > _LOW_MEMORY:
        raise StructureError(
            "the real-mode trampoline is not below 1 MiB", header, got=f"{paddr:#x}"
        )
    expected = trampoline.at(paddr)
    live = kernel.memory.read(paddr, len(expected))
    details: dict[str, JsonValue] = {"paddr": f"{paddr:#x}", "bytes": len(expected)}
    wrong = [at for at in range(len(expected)) if live[at] != expected[at]]
    anomalies: dict[Hashable, Anomaly] = {}
    if wrong:
        first = wrong[0]
        anomalies["code"] = Anomaly(
            {
                "paddr": f"{paddr + first:#x}",
                "bytes": len(wrong),
                "expected": expected[first : first + _SHOWN].hex(),
                "found": live[first : first + _SHOWN].hex(),
            }
        )
    return Look(anomalies, details)
