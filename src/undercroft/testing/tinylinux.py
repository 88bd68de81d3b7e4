"""The tiny kernel, booted: one site of every kind, patched as Linux would, in a fake guest.

The patched bytes are written out here by hand; nothing of the replay is used to make them.
"""

from __future__ import annotations

import struct

from undercroft.formats.kernel import KernelImage, load_kernel
from undercroft.securekernel.vcpu import DescriptorTable
from undercroft.testing.fakeguest import PAGE_SIZE, FakeGuest
from undercroft.testing.tinykernel import (
    DATA,
    HOLE,
    IMAGE_SIZE,
    INIT,
    LINK_BASE,
    TEXT_SIZE,
    TinyKernel,
    rel32,
)

SLIDE = 0x0120_0000
IDT = 0xFFFF_FE00_0000_0000
FEATURE, ABSENT, MITIGATION = 10, 20, 30
"""Feature numbers of the tiny kernel: one that the CPU has, one that it lacks, and another."""

DIVIDE_ERROR, SYSCALL, FENTRY = 0x40, 0x80, 0xC0
NATIVE, KVM, NOP_FUNC, BUG = 0x100, 0x110, 0x120, 0x130
RETURN0, STATIC_RETURN = 0x140, 0x150
RETURN_THUNK, SRSO_THUNK, ITS_THUNK = 0x160, 0x170, 0x180
THUNKS, CALL_THUNKS, JUMP_THUNKS = 0x200, 0x400, 0x600
FTRACE_CALL, FTRACE_REGS_CALL, FTRACE_STUB = 0x810, 0x820, 0x830
PADDED = 0x890
"""A function with nine NOPs before it."""

TRACED, RETURN, RETURN_UPPER = 0x1000, 0x1010, 0x1030
RETPOLINE, RETPOLINE_R11, RETPOLINE_JMP, RETPOLINE_JCC = 0x1040, 0x1048, 0x1050, 0x1058
ALTERNATIVE, NOT_APPLIED, PARAVIRT = 0x1060, 0x1070, 0x1080
LOCK, LABEL, LABEL_SHORT = 0x1090, 0x10A0, 0x10B0
STATIC_CALL, STATIC_TAIL, STATIC_NULL, TRAMPOLINE = 0x10C0, 0x10D0, 0x10E0, 0x10F0
SEALED, CONSTANT, ABSOLUTE, VICTIM, CALLER = 0x1100, 0x1110, 0x1120, 0x1200, 0x1240
PV_OPS, KEY, KEY_OFF, SCK, SCK_NULL = DATA, DATA + 0x40, DATA + 0x50, DATA + 0x60, DATA + 0x70
TRACE_FUNCTION, VALUE, ROOT = DATA + 0x80, DATA + 0x90, DATA + 0x1000
TEMPLATE = 0x4100
NOP5 = bytes.fromhex("0f1f440000")
TINY_VICTIM = bytes.fromhex("5548 89e5 31c0 5d c3".replace(" ", ""))


def kernel(*, wide: bool) -> TinyKernel:
    """Return the kernel's package: every kind of site once, as compiled."""
    tiny = TinyKernel(wide=wide)
    functions = {
        "asm_exc_divide_error": DIVIDE_ERROR,
        "entry_SYSCALL_64": SYSCALL,
        "__fentry__": FENTRY,
        "native_thing": NATIVE,
        "kvm_thing": KVM,
        "nop_func" if wide else "_paravirt_nop": NOP_FUNC,
        "BUG_func" if wide else "paravirt_BUG": BUG,
        "__static_call_return0": RETURN0,
        "__static_call_return": STATIC_RETURN,
        "__x86_return_thunk": RETURN_THUNK,
        "srso_return_thunk": SRSO_THUNK,
        "its_return_thunk": ITS_THUNK,
        "ftrace_stub": FTRACE_STUB,
        "padded": PADDED,
        "traced": TRACED,
    }
    for name, at in functions.items():
        tiny.code(at, "c3", name)
    tiny.code(THUNKS, "c3", "__x86_indirect_thunk_array")
    tiny.code(PADDED - 9, b"\x90" * 9)
    tiny.symbols["ftrace_call"] = (tiny.branch(FTRACE_CALL, "e8", FTRACE_STUB), "t")
    tiny.symbols["ftrace_regs_call"] = (tiny.branch(FTRACE_REGS_CALL, "e8", FTRACE_STUB), "t")
    tiny.code(VICTIM, TINY_VICTIM, "victim")
    tiny.branch(CALLER, "e8", PADDED)
    tiny.symbols["caller"] = (CALLER, "t")
    _variables(tiny)
    _sites(tiny)
    if wide:
        _wide_only(tiny)
    return tiny


