"""Which addresses are lawful targets."""

from __future__ import annotations

import pytest

from undercroft.securekernel.linux.code import CodeMap
from undercroft.testing.fakecode import BAD_MODULE, GOOD_MODULE, STRAY, FakeCode


@pytest.fixture
def fake() -> FakeCode:
    return FakeCode({})


def test_functions_of_the_kernel_and_of_signed_modules_are_lawful(fake: FakeCode) -> None:
    code = CodeMap(fake.kernel())
    assert code.problem(fake.function(3)) == ""
    assert code.problem(GOOD_MODULE + 0x123) == ""


def test_every_other_target_has_its_reason(fake: FakeCode) -> None:
    bpf = fake.bpf_image(0xFFFFFFFFC0300010)
    stray = fake.stray()
    code = CodeMap(fake.kernel())
    assert "middle of a function" in code.problem(fake.function(3) + 4)
    assert "module bad, not signed" in code.problem(BAD_MODULE)
    assert "generated code" in code.problem(bpf)
    assert code.problem(bpf, generated=True) == ""
    assert "no known code" in code.problem(stray)
    assert "no known code" in code.problem(0x400000)


@pytest.mark.parametrize("taint", [12, 13])
def test_either_mark_makes_a_module_foreign(fake: FakeCode, taint: int) -> None:
    fake.module("foreign", 0xFFFFFFFFC0400000, taints=1 << taint)
    assert "foreign" in CodeMap(fake.kernel()).problem(0xFFFFFFFFC0400000)


def test_other_taints_do_not(fake: FakeCode) -> None:
    fake.module("proprietary", 0xFFFFFFFFC0400000, taints=1)
    assert CodeMap(fake.kernel()).problem(0xFFFFFFFFC0400000) == ""


def test_what_could_run_is_executable(fake: FakeCode) -> None:
    fake.stray()
    code = CodeMap(fake.kernel())
    assert code.is_executable(fake.function(0))
    assert code.is_executable(BAD_MODULE + 0xFFF)
    assert code.is_executable(STRAY)
    assert not code.is_executable(BAD_MODULE + 0x1000)
    assert not code.is_executable(0x1000)


def test_suspects_are_foreign_modules_and_what_nobody_owns(fake: FakeCode) -> None:
    fake.stray()
    suspects = CodeMap(fake.kernel()).suspects()
    assert [(one.start, one.end, one.name) for one in suspects] == [
        (BAD_MODULE, BAD_MODULE + 0x1000, "bad"),
        (STRAY, STRAY + 0x1000, "memory without an owner"),
    ]


def test_addresses_are_described_for_a_person(fake: FakeCode) -> None:
    bpf = fake.bpf_image(0xFFFFFFFFC0300010)
    code = CodeMap(fake.kernel())
    assert code.describe(fake.function(2) + 1) == "f2+0x1"
    assert code.describe(GOOD_MODULE + 0x12) == "[good]+0x12"
    assert code.describe(bpf) == "[bpf bpf_prog_1]"
    assert code.describe(0x1234) == "0x1234"


def test_code_that_was_compared_counts_not_the_kernels_mark(fake: FakeCode) -> None:
    """A module clears its own taint: its code is in no package, so nobody vouches for it."""
    kernel = fake.kernel()
    kernel.proven = lambda starts: starts - {GOOD_MODULE}
    code = CodeMap(kernel)
    assert "not compared" in code.problem(GOOD_MODULE + 4)
    assert not code.is_certain(GOOD_MODULE + 4)
    assert "not signed" in code.problem(BAD_MODULE)
    assert code.is_certain(BAD_MODULE)
    assert [one.name for one in code.suspects()] == ["good", "bad"]


def test_a_module_whose_code_was_compared_is_lawful(fake: FakeCode) -> None:
    asked: list[frozenset[int]] = []

    def proven(starts: frozenset[int]) -> frozenset[int]:
        asked.append(starts)
        return starts

    kernel = fake.kernel()
    kernel.proven = proven
    code = CodeMap(kernel.fresh())
    assert asked == [{GOOD_MODULE, BAD_MODULE}]
    assert code.problem(GOOD_MODULE) == ""
    assert code.problem(BAD_MODULE) != ""  # its file may be known; it was not loaded as it is
