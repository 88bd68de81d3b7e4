"""The symbol table is found whatever stands in front of it."""

from __future__ import annotations

import pytest

from undercroft.base import FormatError
from undercroft.formats.kernel.kallsyms import parse_kallsyms
from undercroft.testing.tinykernel import LINK_BASE, kallsyms

SYMBOLS = {f"symbol_{n}": (16 * n, "T") for n in range(8)}


def test_the_table_may_stand_right_behind_bytes_that_are_not_zero() -> None:
    # Eight 3-byte sequences end on an 8-byte boundary: no padding, and the last byte is 7. So
    # it was in a Debian 6.1 kernel whose table was not found.
    tables = kallsyms(SYMBOLS, after=False)
    start = tables.index(b"\x01\0" + bytes(0x20))
    assert tables[start - 1] == 7
    found = parse_kallsyms(bytes(8) + tables, LINK_BASE)
    assert [found.address(name) for name in SYMBOLS] == [LINK_BASE + 16 * n for n in range(8)]


@pytest.mark.parametrize("size", [10, 300, -100])
def test_a_cut_table_is_no_table(size: int) -> None:
    tables = kallsyms(SYMBOLS, after=False)
    start = tables.index(b"\x01\0" + bytes(0x20))
    with pytest.raises(FormatError):
        parse_kallsyms(bytes(8) + tables[: start + size if size > 0 else size], LINK_BASE)


def test_an_index_that_leads_before_the_data_is_refused() -> None:
    tables = kallsyms(SYMBOLS, after=False)
    start = tables.index(b"\x01\0" + bytes(0x20))
    index = tables.index(b"\0\0\x02\0", start + 256)
    broken = tables[start : index + 2] + b"\xff\xff" + tables[index + 4 :]
    with pytest.raises(FormatError):
        parse_kallsyms(broken, LINK_BASE)
