"""Tables of packaged files, made from lists of files, and from other tables.

The same packages give the same bytes, in whatever order they come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import msgspec
import numpy as np
import numpy.typing as npt

from undercroft.formats.ima import LinuxHash
from undercroft.reference.archive import (
    HEADER,
    MAGIC,
    MAX_PATH,
    VERSION,
    FileArchive,
    FileFlag,
    PackageRecord,
    padded,
    row_keys,
)


@dataclass(frozen=True, slots=True)
class PackageFiles:
    """A package and what is in it: for each file its path, its digest, and flags.

    Paths are absolute, as IMA writes them: with ``_`` for each space.
    """

    record: PackageRecord
    files: tuple[tuple[bytes, bytes, FileFlag], ...]


def ima_path(path: str) -> bytes:
    """Return ``path`` as IMA writes it: the file system's bytes, with ``_`` for each space.

    Linux ``security/integrity/ima/ima_template_lib.c``, ima_write_template_field_data.
    """
    return path.encode("utf-8", "surrogateescape").replace(b" ", b"_")


def packages_of(archive: FileArchive) -> Iterator[PackageFiles]:
    """Take a table apart again."""
    order = np.argsort(archive.row_package, kind="stable")
    bounds = np.searchsorted(archive.row_package[order], np.arange(archive.packages + 1))
    for package in range(archive.packages):
        rows = order[bounds[package] : bounds[package + 1]].tolist()
        files = tuple((row.path, row.digest, row.flags) for row in map(archive.row, rows))
        yield PackageFiles(archive.record(package), files)


def _package_key(package: PackageFiles) -> tuple[str, str, str, str]:
    record = package.record
    return record.package, record.version, record.architecture, record.sha256


def build_file_archive(packages: Iterable[PackageFiles], algorithm: LinuxHash) -> bytes:
    """Write the table of ``packages``, each taken once.

    Raises ValueError for a digest of another size, a path that no file can have, and for no
    files at all: such a table would show nothing.
    """
    unique = {_package_key(package): package for package in packages}
    ordered = [unique[key] for key in sorted(unique)]
    rows = [
        (path, digest, flags, number)
        for number, package in enumerate(ordered)
        for path, digest, flags in {file[:2]: file for file in package.files}.values()
    ]
    for path, digest, _, _ in rows:
        if len(digest) != algorithm.size:
            raise ValueError(f"a {algorithm} digest has {algorithm.size} bytes, not {len(digest)}")
        if not path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH:
            raise ValueError(f"{path[:80]!r} is not a path that a file can have")
    if not rows:
        raise ValueError("a table of no files shows nothing")
    records = [msgspec.json.encode(package.record) for package in ordered]
    return _table(rows, records, algorithm)


_Rows = list[tuple[bytes, bytes, FileFlag, int]]


def _table(rows: _Rows, records: list[bytes], algorithm: LinuxHash) -> bytes:
    size, count = algorithm.size, len(rows)
    names = [row[0] for row in rows]
    paths = sorted(set(names))
    number_of = {path: number for number, path in enumerate(paths)}
    digests = np.frombuffer(b"".join([row[1] for row in rows]), np.uint8).reshape(count, size)
    row_path = np.array([number_of[path] for path in names], np.uint32)
    row_package = np.array([row[3] for row in rows], np.uint32)
    flags = np.array([int(row[2]) for row in rows], np.uint8)
    keys = row_keys(digests, [name + b"\0" for name in names])

    columns = _columns(digests)
    first: list[npt.NDArray[np.uint64]] = [row_package.astype(np.uint64), *columns]
    order = np.lexsort([*first, row_path.astype(np.uint64), keys])
    keys, digests, flags = keys[order], digests[order], flags[order]
    row_path, row_package = row_path[order], row_package[order]
    by_path = np.argsort(row_path, kind="stable")
    by_digest = np.lexsort([column[order] for column in columns])
    heap = b"".join([path + b"\0" for path in paths])
    text = b"".join(records)
    parts = [
        keys.astype("<u8").tobytes(),
        digests.tobytes(),
        row_path.astype("<u4").tobytes(),
        row_package.astype("<u4").tobytes(),
        flags.tobytes(),
        _starts([len(path) + 1 for path in paths], "<u8"),
        _starts(np.bincount(row_path, minlength=len(paths)).tolist(), "<u4"),
        by_path.astype("<u4").tobytes(),
        by_digest.astype("<u4").tobytes(),
        _starts([len(record) for record in records], "<u8"),
        heap,
        text,
    ]
    body = b"".join([part.ljust(padded(len(part)), b"\0") for part in parts])
    head = HEADER.pack(
        MAGIC, VERSION, algorithm.number, 0, count, len(paths), len(records), len(heap), len(text),
        hashlib.sha256(body).digest(),
    )  # fmt: skip
    return head + body


def _columns(digests: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint64]]:
    """Return the digests as numbers that sort as their bytes do, for lexsort: last first."""
    count, size = digests.shape
    wide = np.zeros((count, padded(size)), np.uint8)
    wide[:, :size] = digests
    columns = wide.view(">u8").astype(np.uint64)
    return [columns[:, at] for at in reversed(range(columns.shape[1]))]


def _starts(sizes: list[int], kind: str) -> bytes:
    return np.array([0, *accumulate(sizes)], dtype=kind).tobytes()
