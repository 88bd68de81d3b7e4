"""The kernel's own symbol table, read exactly from .rodata.

Source: scripts/kallsyms.c (write_src) and kernel/kallsyms.c.  The tables carry no header, so
they are found by what must be true of them.  Two anchors do not depend on the symbols: the 256
strings of ``kallsyms_token_table``, in which those of the digits stand side by side and which
``kallsyms_token_index`` (u16[256], right behind) repeats as offsets; and
``kallsyms_relative_base``, which holds the address of _text.  Around them the tables stand in
one of two orders, each aligned to 8 bytes:

====================== ===========================================================================
up to 6.3              offsets, relative_base, num_syms, names, markers, (seqs_of_names: 6.2 and
                       later, and 6.1 stable,) token_table, token_index
since 6.4              num_syms, names, markers, token_table, token_index, offsets, relative_base,
                       seqs_of_names
====================== ===========================================================================

``names`` are compressed: a length in tokens, then tokens; entry i of ``markers`` (u32) is where
name 256*i starts.  Every table is checked against the others; nothing is guessed.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from undercroft.base import FormatError

_FORMAT = "kallsyms"
_DIGITS = re.compile(b"".join(re.escape(bytes((digit, 0))) for digit in range(0x30, 0x3A)))
_MAX_TOKEN = 64
_MAX_NAME = 512
_MAX_SYMBOLS = 1 << 20
_ALIGN = 8


@dataclass(frozen=True, slots=True)
class SymbolTable:
    """Symbols by link address, in ascending order.

    ``addresses`` holds unsigned 64-bit link addresses; per-CPU symbols have small ones.
    ``kinds`` are nm's letters (``t`` and ``T`` are text).  Names may repeat; ``address`` returns
    the first in address order.
    """

    addresses: npt.NDArray[np.uint64]
    kinds: bytes
    names: Sequence[str]
    _first: dict[str, int] = field(repr=False, compare=False)
    _sorted: list[str] = field(default_factory=list, repr=False, compare=False)
    """The distinct names in alphabetical order, once they were needed."""

    def __contains__(self, name: str) -> bool:
        return name in self._first

    def __len__(self) -> int:
        return len(self.names)

    def address(self, name: str) -> int:
        """Return the link address of ``name``; FormatError if the kernel has no such symbol."""
        index = self._first.get(name)
        if index is None:
            raise FormatError(_FORMAT, 0, f"the kernel has no symbol {name}")
        return int(self.addresses[index])

    def get(self, name: str) -> int | None:
        """Return the link address of ``name``, or None."""
        index = self._first.get(name)
        return None if index is None else int(self.addresses[index])

    def locate(self, address: int) -> tuple[str, int]:
        """Return the symbol that ``address`` falls behind, preferring text, and the distance."""
        index = bisect.bisect_right(self.addresses, address) - 1
        if index < 0:
            return "", address
        start = self.addresses[index]
        while index > 0 and self.addresses[index - 1] == start:
            index -= 1
        best = index
        while best + 1 < len(self.names) and self.addresses[best + 1] == start:
            if self.kinds[best] in b"tT":
                break
            best += 1
        return self.names[best], address - int(start)

    def with_prefix(self, prefix: str) -> list[str]:
        """Return the distinct names that start with ``prefix``, in address order."""
        if not self._sorted:
            self._sorted.extend(sorted(self._first))
        at = bisect.bisect_left(self._sorted, prefix)
        found: list[str] = []
        while at < len(self._sorted) and self._sorted[at].startswith(prefix):
            found.append(self._sorted[at])
            at += 1
        return sorted(found, key=self._first.__getitem__)


def make_symbol_table(symbols: Sequence[tuple[int, str, str]]) -> SymbolTable:
    """Build a table from (link address, kind, name) triples in any order."""
    ordered = sorted(symbols, key=lambda symbol: symbol[0])
    first: dict[str, int] = {}
    for index, (_, _, name) in enumerate(ordered):
        first.setdefault(name, index)
    return SymbolTable(
        addresses=np.array([address for address, _, _ in ordered], dtype=np.uint64),
        kinds="".join(kind for _, kind, _ in ordered).encode("ascii"),
        names=tuple(name for _, _, name in ordered),
        _first=first,
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the tables stand in .rodata, before their contents are checked."""

    count: int
    offsets_at: int
    base_at: int
    names_at: int
    markers_at: int


