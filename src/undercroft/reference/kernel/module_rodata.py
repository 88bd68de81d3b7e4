"""A module's constants as they stand in memory: relocated, and some of its tables sorted.

load_module() sorts what is searched later; sorting a table of relative addresses rewrites every
entry.  Each table here is unpacked to absolute addresses, sorted as the kernel does it, and
packed again.  ``.data..ro_after_init`` is left out: the module's own init code fills it.

=================== =======================================================================
``__mcount_loc``    kernel/trace/ftrace.c: ftrace_process_locs
``__ex_table``      lib/extable.c: sort_extable
``.orc_unwind*``    arch/x86/kernel/unwind_orc.c: unwind_module_init
``__jump_table``    kernel/jump_label.c: jump_label_add_module, by key and then by code
``.altinstructions`` arch/x86/kernel/alternative.c: entries for one place share the longest
                    length (since 6.7)
=================== =======================================================================
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.modules import PlacedModule

_INIT = 2
"""JUMP_ENTRY: the code is init code, which is gone (jump_entry_set_init)."""
_KEY_FLAGS = 3
_WIDE_ENTRY, _INSTR_LEN = 14, 12
Rows = npt.NDArray[np.uint8]


def expected_rodata(placed: PlacedModule, live: Canvas, *, wide: bool) -> Canvas:
    """Return what must stand in the module's ``rodata``; relocate it first.

    Bytes that no relocation could give (what leads into init code that nothing shows the place
    of) are taken from ``live``: ``placed.unknown`` has them.  Of a sorted table that is all of it.
    """
    before = placed.memory["rodata"]
    canvas = Canvas(before.start, bytearray(before.data))
    for names, sort in _TABLES:
        if not any(_leads_nowhere(placed, name) for name in names):
            sort(placed, canvas, live)
            continue
        for name in names:
            if (span := _span(placed, name)) is not None:
                placed.unknown.setdefault("rodata", []).append(span)
    _take_unknown(placed, "rodata", canvas, live)
    if wide:
        _share_lengths(placed, canvas)
    return canvas


def _leads_nowhere(placed: PlacedModule, name: str) -> bool:
    """Tell whether an entry of a table leads into init code whose place is not known."""
    span = _span(placed, name)
    lost = placed.unknown.get("rodata", ())
    return span is not None and any(span[0] <= at < sum(span) for at, _ in lost)


def expected_jump_table(placed: PlacedModule, live: Canvas) -> Canvas | None:
    """Return what must stand in the module's ``__jump_table``, or None if it has none."""
    span = _span(placed, "__jump_table")
    if span is None:
        return None
    whole = Canvas(
        placed.memory["ro_after_init"].start, bytearray(placed.memory["ro_after_init"].data)
    )
    _take_unknown(placed, "ro_after_init", whole, live)
    start, size = span
    canvas = Canvas(start, bytearray(whole.get(start, size)))
    rows = canvas.array.reshape(-1, 16)
    at = start + 16 * np.arange(len(rows))
    code = at + _s32(rows, 0)
    target = at + 4 + _s32(rows, 4)
    key = at + 8 + _s64(rows, 8)
    key &= ~_INIT  # in the file the bit is a message to objtool (CONFIG_JUMP_LABEL_HACK)
    for low, high in _freed(placed):
        key[(code >= low) & (code < high)] |= _INIT
    order = np.lexsort((code, key & ~_KEY_FLAGS))
    rows[:, 0:4] = _packed(code[order] - at, "<i4")
    rows[:, 4:8] = _packed(target[order] - at - 4, "<i4")
    rows[:, 8:16] = _packed(key[order] - at - 8, "<i8")
    return canvas


def _take_unknown(placed: PlacedModule, group: str, canvas: Canvas, live: Canvas) -> None:
    for at, size in placed.unknown.get(group, ()):
        if canvas.start <= at <= canvas.stop - size and live.start <= at <= live.stop - size:
            canvas.data[at - canvas.start : at - canvas.start + size] = live.get(at, size)


def _span(placed: PlacedModule, name: str) -> tuple[int, int] | None:
    """Return position and size of a loaded section with contents."""
    section = placed.module.elf.by_name.get(name)
    if section is None or section.index not in placed.layout.places or not section.size:
        return None
    address = placed.address(section.index)
    assert address is not None
    return placed.position(address), section.size


def _rows(placed: PlacedModule, canvas: Canvas, name: str, size: int) -> tuple[Rows, int] | None:
    span = _span(placed, name)
    if span is None or span[1] % size:
        return None
    start, length = span
    if not canvas.start <= start <= canvas.stop - length:
        return None
    at = start - canvas.start
    return canvas.array[at : at + length].reshape(-1, size), start


