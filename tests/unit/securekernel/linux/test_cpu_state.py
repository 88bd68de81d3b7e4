"""Registers and descriptor tables against what the signed kernel sets up."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.arch.x86_64 import cpu
from undercroft.securekernel.linux import cpu_state
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.vcpu import DescriptorTable, VcpuState
from undercroft.testing.fakekernel import LINK_BASE, FakeKernel

LAYOUTS = {"idt_data": (24, {"vector": 0, "segment": 4, "bits": 8, "addr": 16})}
IDT, GDT = 0xFFFFFE0000000000, 0xFFFFFE0000001000
TEXT = {
    "early_idt_handler_array": 0x10000,
    "irq_entries_start": 0x11000,
    "spurious_entries_start": 0x11000 + 8 * 204,
    "asm_exc_divide_error": 0x12000,
    "asm_exc_nmi": 0x12010,
    "asm_int80_emulation": 0x12020,
    "asm_sysvec_reboot": 0x12030,
    "asm_sysvec_kvm_asyncpf_interrupt": 0x12040,
    "entry_SYSCALL_64": 0x13000,
    "entry_SYSCALL_compat": 0x13010,
    "entry_SYSENTER_compat": 0x13020,
    "some_function": 0x14000,
}
FLAT = bytes(8) + b"".join(
    bytes.fromhex(entry)
    for entry in (
        "ffff0000009bcf00",
        "ffff0000009baf00",
        "ffff00000093cf00",
        "ffff000000fbcf00",
        "ffff000000f3cf00",
        "ffff000000fbaf00",
    )
)
TSS = bytes.fromhex("87400030008b0000feffff0000000000")
INITIAL_GDT = FLAT.ljust(128, b"\0")
LIVE_GDT = FLAT + bytes(8) + TSS + bytes(16 + 24) + bytes.fromhex("0000000000f54000")


def idt_data(*entries: tuple[int, str, int]) -> bytes:
    """(vector, symbol, bits) as ``struct idt_data`` of the file, with link addresses."""
    return b"".join(
        struct.pack("<IIHxxxxxxQ", vector, 0x10, bits, LINK_BASE + TEXT[name])
        for vector, name, bits in entries
    )


class Guest(FakeKernel):
    """One vCPU as the signed kernel leaves it."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        names = self.image.symbols.names
        names |= {name: LINK_BASE + at for name, at in TEXT.items()}
        names |= {"_end": LINK_BASE + 0x100000, "gdt_page": 0x1000}
        names |= {"__per_cpu_load": LINK_BASE + 0x20000}
        self.image.content[0x20000 + 0x1000] = INITIAL_GDT
        self.image.content[0x11000] = bytes.fromhex("6a20e9690b0000cc") * 8
        tables = {
            "early_idts": idt_data((0, "some_function", 0x8E00)),
            "def_idts": idt_data(
                (0, "asm_exc_divide_error", 0x8E00),
                (2, "asm_exc_nmi", 0x8E02),
                (0x80, "asm_int80_emulation", 0xEE00),
            ),
            "apic_idts": idt_data((0xF8, "asm_sysvec_reboot", 0x8E00)),
        }
        at = 0x30000
        for name, data in tables.items():
            names[name] = LINK_BASE + at
            self.image.content[at] = data
            at += len(data)
        names["after_the_tables"] = LINK_BASE + at
        self.image.content[at] = bytes(24)
        self._place()
        self.vcpu = self.guest.vcpu(
            0,
            idtr=DescriptorTable(IDT, 0xFFF),
            gdtr=DescriptorTable(GDT, 0x7F),
            lstar=self.at("entry_SYSCALL_64"),
            cstar=self.at("entry_SYSCALL_compat"),
            sysenter_eip=self.at("entry_SYSENTER_compat"),
        )

    def _place(self) -> None:
        idt_frame = self.guest.frame()
        self.guest.map(IDT, paddr=idt_frame, writable=False)
        self.image.symbols.names["idt_table"] = LINK_BASE + 0x50000
        self.guest.map(LINK_BASE + 0x50000 + self.slide, paddr=idt_frame)
        for vector, gates in enumerate(cpu_state.expected_idt(self.image, self.slide)):
            self.guest.write(self.gate(vector), gates[-1])
        area = self.guest.frame()
        self.guest.map(0xFFFF800000001000, paddr=area)
        self.guest.map(GDT, paddr=area, writable=False)
        self.guest.put_u64(self.symbol("__per_cpu_offset"), 0xFFFF800000000000)
        self.guest.put_u32(self.symbol("nr_cpu_ids"), 1)
        self.guest.put_u64(self.symbol("cr4_pinned_bits"), cpu.CR4_UMIP | cpu.CR4_SMEP)
        self.guest.write(GDT, LIVE_GDT)

    def at(self, name: str) -> int:
        return LINK_BASE + TEXT[name] + self.slide

    def gate(self, vector: int) -> int:
        return IDT + 16 * vector

    def set(self, **registers: Any) -> None:
        fields = {name: getattr(self.vcpu, name) for name in VcpuState.__slots__}
        self.vcpu = VcpuState(**(fields | registers))

    def findings(self) -> dict[str, Finding]:
        return {found.id: found for found in self.collect([self.vcpu])}

    def collect(self, vcpus: list[VcpuState]) -> tuple[Finding, ...]:
        observer = Observer(nullcontext, lambda _: None, (0, 1))
        return cpu_state.collect(self.kernel(), lambda: vcpus, observer)

    def only_problem(self, name: str) -> dict[str, Any]:
        """The one problem of the one finding that fails."""
        findings = self.findings()
        failed = [found.id for found in findings.values() if found.outcome is not Outcome.PASS]
        assert failed == [name]
        assert findings[name].outcome is Outcome.FAIL
        problems = findings[name].details["anomalies"]
        assert isinstance(problems, list)
        (problem,) = problems
        assert problem["vcpu"] == 0
        return dict(problem)


