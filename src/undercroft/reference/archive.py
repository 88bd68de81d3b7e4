"""A table of packaged files: one file on disk, mapped into memory, shared by all who judge by it.

Made by :mod:`undercroft.reference.archive_build` from packages; named by the SHA-256 of what it
says.  Every row is one content that one path has in one package; a row's provenance is that
package's, down to the archive's signature.  Nothing is decoded when the table is opened: numpy
looks at the mapped bytes in place, so that a hundred verifiers of one set need its pages once.

::

    header   magic, version, hash algorithm, number of rows, paths and packages, bytes of the two
             heaps, SHA-256 of everything after the header
    keys     u64 for each row, ascending: see :func:`row_keys`
    digests  the rows' digests
    path, package   u32 for each row: which path (in the order of the bytes) and which package
    flags    u8 for each row: :class:`FileFlag`
    path starts     u64 for each path and one more: where in the heap it starts; a NUL ends it
    path rows       u32 for each path and one more, then u32 for each row: the rows by path
    digest rows     u32 for each row: the rows by digest
    package starts  u64 for each package and one more: where in the second heap it starts
    heaps    the paths, then the packages, each a JSON object

All numbers are little-endian; each part starts at a multiple of eight.
"""

from __future__ import annotations

import enum
import hashlib
import mmap
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from undercroft.base import FormatError, Grade
from undercroft.formats.ima import LinuxHash
from undercroft.reference.model import Provenance

MAGIC: Final = b"undercroft.files"
VERSION: Final = 1
HEADER: Final = struct.Struct("<16sHHIQQQQQ32s")
MAX_ROWS: Final = 1 << 31
MAX_PATH: Final = 4096
_NAME: Final = "file table"
_CRC_WEIGHT: Final = np.uint64(0x9E3779B97F4A7C15)

_U64 = npt.NDArray[np.uint64]
_U32 = npt.NDArray[np.uint32]
_U8 = npt.NDArray[np.uint8]


class FileFlag(enum.IntFlag):
    """What else is known of a file."""

    NONE = 0
    CONFFILE = 1
    """The package says that an administrator may change it (dpkg's conffiles)."""
    CONTROL = 2
    """It comes from the package's control part: a maintainer script under /var/lib/dpkg/info."""


class PackageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A package in a table.  ``sha256`` is of the package file; ``made`` is when (Unix s)."""

    package: str
    version: str
    architecture: str = ""
    sha256: str = ""
    made: int = 0
    source: str = ""
    source_version: str = ""
    grade: Grade = Grade.PACKAGE
    origin: str = ""
    release_sha256: str = ""
    signer: str = ""
    note: str = ""

    @property
    def provenance(self) -> Provenance:
        """Return where the package's values come from."""
        return Provenance(
            self.grade,
            self.package,
            self.version,
            self.origin,
            self.release_sha256,
            self.signer,
            self.note,
        )


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row: a content that a path has in a package."""

    path: bytes
    digest: bytes
    flags: FileFlag
    record: PackageRecord


def row_keys(digests: _U8, names: Sequence[bytes]) -> _U64:
    """Return the number by which each (digest, path) is looked up; a NUL ends each path.

    The digest's first eight bytes, with the path's CRC-32 mixed in, for one content can be at
    thousands of paths (an empty file).  A number that two rows share costs time and nothing
    else: what is found is compared byte for byte.
    """
    heads = np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1).astype(np.uint64)
    crcs = np.fromiter(map(zlib.crc32, names), dtype=np.uint64, count=len(names))
    result: _U64 = heads + crcs * _CRC_WEIGHT
    return result


def padded(size: int) -> int:
    """Return ``size`` rounded up to a multiple of eight."""
    return -(-size // 8) * 8


def layout(size: int, rows: int, paths: int, packages: int, heap: int, text: int) -> list[int]:
    """Return the sizes in bytes of the parts after the header, in order, without padding."""
    return [
        8 * rows,
        size * rows,
        4 * rows,
        4 * rows,
        rows,
        8 * (paths + 1),
        4 * (paths + 1),
        4 * rows,
        4 * rows,
        8 * (packages + 1),
        heap,
        text,
    ]


def _fail(reason: str, *, expected: object = "", got: object = "") -> FormatError:
    return FormatError(_NAME, 0, reason, expected=expected, got=got)


class FileArchive:
    """A table, opened by :func:`parse_file_archive`.  Never changes."""

    __slots__ = (
        "_by_digest",
        "_by_path",
        "_data",
        "_heap_at",
        "_package_starts",
        "_path_rows",
        "_path_starts",
        "_records",
        "_text_at",
        "algorithm",
        "digests",
        "flags",
        "id",
        "keys",
        "packages",
        "paths",
        "row_package",
        "row_path",
    )

    def __init__(
        self, data: bytes | mmap.mmap, fields: tuple[Any, ...], algorithm: LinuxHash
    ) -> None:
        rows, paths, packages, heap, text, digest = fields[4:]
        self.id: bytes = digest
        self.paths: int = paths
        self.packages: int = packages
        self.algorithm = algorithm
        self._data = data
        at, parts = HEADER.size, []
        for size in layout(algorithm.size, rows, self.paths, self.packages, heap, text):
            parts.append(at)
            at += padded(size)

        def numbers(part: int, kind: str, count: int) -> npt.NDArray[Any]:
            return np.frombuffer(data, kind, count, parts[part])

        self.keys: _U64 = numbers(0, "<u8", rows)
        self.digests: _U8 = numbers(1, "u1", rows * algorithm.size).reshape(rows, algorithm.size)
        self.row_path: _U32 = numbers(2, "<u4", rows)
        self.row_package: _U32 = numbers(3, "<u4", rows)
        self.flags: _U8 = numbers(4, "u1", rows)
        self._path_starts: _U64 = numbers(5, "<u8", self.paths + 1)
        self._path_rows: _U32 = numbers(6, "<u4", self.paths + 1)
        self._by_path: _U32 = numbers(7, "<u4", rows)
        self._by_digest: _U32 = numbers(8, "<u4", rows)
        self._package_starts: _U64 = numbers(9, "<u8", self.packages + 1)
        self._heap_at, self._text_at = parts[10], parts[11]
        self._records: dict[int, PackageRecord] = {}

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def data(self) -> bytes:
        """The whole table, as it is written to a file."""
        return self._data if isinstance(self._data, bytes) else self._data[:]

    # -- one thing --------------------------------------------------------------------------------

    def path(self, index: int) -> bytes:
        """Return the path of this number."""
        start, end = int(self._path_starts[index]), int(self._path_starts[index + 1])
        return bytes(self._data[self._heap_at + start : self._heap_at + end - 1])

    def record(self, package: int) -> PackageRecord:
        """Return the package of this number.  Raises FormatError if it cannot be read."""
        found = self._records.get(package)
        if found is None:
            start, end = (self._text_at + int(self._package_starts[package + i]) for i in (0, 1))
            try:
                found = msgspec.json.decode(self._data[start:end], type=PackageRecord)
            except ValueError as error:  # MsgspecError and UnicodeDecodeError are
                raise _fail(f"package {package}: {error}") from error
            self._records[package] = found
        return found

    def records(self) -> Iterator[PackageRecord]:
        """Yield every package."""
        return map(self.record, range(self.packages))

    def row(self, index: int) -> FileRow:
        """Return the row of this number."""
        return FileRow(
            self.path(int(self.row_path[index])),
            self.digests[index].tobytes(),
            FileFlag(int(self.flags[index])),
            self.record(int(self.row_package[index])),
        )

    def find_path(self, path: bytes) -> int:
        """Return the number of the first path that is not before ``path`` in the order of bytes."""
        return bisect_left(range(self.paths), path, key=self.path)

    def at_path(self, path: bytes) -> tuple[FileRow, ...]:
        """Return the rows of ``path``."""
        at = self.find_path(path)
        if at == self.paths or self.path(at) != path:
            return ()
        start, end = int(self._path_rows[at]), int(self._path_rows[at + 1])
        return tuple(self.row(int(index)) for index in self._by_path[start:end])

    def with_digest(self, digest: bytes, limit: int) -> tuple[FileRow, ...]:
        """Return the first ``limit`` rows that have this content."""
        order = self._by_digest

        def at(place: int) -> bytes:
            return bytes(self.digests[order[place]])

        start = bisect_left(range(len(order)), digest, key=at)
        found = []
        for place in range(start, min(start + limit, len(order))):
            if at(place) != digest:
                break
            found.append(self.row(int(order[place])))
        return tuple(found)

    def with_basename(self, name: bytes, limit: int) -> tuple[bytes, ...]:
        """Return the first ``limit`` paths whose last part is ``name``; looks at every path."""
        wanted, found = b"/" + name + b"\0", list[bytes]()
        if not name or len(wanted) > MAX_PATH:
            return ()
        at = self._data.find(wanted, self._heap_at, self._text_at)
        while at >= 0 and len(found) < limit:
            place = np.searchsorted(self._path_starts, np.uint64(at - self._heap_at), "right")
            found.append(self.path(int(place) - 1))
            at = self._data.find(wanted, at + 1, self._text_at)
        return tuple(found)

    def neighbours(self, path: bytes) -> tuple[bytes, ...]:
        """Return the paths on both sides of where ``path`` would be in the order of bytes."""
        at = self.find_path(path)
        return tuple(map(self.path, range(max(at - 1, 0), min(at + 1, self.paths))))

    # -- many things at once ----------------------------------------------------------------------

    def look_up(self, digests: _U8, names: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Return for each digest (a row of ``digests``) at each path a row that says so, or -1.

        ``names`` are the paths with a NUL at the end of each, as they stand in the table and in
        IMA's entries.  What is not found here may still be in the table, once in four billion:
        :meth:`at_path` is the last word.
        """
        count = len(names)
        if not count:
            return np.full(0, -1, np.int64)
        keys = row_keys(digests, names)
        rows = np.searchsorted(self.keys, keys)
        rows[rows == len(self.keys)] = 0
        hits = np.flatnonzero(
            (self.keys[rows] == keys) & (self.digests[rows] == digests).all(axis=1)
        )
        if len(hits) == count:
            return self._same_paths(rows, names)
        result = np.full(count, -1, np.int64)
        result[hits] = self._same_paths(rows[hits], [names[hit] for hit in hits.tolist()])
        return result

    def _same_paths(
        self, rows: npt.NDArray[np.int64], names: Sequence[bytes]
    ) -> npt.NDArray[np.int64]:
        """Return ``rows`` with -1 where the row's path is not the one that was asked for."""
        at, data, heap = self.row_path[rows].astype(np.int64), self._data, np.uint64(self._heap_at)
        starts = (self._path_starts[at] + heap).tolist()
        ends = (self._path_starts[at + 1] + heap).tolist()
        same = [
            data[start:end] == name for start, end, name in zip(starts, ends, names, strict=True)
        ]
        result: npt.NDArray[np.int64] = np.where(same, rows, -1)
        return result


