"""A module's constants in memory: which tables the loader sorts, and how."""

from __future__ import annotations

import struct

import pytest

from undercroft.formats.kernel import parse_module
from undercroft.reference.kernel import modules
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.module_rodata import expected_jump_table, expected_rodata
from undercroft.reference.kernel.modules import R_64, R_PC32, PlacedModule, place, relocate
from undercroft.testing.tinymodule import ALLOC, EXEC, WRITE, TinyModule

KERNEL, BASE, INIT = 0xFFFFFFFF_82200000, 0xFFFFFFFF_C0000000, 0xFFFFFFFF_C0100000
TEXT = 0x40


def tiny() -> TinyModule:
    module = TinyModule()
    module.section(".text", ALLOC | EXEC, bytes(TEXT), alignment=16)
    module.section(".init.text", ALLOC | EXEC, bytes(0x20), alignment=16)
    module.symbol("code", ".text")
    module.symbol("start", ".init.text")
    return module


def addresses(module: TinyModule, name: str, kind: int, entries: list[tuple[str, int]]) -> None:
    """Add a table of addresses: R_64 has 8 bytes each, R_PC32 is relative to itself."""
    size = 8 if kind == R_64 else 4
    module.section(name, ALLOC, bytes(size * len(entries)), alignment=8)
    for index, (symbol, addend) in enumerate(entries):
        module.relocation(name, size * index, kind, symbol, addend)


def placed(module: TinyModule) -> PlacedModule:
    bases = dict.fromkeys(("text", "data", "rodata", "ro_after_init"), BASE)
    return place(parse_module(module.build()), bases, 0, KERNEL, shared=True)


def at(result: PlacedModule, name: str) -> int:
    section = result.module.elf.section(name)
    address = result.address(section.index)
    assert address is not None
    return address


def in_memory(result: PlacedModule, group: str, **tables: bytes) -> Canvas:
    """Return a group as the loader leaves it: relocated, with these tables sorted."""
    relocate(result, {})
    before = result.memory[group]
    live = Canvas(before.start, bytearray(before.data))
    for name, content in tables.items():
        start = result.position(at(result, name)) - live.start
        live.data[start : start + len(content)] = content
    return live


