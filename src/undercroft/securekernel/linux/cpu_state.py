"""Where each vCPU enters the kernel, and the protections it runs with.

The expected tables come from the signed kernel: its IDT is filled again from the file's own
``early_idts``, ``def_idts`` and ``apic_idts`` (arch/x86/kernel/idt.c), its GDT from the initial
``gdt_page`` (arch/x86/kernel/cpu/common.c).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Mapping, Sequence

from undercroft.base import Finding, JsonValue, MemoryFault
from undercroft.securekernel.arch.x86_64 import cpu
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look, Observer
from undercroft.securekernel.linux.live import MASK64, Image, LiveKernel
from undercroft.securekernel.vcpu import VcpuState

_LIMITS = (
    "a register changed and changed back between two looks is not seen",
    "which of SMEP, SMAP and UMIP the processor has is the kernel's word (cr4_pinned_bits)",
)

IDT = FactSpec(
    "cpu.idt",
    "every interrupt gate is the signed kernel's",
    "interrupt gates are not as the signed kernel has them",
    _LIMITS,
)
GDT = FactSpec(
    "cpu.gdt",
    "every segment is the signed kernel's",
    "segments are not as the signed kernel has them",
    _LIMITS,
)
ENTRY = FactSpec(
    "cpu.syscall",
    "system calls enter the signed kernel",
    "system calls do not enter the signed kernel where they should",
    _LIMITS,
)
CONTROL = FactSpec(
    "cpu.control",
    "the processor's protections are on",
    "protections of the processor are off",
    _LIMITS,
)
DEBUG = FactSpec(
    "cpu.debug",
    "no hardware breakpoint is set in the kernel",
    "a hardware breakpoint is set in the kernel",
    _LIMITS,
)
SPECS = (IDT, GDT, ENTRY, CONTROL, DEBUG)

_KERNEL_CS = 0x10
_FIRST_EXTERNAL_VECTOR = 32
_EARLY_HANDLER_SIZES = {8: 9, 16: 13}  # by IDT_ALIGN: with ENDBR each is 4 bytes longer
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
_TABLES = ("early_idts", "early_pf_idts", "def_idts", "ia32_idt", "apic_idts")
_OPTIONAL_VECTOR = 0x80  # int 0x80 may be left out at boot (ia32_emulation=)

_LSTAR = ("entry_SYSCALL_64",)
_CSTAR = ("entry_SYSCALL_compat", "entry_SYSCALL32_ignore", "ignore_sysret")
_SYSENTER = ("entry_SYSENTER_compat",)

_GDT_FLAT = range(1, 7)  # kernel and user code and data, arch/x86/include/asm/segment.h
_GDT_TSS, _GDT_LDT, _GDT_TLS, _GDT_CPUNODE = 8, 10, range(12, 15), 15
_GDT_SIZE = 16
_PINNED_CR4 = cpu.CR4_SMEP | cpu.CR4_SMAP | cpu.CR4_UMIP | cpu.CR4_FSGSBASE | cpu.CR4_CET

Problems = list[dict[str, JsonValue]]


def collect(
    kernel: LiveKernel, vcpus: Callable[[], Sequence[VcpuState]], observer: Observer
) -> tuple[Finding, ...]:
    """Return the findings on every vCPU's registers and descriptor tables.

    ``vcpus`` reads the registers anew for each look: a CPU that is just being brought up has an
    IDT of its own for a moment.
    """
    return observer.settle_all(SPECS, kernel, lambda fresh: look(fresh, vcpus()))


def look(kernel: LiveKernel, vcpus: Sequence[VcpuState]) -> Mapping[str, Look]:
    """Check every vCPU once.  One that was never started is counted and has no more to show."""
    started = [vcpu for vcpu in vcpus if not is_reset(vcpu)]
    if not started:
        unknown = Look({"none": Anomaly({"why": "no vCPU's registers are known"}, certain=False)})
        return dict.fromkeys((spec.id for spec in SPECS), unknown)
    checks: tuple[tuple[FactSpec, Callable[[LiveKernel, VcpuState], Problems]], ...] = (
        (IDT, check_idt),
        (GDT, check_gdt),
        (ENTRY, check_entry),
        (CONTROL, check_control),
        (DEBUG, check_debug),
    )
    counts = {"vcpus": len(started), "never_started": len(vcpus) - len(started)}
    return {spec.id: _run(kernel, started, counts, check) for spec, check in checks}


def is_reset(vcpu: VcpuState) -> bool:
    """Whether the vCPU is as the reset left it: never started by the guest."""
    return not vcpu.cr0 & cpu.CR0_PE and vcpu.rip == 0xFFF0 and vcpu.cr3 == 0 and not vcpu.efer


class _Unknown(Exception):  # noqa: N818 - an answer on its way out
    """A register that the backend does not know."""


def _run(
    kernel: LiveKernel,
    vcpus: Sequence[VcpuState],
    counts: Mapping[str, JsonValue],
    check: Callable[[LiveKernel, VcpuState], Problems],
) -> Look:
    anomalies: dict[Hashable, Anomaly] = {}
    for vcpu in vcpus:
        try:
            problems = check(kernel, vcpu)
        except (MemoryFault, _Unknown) as error:
            why: dict[str, JsonValue] = {"why": f"vCPU {vcpu.index}: {error}"}
            anomalies[vcpu.index] = Anomaly(why, certain=False)
            continue
        for problem in problems:
            key = (vcpu.index, *(str(problem.get(part)) for part in ("rule", "vector", "entry")))
            anomalies[key] = Anomaly({"vcpu": vcpu.index, **problem})
    return Look(anomalies, counts)


# IDT


def check_idt(kernel: LiveKernel, vcpu: VcpuState) -> Problems:
    """Compare the vCPU's IDT, gate by gate, with what the signed kernel would have set up."""
    problems: Problems = []
    if vcpu.idtr.limit != cpu.IDT_ENTRIES * cpu.GATE_SIZE - 1:
        problems.append({"rule": "the IDT has 256 gates", "got": vcpu.idtr.limit + 1})
    frame = kernel.space.translate(vcpu.idtr.base)
    own = kernel.space.translate(kernel.symbol("idt_table"))
    if frame != own:
        problems.append(
            {
                "rule": "the IDT is the kernel's idt_table",
                "expected": f"{own:#x}",
                "got": f"{frame:#x}",
            }
        )
    table = kernel.read(vcpu.idtr.base, cpu.IDT_ENTRIES * cpu.GATE_SIZE)
    expected = expected_idt(kernel.image, kernel.slide)
    for vector, allowed in enumerate(expected):
        data = table[cpu.GATE_SIZE * vector : cpu.GATE_SIZE * (vector + 1)]
        if data in allowed or _is_system_vector(kernel, data, vector):
            continue
        gate = cpu.parse_gate(data)
        problems.append(
            {
                "rule": "each gate leads where the signed kernel put it",
                "vector": vector,
                "expected": [kernel.name_of(cpu.parse_gate(one).offset) for one in allowed],
                "got": kernel.name_of(gate.offset),
                "address": f"{gate.offset:#x}",
                "gate": data.hex(),
            }
        )
    return problems


