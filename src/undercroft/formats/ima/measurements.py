"""A measurement list as columns, and one entry as an object made on demand.

A list has 100,000 entries before anyone is surprised, so no object is made for an entry until
somebody looks at it.  What all entries of a stretch share (PCR, template, digest algorithm)
stands once, in a :class:`Run`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from undercroft.base import HashAlgorithm
from undercroft.formats.ima.fields import FileDigest, Order, escape_path, split_digest_field
from undercroft.formats.ima.template import (
    DIGEST_FIELDS,
    FIELDS,
    NAME_FIELDS,
    FieldKind,
    Template,
)

IMA_EVENT_NAME_LEN_MAX = 255
"""The longest name in the original ``ima`` template; its hash covers one byte more."""


@dataclass(frozen=True, slots=True)
class Run:
    """Entries ``start`` to ``stop`` (exclusive), which have these things in common.

    ``digest_head`` is the beginning of their template data up to the digest's first byte (the
    field's length, the algorithm's name, colon, NUL) where the first field is ``d-ng`` or
    ``d-ngv2``, else empty.  ``digest_size`` is that digest's size in bytes.
    """

    start: int
    stop: int
    pcr: int
    template: Template
    digest_head: bytes = b""
    digest_size: int = 0

    @property
    def common(self) -> tuple[int, Template, bytes, int]:
        """What the entries have in common."""
        return self.pcr, self.template, self.digest_head, self.digest_size


@dataclass(frozen=True, slots=True)
class ImaEntry:
    """One entry.  Only what a template hash covers is vouched for by a PCR.

    ``claimed_template_hash`` is what the list says; nothing vouches for it.  A violation extends
    the PCR with 0xff bytes whatever the entry says, so nothing vouches for a violation's own
    path either.  ``template_data`` is what the template hash covers.
    """

    index: int
    pcr: int
    template: Template
    claimed_template_hash: bytes
    template_data: bytes
    name: bytes
    order: Order = "little"

    @property
    def is_violation(self) -> bool:
        """True if the list marks the entry as a violation: its template hash is all zero."""
        return not any(self.claimed_template_hash)

    @property
    def path(self) -> str:
        """The event's name for a person, escaped."""
        return escape_path(self.name)

    def values(self) -> tuple[bytes, ...]:
        """Return the bytes of each field, in the template's order; none if we do not know it."""
        if self.template.fields is None:
            return ()
        if self.template.is_original:
            return self.template_data[:20], self.name + b"\0"
        return tuple(split_fields(self.template_data, self.order))

    def fields(self) -> dict[str, bytes]:
        """Return the field bytes by field id (of one that stands there twice, the first)."""
        found: dict[str, bytes] = {}
        for field_id, value in zip(self.template.fields or (), self.values(), strict=True):
            found.setdefault(field_id, value)
        return found

    @property
    def digest(self) -> FileDigest | None:
        """The content's digest, or None if the template has none (or is unknown)."""
        for field_id, value in self.fields().items():
            if field_id in DIGEST_FIELDS:
                return split_digest_field(value, FIELDS[field_id])
        return None


def split_fields(data: bytes, order: Order) -> list[bytes]:
    """Cut template data into its length-prefixed fields.  Raises ValueError."""
    fields = []
    offset = 0
    while offset < len(data):
        start = offset + 4
        stop = start + int.from_bytes(data[offset:start], order)
        if stop > len(data):
            raise ValueError("a field is longer than the template data")
        fields.append(data[start:stop])
        offset = stop
    return fields


