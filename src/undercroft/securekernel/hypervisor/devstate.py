"""vCPU registers out of QEMU's device state (``xen-save-devices-state``), MSRs included.

The human monitor tells no LSTAR.  The device state does: it is QEMU's migration stream without
the RAM.  Each device is one full section (QEMU ``docs/devel/migration.rst``)::

    u8 0x04, u32 section id, u8 length, name, u32 instance, u32 version, data, u8 0x7e, u32 id

big-endian throughout, and without a length for ``data``; so we look for the sections named
``cpu`` and parse the fixed beginning of ``vmstate_x86_cpu`` (``target/i386/machine.c``, version
12 since QEMU 2.4).  That a device's data happens to contain such a header is answered by the
cross-checks: one section for each vCPU, in order, with a closing footer, and with the registers
that the monitor told in the same pause.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.formats.reader import BoundedReader
from undercroft.securekernel.vcpu import DescriptorTable, VcpuState

FILE_MAGIC = b"QEVM"
FILE_VERSION = 3
CPU_VERSIONS = frozenset({12})

_HEADER = re.compile(rb"\x04(.{4})\x03cpu(.{4})(.{4})", re.DOTALL)
_HF_CPL_MASK = 3
_MAX_CPUS = 4096
_DR_SAVED = 8


@dataclass(frozen=True, slots=True)
class _Segment:
    base: int
    limit: int


def parse_device_state(data: bytes) -> tuple[VcpuState, ...]:
    """Return the vCPUs in ``data`` by index.  Raises FormatError on a layout we do not know."""
    reader = BoundedReader(data, "QEMU device state", order="big")
    if reader.take(4, "magic") != FILE_MAGIC:
        raise reader.fail("not a QEMU device state", expected=FILE_MAGIC, got=data[:4])
    version = reader.u32("version")
    if version != FILE_VERSION:
        raise reader.fail("unknown file version", expected=FILE_VERSION, got=version)
    states: dict[int, VcpuState] = {}
    for header in _HEADER.finditer(data):
        section_id, instance, section_version = (
            struct.unpack(">I", header.group(group))[0] for group in (1, 2, 3)
        )
        if section_version not in CPU_VERSIONS or instance >= _MAX_CPUS:
            continue
        footer = b"\x7e" + header.group(1)
        if data.find(footer, header.end()) < 0:
            continue
        if instance in states:
            raise FormatError(
                "QEMU device state", header.start(), f"two cpu sections for vCPU {instance}"
            )
        states[instance] = _parse_cpu(data[header.end() :], header.end(), instance, section_id)
    if not states:
        raise FormatError("QEMU device state", 0, "no cpu section of a known version")
    if sorted(states) != list(range(len(states))):
        raise FormatError("QEMU device state", 0, "cpu sections are missing", got=sorted(states))
    return tuple(states[index] for index in range(len(states)))


def _parse_cpu(data: bytes, base: int, index: int, section_id: int) -> VcpuState:
    reader = BoundedReader(data, f"vmstate_x86_cpu (section {section_id})", order="big", base=base)
    reader.take(16 * 8, "regs")
    rip = reader.u64("eip")
    reader.u64("eflags")
    hflags = reader.u32("hflags")
    reader.take(4 * 2, "fpuc, fpus, fptag, fpregs_format")
    reader.take(8 * 10, "fpregs")
    for _ in range(6 + 2):
        _segment(reader)
    gdt, idt = _segment(reader), _segment(reader)
    reader.u32("sysenter_cs")
    reader.u64("sysenter_esp")
    sysenter_eip = reader.u64("sysenter_eip")
    cr0, _cr2, cr3, cr4 = (reader.u64(f"cr{number}") for number in (0, 2, 3, 4))
    dr = [reader.u64(f"dr{number}") for number in range(_DR_SAVED)]
    reader.u32("a20_mask")
    reader.u32("mxcsr")
    reader.take(16 * 16, "xmm_regs")
    efer = reader.u64("efer")
    reader.u64("star")
    lstar, cstar = reader.u64("lstar"), reader.u64("cstar")
    return VcpuState(
        index=index,
        rip=rip,
        cpl=hflags & _HF_CPL_MASK,
        cr0=cr0,
        cr3=cr3,
        cr4=cr4,
        efer=efer,
        idtr=DescriptorTable(idt.base, idt.limit),
        gdtr=DescriptorTable(gdt.base, gdt.limit),
        dr=(dr[0], dr[1], dr[2], dr[3], dr[6], dr[7]),
        lstar=lstar,
        cstar=cstar,
        sysenter_eip=sysenter_eip,
    )


def _segment(reader: BoundedReader) -> _Segment:
    reader.u32("selector")
    base = reader.u64("base")
    limit = reader.u32("limit")
    reader.u32("flags")
    return _Segment(base, limit)