def expected_idt(image: Image, slide: int) -> list[list[bytes]]:
    """Return, for each vector, the gates that the signed kernel can have there.

    More than one only where a boot option decides (int 0x80).
    """
    align, externals = _irq_stubs(image)
    first_system = _FIRST_EXTERNAL_VECTOR + externals
    gates: list[list[bytes]] = []
    for vector in range(cpu.IDT_ENTRIES):
        if vector < _FIRST_EXTERNAL_VECTOR:
            size = _EARLY_HANDLER_SIZES[align]
            stub = image.symbols.address("early_idt_handler_array") + size * vector
        elif vector < first_system:
            stub = image.symbols.address("irq_entries_start") + align * (vector - 32)
        else:
            stub = image.symbols.address("spurious_entries_start") + align * (vector - first_system)
        gates.append([_interrupt_gate(stub + slide)])
    for name in _TABLES:
        for vector, gate in _idt_data(image, name, slide):
            if vector == _OPTIONAL_VECTOR:
                gates[vector].append(gate)
            else:
                gates[vector] = [gate]
    return gates


def _interrupt_gate(address: int) -> bytes:
    return cpu.Gate(address & MASK64, _KERNEL_CS, 0, cpu.GATE_INTERRUPT, 0, True).encode()


def _irq_stubs(image: Image) -> tuple[int, int]:
    """Return IDT_ALIGN and the number of external vectors, read off the stubs themselves.

    Stub i is ``push i+32; jmp`` (with ENDBR in front under IBT), padded to IDT_ALIGN.
    """
    start = image.symbols.address("irq_entries_start")
    end = image.symbols.address("spurious_entries_start")
    code = image.read(start - image.link_base, 48)
    align = 16 if code.startswith(_ENDBR64) else 8
    return align, (end - start) // align