def parse_file_archive(data: bytes | mmap.mmap) -> FileArchive:
    """Open a table.  ``data`` is kept, not copied.  Raises FormatError.

    The digest over all of it is checked, so what is wrong below was written wrong.
    """
    if len(data) < HEADER.size:
        raise _fail("cut short", expected=f"at least {HEADER.size} bytes", got=len(data))
    fields = HEADER.unpack_from(data)
    magic, version, number, zero, rows, paths, packages, heap, text, digest = fields
    if magic != MAGIC or version != VERSION or zero:
        raise _fail("another format or version", expected=f"{MAGIC.decode()}/{VERSION}", got=magic)
    algorithm = LinuxHash.from_number(number)
    if algorithm is None or algorithm.algorithm is None:
        raise _fail("a hash algorithm that we do not compute", got=number)
    if not 1 <= min(rows, paths, packages) <= max(rows, paths, packages) <= MAX_ROWS:
        raise _fail(
            "a count is out of bounds", expected=f"1..{MAX_ROWS}", got=(rows, paths, packages)
        )
    if max(heap, text) > len(data):
        raise _fail("a heap is larger than the table", expected=len(data), got=max(heap, text))
    sizes = layout(algorithm.size, rows, paths, packages, heap, text)
    if (whole := HEADER.size + sum(map(padded, sizes))) != len(data):
        raise _fail("another size than the counts say", expected=whole, got=len(data))
    with memoryview(data)[HEADER.size :] as body:
        found = hashlib.sha256(body).digest()
    if found != digest:
        raise _fail(
            "it does not have the digest it is named by", expected=digest.hex(), got=found.hex()
        )
    _check_padding(data, sizes)
    archive = FileArchive(data, fields, algorithm)
    _check_numbers(archive, rows, heap, text)
    return archive


def _check_padding(data: bytes | mmap.mmap, sizes: list[int]) -> None:
    at = HEADER.size
    for size in sizes:
        if any(data[at + size : at + padded(size)]):
            raise _fail("padding that is not zero")
        at += padded(size)


def _check_numbers(archive: FileArchive, rows: int, heap: int, text: int) -> None:
    """Refuse numbers that lead out of the table or contradict each other."""
    if (archive.keys[1:] < archive.keys[:-1]).any():
        raise _fail("the rows are not in order")
    for what, numbers, limit in (
        ("path", archive.row_path, archive.paths),
        ("package", archive.row_package, archive.packages),
        ("row", archive._by_path, rows),
        ("row", archive._by_digest, rows),
    ):
        if len(numbers) and int(numbers.max()) >= limit:
            raise _fail(f"a {what} that there is not", expected=f"below {limit}", got=numbers.max())
    for starts, end in (
        (archive._path_starts, heap),
        (archive._path_rows, rows),
        (archive._package_starts, text),
    ):
        if starts[0] or int(starts[-1]) != end or (starts[1:] < starts[:-1]).any():
            raise _fail("starts that are not in order")
    counts = np.diff(archive._path_rows)
    owners = np.repeat(np.arange(archive.paths, dtype=np.uint32), counts)
    if not np.array_equal(archive.row_path[archive._by_path], owners):
        raise _fail("the rows by path are not the rows")
    ends = np.frombuffer(archive._data, np.uint8, heap, archive._heap_at)
    if not np.array_equal(np.flatnonzero(ends == 0) + 1, archive._path_starts[1:].astype(np.int64)):
        raise _fail("a path that does not end where the next begins")
    if int(np.diff(archive._path_starts).max(initial=0)) > MAX_PATH + 1:
        raise _fail("a path is too long", expected=MAX_PATH)