@dataclass(frozen=True, slots=True)
class ImaList:
    """A measurement list.  Columns have one item for each entry, in the list's order.

    ``hash_algorithm`` is that of the template hash column: SHA-1, or another bank's in the
    per-bank files of Linux 6.10 and later (``binary_runtime_measurements_sha256``).  ``order``
    is the byte order of every integer: the machine's own, or little-endian with
    ``ima_canonical_fmt``.  ``template_data`` is what each template hash covers.
    """

    order: Order
    hash_algorithm: HashAlgorithm
    runs: tuple[Run, ...] = ()
    claimed_template_hashes: tuple[bytes, ...] = field(default=(), repr=False)
    template_data: tuple[bytes, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.template_data)

    def __getitem__(self, index: int) -> ImaEntry:
        if not 0 <= index < len(self.template_data):
            raise IndexError(index)
        run = self.runs[bisect_right(self.runs, index, key=_start) - 1]
        data = self.template_data[index]
        name = name_in(run, data, self.order)
        claimed = self.claimed_template_hashes[index]
        return ImaEntry(index, run.pcr, run.template, claimed, data, name, self.order)

    def __iter__(self) -> Iterator[ImaEntry]:
        return (self[index] for index in range(len(self)))

    @property
    def pcrs(self) -> tuple[int, ...]:
        """The PCRs that the entries extend, ascending."""
        return tuple(sorted({run.pcr for run in self.runs}))

    def violations(self) -> list[int]:
        """Return the indices of the entries whose template hash is zero."""
        zero = bytes(self.hash_algorithm.size)
        if zero not in self.claimed_template_hashes:
            return []
        return [i for i, claimed in enumerate(self.claimed_template_hashes) if claimed == zero]

    def binary_size(self, stop: int) -> int:
        """Return how many bytes the first ``stop`` entries take in the binary form."""
        size = 0
        for run in self.runs:
            last = min(run.stop, stop)
            if last <= run.start:
                break
            head = 4 + self.hash_algorithm.size + 4 + len(run.template.name)
            datas = self.template_data[run.start : last]
            if run.template.is_original:
                size += sum(head + 24 + len(name_in(run, data, self.order)) for data in datas)
            else:
                size += (head + 4) * (last - run.start) + sum(map(len, datas))
        return size


def _start(run: Run) -> int:
    return run.start


class ListBuilder:
    """Collects entries into columns, joining neighbours that have everything in common."""

    __slots__ = ("claimed_template_hashes", "runs", "template_data")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.claimed_template_hashes: list[bytes] = []
        self.template_data: list[bytes] = []

    def add(self, run: Run, claimed_template_hash: bytes, data: bytes) -> None:
        """Append one entry; of ``run``, start and stop are not looked at."""
        self.claimed_template_hashes.append(claimed_template_hash)
        self.template_data.append(data)
        self.lengthen(run)

    def lengthen(self, run: Run) -> None:
        """Say that the entries appended last, if any, are of this run."""
        start, stop = 0, len(self.template_data)
        if self.runs:
            last = self.runs[-1]
            start = last.stop
            if last.common == run.common:
                start = last.start
                self.runs.pop()
        if start < stop:
            self.runs.append(Run(start, stop, *run.common))

    def finish(self, order: Order, hash_algorithm: HashAlgorithm) -> ImaList:
        """Return the list."""
        return ImaList(
            order,
            hash_algorithm,
            tuple(self.runs),
            tuple(self.claimed_template_hashes),
            tuple(self.template_data),
        )


def run_of(pcr: int, template: Template, data: bytes, order: Order) -> Run:
    """Return the run that an entry with this (already checked) template data belongs to."""
    fields = template.fields
    if fields is None or FIELDS[fields[0]] not in _HEADED:
        return Run(0, 0, pcr, template)
    size = int.from_bytes(data[:4], order)
    digest_at = data.index(b":\0", 4) + 2
    return Run(0, 0, pcr, template, data[:digest_at], 4 + size - digest_at)


_HEADED = frozenset({FieldKind.DIGEST_WITH_ALGO, FieldKind.DIGEST_WITH_TYPE_AND_ALGO})


def name_in(run: Run, data: bytes, order: Order) -> bytes:
    """Return the event's name in ``data`` of ``run``, without its NUL; nothing if it has none."""
    if run.template.is_original:
        return data[20:].rstrip(b"\0")
    at = run.template.index_of(NAME_FIELDS)
    if at is None:
        return b""
    if at == 1 and run.digest_head:
        start = len(run.digest_head) + run.digest_size + 4
        size = int.from_bytes(data[start - 4 : start], order)
        return data[start : start + size - 1]
    return split_fields(data, order)[at][:-1]