def _variables(tiny: TinyKernel) -> None:
    tiny.structs["paravirt_patch_template"] = (16, {})
    tiny.pointer("pv_ops", PV_OPS, NATIVE)
    tiny.pointer("pv_ops_second", PV_OPS + 8, NATIVE)
    tiny.variable("key", KEY, 0, 4)
    tiny.variable("key_off", KEY_OFF, 0, 4)
    tiny.pointer("__SCK__call", SCK, NATIVE)
    tiny.variable("__SCK__null", SCK_NULL)
    tiny.pointer("ftrace_trace_function", TRACE_FUNCTION, FTRACE_STUB)
    tiny.variable("constant_value", VALUE, 0)
    tiny.variable("init_top_pgt", ROOT)
    tiny.variable("state", HOLE + 0x800, 5)


def _sites(tiny: TinyKernel) -> None:
    tiny.branch(TRACED, "e8", FENTRY)
    tiny.mcount.append(TRACED)
    for at in (RETURN, RETURN_UPPER):
        tiny.branch(at, "e9", RETURN_THUNK)
        tiny.site(".return_sites", at)
    for at, opcode, register in (
        (RETPOLINE, "e8", 0),
        (RETPOLINE_R11, "2ee8", 11),
        (RETPOLINE_JMP, "e9", 1),
        (RETPOLINE_JCC, "0f84", 2),
    ):
        tiny.branch(at, opcode, THUNKS + 32 * register)
        tiny.site(".retpoline_sites", at)
    tiny.code(ALTERNATIVE, "9090909090")
    tiny.alternative(ALTERNATIVE, 5, FEATURE, bytes.fromhex("0f01ca"))
    tiny.code(NOT_APPLIED, "4889d8909090")
    tiny.alternative(NOT_APPLIED, 6, ABSENT, bytes.fromhex("31c0"))
    tiny.branch(PARAVIRT, "ff15", PV_OPS + 8)
    tiny.code(LOCK, "f048ff00")
    tiny.site(".smp_locks", LOCK)
    tiny.code(LABEL, NOP5)
    tiny.jump_labels.append((LABEL, LABEL + 0x40, KEY, 0))
    tiny.code(LABEL_SHORT, "eb08")
    tiny.jump_labels.append((LABEL_SHORT, LABEL_SHORT + 10, KEY_OFF, 1))
    tiny.branch(TRAMPOLINE, "e9", NATIVE)
    tiny.code(TRAMPOLINE + 5, "0fb9cc")
    tiny.symbols["__SCT__call"] = (TRAMPOLINE, "t")
    tiny.branch(STATIC_CALL, "e8", TRAMPOLINE)
    tiny.branch(STATIC_TAIL, "e9", TRAMPOLINE)
    tiny.branch(STATIC_NULL, "e8", TRAMPOLINE)
    tiny.static_calls += [
        (STATIC_CALL, SCK, 0),
        (STATIC_TAIL, SCK, 1),
        (STATIC_NULL, SCK_NULL, 0),
    ]
    tiny.code(ABSOLUTE, b"\x48\xc7\xc0" + struct.pack("<I", (LINK_BASE + VICTIM) & 0xFFFFFFFF))
    tiny.r32.append(ABSOLUTE + 3)
    if not tiny.wide:
        tiny.paravirt.append((PARAVIRT, 1, 6))


def _wide_only(tiny: TinyKernel) -> None:
    """The sites that only recent kernels have."""
    where = tiny.next_replacement
    tiny.alternative(PARAVIRT, 6, FEATURE, rel32("e8", where, BUG), flags=2)
    tiny.code(SEALED, "f30f1efa")
    tiny.site(".ibt_endbr_seal", SEALED)
    tiny.code(CONSTANT, b"\x48\xb8" + b"\xef\xcd\xab\x89\x67\x45\x23\x01")
    tiny.site("runtime_ptr_constant_value", CONSTANT + 2)
    tiny.site(".call_sites", CALLER)
    for name, at in (
        ("__x86_indirect_call_thunk_array", CALL_THUNKS),
        ("__x86_indirect_jump_thunk_array", JUMP_THUNKS),
    ):
        tiny.code(at, "c3", name)
    tiny.code(TEMPLATE, bytes.fromhex("6548c13d0010000005"), "skl_call_thunk_template")
    tiny.symbols["skl_call_thunk_tail"] = (TEMPLATE + 9, "r")
    tiny.code(0x190, "c3", "call_depth_return_thunk")


