"""Trampolines, slots and detours, against bytes put together by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from undercroft.formats.kernel import KernelImage, load_kernel
from undercroft.reference.kernel import generated
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.ftrace import OPS_FL_ALLOC_TRAMP, OPS_FL_SAVE_REGS, Ops
from undercroft.reference.kernel.generated import Generated, unexplained
from undercroft.reference.kernel.kprobes import Probe
from undercroft.reference.kernel.returns import ReturnChoice
from undercroft.reference.kernel.rules import Rule
from undercroft.testing.tinykernel import TinyKernel, rel32

CALLER, REGS, TEMPLATE, SITE = 0x800, 0x900, 0xA00, 0x1000
TRAMPOLINE, SLOT, DETOUR = 0x10_0000, 0x11_0000, 0x12_0000
TRACER, ASSIST, CALLBACK, THUNK = 0x100, 0x110, 0x120, 0x130
PLAIN = ReturnChoice(None, "ret", its=False)
OPS = Ops(0xFFFF888000001000, TRACER, OPS_FL_ALLOC_TRAMP, TRAMPOLINE, 0)


def kernel(*, wide: bool) -> KernelImage:
    tiny = TinyKernel(wide=wide)
    tiny.alternative(0x200, 3, 7, b"\x90")
    for name, at in (
        ("tracer", TRACER),
        ("ftrace_ops_assist_func", ASSIST),
        ("optimized_callback", CALLBACK),
        ("thunk", THUNK),
    ):
        tiny.code(at, "c3", name)
    for start, name, call in (
        (CALLER, "ftrace_caller", "ftrace_call"),
        (REGS, "ftrace_regs_caller", "ftrace_regs_call"),
    ):
        tiny.code(start, "50", name)
        tiny.symbols[f"{name}_op_ptr"] = (start + 1, "t")
        tiny.branch(start + 1, "488b15", 0x4000)
        tiny.symbols[call] = (tiny.branch(start + 8, "e8", TRACER), "t")
        tiny.code(start + 13, "7504")
        tiny.code(start + 15, "58")
        tiny.symbols[f"{name}_end"] = (start + 16, "t")
    tiny.symbols["ftrace_regs_caller_jmp"] = (REGS + 13, "t")
    tiny.code(TEMPLATE, "9c" + "0f1f00" + "54" + "90" * 10 + "90" * 5 + "9d")
    for name, offset in (("entry", 0), ("clac", 1), ("val", 5), ("call", 15), ("end", 21)):
        tiny.symbols[f"optprobe_template_{name}"] = (TEMPLATE + offset, "t")
    tiny.code(SITE, "8b7f70" + "488b0500010000" + "c3")
    return load_kernel(tiny.vmlinuz())


@pytest.fixture(params=[False, True], ids=["6.1", "6.12"])
def image(request: pytest.FixtureRequest) -> KernelImage:
    return kernel(wide=request.param)


def canvas_of(image: KernelImage) -> Canvas:
    return Canvas(0, bytearray(image.memory))


def test_an_ftrace_trampoline(image: KernelImage) -> None:
    found = generated.ftrace_trampoline(image, canvas_of(image), OPS, PLAIN)
    assert found is not None
    expected = (
        b"\x50"
        + bytes.fromhex("488b15")
        + (16 + 5 - 8).to_bytes(4, "little")  # the pointer stands behind code and return
        + rel32("e8", TRAMPOLINE + 8, TRACER)
        + bytes.fromhex("7504 58".replace(" ", ""))
        + bytes.fromhex("c3cc000000")
        + OPS.address.to_bytes(8, "little")
    )
    assert (found.start, found.forms) == (TRAMPOLINE, (expected,))


def test_a_trampoline_that_saves_all_registers_and_returns_through_a_thunk(
    image: KernelImage,
) -> None:
    ops = replace(OPS, flags=OPS.flags | OPS_FL_SAVE_REGS | generated.OPS_FL_RECURSION)
    how = ReturnChoice(THUNK, "srso_return_thunk", its=False)
    found = generated.ftrace_trampoline(image, canvas_of(image), ops, how)
    assert found is not None
    (code,) = found.forms
    assert code[8:13] == rel32("e8", TRAMPOLINE + 8, ASSIST)
    assert code[13:15] == bytes.fromhex("6690")
    assert code[16:21] == rel32("e9", TRAMPOLINE + 16, THUNK)


def test_a_kernel_whose_ftrace_is_built_otherwise(image: KernelImage) -> None:
    canvas = canvas_of(image)
    canvas.data[CALLER + 1] = 0x90
    assert generated.ftrace_trampoline(image, canvas, OPS, PLAIN) is None
    canvas.data[REGS + 13] = 0x74
    regs = replace(OPS, flags=OPS_FL_SAVE_REGS)
    assert generated.ftrace_trampoline(image, canvas, regs, PLAIN) is None
    bare = TinyKernel()
    bare.alternative(0x200, 3, 7, b"\x90")
    other = load_kernel(bare.vmlinuz())
    assert generated.ftrace_trampoline(other, canvas_of(other), OPS, PLAIN) is None


PROBE = Probe(0xFFFF888000002000, SITE, 0x8B, 0, (), SLOT, DETOUR, b"", DETOUR)


def test_a_kprobe_slot(image: KernelImage) -> None:
    canvas = canvas_of(image)
    canvas.overlay(Rule.KPROBE, [(SITE, b"\xcc")])
    found = generated.probe_slot(PROBE, canvas)
    assert found is not None
    instruction = bytes.fromhex("8b7f70")
    assert found.forms == (
        instruction + rel32("e9", SLOT + 3, SITE + 3),
        instruction + b"\xcc",
    )
    assert generated.probe_slot(replace(PROBE, slot=0), canvas) is None
    assert generated.probe_slot(replace(PROBE, site=1 << 30), canvas) is None


def test_a_rip_relative_instruction_in_a_slot(image: KernelImage) -> None:
    found = generated.probe_slot(replace(PROBE, site=SITE + 3), canvas_of(image))
    assert found is not None
    moved = (SITE + 3 + 7 + 0x100) - (SLOT + 7)
    displacement = (moved % 2**32).to_bytes(4, "little")
    assert found.forms[1] == bytes.fromhex("488b05") + displacement + b"\xcc"


def test_an_optimised_detour(image: KernelImage) -> None:
    found = generated.probe_detour(image, canvas_of(image), PROBE, canvas_of(image))
    assert found is not None
    plain, smap = found.forms
    end = DETOUR + 21
    moved = (SITE + 10 + 0x100) - (end + 10)
    copied = bytes.fromhex("8b7f70488b05") + (moved % 2**32).to_bytes(4, "little")
    expected = (
        bytes.fromhex("9c0f1f0054")
        + b"\x48\xbf"
        + PROBE.address.to_bytes(8, "little")
        + rel32("e8", DETOUR + 15, CALLBACK)
        + b"\x9d"
        + copied
        + rel32("e9", end + 10, SITE + 10)
    )
    assert plain == expected
    assert smap == expected[:1] + bytes.fromhex("0f01ca") + expected[4:]
    text = canvas_of(image)
    assert generated.probe_detour(image, text, replace(PROBE, buffer=None), text) is None


def test_the_detour_of_a_probe_in_a_module(image: KernelImage) -> None:
    """The template is the kernel's, the code that is copied the module's."""
    module = Canvas(0x20_0000, bytearray(bytes.fromhex("8b7f70" + "8b7f70" + "c3").ljust(64)))
    probe = replace(PROBE, site=0x20_0000)
    found = generated.probe_detour(image, canvas_of(image), probe, module)
    assert found is not None
    assert found.forms[0][21:27] == bytes.fromhex("8b7f708b7f70")


def left(image: KernelImage, content: bytes, *, detour: bool = False) -> bool:
    canvas = canvas_of(image)

    def code(position: int) -> Canvas | None:
        return canvas if 0 <= position < len(canvas.data) else None

    size = 64 if detour else generated.SLOT_SIZE
    start = DETOUR if detour else SLOT
    return generated.given_back(
        image, canvas, code, start, content.ljust(size, b"\0"), detour=detour
    )


INSTRUCTION = bytes.fromhex("8b7f70")


def test_a_slot_that_was_given_back(image: KernelImage) -> None:
    """Nobody lists the probe any more; the jump behind the copy says where it was."""
    assert left(image, INSTRUCTION + rel32("e9", SLOT + 3, SITE + 3))
    assert left(image, INSTRUCTION + rel32("e9", SLOT + 3, SITE + 3) + b"older")
    assert left(image, INSTRUCTION + b"\xcc")
    assert left(image, INSTRUCTION + rel32("e9", SLOT + 3, 1 << 30))  # its module is gone


@pytest.mark.parametrize(
    "content",
    [
        bytes.fromhex("8b7f78") + rel32("e9", SLOT + 3, SITE + 3),  # another instruction
        INSTRUCTION + rel32("e9", SLOT + 3, SITE + 4),  # back to another place
        INSTRUCTION + INSTRUCTION + rel32("e9", SLOT + 6, SITE + 3),  # two instructions
        b"\xff" * generated.SLOT_SIZE,
        b"\x90" * generated.SLOT_SIZE,
        INSTRUCTION + bytes.fromhex("0f1f8400000000000f1f840000"),
    ],
)
def test_what_no_probe_leaves_in_a_slot(image: KernelImage, content: bytes) -> None:
    assert not left(image, content)


def test_a_detour_that_is_made_or_was_given_back(image: KernelImage) -> None:
    piece = generated.probe_detour(image, canvas_of(image), PROBE, canvas_of(image))
    assert piece is not None
    for form in piece.forms:
        assert left(image, form, detour=True)
        assert left(image, form + b"older", detour=True)
        for at in (0, 16, 22, len(form) - 4):
            other = bytearray(form)
            other[at] ^= 1
            assert not left(image, bytes(other), detour=True)
    assert not left(image, piece.forms[0][:21] + INSTRUCTION + b"\xcc", detour=True)


def test_what_no_piece_explains() -> None:
    page = bytearray(64)
    page[8:11] = b"abc"
    piece = Generated("thing", 1008, (b"xyz", b"abc"))
    assert unexplained(bytes(page), 1000, [piece], 0) == []
    page[9] = 0x7F
    page[40] = 1
    assert unexplained(bytes(page), 1000, [piece], 0) == [1009, 1040]
    assert unexplained(bytes(64), 1000, [Generated("elsewhere", 5000, (b"x",))], 0) == []


def test_beneath_overlays() -> None:
    canvas = Canvas(100, bytearray(b"abcdef"))
    canvas.overlay(Rule.KPROBE, [(101, b"XY"), (102, b"Z")])
    assert canvas.get(100, 6) == b"aXZdef"
    assert canvas.beneath(100, 6) == b"abcdef"
    assert canvas.beneath(102, 2) == b"cd"
    canvas.lift(frozenset((Rule.KPROBE,)))
    assert canvas.get(100, 6) == b"abcdef"
    assert not np.any(canvas.covers(np.array([99, 105]), 2))
