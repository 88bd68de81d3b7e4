"""The table of variables is spelled as its parser and drgn read it."""

from __future__ import annotations

import pytest

from undercroft.formats.kernel.variables import VARIABLES, Declaration, declaration


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_every_row_can_be_read(name: str) -> None:
    known = declaration(VARIABLES[name])
    assert known.pointers <= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int", Declaration("int", 0, None)),
        ("unsigned long [8192]", Declaration("unsigned long", 0, 8192)),
        ("struct kset *", Declaration("struct kset", 1, None)),
        ("struct fb_info * [32]", Declaration("struct fb_info", 1, 32)),
        ("union u **", Declaration("union u", 2, None)),
    ],
)
def test_types_are_taken_apart(text: str, expected: Declaration) -> None:
    assert declaration(text) == expected


@pytest.mark.parametrize("text", ["", "int*", "struct a b", "int []", "void (*)(int)"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="spells"):
        declaration(text)
