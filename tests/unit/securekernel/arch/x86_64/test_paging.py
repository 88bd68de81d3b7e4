"""Page walks against tables made by hand, hostile ones included."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import MemoryFault
from undercroft.securekernel.arch.x86_64.paging import AddressSpace, Mapping, is_canonical
from undercroft.securekernel.arch.x86_64.walk import (
    Pages,
    U,
    W,
    WalkTooLargeError,
    X,
    overlapping,
    runs,
    slots_of,
    walk,
    walk_all,
)
from undercroft.testing.fakeguest import LARGE, PRESENT, USER, WRITABLE, FakeGuest

KERNEL = 0xFFFFFFFF81000000
MODULE = 0xFFFFFFFFC0000000


@pytest.fixture(params=[False, True], ids=["4-level", "5-level"])
def guest(request: pytest.FixtureRequest) -> FakeGuest:
    return FakeGuest(la57=request.param)


def space(guest: FakeGuest) -> AddressSpace:
    return AddressSpace(guest.memory, guest.cr3, guest.la57)


def test_a_4k_page(guest: FakeGuest) -> None:
    paddr = guest.map(KERNEL, executable=True, writable=False)
    guest.write(KERNEL + 5, b"hello")
    assert space(guest).translate(KERNEL + 5) == paddr + 5
    assert space(guest).read(KERNEL + 5, 5) == b"hello"
    assert space(guest).lookup(KERNEL + 5) == Mapping(KERNEL, paddr, 4096, False, False, True)


def test_large_pages(guest: FakeGuest) -> None:
    guest.map(KERNEL, 1 << 21, paddr=1 << 21, shift=21)
    guest.map(0xFFFF888040000000, 1 << 30, paddr=0, shift=30)
    assert space(guest).translate(KERNEL + 0x12345) == (1 << 21) + 0x12345
    assert space(guest).translate(0xFFFF888040012345) == 0x12345
    assert space(guest).lookup(0xFFFF888040012345).size == 1 << 30


def test_cr3_flags_do_not_move_the_root(guest: FakeGuest) -> None:
    guest.map(KERNEL)
    flagged = AddressSpace(guest.memory, guest.cr3 | 0xFFF | 1 << 63, guest.la57)
    assert flagged.translate(KERNEL) == space(guest).translate(KERNEL)


def test_a_read_crosses_pages_that_are_apart_in_ram(guest: FakeGuest) -> None:
    guest.map(KERNEL + 4096)
    guest.map(KERNEL)
    guest.write(KERNEL + 4090, b"0123456789ab")
    assert space(guest).read(KERNEL + 4090, 12) == b"0123456789ab"
    assert space(guest).read(KERNEL, 0) == b""


def test_a_missing_page_faults_with_its_address(guest: FakeGuest) -> None:
    guest.map(KERNEL)
    with pytest.raises(MemoryFault) as fault:
        space(guest).read(KERNEL + 4000, 200)
    assert fault.value.address == KERNEL + 4096
    assert fault.value.kind == "virtual"


def test_a_non_canonical_address_faults() -> None:
    guest = FakeGuest()
    for vaddr in (1 << 47, 0xFFFF7FFFFFFFFFFF, 1 << 63):
        assert not is_canonical(vaddr, la57=False)
        with pytest.raises(MemoryFault, match="not canonical"):
            space(guest).translate(vaddr)
    assert is_canonical(1 << 47, la57=True)
    assert not is_canonical(1 << 56, la57=True)


def test_reserved_bits_fault_and_are_counted(guest: FakeGuest) -> None:
    guest.map(KERNEL, 1 << 21, paddr=1 << 21, shift=21)
    at = guest.entry(KERNEL, 21)
    guest.memory.put_u64(at, guest.memory.u64(at) | 1 << 13)
    with pytest.raises(MemoryFault, match="reserved bits"):
        space(guest).translate(KERNEL)
    pages = walk(guest.memory, guest.cr3, guest.la57)
    assert len(pages.vaddr) == 0
    assert pages.malformed == 1


def test_a_root_entry_cannot_be_a_page(guest: FakeGuest) -> None:
    at = guest.entry(KERNEL, 48 if guest.la57 else 39)
    guest.memory.put_u64(at, PRESENT | WRITABLE | LARGE)
    with pytest.raises(MemoryFault, match="reserved bits"):
        space(guest).translate(KERNEL)
    assert walk(guest.memory, guest.cr3, guest.la57).malformed == 1


def test_a_table_outside_ram_faults_and_is_reported(guest: FakeGuest) -> None:
    guest.map(KERNEL)
    outside = guest.memory.size
    guest.memory.put_u64(guest.entry(KERNEL, 21), outside | PRESENT | WRITABLE)
    with pytest.raises(MemoryFault, match="not in RAM"):
        space(guest).translate(KERNEL)
    assert walk(guest.memory, guest.cr3, guest.la57).unreadable == (outside,)


def test_a_page_outside_ram_faults_when_read(guest: FakeGuest) -> None:
    guest.map(KERNEL, paddr=guest.memory.size)
    with pytest.raises(MemoryFault, match="is not RAM"):
        space(guest).read(KERNEL, 4)


def test_translations_are_those_of_one_pass(guest: FakeGuest) -> None:
    guest.map(KERNEL)
    one_pass = space(guest)
    before = one_pass.translate(KERNEL)
    guest.map(KERNEL)
    assert one_pass.translate(KERNEL) == before
    assert space(guest).translate(KERNEL) != before


def test_rights_are_those_of_every_level_together(guest: FakeGuest) -> None:
    guest.map(KERNEL, writable=True, executable=True, user=True)
    at = guest.entry(KERNEL, 30)
    guest.memory.put_u64(at, guest.memory.u64(at) & ~(WRITABLE | USER))
    found = space(guest).lookup(KERNEL)
    assert (found.writable, found.user, found.executable) == (False, False, True)
    assert walk(guest.memory, guest.cr3, guest.la57).rights.tolist() == [X]


def test_a_walk_agrees_with_single_look_ups(guest: FakeGuest) -> None:
    guest.map(0x400000, 0x3000, user=True, executable=True, writable=False)
    guest.map(KERNEL, 1 << 22, paddr=0, shift=21, executable=True, writable=False)
    guest.map(MODULE, 0x2000)
    pages = walk(guest.memory, guest.cr3, guest.la57)
    assert len(pages.vaddr) == 3 + 2 + 2
    for vaddr, paddr, size, rights in zip(
        pages.vaddr.tolist(),
        pages.paddr.tolist(),
        pages.size.tolist(),
        pages.rights.tolist(),
        strict=True,
    ):
        assert space(guest).lookup(vaddr) == Mapping(
            vaddr, paddr, size, bool(rights & W), bool(rights & U), bool(rights & X)
        )


def test_slots_choose_halves_and_tables_are_listed(guest: FakeGuest) -> None:
    guest.map(0x400000, user=True)
    guest.map(KERNEL)
    kernel = walk(guest.memory, guest.cr3, guest.la57, slots=range(256, 512))
    assert kernel.vaddr.tolist() == [KERNEL]
    assert guest.cr3 in kernel.tables.tolist()
    assert len(kernel.tables) == (5 if guest.la57 else 4)


def test_executable_only_leaves_out_what_nx_forbids(guest: FakeGuest) -> None:
    guest.map(KERNEL, executable=True)
    guest.map(KERNEL + 4096)
    pages = walk(guest.memory, guest.cr3, guest.la57, executable_only=True)
    assert pages.vaddr.tolist() == [KERNEL]


def test_neighbours_with_the_same_rights_are_one_run(guest: FakeGuest) -> None:
    guest.map(KERNEL, 0x2000, executable=True)
    guest.map(KERNEL + 0x2000)
    guest.map(KERNEL + 0x4000)
    found = runs(walk(guest.memory, guest.cr3, guest.la57))
    assert [(run.vaddr, run.size, run.rights, run.end) for run in found] == [
        (KERNEL, 0x2000, W | X, KERNEL + 0x2000),
        (KERNEL + 0x2000, 0x1000, W, KERNEL + 0x3000),
        (KERNEL + 0x4000, 0x1000, W, KERNEL + 0x5000),
    ]
    assert runs(walk(guest.memory, guest.cr3, guest.la57, slots=range(1))) == ()


def test_a_table_that_maps_itself_is_bounded(guest: FakeGuest) -> None:
    """Every root entry points back at the root: 512 to the power of the levels."""
    for index in range(512):
        guest.memory.put_u64(guest.cr3 + 8 * index, guest.cr3 | PRESENT | WRITABLE)
    start = time.monotonic()
    with pytest.raises(WalkTooLargeError):
        walk(guest.memory, guest.cr3, guest.la57)
    assert time.monotonic() - start < 5


def test_one_self_reference_is_walked_like_any_table(guest: FakeGuest) -> None:
    guest.memory.put_u64(guest.cr3 + 8 * 300, guest.cr3 | PRESENT | WRITABLE)
    pages = walk(guest.memory, guest.cr3, guest.la57)
    assert pages.paddr.tolist() == [guest.cr3]
    assert space(guest).lookup(int(pages.vaddr[0])).paddr == guest.cr3


def test_many_roots_in_one_walk(guest: FakeGuest) -> None:
    other = guest.frame()
    guest.map(KERNEL)
    guest.map(0x400000, user=True, root=other)
    guest.map(0x500000, user=True, root=other)
    roots = {guest.cr3: slots_of(range(512)), other: slots_of(range(256))}
    pages = walk_all(guest.memory, roots, guest.la57)
    assert sorted(zip(pages.root.tolist(), pages.vaddr.tolist(), strict=True)) == sorted(
        [(guest.cr3, KERNEL), (other, 0x400000), (other, 0x500000)]
    )
    assert {(run.root, run.vaddr) for run in runs(pages)} == {
        (guest.cr3, KERNEL),
        (other, 0x400000),
        (other, 0x500000),
    }


def test_each_root_is_followed_through_its_own_entries(guest: FakeGuest) -> None:
    other = guest.frame()
    guest.memory.write(other, guest.memory.read(guest.cr3, 4096))
    guest.map(KERNEL, root=other)
    guest.map(0x400000, root=other)
    roots = {guest.cr3: slots_of(range(512)), other: slots_of([0])}
    pages = walk_all(guest.memory, roots, guest.la57)
    assert [(root, vaddr) for root, vaddr in zip(pages.root, pages.vaddr, strict=True)] == [
        (other, 0x400000)
    ]


def test_neighbours_of_two_roots_are_two_runs(guest: FakeGuest) -> None:
    other = guest.frame()
    guest.map(0x400000)
    guest.map(0x401000, root=other)
    roots = dict.fromkeys((guest.cr3, other), slots_of(range(512)))
    assert len(runs(walk_all(guest.memory, roots, guest.la57))) == 2


def test_selecting_by_rights(guest: FakeGuest) -> None:
    guest.map(KERNEL, executable=True, writable=False)
    guest.map(KERNEL + 4096, executable=True)
    guest.map(0x400000, executable=True, user=True)
    pages = walk(guest.memory, guest.cr3, guest.la57)
    assert pages.with_rights(X, forbidden=U).vaddr.tolist() == [KERNEL, KERNEL + 4096]
    assert pages.with_rights(X | W, forbidden=U).vaddr.tolist() == [KERNEL + 4096]


def test_overlap_in_physical_memory() -> None:
    guest = FakeGuest()
    guest.map(0xFFFF888000000000, 1 << 21, paddr=0, shift=21)
    guest.map(MODULE, 0x3000, paddr=0x10000)
    pages = walk(guest.memory, guest.cr3, False)

    def hits(*spans: tuple[int, int]) -> list[int]:
        return [int(at) for at in pages.vaddr[overlapping(pages, list(spans))]]

    assert hits((0x11000, 0x11001)) == [0xFFFF888000000000, MODULE + 0x1000]
    assert hits((0x10FFF, 0x11001)) == [0xFFFF888000000000, MODULE, MODULE + 0x1000]
    assert hits((1 << 21, 1 << 22)) == []
    assert hits() == []
    assert hits((5, 5)) == []
    assert hits((0x12000, 0x13000), (0x10000, 0x10010), (0x10008, 0x10020)) == [
        0xFFFF888000000000,
        MODULE,
        MODULE + 0x2000,
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), max_size=6),
    st.lists(st.integers(0, 250), min_size=1, max_size=20, unique=True),
)
def test_overlap_is_what_the_definition_says(
    spans: list[tuple[int, int]], frames: list[int]
) -> None:
    paddr = np.array(frames, dtype=np.uint64) * np.uint64(4096)
    zeros = np.zeros(len(frames), dtype=np.uint8)
    pages = Pages(paddr, paddr, zeros + np.uint8(12), zeros, paddr, paddr, (), 0)
    wanted = [(4096 * start, 4096 * (start + count)) for start, count in spans]
    expected = [
        any(start < 4096 * frame + 4096 and 4096 * frame < end for start, end in wanted)
        for frame in frames
    ]
    assert overlapping(pages, wanted).tolist() == expected


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_tables_never_hang_or_escape(data: st.DataObject) -> None:
    guest = FakeGuest(pages=16, la57=data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(0, 40))):
        at = data.draw(st.integers(0, 16 * 512 - 1)) * 8
        frame = data.draw(st.integers(0, 20)) << 12
        bits = data.draw(st.integers(0, 255)) | data.draw(st.sampled_from([0, 1 << 63]))
        guest.memory.put_u64(at, frame | bits)
    try:
        pages = walk(guest.memory, guest.cr3, guest.la57, limit=10_000)
    except WalkTooLargeError:
        return
    for vaddr, paddr in zip(pages.vaddr.tolist(), pages.paddr.tolist(), strict=True):
        assert space(guest).lookup(vaddr).paddr == paddr