def quads(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def test_traced_functions_are_sorted() -> None:
    module = tiny()
    addresses(module, "__mcount_loc", R_64, [("code", 0x30), ("code", 0x10)])
    result = placed(module)
    live = in_memory(result, "rodata", __mcount_loc=quads(BASE + 0x10, BASE + 0x30))
    assert expected_rodata(result, live, wide=False).data == live.data


def test_init_code_is_found_by_what_is_left_in_the_table() -> None:
    module = tiny()
    entries = [("start", 8), ("code", 0x30), ("start", 0)]
    addresses(module, "__mcount_loc", R_64, entries)
    result = placed(module)
    table = quads(BASE + 0x30, INIT, INIT + 8)
    live = in_memory(result, "rodata", __mcount_loc=table)
    modules.find_freed(result, {"rodata": live})
    relocate(result, {})
    assert list(result.freed.values()) == [INIT]
    assert expected_rodata(result, live, wide=False).data == live.data
    changed = Canvas(live.start, bytearray(live.data))
    changed.data[0] ^= 1
    assert expected_rodata(result, changed, wide=False).data == live.data


def test_a_table_that_leads_nowhere_known_is_not_compared() -> None:
    module = tiny()
    addresses(module, "__mcount_loc", R_64, [("start", 0), ("code", 0x30)])
    result = placed(module)
    live = in_memory(result, "rodata", __mcount_loc=quads(BASE + 1, BASE + 2))
    assert expected_rodata(result, live, wide=False).data == live.data
    assert (result.position(at(result, "__mcount_loc")), 16) in result.unknown["rodata"]


def test_a_reference_to_init_code_shows_where_it_was() -> None:
    module = tiny()
    addresses(module, ".rodata", R_64, [("start", 8), ("code", 4)])
    result = placed(module)
    live = in_memory(result, "rodata", **{".rodata": quads(INIT + 8, BASE + 4)})
    modules.find_freed(result, {"rodata": live})
    relocate(result, {})
    assert expected_rodata(result, live, wide=False).data == live.data


def test_exceptions_are_sorted_by_instruction() -> None:
    module = tiny()
    module.section("__ex_table", ALLOC, bytes(24), alignment=4)
    for index, insn in enumerate((0x20, 0x08)):
        module.relocation("__ex_table", 12 * index, R_PC32, "code", insn)
        module.relocation("__ex_table", 12 * index + 4, R_PC32, "code", insn + 1)
    module.sections[-1].data[8:12] = b"\1\0\0\0"
    module.sections[-1].data[20:24] = b"\2\0\0\0"
    result = placed(module)
    relocate(result, {})
    start = at(result, "__ex_table") - BASE
    rows = [
        struct.pack("<iiI", insn - start - 12 * n, insn + 1 - start - 12 * n - 4, data)
        for n, (insn, data) in enumerate(((0x08, 2), (0x20, 1)))
    ]
    live = in_memory(result, "rodata", __ex_table=b"".join(rows))
    assert expected_rodata(result, live, wide=False).data == live.data


@pytest.mark.parametrize("flipped", [False, True])
def test_unwind_tables_are_sorted_together(flipped: bool) -> None:
    module = tiny()
    addresses(module, ".orc_unwind_ip", R_PC32, [("code", 0x20), ("code", 8), ("code", 8)])
    module.section(".orc_unwind", ALLOC, b"AAAAAABBBBBBCCCCCC", alignment=2)
    result = placed(module)
    relocate(result, {})
    start = at(result, ".orc_unwind_ip") - BASE
    ip = b"".join(struct.pack("<i", place - start - 4 * n) for n, place in enumerate((8, 8, 0x20)))
    tied = b"CCCCCCBBBBBB" if flipped else b"BBBBBBCCCCCC"  # the sort is not stable
    tables = {".orc_unwind_ip": ip, ".orc_unwind": tied + b"AAAAAA"}
    live = in_memory(result, "rodata", **tables)
    assert expected_rodata(result, live, wide=False).data == live.data
    swapped = in_memory(result, "rodata", **{**tables, ".orc_unwind": b"AAAAAABBBBBBCCCCCC"})
    assert expected_rodata(result, swapped, wide=False).data != swapped.data


def test_alternatives_of_one_place_share_the_longest_length() -> None:
    module = tiny()
    module.section(".altinstructions", ALLOC, bytes(3 * 14), alignment=1)
    for index, (site, length) in enumerate(((8, 2), (8, 5), (0x20, 3))):
        module.relocation(".altinstructions", 14 * index, R_PC32, "code", site)
        module.sections[-1].data[14 * index + 12] = length
    result = placed(module)
    live = in_memory(result, "rodata")
    narrow = expected_rodata(result, live, wide=False)
    assert narrow.data == live.data
    start = result.position(at(result, ".altinstructions"))
    shared = expected_rodata(result, live, wide=True)
    assert [shared.get(start + 14 * n + 12, 1)[0] for n in range(3)] == [5, 5, 3]


def test_jump_labels_are_sorted_by_key_and_code() -> None:
    module = tiny()
    module.section("__jump_table", ALLOC | WRITE, bytes(48), alignment=8)
    rows = ((0x20, 0x30, 0x10), (0x08, 0x30, 0x10), (0x10, 0x30, 0x08))
    for index, (code, target, key) in enumerate(rows):
        module.relocation("__jump_table", 16 * index, R_PC32, "code", code)
        module.relocation("__jump_table", 16 * index + 4, R_PC32, "code", target)
        module.relocation("__jump_table", 16 * index + 8, modules.R_PC64, "code", key | 2)
    result = placed(module)
    relocate(result, {})
    table = expected_jump_table(result, result.memory["ro_after_init"])
    assert table is not None
    start = at(result, "__jump_table") - BASE
    found = [struct.unpack_from("<iiq", table.data, 16 * n) for n in range(3)]
    assert [
        (code + start + 16 * n, target + start + 16 * n + 4, key + start + 16 * n + 8)
        for n, (code, target, key) in enumerate(found)
    ] == [(0x10, 0x30, 0x08), (0x08, 0x30, 0x10), (0x20, 0x30, 0x10)]


def test_a_module_without_tables() -> None:
    module = tiny()
    module.section(".rodata", ALLOC, b"constant")
    result = placed(module)
    live = in_memory(result, "rodata")
    assert expected_rodata(result, live, wide=True).data == live.data
    assert expected_jump_table(result, live) is None