def _idt_data(image: Image, name: str, slide: int) -> list[tuple[int, bytes]]:
    """Return the (vector, gate) pairs of one ``struct idt_data`` table of the file."""
    table = image.symbols.get(name)
    if table is None:
        return []
    size = image.btf.size_of("idt_data")
    fields = {
        field: image.btf.offset_of("idt_data", field)
        for field in ("vector", "segment", "bits", "addr")
    }
    entries = []
    for at in range(table, table + size * cpu.IDT_ENTRIES, size):
        if image.symbols.locate(at)[0] != name:
            break
        data = image.read(at - image.link_base, size)
        vector, segment = (
            struct.unpack_from("<I", data, fields[field])[0] for field in ("vector", "segment")
        )
        (bits,) = struct.unpack_from("<H", data, fields["bits"])
        (address,) = struct.unpack_from("<Q", data, fields["addr"])
        gate = cpu.Gate(
            offset=(address + slide) & MASK64,
            selector=segment,
            ist=bits & 7,
            type=bits >> 8 & 0xF,
            dpl=bits >> 13 & 3,
            present=bool(bits >> 15),
        )
        if vector < cpu.IDT_ENTRIES and gate.present:
            entries.append((vector, gate.encode()))
    return entries


def _is_system_vector(kernel: LiveKernel, data: bytes, vector: int) -> bool:
    """Whether this is a gate that a driver of the kernel adds at boot (alloc_intr_gate).

    Hypervisor callbacks are: an interrupt gate to the start of an ``asm_sysvec_*`` entry.
    """
    gate = cpu.parse_gate(data)
    if vector < _FIRST_EXTERNAL_VECTOR or data != _interrupt_gate(gate.offset):
        return False
    name = kernel.name_of(gate.offset)
    return name.startswith("asm_sysvec_") and "+" not in name


# GDT


def check_gdt(kernel: LiveKernel, vcpu: VcpuState) -> Problems:
    """Compare the vCPU's GDT with the signed kernel's, and find which Linux CPU it belongs to."""
    problems: Problems = []
    if vcpu.gdtr.limit != _GDT_SIZE * 8 - 1:
        problems.append({"rule": "the GDT has 16 entries", "got": vcpu.gdtr.limit + 1})
    frame = kernel.space.translate(vcpu.gdtr.base)
    pages = {
        kernel.space.translate(kernel.per_cpu("gdt_page", number)): number
        for number in range(kernel.cpu_count())
    }
    if frame not in pages:
        problems.append({"rule": "the GDT is a CPU's own gdt_page", "got": f"{frame:#x}"})
    table = kernel.read(vcpu.gdtr.base, _GDT_SIZE * 8)
    initial = _initial_gdt(kernel.image)
    for number in range(_GDT_SIZE):
        data = table[8 * number : 8 * number + 8]
        rule = _gdt_rule(number, data, initial[8 * number : 8 * number + 8])
        if rule:
            problems.append({"rule": rule, "entry": number, "got": data.hex()})
    return problems


def _initial_gdt(image: Image) -> bytes:
    """Return the GDT as the file's per-CPU template has it."""
    template = image.symbols.address("__per_cpu_load") - image.link_base
    return image.read(template + image.symbols.address("gdt_page"), _GDT_SIZE * 8)


