r"""The ASCII list: ``ascii_runtime_measurements`` (``ima_ascii_measurements_show`` in ima_fs.c).

One entry is one line: ``%2d`` PCR, template hash in hexadecimal, template name, and then the
template's fields, with one space before each; an empty field is empty.  The kernel writes names
as they are, so a file name with a newline breaks the list; the binary form has no such fault
and is what evidence carries.
"""

from __future__ import annotations

import re
from itertools import repeat

from undercroft.base import PCR_COUNT, FormatError, HashAlgorithm
from undercroft.formats.ima.fields import Order, field_from_ascii, field_to_ascii, unhex
from undercroft.formats.ima.measurements import (
    IMA_EVENT_NAME_LEN_MAX,
    ImaList,
    ListBuilder,
    run_of,
)
from undercroft.formats.ima.template import MAX_NAME_SIZE, Template, template_named

FORMAT = "IMA ascii_runtime_measurements"
_PCR = re.compile(rb" [0-9]|[1-9][0-9]")


def parse_ascii(
    data: bytes,
    *,
    hash_algorithm: HashAlgorithm = HashAlgorithm.SHA1,
    order: Order = "little",
) -> ImaList:
    """Parse an ASCII list.  The template data that the hashes cover is rebuilt from the fields.

    ``order`` is the machine's byte order, which the hashes depend on and the text does not show.
    A template that we do not know cannot be rebuilt and is refused.  Raises FormatError.
    """
    columns = ListBuilder()
    offset = 0
    while offset < len(data):
        end = data.find(b"\n", offset)
        if end < 0:
            raise FormatError(FORMAT, offset, "the last line has no newline")
        try:
            _line(data[offset:end], columns, hash_algorithm, order)
        except ValueError as error:
            raise FormatError(FORMAT, offset, str(error)) from None
        offset = end + 1
    return columns.finish(order, hash_algorithm)


def _line(line: bytes, columns: ListBuilder, algorithm: HashAlgorithm, order: Order) -> None:
    pcr_text, space, rest = line[:2], line[2:3], line[3:]
    if not _PCR.fullmatch(pcr_text) or space != b" " or int(pcr_text) >= PCR_COUNT:
        raise ValueError("the line does not start with a PCR index and a space")
    hash_text, *words = rest.split(b" ")
    claimed = unhex(hash_text)
    if len(claimed) != algorithm.size:
        raise ValueError(f"a {algorithm} template hash has {algorithm.size} bytes")
    if not words or len(words[0]) > MAX_NAME_SIZE:
        raise ValueError("the line has no template name")
    template = template_named(words[0])
    if template.fields is None:
        raise ValueError("an unknown template cannot be rebuilt from text")
    if len(words) != 1 + len(template.fields):
        raise ValueError(f"the template has {len(template.fields)} fields, not {len(words) - 1}")
    fields = [
        _field(field_id, text, order)
        for field_id, text in zip(template.fields, words[1:], strict=True)
    ]
    template_data = _template_data(template, fields, order)
    run = run_of(int(pcr_text), template, template_data, order)
    columns.add(run, claimed, template_data)


def _field(field_id: str, text: bytes, order: Order) -> bytes:
    try:
        return field_from_ascii(field_id, text, order)
    except ValueError as error:
        raise ValueError(f"field {field_id}: {error}") from None


def _template_data(template: Template, fields: list[bytes], order: Order) -> bytes:
    if not template.is_original:
        return b"".join(len(value).to_bytes(4, order) + value for value in fields)
    digest, name = fields[0], fields[1][:-1]
    if b"\0" in name:
        raise ValueError("a name in the ima template has a NUL")
    if len(name) > IMA_EVENT_NAME_LEN_MAX:
        raise ValueError(f"a name in the ima template has at most {IMA_EVENT_NAME_LEN_MAX} bytes")
    if len(digest) != 20:
        # The binary form gives MD5 digests no length, so only SHA-1 can be told apart.
        raise ValueError("a digest in the ima template has 20 bytes")
    return digest + name.ljust(IMA_EVENT_NAME_LEN_MAX + 1, b"\0")


def encode_ascii(measurements: ImaList) -> bytes:
    """Return the list's ASCII form.

    Raises ValueError if it has none: an unknown template, a name with a space or a newline.
    """
    lines: list[bytes] = []
    for run in measurements.runs:
        fields = run.template.fields
        if fields is None:
            raise ValueError(f"template {run.template.name!r} has no ASCII form that we know")
        for index in range(run.start, run.stop):
            values = measurements[index].values()
            words = [
                b"%2d" % run.pcr,
                measurements.claimed_template_hashes[index].hex().encode(),
                run.template.name,
                *map(field_to_ascii, fields, values, repeat(measurements.order)),
            ]
            lines.append(b" ".join(words) + b"\n")
    return b"".join(lines)