@pytest.fixture
def fake() -> Guest:
    return Guest()


def test_an_honest_vcpu_passes_everything(fake: Guest) -> None:
    findings = fake.findings()
    assert set(findings) == {"cpu.idt", "cpu.gdt", "cpu.syscall", "cpu.control", "cpu.debug"}
    assert all(found.outcome is Outcome.PASS for found in findings.values())


def test_a_gate_to_another_function_is_named(fake: Guest) -> None:
    gate = cpu.Gate(fake.at("some_function"), 0x10, 0, 0xE, 0, True)
    fake.guest.write(fake.gate(0), gate.encode())
    problem = fake.only_problem("cpu.idt")
    assert problem["vector"] == 0
    assert problem["expected"] == ["asm_exc_divide_error"]
    assert problem["got"] == "some_function"


@pytest.mark.parametrize(
    "change",
    [
        {"ist": 1},
        {"dpl": 3},
        {"type": 0xF},
        {"selector": 0x33},
        {"present": False},
    ],
)
def test_every_field_of_a_gate_counts(fake: Guest, change: dict[str, Any]) -> None:
    fields = {"selector": 0x10, "ist": 0, "type": 0xE, "dpl": 0, "present": True} | change
    gate = cpu.Gate(offset=fake.at("asm_exc_divide_error"), **fields)
    fake.guest.write(fake.gate(0), gate.encode())
    assert fake.only_problem("cpu.idt")["vector"] == 0


def test_a_driver_may_add_a_system_vector_but_nothing_else(fake: Guest) -> None:
    good = fake.at("asm_sysvec_kvm_asyncpf_interrupt")
    fake.guest.write(fake.gate(0xF3), cpu.Gate(good, 0x10, 0, 0xE, 0, True).encode())
    assert fake.findings()["cpu.idt"].outcome is Outcome.PASS
    fake.guest.write(fake.gate(0xF3), cpu.Gate(good + 4, 0x10, 0, 0xE, 0, True).encode())
    assert fake.only_problem("cpu.idt")["vector"] == 0xF3
    fake.guest.write(fake.gate(0xF3), cpu.Gate(good, 0x10, 0, 0xE, 3, True).encode())
    assert fake.only_problem("cpu.idt")["vector"] == 0xF3


