"""JSON read strictly into typed values: one reader for every JSON file format of ours.

Refused, beyond what RFC 8259 refuses: duplicate names (section 4 leaves them to the reader, and
two readers could then see two documents), NaN and infinities, lone surrogates, unknown and
missing fields, values of another type, and more bytes than ``limit``.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec

from undercroft.base import FormatError

T = TypeVar("T")

_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class _RefusalError(ValueError):
    """Raised inside the decoder's hooks."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusalError(f"the name {twice!r} occurs twice in one object")
    return result


def _constant(text: str) -> NoReturn:
    raise _RefusalError(f"{text} is not a JSON number")


def _load(data: bytes) -> Any:
    value = json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_constant)
    if _SURROGATE_ESCAPE.search(data):
        # A pair of escapes is a character; half of one cannot be written in UTF-8 again.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def parse(data: bytes, kind: type[T], format_name: str, *, limit: int) -> T:
    """Parse the JSON document ``data`` (UTF-8, at most ``limit`` bytes) into ``kind``.

    ``kind`` is a type that msgspec understands, with structs that forbid unknown fields.  Raises
    FormatError named ``format_name``; the offset is known for faults of syntax only.
    """
    if len(data) > limit:
        raise FormatError(
            format_name, 0, "the document is too large", expected=f"at most {limit}", got=len(data)
        )
    try:
        value = _load(data)
    except UnicodeError as error:
        raise FormatError(format_name, 0, "the text is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise FormatError(format_name, error.pos, f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise FormatError(format_name, 0, "the document is nested too deeply") from error
    except ValueError as error:
        raise FormatError(format_name, 0, str(error)) from error
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise FormatError(format_name, 0, str(error)) from error


def unhex(text: str) -> bytes:
    """Decode lower-case hexadecimal without separators: one text for one value.

    Raises ValueError (FormatError is for the caller to raise: it knows what it reads).
    """
    if not _HEX.fullmatch(text):
        raise ValueError(f"not lower-case hexadecimal: {text[:80]!r}")
    return bytes.fromhex(text)


def encode(value: msgspec.Struct) -> bytes:
    """Write ``value`` as indented JSON, fields in their declared order, with a final newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
