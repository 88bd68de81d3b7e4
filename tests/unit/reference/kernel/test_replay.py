"""Every rule on a booted tiny kernel: what it allows is explained, one byte more is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from undercroft.base import MemoryFault
from undercroft.formats.kernel import load_kernel
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.explain import Mismatch, find_mismatches, kernel_owner
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.notable import notable
from undercroft.reference.kernel.replay import Replay, replay
from undercroft.reference.kernel.retpolines import Mode
from undercroft.reference.kernel.rules import Rule
from undercroft.testing import tinylinux as t
from undercroft.testing.tinykernel import TEXT_SIZE, rel32
from undercroft.testing.tinylinux import TinyLinux

Change = Callable[[TinyLinux], None]


def replayed(linux: TinyLinux) -> tuple[Replay, list[Mismatch]]:
    memory = linux.memory()

    def read(address: int, size: int) -> bytes:
        at = address - linux.base
        if not 0 <= at <= len(memory) - size:
            raise MemoryFault(address, kind="virtual")
        return memory[at : at + size]

    live = Canvas(0, bytearray(memory[:TEXT_SIZE]))
    result = replay(linux.image, t.SLIDE, live, GuestValues(read, linux.base))
    return result, find_mismatches(result.canvas, live, linux.base, kernel_owner(linux.image))


@pytest.fixture(params=[False, True], ids=["6.1", "6.12"])
def linux(request: pytest.FixtureRequest) -> TinyLinux:
    return TinyLinux(wide=request.param)


@pytest.fixture
def recent() -> TinyLinux:
    return TinyLinux(wide=True)


def test_an_ordinary_boot_is_explained(linux: TinyLinux) -> None:
    result, mismatches = replayed(linux)
    assert mismatches == []
    assert result.choices.features[t.FEATURE] is True
    assert result.choices.features[t.ABSENT] is False
    assert result.choices.paravirt == {t.PV_OPS + 8: t.KVM}
    assert result.choices.returns.name == "ret"
    assert result.choices.retpolines.mode is Mode.THUNK
    assert result.state is not None
    assert notable(linux.image, result.state, linux.base) == []
    statistics = result.statistics()
    assert statistics["return"] == {"sites": 2, "changed": 2}
    assert statistics["retpoline"] == {"sites": 4, "changed": 0}
    assert result.choices.as_json()["indirect_branches"] == "thunk"


@pytest.mark.parametrize(
    ("position", "rule"),
    [
        (t.TRACED, Rule.FTRACE),
        (t.FTRACE_CALL + 1, Rule.FTRACE),
        (t.RETURN, Rule.RETURN),
        (t.RETPOLINE + 1, Rule.RETPOLINE),
        (t.NOT_APPLIED, Rule.ALTERNATIVE),
        (t.PARAVIRT + 1, None),
        (t.LOCK, Rule.SMP_LOCK),
        (t.LABEL, Rule.JUMP_LABEL),
        (t.LABEL_SHORT + 1, Rule.JUMP_LABEL),
        (t.STATIC_CALL + 2, Rule.STATIC_CALL),
        (t.STATIC_NULL, Rule.STATIC_CALL),
        (t.TRAMPOLINE + 1, Rule.STATIC_CALL),
        (t.ABSOLUTE + 5, None),
        (t.VICTIM, None),
        (TEXT_SIZE - 1, None),
    ],
)
def test_one_changed_byte_is_found_at_its_address(
    linux: TinyLinux, position: int, rule: Rule | None
) -> None:
    honest = linux.memory()
    linux.patched[position] = bytes((honest[position] ^ 0x04,))
    _, mismatches = replayed(linux)
    found = {linux.base + offset for each in mismatches for offset in each.offsets}
    assert linux.base + position in found
    mine = next(each for each in mismatches if position in each.offsets)
    assert mine.expected != mine.found
    if rule is not None:
        assert mine.rule is rule


@pytest.mark.parametrize(
    ("position", "rule"), [(t.SEALED, Rule.ENDBR_SEAL), (t.CONSTANT + 4, Rule.RUNTIME_CONST)]
)
def test_one_changed_byte_of_a_recent_kernel(recent: TinyLinux, position: int, rule: Rule) -> None:
    recent.patched[position] = b"\xee"
    _, (mismatch,) = replayed(recent)
    assert (mismatch.offsets[0], mismatch.rule) == (position, rule)


def test_a_site_that_contradicts_the_feature_vector(linux: TinyLinux) -> None:
    """One STAC turned into NOPs is an outcome the vendor ships, but not this CPU's."""
    for at in (0x1300, 0x1310, 0x1320):
        linux.tiny.code(at, "9090909090")
        linux.tiny.alternative(at, 5, t.FEATURE, bytes.fromhex("0f01ca"))
        linux.patched[at] = bytes.fromhex("0f01ca6690")
    linux.patched[0x1310] = t.NOP5
    linux.image = load_kernel(linux.tiny.vmlinuz())
    result, (mismatch,) = replayed(linux)
    assert result.choices.features[t.FEATURE] is True
    assert mismatch.rule is Rule.ALTERNATIVE
    assert mismatch.address == linux.base + 0x1311


