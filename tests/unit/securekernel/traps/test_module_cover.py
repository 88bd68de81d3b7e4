"""What of a module is constant, in both layouts of struct module."""

from __future__ import annotations

from undercroft.securekernel.linux.modules import Module, Span
from undercroft.securekernel.traps.modules import _constants, region_name
from undercroft.testing.fakekernel import FakeKernel

OLD = {
    "module": (
        0x400,
        {
            "core_layout.base": 0x100,
            "core_layout.text_size": 0x10C,
            "core_layout.ro_size": 0x110,
            "core_layout.ro_after_init_size": 0x114,
        },
    )
}
NEW = {
    "module": (0x400, {"mem": 0x100}),
    "module_memory": (0x40, {"base": 0, "size": 8}),
}
BASE = 0xFFFF_FFFF_C000_0000


def module_at(address: int, text: int) -> Module:
    return Module(address, "m", 0, Span(BASE, text), Span(0, 0), 0, True)


def test_until_6_3_constants_follow_the_code() -> None:
    fake = FakeKernel(OLD)
    at = fake.alloc(0x400)
    for path, value in (("text_size", 0x3000), ("ro_size", 0x5000), ("ro_after_init_size", 0x6000)):
        fake.put(at, "module", f"core_layout.{path}", value, 4)
    assert _constants(fake.kernel(), module_at(at, 0x3000)) == (Span(BASE + 0x3000, 0x3000),)


def test_since_6_4_they_are_allocations_of_their_own() -> None:
    fake = FakeKernel(NEW)
    at = fake.alloc(0x400)
    for kind, (base, size) in enumerate(((BASE, 0x3000), (1, 2), (BASE + 0x9000, 0x1000), (3, 0))):
        fake.guest.put_u64(at + 0x100 + 0x40 * kind, base)
        fake.guest.put_u32(at + 0x100 + 0x40 * kind + 8, size)
    assert _constants(fake.kernel(), module_at(at, 0x3000)) == (
        Span(BASE + 0x9000, 0x1000),
        Span(3, 0),
    )


def test_regions_are_named_after_their_module() -> None:
    assert region_name("nf_tables", "text") == "module.nf_tables.text"
