"""Typed reads of a kernel in guest memory."""

from __future__ import annotations

import pytest

from undercroft.base import FormatError, MemoryFault
from undercroft.securekernel.linux.live import Budget, StructureError
from undercroft.testing.fakekernel import LINK_BASE, FakeKernel

LAYOUTS = {"box": (32, {"width": 4, "lid.next": 16})}


@pytest.fixture
def fake() -> FakeKernel:
    return FakeKernel(LAYOUTS)


def test_symbols_move_with_the_slide(fake: FakeKernel) -> None:
    at = fake.symbol("thing")
    kernel = fake.kernel()
    assert kernel.symbol("thing") == at == LINK_BASE + 0x100 + fake.slide
    assert kernel.find_symbol("thing") == at
    assert kernel.find_symbol("other") is None
    assert kernel.name_of(at) == "thing"
    assert kernel.name_of(at + 4) == "thing+0x4"
    assert kernel.name_of(0x1000) == "0x1000"
    with pytest.raises(FormatError):
        kernel.symbol("other")


def test_members_of_every_size(fake: FakeKernel) -> None:
    at = fake.make("box", lid__next=0x1122334455667788)
    fake.put(at, "box", "width", -2, size=4)
    kernel = fake.kernel()
    assert kernel.member_u64(at, "box", "lid.next") == 0x1122334455667788
    assert kernel.member_s32(at, "box", "width") == -2
    assert kernel.member_u32(at, "box", "width") == 0xFFFFFFFE
    assert kernel.u16(at + 16) == 0x7788
    assert kernel.u8(at + 16) == 0x88
    assert kernel.size_of("box") == 32
    assert kernel.has("box", "lid.next")
    assert not kernel.has("box", "colour")


def test_a_string_ends_at_its_nul_or_at_the_limit(fake: FakeKernel) -> None:
    at = fake.string("hello")
    assert fake.kernel().text(at, 64) == "hello"
    assert fake.kernel().text(at, 3) == "hel"
    odd = fake.data(b"a\xff\n\0")
    assert fake.kernel().text(odd, 8) == "a\\xff\n"


def test_a_string_may_end_at_the_last_mapped_byte(fake: FakeKernel) -> None:
    end = fake._end_heap
    fake.guest.write(end - 3, b"ab\0")
    assert fake.kernel().text(end - 3, 64) == "ab"
    fake.guest.write(end - 3, b"abc")
    with pytest.raises(MemoryFault):
        fake.kernel().text(end - 3, 64)


def test_per_cpu_variables(fake: FakeKernel) -> None:
    table = fake.symbol("__per_cpu_offset", 16)
    areas = [fake.alloc(0x40), fake.alloc(0x40)]
    fake.image.symbols.names["current_task"] = 0x10
    for cpu, area in enumerate(areas):
        fake.guest.put_u64(table + 8 * cpu, area)
    assert fake.kernel().per_cpu("current_task", 1) == areas[1] + 0x10


def test_the_cpus_that_are_online(fake: FakeKernel) -> None:
    count = fake.symbol("nr_cpu_ids")
    fake.guest.put_u32(count, 3)
    fake.guest.put_u64(fake.symbol("__cpu_online_mask"), 0b1101)
    assert fake.kernel().online_cpus() == (0, 2)
    for absurd in (0, 1 << 20):
        fake.guest.put_u32(count, absurd)
        with pytest.raises(StructureError, match="absurd"):
            fake.kernel().online_cpus()


def test_a_fresh_pass_sees_new_page_tables(fake: FakeKernel) -> None:
    at = fake.data(b"old")
    kernel = fake.kernel()
    assert kernel.read(at, 3) == b"old"
    fake.guest.map(at & ~0xFFF)
    assert kernel.read(at, 3) == b"old"
    assert kernel.fresh().read(at, 3) == bytes(3)


def test_a_budget_is_spent_once(fake: FakeKernel) -> None:
    budget = Budget(2, "a walk")
    budget.spend(1)
    budget.spend(2)
    with pytest.raises(StructureError, match="a walk does not end"):
        budget.spend(3)
