"""Where a module's sections go and what its relocations write, as load_module() does it."""

from __future__ import annotations

import struct

import pytest

from undercroft.base import FormatError
from undercroft.formats.kernel import parse_module
from undercroft.reference.kernel import modules
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.modules import lay_out, place, relocate
from undercroft.testing.tinymodule import ALLOC, EXEC, WRITE, TinyModule

KERNEL = 0xFFFFFFFF_82200000
BASE = 0xFFFFFFFF_C0000000


def tiny() -> TinyModule:
    module = TinyModule()
    module.section(".text", ALLOC | EXEC, bytes(0x40), alignment=16)
    module.section(".init.text", ALLOC | EXEC, bytes(0x20), alignment=16)
    module.section(".rodata", ALLOC, bytes(0x18), alignment=32)
    module.section(".exit.text", ALLOC | EXEC, b"\xc3" * 3)
    module.section("__jump_table", ALLOC | WRITE, bytes(0x10), alignment=8)
    module.section(".data", ALLOC | WRITE, bytes(8), alignment=32)
    module.section(".data..percpu", ALLOC | WRITE, bytes(8), alignment=8)
    module.section(".bss", ALLOC | WRITE, bytes(16), alignment=32, kind=8)
    module.section(".comment", 0, b"gcc")
    return module


def places(module: TinyModule, *, shared: bool) -> dict[str, tuple[str, int]]:
    parsed = parse_module(module.build())
    found = lay_out(parsed, shared=shared).places
    return {parsed.sections[index].name: place for index, place in found.items()}


def test_one_allocation_until_6_3() -> None:
    layout = lay_out(parse_module(tiny().build()), shared=True)
    assert places(tiny(), shared=True) == {
        ".text": ("text", 0),
        ".exit.text": ("text", 0x40),
        ".rodata": ("rodata", 0x1000),
        "__jump_table": ("ro_after_init", 0x2000),
        ".data": ("data", 0x3000),
        ".bss": ("data", 0x3020),
    }
    assert layout.starts == {"text": 0, "rodata": 0x1000, "ro_after_init": 0x2000, "data": 0x3000}
    assert layout.sizes == {"text": 0x1000, "rodata": 0x1000, "ro_after_init": 0x1000, "data": 0x30}


def test_an_allocation_for_each_kind_since_6_4() -> None:
    assert places(tiny(), shared=False) == {
        ".text": ("text", 0),
        ".exit.text": ("text", 0x40),
        ".rodata": ("rodata", 0),
        "__jump_table": ("ro_after_init", 0),
        ".data": ("data", 0),
        ".bss": ("data", 0x20),
    }


def placed(module: TinyModule, *, percpu: int = 0x12340) -> modules.PlacedModule:
    bases = dict.fromkeys(("text", "rodata", "ro_after_init", "data"), BASE)
    return place(parse_module(module.build()), bases, percpu, KERNEL, shared=True)


@pytest.mark.parametrize(
    ("kind", "size", "value"),
    [
        (modules.R_64, 8, 0xFFFFFFFF_81111110 + 4),
        (modules.R_32, 4, 0x81111114),
        (modules.R_32S, 4, 0x81111114),
        (modules.R_PC32, 4, 0xFFFFFFFF_81111114 - (BASE + 8)),
        (modules.R_PLT32, 4, 0xFFFFFFFF_81111114 - (BASE + 8)),
        (modules.R_PC64, 8, 0xFFFFFFFF_81111114 - (BASE + 8)),
        (modules.R_NONE, 4, 0),
    ],
)
def test_every_relocation(kind: int, size: int, value: int) -> None:
    module = tiny()
    module.symbol("printk")
    module.relocation(".text", 8, kind, "printk", 4)
    result = placed(module)
    relocate(result, {"printk": 0xFFFFFFFF_81111110})
    written = result.text.data[8 : 8 + size]
    assert written == (value % (1 << 8 * size)).to_bytes(size, "little")
    assert result.unresolved == ()


def test_symbols_of_its_own_of_percpu_data_weak_and_missing() -> None:
    module = tiny()
    for index, (name, section, value, weak) in enumerate(
        [
            ("own", ".data", 4, False),
            ("mine", ".data..percpu", 8, False),
            ("optional", "", 0, True),
            ("missing", "", 0, False),
        ]
    ):
        module.symbol(name, section, value, weak=weak)
        module.relocation(".text", 8 * index, modules.R_64, name)
    result = placed(module)
    relocate(result, {})
    words = struct.unpack("<4Q", result.text.data[:32])
    assert words == (BASE + 0x3000 + 4, 0x12340 + 8, 0, 0)
    assert result.unresolved == ("missing",)


def test_what_lies_between_sections_is_zero() -> None:
    result = placed(tiny())
    assert len(result.text.data) == 0x1000
    assert result.text.data[0x43:] == bytes(0x1000 - 0x43)
    assert result.text.start == BASE - KERNEL


def test_init_code_is_found_by_what_still_refers_to_it() -> None:
    module = tiny()
    module.symbol("start", ".init.text", 0x10)
    for offset in (1, 9):
        module.relocation(".text", offset, modules.R_PLT32, "start", -4)
    result = placed(module)
    live = Canvas(result.text.start, bytearray(result.text.data))
    init = BASE + 0x9000
    for offset in (1, 9):
        distance = init + 0x10 - 4 - (BASE + offset)
        live.data[offset : offset + 4] = distance.to_bytes(4, "little")
    modules.find_freed(result, {"text": live})
    relocate(result, {})
    assert result.text.data[:0x20] == live.data[:0x20]
    assert list(result.freed.values()) == [init]


def test_exports_are_relative_to_themselves() -> None:
    module = tiny()
    module.section("__ksymtab_gpl", ALLOC, bytes(12), alignment=4)
    module.section("__ksymtab_strings", ALLOC, b"\0hook\0")
    module.symbol("hook", ".text", 0x20)
    module.symbol("__kstrtab_hook", "__ksymtab_strings", 1)
    module.relocation("__ksymtab_gpl", 0, modules.R_PC32, "hook")
    module.relocation("__ksymtab_gpl", 4, modules.R_PC32, "__kstrtab_hook")
    result = placed(module)
    relocate(result, {})
    assert result.exports() == {"hook": BASE + 0x20}
    assert result.symbols().locate(BASE - KERNEL + 0x22) == ("hook", 2)


@pytest.mark.parametrize(
    ("offset", "kind"), [(0x3D, modules.R_64), (0x3F, modules.R_PC32), (0, 99), (1 << 40, 1)]
)
def test_relocations_that_the_loader_would_refuse(offset: int, kind: int) -> None:
    module = TinyModule()
    module.section(".text", ALLOC | EXEC, bytes(0x40))
    module.symbol("printk")
    module.relocation(".text", offset, kind, "printk")
    with pytest.raises(FormatError):
        relocate(placed(module), {"printk": 1})
