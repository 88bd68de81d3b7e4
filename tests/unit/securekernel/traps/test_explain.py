"""What the guest announces is read as it is mapped now, not as it once was."""

from __future__ import annotations

import struct

import pytest

from undercroft.formats.kernel import load_kernel
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.rules import Rule
from undercroft.reference.kernel.run_time import OVERLAYS
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.securekernel.traps.explain import Explainer, own_copy
from undercroft.securekernel.traps.judge import TextJudge
from undercroft.securekernel.traps.sites import kernel_sites
from undercroft.testing import tinykernel
from undercroft.testing import tinylinux as t
from undercroft.testing.tinylinux import TinyLinux

BP_DESC = tinykernel.DATA + 0x200
VECTOR = 0xFFFF_C900_0000_3000
"""Where a batch stands: a kernel stack, in vmalloc space."""
JUMP = tinykernel.rel32("e9", t.LABEL, t.LABEL + 0x40)


@pytest.fixture
def linux() -> TinyLinux:
    linux = TinyLinux()
    linux.tiny.variable("bp_desc", BP_DESC, size=16)
    linux.tiny.structs["bp_patching_desc"] = (16, {"vec": 0, "nr_entries": 8, "refs": 12})
    linux.tiny.structs["text_poke_loc"] = (16, {"rel_addr": 0, "len": 8, "opcode": 9, "text": 10})
    linux.image = load_kernel(linux.tiny.vmlinuz())
    return linux.boot()


def make_judge(linux: TinyLinux) -> TextJudge:
    guest = linux.guest
    proof = KernelTextProof.attach(guest.memory, guest.states, linux.image)
    assert proof.replay is not None
    assert proof.kernel is not None
    live = Canvas(0, bytearray(linux.memory()[: linux.image.text_size]))
    explainer = Explainer(proof.replay, guest.memory, proof.kernel, live)
    return TextJudge(linux.base, kernel_sites(proof.replay), explainer)


def announce(linux: TinyLinux, position: int, code: bytes) -> None:
    """Begin a batch of one patch, on a stack whose frame was never used before."""
    linux.guest.map(VECTOR)
    entry = struct.pack("<iiBB5sB", position, 0, len(code), code[0], code, 0)
    linux.guest.write(VECTOR, entry)
    linux.poke(BP_DESC, struct.pack("<QII", VECTOR, 1, 1))


def test_a_batch_on_a_stack_whose_frame_changed(linux: TinyLinux) -> None:
    explainer = make_judge(linux).explainer
    announce(linux, t.LABEL, t.NOP5)
    assert explainer.word.announced() == {t.LABEL: t.NOP5}
    announce(linux, t.TRACED, JUMP)
    assert explainer.word.announced() == {t.TRACED: JUMP}
    linux.guest.memory.put_u64(linux.guest.entry(VECTOR, 12), 0)
    assert explainer.word.announced() == {}


def test_nothing_is_announced_when_no_patch_is_under_way(linux: TinyLinux) -> None:
    explainer = make_judge(linux).explainer
    announce(linux, t.LABEL, t.NOP5)
    linux.poke(BP_DESC + 12, bytes(4))
    assert explainer.word.announced() == {}
    assert not explainer.word.patching()


def test_only_what_is_announced_now_may_be_written(linux: TinyLinux) -> None:
    judge = make_judge(linux)
    announce(linux, t.LABEL, t.NOP5)
    assert judge.objection(linux.at(t.LABEL)) == ""
    assert judge.objection(linux.at(t.LABEL) + 4) == ""
    assert "not announced" in judge.objection(linux.at(t.TRACED))
    announce(linux, t.TRACED, tinykernel.rel32("e8", t.TRACED, t.FTRACE_STUB))
    assert judge.objection(linux.at(t.TRACED)) == ""
    assert "not announced" in judge.objection(linux.at(t.LABEL))
    announce(linux, t.LABEL, b"\x90" * 5)
    assert "none that this mechanism makes" in judge.objection(linux.at(t.LABEL))
    assert "nothing patches" in judge.objection(linux.at(t.VICTIM))
    assert judge.objection(linux.at(t.LOCK)) == ""


def test_a_probe_that_was_there_at_first_may_go_away(linux: TinyLinux) -> None:
    """A copy of the replay knows what stands beneath the probes that are painted over it."""
    proof = KernelTextProof.attach(linux.guest.memory, linux.guest.states, linux.image)
    assert proof.replay is not None
    proof.replay.canvas.overlay(Rule.KPROBE, [(t.VICTIM, b"\xcc")])
    copy = own_copy(proof.replay)
    assert copy.canvas.get(t.VICTIM, 1) == b"\xcc"
    copy.canvas.lift(OVERLAYS)
    assert copy.canvas.get(t.VICTIM, 1) == t.TINY_VICTIM[:1]
    assert proof.replay.canvas.get(t.VICTIM, 1) == b"\xcc"


def test_what_stands_in_text_is_explained_or_not(linux: TinyLinux) -> None:
    judge = make_judge(linux)
    explainer = judge.explainer
    assert explainer.explains_all()
    assert explainer.moving() == frozenset()
    assert explainer.symbol(t.VICTIM + 1) == "victim+0x1"
    judge.take(linux.at(t.VICTIM), b"\x90")
    assert not explainer.explains_all()
    assert not explainer.explains(t.VICTIM, 1, at_rest=True)
    judge.take(linux.at(t.VICTIM), b"\xcc")
    assert not explainer.explains(t.VICTIM, 1, at_rest=True)
    linux.guest.memory.put_u64(linux.guest.entry(linux.at(t.KEY), 12), 0)
    assert not explainer.follow([t.LABEL])
