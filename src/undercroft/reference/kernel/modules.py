"""A module's code, replayed: laid out, relocated and patched as the module loader does it.

load_module() in kernel/module/main.c copies the sections into a few allocations in a fixed
order, so that only the allocations' addresses come from the guest; it resolves symbols against
what the kernel and other modules export, applies the relocations and then the same patch passes
as for the kernel (module_finalize in arch/x86/kernel/module.c), with the choices that the kernel
made when it booted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from undercroft.base import FormatError
from undercroft.formats.kernel import KernelImage, KernelModule
from undercroft.formats.kernel.elf import SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, Section
from undercroft.formats.kernel.kallsyms import SymbolTable, make_symbol_table
from undercroft.formats.kernel.module import SHN_ABS, SHN_UNDEF
from undercroft.formats.kernel.sites import (
    Offsets,
    Sites,
    StaticCallSites,
    parse_jump_table,
    parse_ksymtab,
    parse_mcount_loc,
    parse_parainstructions,
    parse_pc_relative,
    parse_static_call_sites,
    read_altinstructions,
)
from undercroft.reference.kernel.canvas import Canvas

_FORMAT = "kernel module"
_RO_AFTER_INIT = 0x0020_0000
_PAGE = 4096
_MASK64 = (1 << 64) - 1
_NOT_LOADED = frozenset((".modinfo", "__versions"))
_RO_AFTER_INIT_SECTIONS = frozenset((".data..ro_after_init", "__jump_table"))
_PERCPU = ".data..percpu"
R_NONE, R_64, R_PC32, R_PLT32, R_32, R_32S, R_PC64 = 0, 1, 2, 4, 10, 11, 24
"""R_X86_64_* that the loader knows (__write_relocate_add)."""

_GROUPS: tuple[tuple[str, int, int], ...] = (
    ("text", SHF_EXECINSTR | SHF_ALLOC, 0),
    ("rodata", SHF_ALLOC, SHF_WRITE),
    ("ro_after_init", _RO_AFTER_INIT | SHF_ALLOC, 0),
    ("data", SHF_WRITE | SHF_ALLOC, 0),
)
"""layout_sections(): the groups in order, the flags a section must and must not have."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each section goes: by section index, the group and the offset in it.

    Until 6.3 all groups share one allocation, one after the other, each rounded up to a page:
    then offsets count from its start, and ``starts`` are those of the groups.
    """

    places: Mapping[int, tuple[str, int]]
    starts: Mapping[str, int]
    sizes: Mapping[str, int]


def lay_out(module: KernelModule, *, shared: bool) -> Layout:
    """Do what layout_sections() does for the part of a module that stays loaded.

    ``shared`` is the layout until 6.3 (struct module_layout).
    """
    flags = {section.index: _flags(section) for section in module.sections}
    places: dict[int, tuple[str, int]] = {}
    starts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    at = 0
    for group, wanted, refused in _GROUPS:
        if not shared:
            at = 0
        starts[group] = at
        for section in module.sections:
            mine = flags[section.index]
            if mine & wanted != wanted or mine & refused or section.index in places:
                continue
            if section.name.startswith(".init"):
                continue
            alignment = max(section.alignment, 1)
            at = -(-at // alignment) * alignment
            places[section.index] = (group, at)
            at += section.size
        if group != "data" or not shared:
            at = -(-at // _PAGE) * _PAGE
        sizes[group] = at - starts[group]
    return Layout(places, starts, sizes)


def _flags(section: Section) -> int:
    """Return a section's flags after rewrite_section_headers() and layout_and_allocate()."""
    flags = section.flags
    if section.name in _NOT_LOADED or section.name == _PERCPU:
        flags &= ~SHF_ALLOC
    if section.name in _RO_AFTER_INIT_SECTIONS:
        flags |= _RO_AFTER_INIT
    return flags