def returns_through(thunk: int) -> Change:
    def change(linux: TinyLinux) -> None:
        for at in (t.RETURN, t.RETURN_UPPER):
            linux.patched[at] = rel32("e9", at, thunk)

    return change


def returns_for_its(linux: TinyLinux) -> None:
    linux.patched[t.RETURN] = rel32("e9", t.RETURN, t.ITS_THUNK)


def one_cpu(linux: TinyLinux) -> None:
    linux.patched[t.LOCK] = b"\x3e"


def no_retpolines(linux: TinyLinux) -> None:
    linux.patched |= {
        t.RETPOLINE: bytes.fromhex("ffd00f1f00"),  # call *%rax
        t.RETPOLINE_R11: bytes.fromhex("41ffd30f1f00"),  # call *%r11
        t.RETPOLINE_JMP: bytes.fromhex("ffe1cc6690"),  # jmp *%rcx; int3
        t.RETPOLINE_JCC: bytes.fromhex("7504ffe2cc90"),  # jne +4; jmp *%rdx; int3
    }


def lfence_retpolines(linux: TinyLinux) -> None:
    linux.patched |= {
        t.RETPOLINE: bytes.fromhex("0faee8ffd0"),
        t.RETPOLINE_R11: bytes.fromhex("0faee841ffd3"),
        t.RETPOLINE_JMP: bytes.fromhex("0faee8ffe1"),
        # jne; lfence; jmp does not fit: the site stays a retpoline
    }


def static_key_off(linux: TinyLinux) -> None:
    linux.variables[t.KEY] = (0, 4)
    linux.patched[t.LABEL] = t.NOP5


def static_key_of_a_likely_branch_on(linux: TinyLinux) -> None:
    linux.variables[t.KEY_OFF] = (1, 4)
    linux.patched[t.LABEL_SHORT] = bytes.fromhex("6690")


def static_call_elsewhere(linux: TinyLinux) -> None:
    linux.variables[t.SCK] = (linux.at(t.VICTIM), 8)
    linux.patched |= {
        at: rel32(opcode, at, t.VICTIM)
        for at, opcode in ((t.STATIC_CALL, "e8"), (t.STATIC_TAIL, "e9"), (t.TRAMPOLINE, "e9"))
    }


def static_call_return0(linux: TinyLinux) -> None:
    linux.variables[t.SCK] = (linux.at(t.RETURN0), 8)
    linux.patched |= {
        t.STATIC_CALL: bytes.fromhex("2e2e2e31c0"),
        t.STATIC_TAIL: rel32("e9", t.STATIC_TAIL, t.RETURN0),
        t.TRAMPOLINE: rel32("e9", t.TRAMPOLINE, t.RETURN0),
    }


def static_call_null(linux: TinyLinux) -> None:
    linux.variables[t.SCK] = (0, 8)
    linux.patched |= {
        t.STATIC_CALL: t.NOP5,
        t.STATIC_TAIL: bytes.fromhex("c3cccccccc"),
        t.TRAMPOLINE: bytes.fromhex("c3cccccccc"),
    }


def native_pv(linux: TinyLinux) -> None:
    linux.patched[t.PARAVIRT] = rel32("e8", t.PARAVIRT, t.NATIVE) + b"\x90"


def tracing(linux: TinyLinux) -> None:
    linux.variables[t.TRACE_FUNCTION] = (linux.at(t.VICTIM), 8)
    linux.patched |= {at: rel32("e8", at, t.VICTIM) for at in (t.FTRACE_CALL, t.FTRACE_REGS_CALL)}


@pytest.mark.parametrize(
    "change",
    [
        returns_through(t.RETURN_THUNK),
        returns_through(t.SRSO_THUNK),
        returns_for_its,
        one_cpu,
        no_retpolines,
        lfence_retpolines,
        static_key_off,
        static_key_of_a_likely_branch_on,
        static_call_elsewhere,
        static_call_return0,
        static_call_null,
        native_pv,
        tracing,
    ],
)
def test_other_lawful_choices(linux: TinyLinux, change: Change) -> None:
    change(linux)
    _, mismatches = replayed(linux)
    assert mismatches == []


def test_a_return_thunk_that_the_vendor_does_not_have(linux: TinyLinux) -> None:
    returns_through(t.VICTIM)(linux)
    _, mismatches = replayed(linux)
    assert {each.rule for each in mismatches} == {Rule.RETURN}


def test_a_paravirt_function_that_the_vendor_would_not_put_there(linux: TinyLinux) -> None:
    linux.patched[t.PARAVIRT] = rel32("e8", t.PARAVIRT, t.VICTIM) + b"\x90"
    linux.variables[t.PV_OPS + 8] = (linux.at(t.VICTIM), 8)
    _, mismatches = replayed(linux)
    assert any(set(each.offsets) & set(range(t.PARAVIRT, t.PARAVIRT + 6)) for each in mismatches)


