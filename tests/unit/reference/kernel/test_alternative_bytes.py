"""What one alternative leaves behind, against bytes worked out by hand from alternative.c."""

from __future__ import annotations

import pytest

from undercroft.reference.kernel.alternative_bytes import Replacement, narrow, relocated, wide
from undercroft.reference.kernel.nops import (
    NOPS,
    merge_nops,
    merge_single_nops,
    one_nop,
    short_nops,
)

SITE, REPLACEMENT = 0x1000, 0x9000
BEHIND = b"\xcc" * 15


def h(text: str) -> bytes:
    return bytes.fromhex(text)


def replacement(code: str, size: int) -> Replacement:
    return Replacement(h(code), REPLACEMENT, size)


def test_nops_have_their_length() -> None:
    assert [len(nop) for nop in NOPS] == list(range(12))
    assert short_nops(13) == NOPS[8] + NOPS[5]
    assert one_nop(11) == NOPS[11]
    assert one_nop(12) == h("eb0a") + b"\xcc" * 10
    assert one_nop(130) == h("e97d000000") + b"\xcc" * 125


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("90", "90"),
        ("9090", "6690"),
        ("909090c3", "0f1f00c3"),
        ("c390909090", "c30f1f4000"),
        ("0f1f00" + "90", "0f1f0090"),  # until 6.4 only runs of 0x90 are merged
    ],
)
def test_narrow_merges_single_byte_nops(before: str, after: str) -> None:
    code = h(before)
    assert merge_single_nops(code + BEHIND, len(code)) == h(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("9090", "6690"),
        ("0f1f0090c3", "0f1f4000c3"),  # a NOP of 3 and one of 1 make one of 4
        ("0f1f00", "0f1f00"),  # "Has the NOP already been optimized?"
        ("f390" + "9090", "f3906690"),  # PAUSE is not a NOP
        ("90" * 12, "eb0a" + "cc" * 10),
    ],
)
def test_wide_merges_every_nop(before: str, after: str) -> None:
    assert merge_nops(h(before)) == h(after)


def test_narrow_without_replacement_tidies_what_stands_there() -> None:
    assert narrow(h("9090909090") + BEHIND, SITE, None, 5) == NOPS[5]


def test_narrow_copies_and_pads() -> None:
    got = narrow(h("9090909090") + BEHIND, SITE, replacement("0f01ca", 5), 5)
    assert got == h("0f01ca") + h("6690")


def test_narrow_keeps_a_call_to_its_target() -> None:
    target = 0x5000
    call = b"\xe8" + (target - (REPLACEMENT + 5)).to_bytes(4, "little", signed=True)
    got = narrow(b"\x90" * 5 + BEHIND, SITE, replacement(call.hex(), 5), 5)
    assert got == b"\xe8" + (target - (SITE + 5)).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (SITE + 0x20, "eb1e0f1f00"),
        (SITE + 129, "eb7f0f1f00"),
        (SITE + 130, "e97d000000"),
        (SITE - 0x20, "e9dbffffff"),  # backwards is never shortened
    ],
)
def test_narrow_recomputes_a_jump(target: int, code: str) -> None:
    jump = b"\xe9" + ((target - REPLACEMENT - 5) % 2**32).to_bytes(4, "little")
    assert narrow(b"\x90" * 5 + BEHIND, SITE, replacement(jump.hex(), 5), 5) == h(code)


def test_narrow_adjusts_only_a_leading_branch() -> None:
    code = "90" + "e800000000"
    got = narrow(b"\x90" * 6 + BEHIND, SITE, replacement(code, 6), 6)
    assert got == h(code)


@pytest.mark.parametrize(
    ("code", "moved"),
    [
        ("e800010000", "e800810000"),  # CALL leaves the block
        ("90" + "0f8400010000", "90" + "0f8400810000"),  # Jcc.d32
        ("488b0500010000", "488b0500810000"),  # RIP-relative operand
        ("eb02" + "9090", "eb029090"),  # a jump inside stays
        ("488b05f9ffffff", "488b05f9ffffff"),  # as does a reference to the block itself
        ("c3", "c3"),
    ],
)
def test_wide_adjusts_what_leaves_the_block(code: str, moved: str) -> None:
    raw = h(code)
    assert relocated(raw, SITE, REPLACEMENT, len(raw)) == h(moved)


def test_wide_shortens_a_jump_in_both_directions() -> None:
    for target, short in ((SITE + 0x40, "eb3ecccccc"), (SITE - 0x40, "ebbecccccc")):
        jump = b"\xe9" + ((target - REPLACEMENT - 5) % 2**32).to_bytes(4, "little")
        got = wide(b"\x90" * 5, SITE, replacement(jump.hex(), 5), 5)
        assert got == h(short)


def test_wide_pads_and_tidies() -> None:
    assert wide(b"\x90" * 5, SITE, replacement("0f01ca", 5), 5) == h("0f01ca6690")
    assert wide(b"\x90" * 5, SITE, None, 5) == NOPS[5]


def test_code_that_does_not_decode_is_left_alone() -> None:
    assert merge_nops(h("06")) == h("06")
    assert merge_single_nops(h("06") + BEHIND, 1) == h("06")
    assert relocated(h("06"), SITE, REPLACEMENT, 1) == h("06")