def _gdt_rule(number: int, data: bytes, initial: bytes) -> str:
    """Return the rule that this entry breaks, or "".

    Upper halves of the 16-byte TSS and LDT descriptors hold only address bits.
    """
    if number in (_GDT_TSS + 1, _GDT_LDT + 1):
        return "" if data[4:] == bytes(4) else "a system descriptor's upper half is an address"
    entry = cpu.parse_descriptor(data)
    if number == _GDT_TSS:
        types = (cpu.SYSTEM_TSS_AVAILABLE, cpu.SYSTEM_TSS_BUSY)
        good = entry.system and entry.type in types and entry.dpl == 0 and entry.present
        return "" if good else "entry 8 is the task state segment"
    if number == _GDT_LDT:
        good = data == bytes(8) or (entry.system and entry.type == cpu.SYSTEM_LDT and not entry.dpl)
        return "" if good else "entry 10 is empty or a local descriptor table"
    if number in _GDT_TLS or number == _GDT_CPUNODE:
        code = bool(entry.type & 8)
        good = data == bytes(8) or (not entry.system and entry.dpl == 3 and not code)
        return "" if good else "thread-local segments are user data segments"
    return "" if data == initial else "code and data segments are as in the file"


# Entry points, control and debug registers


def check_entry(kernel: LiveKernel, vcpu: VcpuState) -> Problems:
    """Check LSTAR, CSTAR and SYSENTER_EIP; 0 is lawful for the two that a CPU may not have."""
    if vcpu.lstar is None or vcpu.cstar is None or vcpu.sysenter_eip is None:
        raise _Unknown("this hypervisor does not tell LSTAR")
    problems: Problems = []
    for register, value, names, zero in (
        ("LSTAR", vcpu.lstar, _LSTAR, False),
        ("CSTAR", vcpu.cstar, _CSTAR, True),
        ("SYSENTER_EIP", vcpu.sysenter_eip, _SYSENTER, True),
    ):
        allowed = [address for name in names if (address := kernel.find_symbol(name)) is not None]
        if value not in allowed and not (zero and value == 0):
            problems.append(
                {
                    "rule": f"{register} leads to {names[0]}",
                    "register": register,
                    "expected": [f"{address:#x}" for address in allowed],
                    "got": f"{value:#x}",
                    "name": kernel.name_of(value),
                }
            )
    return problems


def check_control(kernel: LiveKernel, vcpu: VcpuState) -> Problems:
    """Check CR0, CR4 and EFER.

    Which of SMEP, SMAP, UMIP, FSGSBASE and CET must be on is what the kernel pinned at boot
    (cr4_pinned_bits, arch/x86/kernel/cpu/common.c).
    """
    problems: Problems = []
    wanted = cpu.CR0_PE | cpu.CR0_WP | cpu.CR0_PG
    if vcpu.cr0 & wanted != wanted:
        problems.append({"rule": "CR0 has PE, WP and PG", "got": f"{vcpu.cr0:#x}"})
    if vcpu.efer is None:
        raise _Unknown("this hypervisor does not tell EFER")
    wanted = cpu.EFER_SCE | cpu.EFER_LME | cpu.EFER_LMA | cpu.EFER_NXE
    if vcpu.efer & wanted != wanted:
        problems.append({"rule": "EFER has SCE, LME, LMA and NXE", "got": f"{vcpu.efer:#x}"})
    pinned = kernel.u64(kernel.symbol("cr4_pinned_bits")) & _PINNED_CR4
    missing = pinned & ~vcpu.cr4
    if missing:
        problems.append(
            {
                "rule": "CR4 has the bits that the kernel pinned",
                "missing": [name for bit, name in cpu.CR4_NAMES.items() if missing & bit],
                "got": f"{vcpu.cr4:#x}",
            }
        )
    return problems


def check_debug(kernel: LiveKernel, vcpu: VcpuState) -> Problems:
    """Check that no enabled hardware breakpoint stands on a kernel address.

    Debuggers and perf set them in user space for their own processes; that is not looked at.
    """
    if vcpu.dr is None:
        raise _Unknown("this hypervisor does not tell the debug registers")
    return [
        {
            "rule": "no hardware breakpoint is set in the kernel",
            "register": f"DR{point.number}",
            "address": f"{point.address:#x}",
            "name": kernel.name_of(point.address),
            "condition": point.condition,
        }
        for point in cpu.enabled_breakpoints(vcpu.dr)
        if point.address >> 63
    ]