@dataclass(slots=True)
class PlacedModule:
    """A module whose sections have addresses.

    ``bases`` are the virtual addresses of the groups' allocations, ``percpu`` that of the
    module's per-CPU data.  ``memory`` has the contents of each group from its base on.
    """

    module: KernelModule
    layout: Layout
    bases: Mapping[str, int]
    percpu: int
    kernel_base: int
    memory: dict[str, Canvas] = field(default_factory=dict)
    unresolved: tuple[str, ...] = ()
    freed: dict[int, int] = field(default_factory=dict)
    """Where init sections stood before they were freed, as far as what is left shows it."""
    unknown: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """By group, (position, size) of what leads into init sections that nothing shows."""

    def address(self, section: int) -> int | None:
        """Return the virtual address of a section, or None if it does not stay loaded."""
        place = self.layout.places.get(section)
        if place is not None:
            return (self.bases[place[0]] + place[1]) & _MASK64
        if self.module.sections[section].name == _PERCPU:
            return self.percpu
        return self.freed.get(section)

    def position(self, address: int) -> int:
        """Return an address as a position: its distance from the kernel's _text."""
        distance = (address - self.kernel_base) & _MASK64
        return distance - (1 << 64) if distance >> 63 else distance

    @property
    def text(self) -> Canvas:
        """The code."""
        return self.memory["text"]

    def section(self, name: str) -> tuple[bytes, int]:
        """Return a loaded section's contents, relocated, and its position; b"" if none."""
        section = self.module.elf.by_name.get(name)
        if section is None or section.index not in self.layout.places:
            return b"", 0
        group, _ = self.layout.places[section.index]
        address = self.address(section.index)
        assert address is not None
        at = self.position(address)
        return self.memory[group].get(at, section.size), at

    def exports(self) -> dict[str, int]:
        """Return what the module exports: name to virtual address (relocated first)."""
        strings, strings_at = self.section("__ksymtab_strings")
        found: dict[str, int] = {}
        for table in ("__ksymtab", "__ksymtab_gpl"):
            data, at = self.section(table)
            for name, value in parse_ksymtab(data, at, strings, strings_at):
                found[name] = (self.kernel_base + value) & _MASK64
        return found

    def symbols(self) -> SymbolTable:
        """Return the module's own symbols by position (taken modulo 2**64)."""
        found = []
        for symbol in self.module.symbols:
            if not symbol.name or symbol.section not in self.layout.places or symbol.kind > 2:
                continue
            address = self.address(symbol.section)
            assert address is not None
            kind = "t" if self.layout.places[symbol.section][0] == "text" else "d"
            found.append((self.position(address + symbol.value) & _MASK64, kind, symbol.name))
        return make_symbol_table(found)


def place(
    module: KernelModule,
    bases: Mapping[str, int],
    percpu: int,
    kernel_base: int,
    *,
    shared: bool,
) -> PlacedModule:
    """Copy the sections to where they go; what lies between them is zero (move_module)."""
    placed = PlacedModule(module, lay_out(module, shared=shared), bases, percpu, kernel_base)
    layout = placed.layout
    for group, size in layout.sizes.items():
        start = placed.position(bases[group] + layout.starts[group])
        placed.memory[group] = Canvas(start, bytearray(size))
    for index, (group, offset) in layout.places.items():
        section = module.sections[index]
        if section.type != SHT_NOBITS:
            at = offset - layout.starts[group]
            placed.memory[group].data[at : at + section.size] = module.elf.contents(section)
    return placed


