"""Stanzas of ``Field: value`` lines (deb-control(5), deb822(5)), read strictly.

Only what Release files, Packages indexes and ``.sources`` files need: no signatures, and comments
only where ``comments`` says so (they are for people's files, not for an archive's).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from undercroft.base import FormatError

# deb-control(5): printable ASCII without space and colon, not starting with "#" or "-".
_FIELD = re.compile(r"([!\"$-,./-9;-~][!-9;-~]*):[ \t]*(.*)", re.DOTALL)


def parse_stanza(
    text: str, format_name: str, *, base: int = 0, comments: bool = False
) -> Mapping[str, str]:
    """Parse one stanza into its fields; a folded value keeps its line breaks.

    Field names are lower-cased, for they are compared without regard to case.  ``base`` is the
    stanza's offset for errors.  Raises FormatError for a field that occurs twice, a line that is
    no field, or a blank line inside.
    """
    fields: dict[str, str] = {}
    current: list[str] = []
    name = ""
    offset = base
    for line in text.rstrip("\n").split("\n"):
        if comments and line.startswith("#"):
            pass
        elif line.startswith((" ", "\t")) and name:
            current.append(line[1:].rstrip())
        elif match := _FIELD.fullmatch(line):
            if name:
                fields[name] = "\n".join(current)
            name, current = match[1].lower(), [match[2].rstrip()]
            if name in fields:
                raise FormatError(format_name, offset, f"the field {match[1]} occurs twice")
        else:
            raise FormatError(format_name, offset, "a line is not a field", got=repr(line[:60]))
        offset += len(line) + 1
    if not name:
        raise FormatError(format_name, base, "an empty stanza")
    fields[name] = "\n".join(current)
    return fields


def required(fields: Mapping[str, str], name: str, format_name: str, *, base: int = 0) -> str:
    """Return the value of a field that has to be there and has to say something."""
    if not (value := fields.get(name.lower(), "").strip()):
        raise FormatError(format_name, base, f"the field {name} is missing or empty")
    return value