def test_an_exception_may_not_go_to_a_system_vector(fake: Guest) -> None:
    good = fake.at("asm_sysvec_kvm_asyncpf_interrupt")
    fake.guest.write(fake.gate(0), cpu.Gate(good, 0x10, 0, 0xE, 0, True).encode())
    assert fake.only_problem("cpu.idt")["vector"] == 0


def test_int_0x80_may_be_left_out_at_boot(fake: Guest) -> None:
    stub = fake.at("irq_entries_start") + 8 * (0x80 - 32)
    fake.guest.write(fake.gate(0x80), cpu.Gate(stub, 0x10, 0, 0xE, 0, True).encode())
    assert fake.findings()["cpu.idt"].outcome is Outcome.PASS


def test_another_table_with_the_same_gates_is_a_finding(fake: Guest) -> None:
    copy = 0xFFFFFE0000900000
    fake.guest.map(copy)
    fake.guest.write(copy, fake.kernel().read(IDT, 4096))
    fake.set(idtr=DescriptorTable(copy, 0xFFF))
    assert "idt_table" in fake.only_problem("cpu.idt")["rule"]


def test_a_longer_table_is_a_finding(fake: Guest) -> None:
    fake.set(idtr=DescriptorTable(IDT, 0x1FFF))
    assert fake.only_problem("cpu.idt")["got"] == 0x2000
    fake.set(idtr=DescriptorTable(IDT, 0xFFF), gdtr=DescriptorTable(GDT, 0xFF))
    assert fake.only_problem("cpu.gdt")["got"] == 0x100


def test_ibt_kernels_have_longer_stubs(fake: Guest) -> None:
    fake.image.content[0x11000] = bytes.fromhex("f30f1efa6a20e9650b0000cccccccccc") * 4
    fake.image.symbols.names["spurious_entries_start"] = LINK_BASE + 0x11000 + 16 * 204
    gates = cpu_state.expected_idt(fake.image, 0)
    assert cpu.parse_gate(gates[33][0]).offset == LINK_BASE + 0x11000 + 16
    assert cpu.parse_gate(gates[1][0]).offset == LINK_BASE + 0x10000 + 13


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        (1, "ffff000000fbaf00"),  # kernel code for users
        (2, "ffff0000009bcf00"),  # 64-bit code made 32-bit
        (7, "ffff0000009baf00"),  # a segment where none is
        (8, "000010000 0ec0000"),  # a call gate in the TSS's place
        (9, "feffff00000000ff"),
        (10, "0000100000ec0000"),  # a call gate
        (12, "ffff0000009bcf00"),  # code in a thread-local slot
        (13, "0000100000ec0000"),  # a call gate for users
        (15, "ffff000000fbaf00"),
    ],
)
def test_every_segment_has_its_rule(fake: Guest, entry: int, data: str) -> None:
    fake.guest.write(GDT + 8 * entry, bytes.fromhex(data.replace(" ", "")))
    assert fake.only_problem("cpu.gdt")["entry"] == entry


def test_user_segments_and_an_ldt_are_lawful(fake: Guest) -> None:
    fake.guest.write(GDT + 8 * 12, bytes.fromhex("ffff000000f3cf00"))
    fake.guest.write(GDT + 8 * 10, bytes.fromhex("ffff000000820000feffff0000000000"))
    assert fake.findings()["cpu.gdt"].outcome is Outcome.PASS


def test_a_gdt_on_another_page_is_a_finding(fake: Guest) -> None:
    copy = 0xFFFFFE0000900000
    fake.guest.map(copy)
    fake.guest.write(copy, LIVE_GDT)
    fake.set(gdtr=DescriptorTable(copy, 0x7F))
    assert "gdt_page" in fake.only_problem("cpu.gdt")["rule"]


