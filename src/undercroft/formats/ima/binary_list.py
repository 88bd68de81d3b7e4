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
from undercroft.formats.ima.algorithms import LinuxHash
from undercroft.formats.ima.fields import Order, check_field
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
        run = _entry(reader, columns, hash_algorithm, order)
        layout = _layout(run.template, run.digest_head, run.digest_size, hash_algorithm.size, order)
        if layout is not None:
            _same_run(reader, columns, run, layout, order)
    return columns.finish(order, hash_algorithm)


def _entry(
    reader: BoundedReader, columns: ListBuilder, hash_algorithm: HashAlgorithm, order: Order
) -> Run:
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
    return columns.runs[-1]


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
        for field_id, value in zip(template.fields, fields, strict=True):
            check_field(field_id, value)
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

    ``after_head`` is the offset of the template data in an entry; ``fixed`` that of the name's
    text in the template data; ``last_field`` is true if one more field follows the name.
    """

    struct: struct.Struct
    head: bytes
    after_head: int
    fixed: int
    last_field: bool


@functools.lru_cache(maxsize=64)
def _layout(
    template: Template, digest_head: bytes, digest_size: int, hash_size: int, order: Order
) -> _Layout | None:
    """Return the layout of a run's entries, or None if they have to be read one by one."""
    if template.fields not in _FAST_FIELDS:
        return None
    algorithm = LinuxHash.from_name(digest_head[4:-2].rpartition(b":")[2])
    if algorithm and algorithm.size != digest_size:
        return None  # the short digest of a violation, which must be zero
    head = len(template.name).to_bytes(4, order) + template.name
    layout = struct.Struct(
        f"{'<' if order == 'little' else '>'}"
        f"I{hash_size}s{len(head)}sI{len(digest_head)}s{digest_size}xI"
    )
    after_head = 4 + hash_size + len(head) + 4
    return _Layout(
        layout, head, after_head, layout.size - after_head, len(template.fields or ()) == 3
    )


def _same_run(
    reader: BoundedReader, columns: ListBuilder, run: Run, layout: _Layout, order: Order
) -> None:
    """Append the entries that follow and belong to the last run; leave the reader after them.

    The hot loop.  It takes exactly the entries that :func:`_entry` would take and that share the
    run's constants; it stops before the first one that differs in any way, and _entry decides.
    """
    unpack, after_head, fixed = layout.struct.unpack_from, layout.after_head, layout.fixed
    head, digest_head, pcr, last_field = layout.head, run.digest_head, run.pcr, layout.last_field
    data, offset = reader.data, reader.offset
    size = len(data)
    limit = size - layout.struct.size
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
    columns.lengthen()
    reader.offset = offset


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
