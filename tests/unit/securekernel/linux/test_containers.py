"""Walks over lists, trees and arrays, whole and hostile."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import MemoryFault
from undercroft.securekernel.linux.containers import (
    hlist_entries,
    list_entries,
    rbtree_entries,
    xarray_entries,
)
from undercroft.securekernel.linux.live import LiveKernel, StructureError
from undercroft.testing.fakekernel import FakeKernel

LAYOUTS = {
    "rb_node": (24, {"__rb_parent_color": 0, "rb_right": 8, "rb_left": 16}),
    "xarray": (16, {"xa_head": 8}),
    "xa_node": (576, {"shift": 0, "parent": 8, "slots": 40}),
    "entry": (64, {"link": 16}),
}
SHIFT, PARENT, SLOTS = 0, 8, 40


@pytest.fixture
def fake() -> FakeKernel:
    return FakeKernel(LAYOUTS)


def test_a_list_in_order(fake: FakeKernel) -> None:
    head = fake.symbol("head", 16)
    entries = [fake.make("entry") for _ in range(3)]
    fake.link_list(head, [entry + 16 for entry in entries])
    assert list(list_entries(fake.kernel(), head, 16)) == entries


def test_an_empty_list(fake: FakeKernel) -> None:
    head = fake.symbol("head", 16)
    fake.link_list(head, [])
    assert list(list_entries(fake.kernel(), head)) == []


def test_an_entry_unlinked_on_one_side_only_is_found(fake: FakeKernel) -> None:
    head = fake.symbol("head", 16)
    nodes = [fake.make("entry") for _ in range(3)]
    fake.link_list(head, nodes)
    fake.guest.put_u64(nodes[0], nodes[2])  # skip one forward, leave prev alone
    with pytest.raises(StructureError, match="prev") as error:
        list(list_entries(fake.kernel(), head))
    assert error.value.address == nodes[2]


def test_a_list_that_runs_in_a_circle_ends(fake: FakeKernel) -> None:
    head = fake.symbol("head", 16)
    nodes = [fake.make("entry") for _ in range(2)]
    fake.link_list(head, nodes)
    fake.guest.put_u64(nodes[1], nodes[0])
    fake.guest.put_u64(nodes[0] + 8, nodes[1])
    with pytest.raises(StructureError):
        list(list_entries(fake.kernel(), head, limit=100))


def test_a_list_longer_than_the_limit_ends(fake: FakeKernel) -> None:
    head = fake.symbol("head", 16)
    fake.link_list(head, [fake.make("entry") for _ in range(5)])
    with pytest.raises(StructureError, match="does not end"):
        list(list_entries(fake.kernel(), head, limit=4))
    assert len(list(list_entries(fake.kernel(), head, limit=5))) == 5


def test_a_list_into_nowhere_faults(fake: FakeKernel) -> None:
    head = fake.symbol("head", 16)
    fake.guest.put_u64(head, 0xFFFF_DEAD_0000_0000)
    with pytest.raises(MemoryFault):
        list(list_entries(fake.kernel(), head))


def test_an_hlist_and_its_back_pointers(fake: FakeKernel) -> None:
    head = fake.symbol("head")
    nodes = [fake.make("entry") for _ in range(3)]
    fake.link_hlist(head, nodes)
    assert list(hlist_entries(fake.kernel(), head)) == nodes
    fake.guest.put_u64(nodes[0], nodes[2])
    with pytest.raises(StructureError, match="pprev"):
        list(hlist_entries(fake.kernel(), head))


def test_an_hlist_in_a_circle_ends(fake: FakeKernel) -> None:
    head = fake.symbol("head")
    node = fake.make("entry")
    fake.link_hlist(head, [node])
    fake.guest.put_u64(node, node)
    with pytest.raises(StructureError):
        list(hlist_entries(fake.kernel(), head))


def tree(fake: FakeKernel) -> tuple[int, list[int]]:
    """Root b with left a and right d, and c left of d; returns the root and a, b, c, d."""
    root = fake.symbol("root")
    a, b, c, d = (fake.make("rb_node") for _ in range(4))
    fake.guest.put_u64(root, b)
    for node, parent, left, right in ((b, 0, a, d), (a, b, 0, 0), (d, b, c, 0), (c, d, 0, 0)):
        fake.put(node, "rb_node", "__rb_parent_color", parent | 1)
        fake.put(node, "rb_node", "rb_left", left)
        fake.put(node, "rb_node", "rb_right", right)
    return root, [a, b, c, d]


def test_a_tree_in_order(fake: FakeKernel) -> None:
    root, nodes = tree(fake)
    assert list(rbtree_entries(fake.kernel(), root)) == nodes


def test_an_empty_tree(fake: FakeKernel) -> None:
    assert list(rbtree_entries(fake.kernel(), fake.symbol("root"))) == []


def test_a_tree_with_a_wrong_parent_is_refused(fake: FakeKernel) -> None:
    root, (a, _, c, _) = tree(fake)
    fake.put(c, "rb_node", "__rb_parent_color", a)
    with pytest.raises(StructureError, match="parent"):
        list(rbtree_entries(fake.kernel(), root))


def test_a_tree_in_a_circle_ends(fake: FakeKernel) -> None:
    root, (a, b, _, _) = tree(fake)
    fake.put(a, "rb_node", "rb_left", b)
    with pytest.raises(StructureError):
        list(rbtree_entries(fake.kernel(), root))
    fake.put(b, "rb_node", "__rb_parent_color", a)
    with pytest.raises(StructureError):
        list(rbtree_entries(fake.kernel(), root))


def node(fake: FakeKernel, shift: int, parent: int, slots: dict[int, int]) -> int:
    at = fake.make("xa_node")
    fake.guest.write(at + SHIFT, bytes([shift]))
    fake.guest.put_u64(at + PARENT, parent)
    for slot, entry in slots.items():
        fake.guest.put_u64(at + SLOTS + 8 * slot, entry)
    return at


def array(fake: FakeKernel, head: int) -> int:
    at = fake.symbol("array", 16)
    fake.put(at, "xarray", "xa_head", head)
    return at


def test_an_array_of_one_entry_has_no_node(fake: FakeKernel) -> None:
    assert list(xarray_entries(fake.kernel(), array(fake, 0xFFFF888000000100))) == [
        (0, 0xFFFF888000000100)
    ]
    assert list(xarray_entries(fake.kernel(), array(fake, 0))) == []
    assert list(xarray_entries(fake.kernel(), array(fake, 7))) == []  # a value entry


def test_an_array_of_two_levels(fake: FakeKernel) -> None:
    root = node(fake, 6, 0, {})
    first = node(fake, 0, root, {1: 0x1000, 63: 0x2000, 5: 257 << 2 | 2, 6: 9})
    second = node(fake, 0, root, {0: 0x3000})
    fake.guest.put_u64(root + SLOTS, first | 2)
    fake.guest.put_u64(root + SLOTS + 8 * 3, second | 2)
    assert list(xarray_entries(fake.kernel(), array(fake, root | 2))) == [
        (1, 0x1000),
        (63, 0x2000),
        (192, 0x3000),
    ]


def test_a_node_that_is_its_own_child_is_refused(fake: FakeKernel) -> None:
    root = node(fake, 6, 0, {})
    fake.guest.put_u64(root + SLOTS, root | 2)
    with pytest.raises(StructureError, match="shift"):
        list(xarray_entries(fake.kernel(), array(fake, root | 2)))


def test_a_node_of_another_parent_is_refused(fake: FakeKernel) -> None:
    root = node(fake, 6, 0, {})
    child = node(fake, 0, root + 64, {})
    fake.guest.put_u64(root + SLOTS, child | 2)
    with pytest.raises(StructureError, match="parent"):
        list(xarray_entries(fake.kernel(), array(fake, root | 2)))


def test_a_node_below_the_last_level_is_refused(fake: FakeKernel) -> None:
    root = node(fake, 0, 0, {})
    fake.guest.put_u64(root + SLOTS, root | 2)
    with pytest.raises(StructureError, match="below"):
        list(xarray_entries(fake.kernel(), array(fake, root | 2)))


@pytest.mark.parametrize("shift", [5, 66, 255])
def test_an_absurd_shift_is_refused(fake: FakeKernel, shift: int) -> None:
    root = node(fake, shift, 0, {})
    with pytest.raises(StructureError):
        list(xarray_entries(fake.kernel(), array(fake, root | 2)))


WALKS: list[Callable[[LiveKernel, int], Iterator[object]]] = [
    lambda kernel, head: list_entries(kernel, head, limit=500),
    lambda kernel, head: hlist_entries(kernel, head, limit=500),
    lambda kernel, head: rbtree_entries(kernel, head, limit=500),
    lambda kernel, head: xarray_entries(kernel, head - 8, limit=50),
]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_memory_never_hangs_or_escapes(data: st.DataObject) -> None:
    fake = FakeKernel(LAYOUTS, heap=2)
    head = fake.symbol("head", 64) + 16
    arena = fake.alloc(2048)
    pointers = st.one_of(
        st.integers(0, 255).map(lambda slot: arena + 8 * slot),
        st.integers(0, 255).map(lambda slot: (arena + 8 * slot) | 2),
        st.just(head),
        st.integers(0, 2**64 - 1),
    )
    for slot in range(0, 256, data.draw(st.integers(1, 9))):
        fake.guest.put_u64(arena + 8 * slot, data.draw(pointers))
    fake.guest.put_u64(head, data.draw(pointers))
    fake.guest.put_u64(head + 8, data.draw(pointers))
    for walk in WALKS:
        count = 0
        try:
            for _ in walk(fake.kernel(), head):
                count += 1
        except (StructureError, MemoryFault):
            pass
        assert count <= 50 * 64