def relocate(placed: PlacedModule, exported: Mapping[str, int]) -> None:
    """Apply the relocations of every loaded section (apply_relocate_add).

    ``exported`` are the kernel's and the other modules' symbols.  A symbol that nobody exports
    is left out and named in ``unresolved``; so is what leads into freed init sections.
    """
    values, known, missing = _values(placed, exported)
    placed.unknown.clear()
    for table in placed.module.relocations:
        where = placed.layout.places.get(table.section)
        if where is None:
            continue
        group = placed.memory[where[0]]
        address = placed.address(table.section)
        assert address is not None
        size = placed.module.sections[table.section].size
        if len(table.offset) and int(table.offset.max()) + 4 > size:
            raise FormatError(_FORMAT, table.section, "a relocation outside its section")
        usable = known[table.symbol]
        value = values[table.symbol] + table.addend.astype(np.uint64)
        at = np.uint64(address) + table.offset
        inside = (placed.position(address) - group.start) + table.offset.astype(np.int64)
        lost = ~usable & (table.type != R_NONE)
        placed.unknown.setdefault(where[0], []).extend(
            (group.start + at_byte, 8 if kind in (R_64, R_PC64) else 4)
            for at_byte, kind in zip(inside[lost].tolist(), table.type[lost].tolist(), strict=True)
        )
        for kind in np.unique(table.type).tolist():
            mine = usable & (table.type == kind)
            relative = kind in (R_PC32, R_PLT32, R_PC64)
            result = value[mine] - at[mine] if relative else value[mine]
            _write(group, inside[mine], result, kind)
    placed.unresolved = tuple(missing)


_SORTED = frozenset(("__mcount_loc", "__ex_table", ".orc_unwind", ".orc_unwind_ip"))
"""Tables whose entries are no longer where the file has them."""


def find_freed(placed: PlacedModule, live: Mapping[str, Canvas]) -> None:
    """Infer where the init sections stood from the references that the module still has to them.

    Alternatives of init code leave their replacements and helpers in the module's text, and
    tables of sites name init code; those lead to where the init sections were.  All references
    to one section must agree, so that each section costs one unknown; its code is freed, and the
    references are never executed.  ``live`` are groups of the module as they stand in memory.
    """
    symbols = placed.module.symbols
    names = [section.name for section in placed.module.sections]
    gone = np.array(
        [
            0 < symbol.section < len(names) and names[symbol.section].startswith(".init")
            for symbol in symbols
        ],
        dtype=np.bool_,
    )
    shown: dict[int, list[int]] = {}
    for table in placed.module.relocations:
        where = placed.layout.places.get(table.section)
        address = placed.address(table.section)
        if where is None or where[0] not in live or address is None:
            continue
        if names[table.section] in _SORTED:
            continue
        mine = gone[table.symbol] & np.isin(table.type, (R_PC32, R_PLT32, R_64))
        rows = zip(
            table.offset[mine].tolist(),
            table.type[mine].tolist(),
            table.symbol[mine].tolist(),
            table.addend[mine].tolist(),
            strict=True,
        )
        for offset, kind, index, addend in rows:
            base = _shown_base(live[where[0]], placed.position(address + offset), kind)
            if base is not None:
                base += (0 if kind == R_64 else address + offset) - addend - symbols[index].value
                shown.setdefault(symbols[index].section, []).append(base & _MASK64)
    if "rodata" in live:
        for section, base in _traced_init(placed, live["rodata"], gone):
            shown.setdefault(section, [base])
    for section, bases in shown.items():
        best = max(set(bases), key=bases.count)
        if best % max(placed.module.sections[section].alignment, 1) == 0:
            placed.freed[section] = best


def _traced_init(
    placed: PlacedModule, live: Canvas, gone: npt.NDArray[np.bool_]
) -> list[tuple[int, int]]:
    """Return (section, base) of the one init section that ``__mcount_loc`` has functions of.

    The table is sorted in memory: what is left of it when all that is known is taken away are
    the init section's functions, in their order.
    """
    section = placed.module.elf.by_name.get("__mcount_loc")
    address = placed.address(section.index) if section is not None else None
    table = next(
        (t for t in placed.module.relocations if section and t.section == section.index), None
    )
    if section is None or address is None or table is None:
        return []
    at = placed.position(address)
    if not live.start <= at <= live.stop - section.size:
        return []
    left = Counter(np.frombuffer(live.get(at, section.size), dtype="<u8").tolist())
    init: list[int] = []
    where: set[int] = set()
    for index, addend in zip(table.symbol.tolist(), table.addend.tolist(), strict=True):
        symbol = placed.module.symbols[index]
        if gone[index]:
            where.add(symbol.section)
            init.append(symbol.value + addend)
        elif (base := placed.address(symbol.section)) is not None:
            left[(base + symbol.value + addend) & _MASK64] -= 1
    found = sorted(left.elements())
    bases = {value - offset for value, offset in zip(found, sorted(init), strict=False)}
    if len(where) != 1 or len(found) != len(init) or len(bases) != 1:
        return []
    return [(where.pop(), bases.pop())]


