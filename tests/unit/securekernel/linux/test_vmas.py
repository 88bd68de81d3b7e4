"""Maple trees over hostile memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from undercroft.securekernel.linux.live import StructureError
from undercroft.securekernel.linux.vmas import Mappings, maple_entries
from undercroft.testing.fakekernel import FakeKernel

LAYOUTS = {
    "mm_struct": (64, {"mm_mt": 0}),
    "maple_tree": (24, {"ma_root": 8}),
    "maple_range_64": (256, {"pivot": 8, "slot": 128}),
    "maple_arange_64": (248, {"pivot": 8, "slot": 80}),
    "vm_area_struct": (
        152,
        {
            "vm_start": 0,
            "vm_end": 8,
            "vm_flags": 32,
            "vm_pgoff": 104,
            "vm_file": 112,
            "vm_private_data": 120,
        },
    ),
}
LEAF, RANGE, ARANGE = 1, 2, 3
SLOTS = {LEAF: 128, RANGE: 128, ARANGE: 80}
FIRST, SECOND = 0xFFFF888000123000, 0xFFFF888000456000


class Tree(FakeKernel):
    """A maple tree that a test makes node by node."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        self.mm = self.make("mm_struct")

    def node(self, kind: int, slots: Sequence[tuple[int, int]]) -> int:
        """Make a node of (entry, last index); return the pointer with its kind."""
        at = self.alloc(256, align=256)
        for number, (entry, last) in enumerate(slots):
            self.guest.put_u64(at + SLOTS[kind] + 8 * number, entry)
            if number < (15 if kind != ARANGE else 9):
                self.guest.put_u64(at + 8 + 8 * number, last)
        return at | kind << 3 | 2

    def root(self, entry: int) -> None:
        self.guest.put_u64(self.mm + 8, entry)

    def entries(self, limit: int = 100) -> list[int]:
        return list(maple_entries(self.kernel(), self.mm, limit=limit))

    def area(self, start: int, end: int) -> int:
        return self.make("vm_area_struct", vm_start=start, vm_end=end, vm_flags=4, vm_pgoff=7)


LAST = (1 << 64) - 1


@pytest.fixture
def tree() -> Tree:
    return Tree()


def test_an_empty_tree_and_one_with_a_single_entry(tree: Tree) -> None:
    assert tree.entries() == []
    tree.root(FIRST)
    assert tree.entries() == [FIRST]


def test_a_leaf_ends_where_its_pivots_do(tree: Tree) -> None:
    """A slot behind the end is a leftover of what was there before."""
    tree.root(tree.node(LEAF, [(0, 0xFFF), (FIRST, 0x1FFF), (0, 0), (SECOND, 9)]))
    assert tree.entries() == [FIRST]


def test_a_full_leaf_uses_its_last_slot(tree: Tree) -> None:
    slots = [(FIRST, number + 1) for number in range(15)]
    tree.root(tree.node(LEAF, [*slots, (SECOND, LAST)]))
    assert tree.entries() == [FIRST] * 15 + [SECOND]


@pytest.mark.parametrize("kind", [RANGE, ARANGE])
def test_nodes_above_are_followed_in_order(tree: Tree, kind: int) -> None:
    low = tree.node(LEAF, [(FIRST, 0xFFF)])
    high = tree.node(LEAF, [(0, 0x1FFF), (SECOND, LAST)])
    tree.root(tree.node(kind, [(low, 0xFFF), (high, LAST)]))
    assert tree.entries() == [FIRST, SECOND]


def test_a_cycle_ends(tree: Tree) -> None:
    at = tree.alloc(256, align=256)
    tree.guest.put_u64(at + 128, at | RANGE << 3 | 2)
    tree.guest.put_u64(at + 8, LAST)
    tree.root(at | RANGE << 3 | 2)
    with pytest.raises(StructureError):
        tree.entries()


def test_too_many_entries_end(tree: Tree) -> None:
    tree.root(tree.node(LEAF, [(FIRST, number + 1) for number in range(15)]))
    with pytest.raises(StructureError, match="does not end"):
        tree.entries(limit=5)


@pytest.mark.parametrize("kind", [0, 4, 15])
def test_a_node_of_another_kind_is_refused(tree: Tree, kind: int) -> None:
    tree.root(tree.alloc(256, align=256) | kind << 3 | 2)
    with pytest.raises(StructureError, match="no kind"):
        tree.entries()


def test_mappings_are_found_by_address(tree: Tree) -> None:
    one, two = tree.area(0x1000, 0x3000), tree.area(0x5000, 0x6000)
    tree.root(tree.node(LEAF, [(0, 0xFFF), (one, 0x2FFF), (0, 0x4FFF), (two, 0x5FFF)]))
    found = Mappings(tree.kernel(), tree.mm)
    first = found.at(0x2FFF)
    assert first is not None
    assert (first.start, first.pages, first.index(0x2000), first.executable) == (0x1000, 2, 8, True)
    assert first.is_anonymous
    assert found.at(0x5000) is not None
    assert [found.at(address) for address in (0xFFF, 0x3000, 0x6000)] == [None] * 3


@pytest.mark.parametrize(("start", "end"), [(0x2000, 0x1000), (0, 0), (0, 1 << 60)])
def test_an_absurd_mapping_is_refused(tree: Tree, start: int, end: int) -> None:
    tree.root(tree.node(LEAF, [(tree.area(start, end), LAST)]))
    with pytest.raises(StructureError, match="mapping"):
        Mappings(tree.kernel(), tree.mm)