def parse_kallsyms(rodata: bytes, text_address: int) -> SymbolTable:
    """Find and decode the tables in ``rodata``; ``text_address`` is the link address of _text.

    Raises FormatError if the kernel was built without CONFIG_KALLSYMS.
    """
    table_at, tokens, index_at = _find_tokens(rodata)
    layout = _find_layout(rodata, table_at, index_at, text_address)
    names = _expand(rodata, layout, tokens)
    addresses = _addresses(rodata, layout)
    order = np.argsort(addresses, kind="stable")
    sorted_names = [names[index] for index in order]
    first: dict[str, int] = {}
    for index, name in enumerate(sorted_names):
        first.setdefault(name[1:], index)
    return SymbolTable(
        addresses=addresses[order],
        kinds="".join([name[0] for name in sorted_names]).encode("latin-1"),
        names=tuple([name[1:] for name in sorted_names]),
        _first=first,
    )


def _align(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN


def _find_tokens(rodata: bytes) -> tuple[int, list[str], int]:
    """Return (offset of the token table, tokens, offset of the token index)."""
    for match in _DIGITS.finditer(rodata):
        second = match.start()
        for _ in range(0x2F):  # walk back over tokens 0x2f .. 1
            previous = rodata.rfind(b"\0", max(0, second - _MAX_TOKEN - 1), second - 1)
            if previous < 0:
                break
            second = previous + 1
        else:
            found = _check_tokens(rodata, second)
            if found is not None:
                return found
    raise FormatError(_FORMAT, 0, "no symbol table: was the kernel built without CONFIG_KALLSYMS?")


def _check_tokens(rodata: bytes, second: int) -> tuple[int, list[str], int] | None:
    """Read tokens 1..255 from ``second``, and token 0 before them, if the index confirms them.

    What stands before token 0 need not end in a zero byte; the index says where it starts.
    """
    tokens: list[str] = []
    starts: list[int] = []
    at = second
    for _ in range(255):
        end = rodata.find(b"\0", at, at + _MAX_TOKEN)
        if end < 0:
            return None
        starts.append(at)
        tokens.append(rodata[at:end].decode("latin-1"))
        at = end + 1
    index_at = _align(at)
    index = rodata[index_at : index_at + 512]
    if len(index) != 512:
        return None
    start = second - struct.unpack_from("<H", index, 2)[0]
    first = rodata[max(start, 0) : second - 1]
    confirmed = struct.pack("<256H", 0, *(place - start & 0xFFFF for place in starts))
    if start < 0 or start >= second or b"\0" in first or index != confirmed:
        return None
    return start, [first.decode("latin-1"), *tokens], index_at


def _find_layout(rodata: bytes, table_at: int, index_at: int, text_address: int) -> _Layout:
    """Try each place where the address of _text stands as kallsyms_relative_base."""
    needle = struct.pack("<Q", text_address)
    base_at = rodata.find(needle)
    while base_at >= 0:
        if base_at % _ALIGN == 0:
            new = base_at > index_at
            layout = (
                _layout_since_6_4(rodata, table_at, index_at, base_at)
                if new
                else _layout_until_6_3(rodata, table_at, base_at)
            )
            if layout is not None:
                return layout
        base_at = rodata.find(needle, base_at + 1)
    raise FormatError(
        _FORMAT,
        table_at,
        "no kallsyms_relative_base goes with the token table",
        expected=hex(text_address),
    )


def _layout_until_6_3(rodata: bytes, table_at: int, base_at: int) -> _Layout | None:
    (count,) = struct.unpack_from("<I", rodata, base_at + 8)
    names_at = base_at + 16
    offsets_at = base_at - _align(4 * count)
    if not 0 < count <= _MAX_SYMBOLS or offsets_at < 0:
        return None
    end = _skip(rodata, names_at, count, table_at)
    if end is None:
        return None
    markers_at = _align(end)
    markers_end = _align(markers_at + 4 * _markers(count))
    if table_at not in (markers_end, _align(markers_end + 3 * count)):
        return None
    return _Layout(count, offsets_at, base_at, names_at, markers_at)


def _layout_since_6_4(rodata: bytes, table_at: int, index_at: int, base_at: int) -> _Layout | None:
    offsets_at = _align(index_at + 512)
    for count in ((base_at - offsets_at) // 4, (base_at - offsets_at) // 4 - 1):
        if not 0 < count <= _MAX_SYMBOLS:
            continue
        markers_at = table_at - _align(4 * _markers(count))
        if markers_at < 0:
            continue
        (last,) = struct.unpack_from("<I", rodata, markers_at + 4 * (_markers(count) - 1))
        left = count - 256 * (_markers(count) - 1)
        highest = (markers_at - last) & -_ALIGN
        lowest = max(_ALIGN, markers_at - last - left * (_MAX_NAME + 2))
        for names_at in range(highest, lowest - 1, -_ALIGN):
            if struct.unpack_from("<I", rodata, names_at - _ALIGN) != (count,):
                continue
            end = _skip(rodata, names_at + last, left, markers_at)
            if end is not None and _align(end) == markers_at:
                return _Layout(count, offsets_at, base_at, names_at, markers_at)
    return None


def _markers(count: int) -> int:
    return -(-count // 256)


def _skip(data: bytes, at: int, count: int, limit: int) -> int | None:
    """Return where ``count`` compressed names from ``at`` end, or None if past ``limit``."""
    for _ in range(count):
        if at + 2 > limit:
            return None
        length = data[at]
        at += 1
        if length & 0x80:
            length = (length & 0x7F) | (data[at] << 7)
            at += 1
        if not length:
            return None
        at += length
    return at if at <= limit else None


def _expand(data: bytes, layout: _Layout, tokens: list[str]) -> list[str]:
    """Decompress the names: a length (one or two bytes of ULEB128), then that many tokens."""
    names: list[str] = []
    lookup = tokens.__getitem__
    at = layout.names_at
    markers = struct.unpack_from(f"<{_markers(layout.count)}I", data, layout.markers_at)
    for index in range(layout.count):
        if not index & 0xFF and markers[index >> 8] != at - layout.names_at:
            raise FormatError(_FORMAT, at, "a marker does not point to its name", got=index)
        length = data[at]
        at += 1
        if length & 0x80:
            length = (length & 0x7F) | (data[at] << 7)
            at += 1
        end = at + length
        if end > layout.markers_at:
            raise FormatError(_FORMAT, at, "a name is longer than the table")
        name = "".join(map(lookup, data[at:end]))
        if len(name) < 2:
            raise FormatError(_FORMAT, at, "a symbol has no name")
        names.append(name)
        at = end
    return names


def _addresses(rodata: bytes, layout: _Layout) -> npt.NDArray[np.uint64]:
    """Return the link addresses: offsets from the base, per-CPU symbols absolute.

    With CONFIG_KALLSYMS_ABSOLUTE_PERCPU (every SMP x86-64 kernel until 6.15) a non-negative
    offset is the value itself and a negative one means base - 1 - offset (kernel/kallsyms.c).
    """
    (base,) = struct.unpack_from("<Q", rodata, layout.base_at)
    offsets = np.frombuffer(rodata, dtype="<i4", count=layout.count, offset=layout.offsets_at)
    wide = offsets.astype(np.int64)
    return np.where(wide >= 0, wide, base - (1 << 64) - 1 - wide).astype(np.uint64)