def _freed(placed: PlacedModule) -> list[tuple[int, int]]:
    """Return the positions of the init sections, where they are known."""
    spans = []
    for section, base in placed.freed.items():
        start = placed.position(base)
        spans.append((start, start + placed.module.sections[section].size))
    return spans


def _sort_mcount(placed: PlacedModule, canvas: Canvas, _live: Canvas) -> None:
    if (found := _rows(placed, canvas, "__mcount_loc", 8)) is not None:
        rows, _ = found
        rows[:] = _packed(np.sort(rows.copy().view("<u8")[:, 0]), "<u8")


def _sort_exceptions(placed: PlacedModule, canvas: Canvas, _live: Canvas) -> None:
    """Sort ``struct exception_table_entry``: s32 insn, s32 fixup, both relative; data."""
    if (found := _rows(placed, canvas, "__ex_table", 12)) is None:
        return
    rows, start = found
    at = start + 12 * np.arange(len(rows))
    insn, fixup = at + _s32(rows, 0), at + 4 + _s32(rows, 4)
    order = np.argsort(insn, kind="stable")
    data = rows[order, 8:12]
    rows[:, 0:4] = _packed(insn[order] - at, "<i4")
    rows[:, 4:8] = _packed(fixup[order] - at - 4, "<i4")
    rows[:, 8:12] = data


def _sort_orc(placed: PlacedModule, canvas: Canvas, live: Canvas) -> None:
    """Sort the two ORC tables together: s32 addresses relative to themselves, and what they say.

    The kernel's sort is not stable: where several entries have one address, their order is that
    of ``live``, if it holds the same entries.
    """
    found = _rows(placed, canvas, ".orc_unwind_ip", 4)
    if found is None:
        return
    rows, start = found
    span = _span(placed, ".orc_unwind")
    if span is None or span[1] % len(rows):
        return
    entries = _rows(placed, canvas, ".orc_unwind", span[1] // len(rows))
    if entries is None:
        return
    at = start + 4 * np.arange(len(rows))
    ip = at + _s32(rows, 0)
    order = np.argsort(ip, kind="stable")
    rows[:] = _packed(ip[order] - at, "<i4")
    entries[0][:] = entries[0][order]
    there = _rows(placed, live, ".orc_unwind", span[1] // len(rows))
    ip = ip[order]
    if there is None:
        return
    for index in np.flatnonzero(ip[1:] == ip[:-1]).tolist():
        same = slice(*np.searchsorted(ip, (ip[index], ip[index] + 1)))
        mine, theirs = entries[0][same], there[0][same]
        if sorted(map(bytes, mine)) == sorted(map(bytes, theirs)):
            mine[:] = theirs


_TABLES: tuple[tuple[tuple[str, ...], Callable[[PlacedModule, Canvas, Canvas], None]], ...] = (
    (("__mcount_loc",), _sort_mcount),
    (("__ex_table",), _sort_exceptions),
    ((".orc_unwind_ip", ".orc_unwind"), _sort_orc),
)


def _share_lengths(placed: PlacedModule, canvas: Canvas) -> None:
    """Give consecutive ``struct alt_instr`` of one place the longest length of them all."""
    found = _rows(placed, canvas, ".altinstructions", _WIDE_ENTRY)
    if found is None:
        return
    rows, start = found
    site = start + _WIDE_ENTRY * np.arange(len(rows)) + _s32(rows, 0)
    first = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or site[index] != site[first]:
            rows[first:index, _INSTR_LEN] = rows[first:index, _INSTR_LEN].max()
            first = index


def _s32(rows: Rows, at: int) -> npt.NDArray[np.int64]:
    column: npt.NDArray[np.int64] = (
        np.ascontiguousarray(rows[:, at : at + 4]).view("<i4")[:, 0].astype(np.int64)
    )
    return column


def _s64(rows: Rows, at: int) -> npt.NDArray[np.int64]:
    column: npt.NDArray[np.int64] = (
        np.ascontiguousarray(rows[:, at : at + 8]).view("<i8")[:, 0].astype(np.int64)
    )
    return column


def _packed(values: npt.NDArray[np.int64] | npt.NDArray[np.uint64], dtype: str) -> Rows:
    size = np.dtype(dtype).itemsize
    rows: Rows = np.ascontiguousarray(values.astype(dtype)).view(np.uint8).reshape(-1, size)
    return rows
