from __future__ import annotations

import pytest

from undercroft.base import FormatError
from undercroft.packages.deb822 import parse_stanza, required


def test_names_are_compared_without_case_and_values_keep_their_lines() -> None:
    fields = parse_stanza("Package: x\nDescription: one\n two\n  three\n", "t")
    assert fields == {"package": "x", "description": "one\ntwo\n three"}
    assert required(fields, "PACKAGE", "t") == "x"


def test_comments_only_where_people_write() -> None:
    assert parse_stanza("# c\nA: b\n# d\nC: e", "t", comments=True) == {"a": "b", "c": "e"}
    with pytest.raises(FormatError):
        parse_stanza("# c\nA: b", "t")


@pytest.mark.parametrize("text", ["", "\n", " folded first", "no colon", "A: b\n\nC: d", "é: x"])
def test_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_stanza(text, "t")


def test_errors_say_where() -> None:
    with pytest.raises(FormatError) as caught:
        parse_stanza("A: b\nA: c", "t", base=100)
    assert caught.value.offset == 105
    with pytest.raises(FormatError, match="missing or empty"):
        required({"a": " "}, "A", "t")
