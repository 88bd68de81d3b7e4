"""What QEMU's human monitor prints, parsed: the memory map and the registers.

``info mtree -f`` (``softmmu/memory.c``, mtree_print_flatview) and ``info registers -a``
(``target/i386/cpu-dump.c``) have no machine-readable twin.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.securekernel.vcpu import DescriptorTable, VcpuState


@dataclass(frozen=True, slots=True)
class RamRange:
    """``size`` bytes of guest-physical memory at ``paddr``, at ``offset`` in RAM block ``block``.

    All in bytes.
    """

    paddr: int
    size: int
    block: str
    offset: int


_RANGE = re.compile(
    r"\s+(?P<first>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?P<kind>[^)]+)\): "
    r"(?P<block>.+?)(?: @(?P<offset>[0-9a-f]{16}))?(?: KVM)?"
)
_SYSTEM_SPACE = re.compile(r' AS "memory", root: system\b')


def parse_flat_view(text: str, blocks: Collection[str]) -> tuple[RamRange, ...]:
    """Return the RAM ranges of the system address space that lie in ``blocks``, in order.

    A range marked ``rom`` counts: shadowed RAM below 1 MiB is RAM that is not writable now.
    Raises FormatError if there is no such view, or if its ranges overlap.
    """
    views = re.split(r"^FlatView #\d+$", text, flags=re.MULTILINE)
    view = next((view for view in views if _SYSTEM_SPACE.search(view)), None)
    if view is None:
        raise FormatError("info mtree -f", 0, 'no view of the address space "memory"')
    ranges: list[RamRange] = []
    for line in view.splitlines():
        match = _RANGE.fullmatch(line)
        if not match or match["kind"] not in ("ram", "rom") or match["block"] not in blocks:
            continue
        first, last = int(match["first"], 16), int(match["last"], 16)
        if ranges and first < ranges[-1].paddr + ranges[-1].size:
            raise FormatError("info mtree -f", 0, "RAM ranges overlap", got=line.strip())
        ranges.append(
            RamRange(first, last - first + 1, match["block"], int(match["offset"] or "0", 16))
        )
    if not ranges:
        raise FormatError("info mtree -f", 0, "no RAM", expected=sorted(blocks))
    return tuple(ranges)


_NAMED = re.compile(r"\b(RIP|CR[034]|DR[0-7]|EFER)=\s*([0-9a-f]{8,16})\b")
_TABLE = re.compile(r"^(GDT|IDT)=\s+([0-9a-f]{16}) ([0-9a-f]{8})$", re.MULTILINE)
_CPL = re.compile(r"\bCPL=([0-3])\b")


def parse_registers(text: str) -> tuple[VcpuState, ...]:
    """Return the vCPUs of ``info registers -a``, by index, without MSRs.

    Raises FormatError if one is printed in the 32-bit form, which cuts bases to 32 bits.
    """
    parts = re.split(r"^CPU#(\d+)$", text, flags=re.MULTILINE)
    states = [
        _registers_of(int(index), body)
        for index, body in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if not states or [state.index for state in states] != list(range(len(states))):
        raise FormatError("info registers -a", 0, "no vCPUs, or not in order")
    return tuple(states)


def _registers_of(index: int, body: str) -> VcpuState:
    values = {name: int(value, 16) for name, value in _NAMED.findall(body)}
    tables = {
        name: DescriptorTable(int(base, 16), int(limit, 16))
        for name, base, limit in _TABLE.findall(body)
    }
    cpl = _CPL.search(body)
    try:
        dr0, dr1, dr2, dr3, dr6, dr7 = (values[f"DR{number}"] for number in (0, 1, 2, 3, 6, 7))
        return VcpuState(
            index=index,
            rip=values["RIP"],
            cpl=int(cpl[1]) if cpl else -1,
            cr0=values["CR0"],
            cr3=values["CR3"],
            cr4=values["CR4"],
            efer=values["EFER"],
            idtr=tables["IDT"],
            gdtr=tables["GDT"],
            dr=(dr0, dr1, dr2, dr3, dr6, dr7),
            lstar=None,
            cstar=None,
            sysenter_eip=None,
        )
    except KeyError as error:
        raise FormatError(
            "info registers -a", 0, f"vCPU {index} is not in 64-bit form", expected=error.args[0]
        ) from error
