"""ITS: branches in a lower half of a cache line go through a thunk in an upper half."""

from __future__ import annotations

import pytest

from undercroft.formats.kernel import load_kernel
from undercroft.reference.kernel import its
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.explain import Mismatch, find_mismatches, kernel_owner
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.replay import Replay, replay
from undercroft.reference.kernel.rules import Rule
from undercroft.testing import tinylinux as t
from undercroft.testing.tinykernel import DATA, TEXT_SIZE, rel32
from undercroft.testing.tinylinux import TinyLinux

PAGE = DATA + 0x2000
UPPER = (0x1320, 0x1360)
SITES = {
    t.RETPOLINE: ("e8", 0),
    t.RETPOLINE_R11: ("2ee8", 11),
    t.RETPOLINE_JMP: ("e9", 1),
    t.RETPOLINE_JCC: ("0f84", 2),
}


def its_linux() -> TinyLinux:
    """Every site of the tiny kernel lies in a lower half, with a thunk; two more do not."""
    linux = TinyLinux()
    for site in UPPER:
        linux.tiny.branch(site, "e8", t.THUNKS)
        linux.tiny.site(".retpoline_sites", site)
        linux.patched[site] = bytes.fromhex("ffd00f1f00")  # call *%rax
    linux.image = load_kernel(linux.tiny.vmlinuz())
    at = PAGE + 0x20
    for site, (opcode, register) in SITES.items():
        code = its.thunk(register)
        linux.variables[at] = (int.from_bytes(code, "little"), len(code))
        linux.patched[site] = rel32(opcode, site, at)
        at += len(code)
    return linux


def replayed(linux: TinyLinux) -> tuple[Replay, list[Mismatch]]:
    memory = linux.memory()
    live = Canvas(0, bytearray(memory[:TEXT_SIZE]))
    values = GuestValues(lambda a, n: memory[a - linux.base :][:n], linux.base)
    result = replay(linux.image, t.SLIDE, live, values)
    return result, find_mismatches(result.canvas, live, linux.base, kernel_owner(linux.image))


def test_thunks_are_taken_where_they_stand() -> None:
    result, mismatches = replayed(its_linux())
    assert mismatches == []
    assert result.choices.its
    assert result.choices.its_pages == {PAGE >> 12}


@pytest.mark.parametrize("code", [its.thunk(3), b"\xff\xe0\x90", b"\xcc\xcc\xcc"])
def test_a_thunk_of_another_register_or_none(code: bytes) -> None:
    linux = its_linux()
    linux.variables[PAGE + 0x20] = (int.from_bytes(code, "little"), 3)
    _, (mismatch,) = replayed(linux)
    assert mismatch.rule is Rule.RETPOLINE


def test_a_thunk_in_a_lower_half() -> None:
    linux = its_linux()
    linux.variables[PAGE + 0x40] = (int.from_bytes(its.thunk(0), "little"), 3)
    linux.patched[t.RETPOLINE] = rel32("e8", t.RETPOLINE, PAGE + 0x40)
    _, (mismatch,) = replayed(linux)
    assert mismatch.rule is Rule.RETPOLINE


def test_a_site_in_an_upper_half_branches_itself() -> None:
    linux = its_linux()
    linux.patched[UPPER[0]] = rel32("e8", UPPER[0], PAGE + 0x20)
    _, (mismatch,) = replayed(linux)
    assert mismatch.rule is Rule.RETPOLINE


def test_a_page_of_thunks() -> None:
    page = bytearray(b"\xcc" * 4096)
    page[0x20:0x23] = its.thunk(0)
    page[0x24:0x28] = its.thunk(11)
    assert its.odd_bytes(bytes(page)) == []
    page[0x40:0x43] = its.thunk(0)  # a lower half
    page[0x70] = 0x90
    assert its.odd_bytes(bytes(page)) == [0x40, 0x41, 0x70]