@pytest.mark.parametrize("register", ["lstar", "cstar", "sysenter_eip"])
def test_an_entry_point_elsewhere_is_named(fake: Guest, register: str) -> None:
    fake.set(**{register: fake.at("some_function")})
    problem = fake.only_problem("cpu.syscall")
    assert problem["register"] == register.upper()
    assert problem["name"] == "some_function"


def test_processors_without_compat_entries_have_zero_there(fake: Guest) -> None:
    fake.set(cstar=0, sysenter_eip=0)
    assert fake.findings()["cpu.syscall"].outcome is Outcome.PASS
    fake.set(lstar=0)
    assert fake.only_problem("cpu.syscall")["register"] == "LSTAR"


@pytest.mark.parametrize(
    ("name", "registers"),
    [
        ("cpu.syscall", {"lstar": None}),
        ("cpu.control", {"efer": None}),
        ("cpu.debug", {"dr": None}),
        ("cpu.idt", {"idtr": DescriptorTable(0x1000, 0xFFF)}),
    ],
)
def test_what_is_not_known_is_unknown(fake: Guest, name: str, registers: dict[str, Any]) -> None:
    fake.set(**registers)
    assert fake.findings()[name].outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(
    ("registers", "rule"),
    [
        ({"cr0": 0x80040033}, "CR0"),
        ({"efer": 0x501}, "EFER"),
        ({"cr4": cpu.CR4_UMIP}, "CR4"),
    ],
)
def test_a_protection_that_is_off_is_a_finding(
    fake: Guest, registers: dict[str, Any], rule: str
) -> None:
    fake.set(**registers)
    assert fake.only_problem("cpu.control")["rule"].startswith(rule)


def test_the_bits_that_are_missing_are_named(fake: Guest) -> None:
    fake.set(cr4=cpu.CR4_UMIP)
    assert fake.only_problem("cpu.control")["missing"] == ["SMEP"]


def test_a_breakpoint_in_the_kernel_is_a_finding(fake: Guest) -> None:
    fake.set(dr=(fake.at("some_function"), 0, 0, 0, 0, 0x401))
    assert fake.only_problem("cpu.debug")["name"] == "some_function"
    fake.set(dr=(0x400000, 0, 0, 0, 0, 0x401))  # a debugger's, in user space
    assert fake.findings()["cpu.debug"].outcome is Outcome.PASS


def test_a_vcpu_that_never_started_has_nothing_to_show(fake: Guest) -> None:
    reset = fake.guest.vcpu(1, rip=0xFFF0, cr0=0x60000010, cr3=0, cr4=0, efer=0)
    findings = fake.collect([fake.vcpu, reset])
    assert all(found.outcome is Outcome.PASS for found in findings)
    assert (findings[0].details["vcpus"], findings[0].details["never_started"]) == (1, 1)
    assert all(found.outcome is Outcome.UNKNOWN for found in fake.collect([reset]))
    assert all(found.outcome is Outcome.UNKNOWN for found in fake.collect([]))


def test_a_vcpu_in_real_mode_that_runs_is_not_excused(fake: Guest) -> None:
    running = fake.guest.vcpu(1, rip=0x7C00, cr0=0x60000010, cr3=0, cr4=0, efer=0)
    findings = fake.collect([fake.vcpu, running])
    assert any(found.outcome is not Outcome.PASS for found in findings)


def test_several_problems_are_counted(fake: Guest) -> None:
    fake.guest.write(fake.gate(0), bytes(16))
    fake.guest.write(fake.gate(2), bytes(16))
    found = fake.findings()["cpu.idt"]
    assert found.outcome is Outcome.FAIL
    assert found.details["count"] == 2


def test_a_processor_that_is_just_starting_gets_a_second_look(fake: Guest) -> None:
    """It runs on an early IDT (bringup_idt_table) for a moment."""
    good = fake.vcpu
    fake.set(idtr=DescriptorTable(GDT, 0x1FF))
    looks = [[fake.vcpu], [good]]
    observer = Observer(nullcontext, lambda _: None, (0, 1))
    findings = cpu_state.collect(fake.kernel(), lambda: looks.pop(0), observer)
    assert all(found.outcome is Outcome.PASS for found in findings)
