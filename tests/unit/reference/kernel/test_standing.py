"""Livepatches and taints: said by name, and never believed for more than that."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import cast

from undercroft.base import MemoryFault
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.standing import standing
from undercroft.testing.fakekernel import FakeTypes

BASE = 0xFFFF_FFFF_8100_0000
LAYOUTS = {
    "klp_patch": (64, {"mod": 0, "list": 8, "obj_list": 24}),
    "klp_object": (64, {"func_list": 0, "node": 16}),
    "klp_func": (64, {"old_name": 0, "new_func": 8, "node": 16}),
    "module": (64, {"name": 24}),
    "taint_flag": (3, {"c_true": 0}),
}
PATCHES, MASK, FLAGS = 0x1000, 0x1100, 0x1200
PATCH, OBJECT, MODULE, NAMES = 0x2000, 0x2100, 0x2200, 0x2300


class Types(FakeTypes):
    """The types of this kernel."""

    def __contains__(self, name: str) -> bool:
        return name in self.layouts


class Scene:
    """A kernel's memory at BASE, from position 0."""

    def __init__(self) -> None:
        self.memory = bytearray(0x4000)
        self.names = {"klp_patches": PATCHES, "tainted_mask": MASK, "taint_flags": FLAGS}
        self.link(PATCHES)
        self.memory[FLAGS : FLAGS + 6] = b"PG\0F \0"

    def put(self, at: int, value: int) -> None:
        self.memory[at : at + 8] = (value % (1 << 64)).to_bytes(8, "little")

    def link(self, head: int, *nodes: int) -> None:
        ring = [head, *nodes, head]
        for here, after in itertools.pairwise(ring):
            self.put(here, BASE + after)

    def patch(self, functions: int) -> None:
        self.memory[MODULE + 24 : MODULE + 30] = b"fixes\0"
        self.put(PATCH, BASE + MODULE)
        self.link(PATCHES, PATCH + 8)
        self.link(PATCH + 24, OBJECT + 16)
        nodes = []
        for number in range(functions):
            at, name = 0x3000 + 64 * number, NAMES + 16 * number
            text = f"function_{number}".encode() + b"\0"
            self.memory[name : name + len(text)] = text
            self.put(at, BASE + name)
            self.put(at + 8, 0xFFFF_FFFF_C000_0000 + number)
            nodes.append(at + 16)
        self.link(OBJECT, *nodes)

    def said(self) -> list[str]:
        image = SimpleNamespace(
            find=self.names.get,
            btf=Types(LAYOUTS),
            read=lambda at, size: bytes(self.memory[at : at + size]),
        )

        def read(address: int, size: int) -> bytes:
            at = address - BASE
            if not 0 <= at <= len(self.memory) - size:
                raise MemoryFault(address)
            return bytes(self.memory[at : at + size])

        found = standing(cast(KernelImage, image), GuestValues(read, BASE))
        self.foreign = [each.foreign for each in found]
        return [f"{each.kind}: {each.text}" for each in found]


def test_nothing_stands() -> None:
    assert Scene().said() == []


def test_a_livepatch() -> None:
    scene = Scene()
    scene.patch(2)
    text = "livepatch: the livepatch fixes replaces function_0, function_1"
    assert scene.said() == [text]
    assert scene.foreign == [(0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_C000_0001)]


def test_a_livepatch_of_many_functions() -> None:
    scene = Scene()
    scene.patch(6)
    assert scene.said()[0].endswith("function_3 and 2 more")
    scene.patch(0)
    assert scene.said()[0].endswith("replaces no function")


def test_taints_have_the_packages_letters() -> None:
    scene = Scene()
    scene.put(MASK, 1 | 2 | 1 << 40)
    assert scene.said() == ["taint: the kernel says that it is tainted: P F bit 40"]
    del scene.names["taint_flags"]
    assert scene.said() == ["taint: the kernel says that it is tainted: bit 0 bit 1 bit 40"]


def test_a_list_that_leads_nowhere_is_said() -> None:
    scene = Scene()
    scene.put(PATCHES, 0x1234)
    (said,) = scene.said()
    assert said.startswith("unreadable: ")


def test_a_kernel_without_either() -> None:
    scene = Scene()
    scene.names.clear()
    assert scene.said() == []