class TinyLinux:
    """The tiny kernel running in a fake guest, moved by SLIDE.

    ``patched`` maps positions to the bytes that this boot left there: change it, and the
    variables, before :meth:`boot`.  A CPU with FEATURE, no mitigations but retpolines, two
    CPUs, KVM's function in the second pv_ops slot, the first static key on.
    """

    def __init__(self, *, wide: bool = False, la57: bool = False) -> None:
        self.tiny = kernel(wide=wide)
        self.image: KernelImage = load_kernel(self.tiny.vmlinuz())
        self.guest = FakeGuest(pages=256, la57=la57)
        self.base = LINK_BASE + SLIDE
        self.patched: dict[int, bytes] = {
            TRACED: NOP5,
            RETURN: bytes.fromhex("c3cccccccc"),
            RETURN_UPPER: bytes.fromhex("c3cccccccc"),
            ALTERNATIVE: bytes.fromhex("0f01ca6690"),
            NOT_APPLIED: bytes.fromhex("4889d80f1f00"),
            PARAVIRT: rel32("e8", PARAVIRT, KVM) + b"\x90",
            LABEL: rel32("e9", LABEL, LABEL + 0x40),
            STATIC_CALL: rel32("e8", STATIC_CALL, NATIVE),
            STATIC_TAIL: rel32("e9", STATIC_TAIL, NATIVE),
            STATIC_NULL: NOP5,
            TRAMPOLINE: rel32("e9", TRAMPOLINE, NATIVE),
        }
        self.variables: dict[int, tuple[int, int]] = {KEY: (1, 4), PV_OPS + 8: (self.at(KVM), 8)}
        if wide:
            self.patched[SEALED] = bytes.fromhex("660f1f00")
            self.patched[CONSTANT + 2] = struct.pack("<Q", 0xFFFF888000001000)
            self.variables[VALUE] = (0xFFFF888000001000, 8)

    def at(self, position: int) -> int:
        """Return the virtual address of a position."""
        return self.base + position

    def memory(self) -> bytes:
        """Return the image as it lies in memory: relocated, patched, with its variables."""
        memory = bytearray(self.image.memory)
        for at in self.tiny.r64:
            _add(memory, at, "<Q", SLIDE)
        for at in self.tiny.r32:
            _add(memory, at, "<I", SLIDE)
        for at in self.tiny.inverse32:
            _add(memory, at, "<I", -SLIDE)
        for at, code in self.patched.items():
            memory[at : at + len(code)] = code
        for at, (value, size) in self.variables.items():
            memory[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        return bytes(memory)

    def boot(self) -> TinyLinux:
        """Map the kernel, its IDT and its own root table; what is freed after boot is not."""
        memory, root = self.memory(), ROOT & ~(PAGE_SIZE - 1)
        first = self.guest.frames(IMAGE_SIZE // PAGE_SIZE)
        self.frame = first
        for at in range(0, IMAGE_SIZE, PAGE_SIZE):
            if at >= INIT:
                break
            paddr = self.guest.cr3 if at == root else first + at
            self.guest.map(self.at(at), paddr=paddr, executable=at < TEXT_SIZE)
            if at != root:
                self.guest.memory.write(first + at, memory[at : at + PAGE_SIZE])
        self.guest.map(IDT)
        handler = self.at(DIVIDE_ERROR)
        gate = struct.pack(
            "<HHHHII", handler & 0xFFFF, 0x10, 0x8E00, handler >> 16 & 0xFFFF, handler >> 32, 0
        )
        self.guest.write(IDT, gate)
        self.guest.states = tuple(
            self.guest.vcpu(index, idtr=DescriptorTable(IDT, 0xFFF), lstar=self.at(SYSCALL))
            for index in range(2)
        )
        return self

    def poke(self, position: int, code: bytes) -> None:
        """Write into the running kernel."""
        self.guest.write(self.at(position), code)


def _add(memory: bytearray, at: int, form: str, amount: int) -> None:
    (value,) = struct.unpack_from(form, memory, at)
    size = struct.calcsize(form)
    struct.pack_into(form, memory, at, (value + amount) % (1 << 8 * size))