def test_a_paravirt_nop(linux: TinyLinux) -> None:
    linux.tiny.pointer("pv_ops_second", t.PV_OPS + 8, t.NOP_FUNC)
    linux.tiny.r64.pop()
    linux.image = load_kernel(linux.tiny.vmlinuz())
    linux.patched[t.PARAVIRT] = bytes.fromhex("660f1f440000")
    _, mismatches = replayed(linux)
    assert mismatches == []


def test_a_null_static_call_may_keep_an_early_ret(linux: TinyLinux) -> None:
    """Rule 11b: both are returns; the one that was written before the choice stays."""
    static_call_null(linux)
    returns_through(t.SRSO_THUNK)(linux)
    linux.patched[t.STATIC_TAIL] = rel32("e9", t.STATIC_TAIL, t.SRSO_THUNK)
    result, mismatches = replayed(linux)
    assert mismatches == []
    assert result.state is not None
    (found,) = notable(linux.image, result.state, linux.base)
    assert (result.state.early_returns, found.kind) == (1, "static-call.early-ret")


def call_depth(linux: TinyLinux) -> None:
    """retbleed=stuff: calls go through pads, indirect branches through other thunks."""
    pad = bytes.fromhex("6548c13d") + (0x1000 + t.TEMPLATE - (t.PADDED - 9)).to_bytes(4, "little")
    linux.patched |= {
        t.PADDED - 9: pad + b"\x05",
        t.CALLER: rel32("e8", t.CALLER, t.PADDED - 9),
        t.RETPOLINE: rel32("e8", t.RETPOLINE, t.CALL_THUNKS),
        t.RETPOLINE_R11: rel32("2ee8", t.RETPOLINE_R11, t.CALL_THUNKS + 32 * 11),
        t.RETPOLINE_JMP: rel32("e9", t.RETPOLINE_JMP, t.JUMP_THUNKS + 32),
        t.RETPOLINE_JCC: rel32("0f84", t.RETPOLINE_JCC, t.JUMP_THUNKS + 64),
    }
    for at in (t.RETURN, t.RETURN_UPPER):
        linux.patched[at] = rel32("e9", at, 0x190)


def test_call_depth_tracking(recent: TinyLinux) -> None:
    call_depth(recent)
    result, mismatches = replayed(recent)
    assert mismatches == []
    assert result.choices.retpolines.mode is Mode.CALL_DEPTH
    assert result.choices.returns.name == "call_depth_return_thunk"


def test_a_pad_that_is_not_the_template(recent: TinyLinux) -> None:
    call_depth(recent)
    recent.patched[t.PADDED - 1] = b"\x06"
    _, (mismatch,) = replayed(recent)
    assert (mismatch.rule, mismatch.address) == (Rule.CALL_THUNK, recent.at(t.PADDED - 1))


def test_a_pad_that_a_module_filled_later(recent: TinyLinux) -> None:
    """Rule 7b: nobody in the kernel calls the function; a module does."""
    call_depth(recent)
    pad = recent.patched.pop(t.PADDED - 9)
    recent.tiny.code(t.CALLER, "9090909090")
    recent.image = load_kernel(recent.tiny.vmlinuz())
    recent.patched |= {t.PADDED - 9: pad, t.CALLER: b"\x90" * 5}
    result, mismatches = replayed(recent)
    assert mismatches == []
    assert result.state is not None
    assert result.state.late_pads == 1


def test_a_static_call_through_a_pad(recent: TinyLinux) -> None:
    """Rule 11c, both ways: the call that was written early has no pad."""
    call_depth(recent)
    recent.variables[t.SCK] = (recent.at(t.PADDED), 8)
    for at, opcode in ((t.STATIC_TAIL, "e9"), (t.TRAMPOLINE, "e9")):
        recent.patched[at] = rel32(opcode, at, t.PADDED)
    for target in (t.PADDED, t.PADDED - 9):
        recent.patched[t.STATIC_CALL] = rel32("e8", t.STATIC_CALL, target)
        assert replayed(recent)[1] == []


def test_a_key_that_is_not_mapped(linux: TinyLinux) -> None:
    linux.tiny.jump_labels[0] = (t.LABEL, t.LABEL + 0x40, 0x10_0000, 0)
    linux.image = load_kernel(linux.tiny.vmlinuz())
    with pytest.raises(MemoryFault):
        replayed(linux)


def test_a_mismatch_says_what_where_and_why(linux: TinyLinux) -> None:
    linux.patched[t.VICTIM] = bytes.fromhex("e900000000")
    _, (mismatch,) = replayed(linux)
    shown = mismatch.as_json()
    assert shown["symbol"] == "victim+0x0"
    assert shown["address"] == f"{linux.at(t.VICTIM):#x}"
    assert shown["rule"] is None
    assert "must equal the relocated package" in str(shown["reason"])
    expected, found = shown["expected_code"], shown["found_code"]
    assert isinstance(expected, list)
    assert isinstance(found, list)
    assert "push rbp" in str(expected[0])
    assert "jmp" in str(found[0])


def test_another_kernel_altogether_is_not_described_byte_by_byte(linux: TinyLinux) -> None:
    linux.patched[0x2000] = bytes(range(256)) * 8
    _, mismatches = replayed(linux)
    assert 0 < len(mismatches) <= 4097
