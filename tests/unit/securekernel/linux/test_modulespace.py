"""The modules' range as its allocator knows it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from undercroft.base import Finding, Outcome
from undercroft.securekernel.linux import modulespace
from undercroft.securekernel.linux.facts import Observer
from undercroft.testing.fakecode import BAD_MODULE, CODE_LAYOUTS, GOOD_MODULE, FakeCode
from undercroft.testing.fakekernel import Layouts

AREA: Layouts = {"vmap_area": (64, {"va_start": 0, "va_end": 8, "rb_node": 16})}
NODES: Layouts = {
    **AREA,
    "vmap_node": (128, {"busy": 64}),
    "rb_list": (32, {"root": 0}),
}
_CORE = {"core_layout.size": 92, "init_layout.size": 212}
MODULE = (512, {**CODE_LAYOUTS["module"][1], **_CORE})


class Guest(FakeCode):
    """Two modules, a BPF pack's image, and what the allocator gave them."""

    def __init__(self, layouts: Layouts = AREA) -> None:
        super().__init__({**layouts, "module": MODULE})
        for module in self.modules:
            self.put(module, "module", "core_layout.size", 0x3000, size=4)
        self.nodes = "vmap_node" in layouts
        self.areas = [
            (GOOD_MODULE, GOOD_MODULE + 0x4000),  # a guard page follows
            (BAD_MODULE, BAD_MODULE + 0x4000),
            (0xFFFFC90000000000, 0xFFFFC90000005000),  # elsewhere: not looked at
        ]
        self.arrange()

    def arrange(self) -> None:
        if self.nodes:
            node = self.alloc(2 * 128)
            self.guest.put_u64(self.symbol("vmap_nodes"), node)
            self.guest.put_u32(self.symbol("nr_vmap_nodes"), 2)
            root = node + 128 + 64
        else:
            root = self.symbol("vmap_area_root")
        above = 0
        for start, end in self.areas:
            area = self.make("vmap_area", va_start=start, va_end=end)
            self.guest.put_u64(area + 16, above)
            self.guest.put_u64(above + 8 if above else root, area + 16)
            above = area + 16

    def look(self) -> Finding:
        return modulespace.collect(self.kernel(), Observer(nullcontext, lambda _: None, (0, 1)))


@pytest.mark.parametrize("layouts", [AREA, NODES], ids=["one tree", "nodes"])
def test_memory_of_modules_passes(layouts: Layouts) -> None:
    found = Guest(layouts).look()
    assert found.outcome is Outcome.PASS
    assert found.details["bytes"] == 0x8000


@pytest.mark.parametrize("layouts", [AREA, NODES], ids=["one tree", "nodes"])
def test_memory_of_nobody_is_found(layouts: Layouts) -> None:
    fake = Guest(layouts)
    fake.areas.append((0xFFFFFFFFC0800000, 0xFFFFFFFFC0803000))
    fake.arrange()
    found = fake.look()
    assert found.outcome is Outcome.FAIL
    anomalies: Any = found.details["anomalies"]
    assert anomalies == [{"address": "0xffffffffc0800000", "size": 0x3000}]


def test_generated_code_owns_its_memory() -> None:
    fake = Guest()
    image = fake.bpf_image(0xFFFFFFFFC0900000)
    fake.areas.append((image & ~0xFFF, (image & ~0xFFF) + 0x2000))
    fake.arrange()
    assert fake.look().outcome is Outcome.PASS


def test_absurd_sizes_and_counts_are_unknown() -> None:
    fake = Guest()
    fake.put(fake.modules[0], "module", "core_layout.size", 1 << 31, size=4)
    assert fake.look().outcome is Outcome.UNKNOWN
    fake = Guest(NODES)
    fake.guest.put_u32(fake.symbol("nr_vmap_nodes"), 1 << 20)
    assert fake.look().outcome is Outcome.UNKNOWN


def test_modules_of_newer_kernels_have_many_parts() -> None:
    layouts: Layouts = {
        "module": (512, {**MODULE[1], "mem": 320}),
        "module_memory": (24, {"base": 0, "size": 16}),
    }
    fake = FakeCode(layouts)
    kernel = fake.kernel()
    fake.guest.put_u64(fake.modules[0] + 320 + 6 * 24, 0xFFFFFFFFC0A00000)
    fake.guest.put_u32(fake.modules[0] + 320 + 6 * 24 + 16, 0x1800)
    (owner,) = modulespace.module_memory(kernel)
    assert (owner.start, owner.end) == (0xFFFFFFFFC0A00000, 0xFFFFFFFFC0A02000)
