"""The firmware's variable store."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats.varstore import parse_varstore
from undercroft.testing.bootdisk import make_varstore

GUID = b"G" * 16
STORE = make_varstore({(GUID, "one"): b"1", (GUID, "two"): b"22222"})
BODY = 72 + 28
"""Where the first variable stands: behind the volume's and the store's header."""


def patched(offset: int, data: bytes) -> bytes:
    return STORE[:offset] + data + STORE[offset + len(data) :]


def test_variables_in_order() -> None:
    one, two = parse_varstore(STORE)
    assert (one.guid, one.name, one.attributes, one.data) == (GUID, "one", 7, b"1")
    assert (two.name, two.data) == ("two", b"22222")


@pytest.mark.parametrize(("state", "count"), [(0x3F, 1), (0x3E, 1), (0x3D, 0), (0x7F, 0)])
def test_a_deleted_variable_is_none(state: int, count: int) -> None:
    assert len(parse_varstore(make_varstore({(GUID, "x"): b""}, state=state))) == count


def test_a_full_store_ends_with_its_last_variable() -> None:
    store = make_varstore({(GUID, "x"): b"x" * (0x2000 - 60 - 4)})
    assert len(parse_varstore(store)) == 1


@pytest.mark.parametrize(
    ("store", "reason"),
    [
        (b"", "the volume header"),
        (patched(40, b"FVH_"), "no firmware volume"),
        (patched(48, b"\x37\0"), "header is too short"),
        (patched(72, bytes(16)), "not a store of authenticated"),
        (patched(72 + 20, b"\0"), "not healthy"),
        (patched(72 + 21, b"\0"), "not healthy"),
        (patched(72 + 16, struct.pack("<I", 27)), "size is strange"),
        (patched(72 + 16, struct.pack("<I", 1 << 25)), "size is strange"),
        (STORE[:-1], "the store"),
        (patched(BODY + 36, struct.pack("<I", 1 << 20)), "a variable's name"),
        (patched(BODY + 40, struct.pack("<I", 1 << 20)), "a variable's value"),
        (patched(BODY + 60, b"\0\xd8"), "not UTF-16"),
        (patched(BODY + 66, b"x"), "has no end"),
    ],
)
def test_anything_else_is_refused(store: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_varstore(store)


@given(st.integers(0, len(STORE) - 1), st.binary(min_size=1, max_size=8))
def test_only_a_format_error_escapes(offset: int, data: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse_varstore(patched(offset, data))
