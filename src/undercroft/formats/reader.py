"""The one bounded reader that every parser uses.

A length is checked against what is left before anything is sliced or allocated, so that no
count or size taken from the input can make us allocate more than the input itself.
"""

from __future__ import annotations

import struct
from typing import Any, Literal

from undercroft.base import FormatError

_FORMATS = {
    "little": {n: struct.Struct("<" + c) for n, c in {1: "B", 2: "H", 4: "I", 8: "Q"}.items()},
    "big": {n: struct.Struct(">" + c) for n, c in {1: "B", 2: "H", 4: "I", 8: "Q"}.items()},
}


class BoundedReader:
    """Reads integers and byte strings from ``data``, in one byte order, never past its end.

    ``format_name`` is the name errors carry; ``base`` is added to every offset in an error, so
    that a reader over a part of an input reports positions in the whole.
    """

    __slots__ = ("_end", "_structs", "base", "data", "format_name", "offset")

    def __init__(
        self,
        data: bytes,
        format_name: str,
        *,
        order: Literal["little", "big"],
        base: int = 0,
    ) -> None:
        self.data = data
        self.format_name = format_name
        self.base = base
        self.offset = 0
        self._end = len(data)
        self._structs = _FORMATS[order]

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return self._end - self.offset

    def fail(self, reason: str, *, expected: object = "", got: object = "") -> FormatError:
        """Return (not raise) the format's error at the current offset."""
        return FormatError(
            self.format_name, self.base + self.offset, reason, expected=expected, got=got
        )

    def _uint(self, size: int, what: str) -> int:
        if self._end - self.offset < size:
            raise self.fail(f"{what} is cut short", expected=size, got=self.remaining)
        (value,) = self._structs[size].unpack_from(self.data, self.offset)
        self.offset += size
        return int(value)

    def u8(self, what: str) -> int:
        """Read one byte as an unsigned integer; ``what`` names the field in an error."""
        return self._uint(1, what)

    def u16(self, what: str) -> int:
        """Read a 16-bit unsigned integer."""
        return self._uint(2, what)

    def u32(self, what: str) -> int:
        """Read a 32-bit unsigned integer."""
        return self._uint(4, what)

    def u64(self, what: str) -> int:
        """Read a 64-bit unsigned integer."""
        return self._uint(8, what)

    def unpack(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        """Read the fields of ``layout`` at once; the layout's own byte order holds."""
        if self._end - self.offset < layout.size:
            raise self.fail(f"{what} is cut short", expected=layout.size, got=self.remaining)
        fields = layout.unpack_from(self.data, self.offset)
        self.offset += layout.size
        return fields

    def take(self, size: int, what: str) -> bytes:
        """Read exactly ``size`` bytes."""
        if not 0 <= size <= self._end - self.offset:
            raise self.fail(f"{what} is longer than the input", expected=size, got=self.remaining)
        start = self.offset
        self.offset = start + size
        return self.data[start : self.offset]

    def sized(self, prefix: Literal[1, 2, 4], what: str, *, limit: int | None = None) -> bytes:
        """Read a length of ``prefix`` bytes and then that many bytes, at most ``limit``."""
        # The same as an integer and then take(), in one step: most fields are of this kind.
        start = self.offset
        if self._end - start < prefix:
            raise self.fail(f"the size of {what} is cut short", expected=prefix, got=self.remaining)
        (size,) = self._structs[prefix].unpack_from(self.data, start)
        if limit is not None and size > limit:
            raise self.fail(f"{what} is too large", expected=f"at most {limit}", got=size)
        start = self.offset = start + prefix
        if size > self._end - start:
            raise self.fail(f"{what} is longer than the input", expected=size, got=self.remaining)
        self.offset = start + size
        return self.data[start : self.offset]

    def rest(self) -> bytes:
        """Read everything that is left."""
        return self.take(self.remaining, "the rest")

    def finish(self) -> None:
        """Refuse leftovers: raise FormatError unless every byte was read."""
        if self.remaining:
            raise self.fail("bytes are left over", expected=0, got=self.remaining)
