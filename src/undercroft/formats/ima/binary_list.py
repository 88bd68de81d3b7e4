"""The binary list: ``binary_runtime_measurements`` (``ima_measurements_show`` in ima_fs.c).

One entry::

    u32 pcr | template hash | u32 size | template name | u32 size | template data

where the original ``ima`` template has no second size: a 20-byte digest, ``u32`` size and the
name without NUL follow at once.  Its hash covers the digest and the name padded with zeros to
256 bytes; every other template's hash covers the template data as it stands, lengths included
(``ima_calc_field_array_hash_tfm`` in ima_crypto.c).
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

from undercroft.base import PCR_COUNT, HashAlgorithm
from undercroft.formats.ima.fields import MAX_DIGEST_SIZE, Order, check_field, check_fields
from undercroft.formats.ima.measurements import (
    IMA_EVENT_NAME_LEN_MAX,
    ImaList,
    ListBuilder,
    Run,
    name_in,
    run_of,
    split_fields,
)
from undercroft.formats.ima.template import MAX_NAME_SIZE, Template, template_named
from undercroft.formats.reader import BoundedReader

FORMAT = "IMA binary_runtime_measurements"
_ORIGINAL_DIGEST_SIZE = 20


def parse_binary(
    data: bytes,
    *,
    hash_algorithm: HashAlgorithm = HashAlgorithm.SHA1,
    order: Order = "little",
) -> ImaList:
    """Parse a binary list, or the rest of one from an entry's first byte on.

    ``hash_algorithm`` is that of the template hash column.  No entry at all is a well-formed
    list.  Raises FormatError.
    """
    reader = BoundedReader(data, FORMAT, order=order)
    columns = ListBuilder()
    while reader.remaining:
        layout = _layout(*_shape(data, reader.offset, hash_algorithm.size, order))
        if layout is None or not _same_run(reader, columns, layout):
            _entry(reader, columns, hash_algorithm, order)
    return columns.finish(order, hash_algorithm)


def _entry(
    reader: BoundedReader, columns: ListBuilder, hash_algorithm: HashAlgorithm, order: Order
) -> None:
    """Read one entry, of whatever kind, or say what is wrong with it."""
    start = reader.offset
    pcr = reader.u32("the PCR index")
    if pcr >= PCR_COUNT:
        reader.offset = start
        raise reader.fail("no such PCR", expected=f"0..{PCR_COUNT - 1}", got=pcr)
    claimed = reader.take(hash_algorithm.size, "the template hash")
    template = template_named(_template_name(reader))
    if template.is_original:
        template_data = _original(reader)
        run = Run(0, 0, pcr, template)
    else:
        at = reader.offset
        template_data = reader.sized(4, "the template data")
        _check_fields(reader, template, template_data, order, at)
        run = run_of(pcr, template, template_data, order)
    columns.add(run, claimed, template_data)


def _template_name(reader: BoundedReader) -> bytes:
    start = reader.offset
    name = reader.sized(4, "the template name", limit=MAX_NAME_SIZE)
    if not name or not name.isascii() or not name.decode().isprintable() or b" " in name:
        reader.offset = start
        raise reader.fail("the template name is not printable ASCII without spaces", got=name)
    return name


def _original(reader: BoundedReader) -> bytes:
    digest = reader.take(_ORIGINAL_DIGEST_SIZE, "the file digest")
    start = reader.offset
    name = reader.sized(4, "the event name", limit=IMA_EVENT_NAME_LEN_MAX)
    if b"\0" in name:
        reader.offset = start
        raise reader.fail("the event name has a NUL")
    return digest + name.ljust(IMA_EVENT_NAME_LEN_MAX + 1, b"\0")


def _check_fields(
    reader: BoundedReader, template: Template, data: bytes, order: Order, offset: int
) -> None:
    """Check every field of the template data that starts at ``offset``."""
    if template.fields is None:
        return
    try:
        fields = split_fields(data, order)
        if len(fields) != len(template.fields):
            raise ValueError(f"the template has {len(template.fields)} fields, not {len(fields)}")
        check_fields(template.fields, fields)
    except ValueError as error:
        reader.offset = offset
        raise reader.fail(f"template {template.name.decode()}: {error}") from None


_FAST_FIELDS = frozenset(
    {
        ("d-ng", "n-ng"),
        ("d-ngv2", "n-ng"),
        ("d-ng", "n-ng", "sig"),
        ("d-ngv2", "n-ng", "sig"),
        ("d-ng", "n-ng", "buf"),
    }
)
"""Fields of the templates that :func:`_same_run` knows: nearly every entry of every list."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """The layout of a run's entries: everything before the name's text, and what is constant.

    ``pcr``, ``head`` and ``digest_head`` are constant bytes.  ``after_head`` is the offset of the
    template data in an entry, ``fixed`` that of the name's text in the template data;
    ``last_field`` is true if one more field follows the name.
    """

    run: Run
    struct: struct.Struct
    pcr: bytes
    head: bytes
    after_head: int
    fixed: int
    last_field: bool
    order: Order


def _shape(
    data: bytes, offset: int, hash_size: int, order: Order
) -> tuple[bytes, bytes, bytes, int, Order]:
    """Return what the entry at ``offset`` shares with its run, if it is one of a fast run.

    Nothing is checked here: where the bytes are something else, no layout fits them.
    """
    at = offset + 4 + hash_size
    name_at = at + 4
    data_at = name_at + min(int.from_bytes(data[at:name_at], order), MAX_NAME_SIZE)
    start = data_at + 4
    mark = data.find(b":\0", start, start + 80)
    return (
        data[offset : offset + 4],
        data[name_at:data_at],
        data[start : mark + 2],
        hash_size,
        order,
    )


@functools.lru_cache(maxsize=64)
def _layout(
    pcr: bytes, name: bytes, digest_head: bytes, hash_size: int, order: Order
) -> _Layout | None:
    """Return the layout of the entries that have this shape, or None if there is none."""
    template = template_named(name)
    if template.fields not in _FAST_FIELDS or int.from_bytes(pcr, order) >= PCR_COUNT:
        return None
    digest_size = int.from_bytes(digest_head[:4], order) - (len(digest_head) - 4)
    if len(digest_head) < 6 or not 0 <= digest_size <= MAX_DIGEST_SIZE:
        return None
    try:
        # No byte is zero: the short digest that only a violation may have is read one by one.
        check_field(template.fields[0], digest_head[4:] + b"\x01" * digest_size)
    except ValueError:
        return None
    head = len(name).to_bytes(4, order) + name
    layout = struct.Struct(
        f"{'<' if order == 'little' else '>'}"
        f"4s{hash_size}s{len(head)}sI{len(digest_head)}s{digest_size}xI"
    )
    after_head = 4 + hash_size + len(head) + 4
    return _Layout(
        Run(0, 0, int.from_bytes(pcr, order), template, digest_head, digest_size),
        layout,
        pcr,
        head,
        after_head,
        layout.size - after_head,
        len(template.fields) == 3,
        order,
    )


def _same_run(reader: BoundedReader, columns: ListBuilder, layout: _Layout) -> int:
    """Append the entries that have this layout; leave the reader after them; return how many.

    The hot loop.  It takes exactly those entries that :func:`_entry` would take and that have
    the layout's constants; it stops before the first one that differs in any way.
    """
    unpack, after_head, fixed = layout.struct.unpack_from, layout.after_head, layout.fixed
    pcr, head, digest_head = layout.pcr, layout.head, layout.run.digest_head
    last_field, order = layout.last_field, layout.order
    data, offset = reader.data, reader.offset
    size = len(data)
    limit = size - layout.struct.size
    before = len(columns.template_data)
    hash_done, data_done = columns.claimed_template_hashes.append, columns.template_data.append
    while offset <= limit:
        index, claimed, start, length, digest_start, name_length = unpack(data, offset)
        if start != head or digest_start != digest_head or index != pcr or not name_length:
            break
        begin = offset + after_head
        end = begin + length
        if end > size:
            break
        if last_field:
            stop = begin + fixed + name_length
            after = stop + 4
            if (
                after > end
                or data[stop - 1]
                or after + int.from_bytes(data[stop:after], order) != end
            ):
                break
        elif data[end - 1] or length != fixed + name_length:
            break
        hash_done(claimed)
        data_done(data[begin:end])
        offset = end
    reader.offset = offset
    columns.lengthen(layout.run)
    return len(columns.template_data) - before


def encode_binary(measurements: ImaList) -> bytes:
    """Return the list's binary form, in its own byte order."""
    order = measurements.order
    parts: list[bytes] = []
    for run in measurements.runs:
        pcr = run.pcr.to_bytes(4, order)
        name = run.template.name
        head = len(name).to_bytes(4, order) + name
        for index in range(run.start, run.stop):
            data = measurements.template_data[index]
            if run.template.is_original:
                event = name_in(run, data, order)
                body = data[:_ORIGINAL_DIGEST_SIZE] + len(event).to_bytes(4, order) + event
            else:
                body = len(data).to_bytes(4, order) + data
            parts += [pcr, measurements.claimed_template_hashes[index], head, body]
    return b"".join(parts)