def _shown_base(live: Canvas, at: int, kind: int) -> int | None:
    """Return what a relocation left at a position: a distance, or an address if it is R_64."""
    size = 8 if kind == R_64 else 4
    if not live.start <= at <= live.stop - size:
        return None
    return int.from_bytes(live.get(at, size), "little", signed=kind != R_64)


def _write(group: Canvas, inside: Offsets, value: npt.NDArray[np.uint64], kind: int) -> None:
    if kind == R_NONE:
        return
    if kind in (R_64, R_PC64):
        size = 8
    elif kind in (R_32, R_32S, R_PC32, R_PLT32):
        size = 4
    else:
        raise FormatError(_FORMAT, 0, "a kind of relocation that the loader refuses", got=kind)
    if len(inside) and int(inside.max()) + size > len(group.data):
        raise FormatError(_FORMAT, 0, "a relocation outside its section")
    rows = value.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :size]
    group.array[inside[:, None] + np.arange(size)] = rows


def _values(
    placed: PlacedModule, exported: Mapping[str, int]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_], list[str]]:
    """Return every symbol's value, whether it is known, and the names that are missing."""
    values = np.zeros(len(placed.module.symbols), dtype=np.uint64)
    known = np.ones(len(values), dtype=np.bool_)
    missing: list[str] = []
    for index, symbol in enumerate(placed.module.symbols):
        if symbol.section == SHN_UNDEF:
            value = exported.get(symbol.name)
            if value is None and index and not symbol.weak and symbol.name:
                known[index] = False
                missing.append(symbol.name)
            values[index] = value or 0
        elif symbol.section == SHN_ABS:
            values[index] = symbol.value
        else:
            base = (
                placed.address(symbol.section)
                if symbol.section < len(placed.module.sections)
                else None
            )
            if base is None:
                known[index] = False
            else:
                values[index] = (base + symbol.value) & _MASK64
    return values, known, missing


def sites(placed: PlacedModule, image: KernelImage) -> Sites:
    """Read the module's site tables, after relocation; entries of init code lead nowhere."""

    def words(name: str, *, padded: bool = False) -> Offsets:
        return parse_pc_relative(*placed.section(name), name, padded=padded)

    calls = parse_static_call_sites(*placed.section(".static_call_sites"))
    keys = [image.sites.tramp_keys.get(key, key) for key in calls.key.tolist()]
    alternatives, at = placed.section(".altinstructions")
    return Sites(
        alternatives=read_altinstructions(alternatives, at, wide=image.sites.alternatives.wide),
        paravirt=parse_parainstructions(placed.section(".parainstructions")[0], placed.kernel_base),
        retpolines=words(".retpoline_sites"),
        returns=words(".return_sites"),
        calls=words(".call_sites"),
        endbr_seal=words(".ibt_endbr_seal"),
        smp_locks=words(".smp_locks", padded=True),
        jump_table=parse_jump_table(*placed.section("__jump_table")),
        static_calls=StaticCallSites(calls.site, np.array(keys, dtype=np.int64), calls.tail),
        tramp_keys={},
        mcount=parse_mcount_loc(placed.section("__mcount_loc")[0], placed.kernel_base),
        runtime_const=(),
    )
