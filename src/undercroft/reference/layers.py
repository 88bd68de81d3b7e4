"""What files are judged by, from several places: a set's own values, and tables of packages.

:class:`LayeredReferences` answers as :class:`~undercroft.reference.files.FileReferences` does.
The tables stay where they are mapped; what was found in them is remembered in a small table of
its own, as the same few thousand files come from every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Literal, Protocol

import numpy as np

from undercroft.formats.ima import FileDigest
from undercroft.reference.archive import FileArchive, FileFlag, FileRow
from undercroft.reference.files import (
    NEAREST,
    FileComparison,
    FileMatch,
    FileReference,
    FileReferences,
    LabelledHashes,
    algorithm_of,
    common,
    compile_files,
)
from undercroft.reference.model import Provenance, ReferenceSet
from undercroft.reference.updates import Label, Updates, updates_of

_LENGTH = 4
"""Bytes of the length before a name."""
REMEMBERED = 1 << 15
"""How many template data are remembered at most; about 10 MB."""
WHOLE_LIST = 1 << 10
"""More entries than this at once are somebody's first list."""


class KnownFiles(Protocol):
    """Which content each path may have: what an appraisal asks."""

    @property
    def name(self) -> str:
        """Name of the reference set."""

    @property
    def content_id(self) -> bytes:
        """Equal for references that say the same."""
        ...

    def __len__(self) -> int:
        """Return how many paths are known."""

    def accepted(
        self, digest_head: bytes, digest_size: int, order: Literal["little", "big"]
    ) -> Mapping[bytes, str] | AcceptedRows:
        """See :meth:`FileReferences.accepted`."""

    def template_hashes(
        self, digest_head: bytes, digest_size: int, order: Literal["little", "big"]
    ) -> LabelledHashes:
        """See :meth:`FileReferences.template_hashes`; need not have all that is accepted."""
        ...

    def compare(self, path: bytes, digest: FileDigest) -> FileComparison:
        """Return how a file measured at ``path`` compares."""

    def nearest(self, path: bytes) -> tuple[bytes, ...]:
        """Return a few known paths that look like ``path``."""

    def label(self, provenance: Provenance) -> str:
        """Return the text of the label that a file of this provenance is counted by."""


def look_up(accepted: Mapping[bytes, str] | AcceptedRows, datas: Sequence[bytes]) -> list[str]:
    """Return the label of each of ``datas``, empty where it is not known."""
    if isinstance(accepted, AcceptedRows):
        return accepted.get_all(datas)
    return list(map(accepted.get, datas, repeat("")))


_NOTHING: Mapping[bytes, str] = {}


class AcceptedRows:
    """Template data of one form that tables of packages, or a set's own values, know."""

    __slots__ = ("_archives", "_head", "_known", "_order_of_length", "_own", "_size")

    def __init__(
        self,
        own: Mapping[bytes, str],
        archives: Sequence[tuple[FileArchive, Sequence[str]]],
        form: tuple[bytes, int, Literal["little", "big"]],
    ) -> None:
        self._own = own
        self._archives = archives
        self._head, self._size, order = form
        self._order_of_length = "<u4" if order == "little" else ">u4"
        self._known: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._own) + sum(len(archive) for archive, _ in self._archives)

    def get(self, data: bytes, default: str | None = None) -> str | None:
        """Return the label's text of one, or ``default``."""
        return self._known.get(data) or self.get_all((data,))[0] or default

    def get_all(self, datas: Sequence[bytes]) -> list[str]:
        """Return the label of each, empty where it is not known or has to be looked at closely.

        A whole list is looked up without remembering: it is not slower, and every guest's first
        list would fill the memory with what comes once.
        """
        if len(datas) > WHOLE_LIST:
            return self._get_all(datas)
        known = self._known
        found = [known.get(data, "") for data in datas]
        if "" in found:
            left = [at for at, label in enumerate(found) if not label]
            if len(known) > REMEMBERED:
                known.clear()
            for at, label in zip(left, self._get_all([datas[at] for at in left]), strict=True):
                if label:
                    found[at] = known[datas[at]] = label
        return found

    def _get_all(self, datas: Sequence[bytes]) -> list[str]:
        own = self._own
        found = [own.get(data, "") for data in datas] if own else [""] * len(datas)
        for archive, labels in self._archives:
            if own or archive is not self._archives[0][0]:
                left = [at for at, label in enumerate(found) if not label]
                if not left:
                    break
                new = self._in(archive, labels, [datas[at] for at in left])
                for at, label in zip(left, new, strict=True):
                    found[at] = label
            else:
                found = self._in(archive, labels, datas)
        return found

    def _in(self, archive: FileArchive, labels: Sequence[str], datas: Sequence[bytes]) -> list[str]:
        """Look all of ``datas`` up in one table."""
        at = len(self._head)
        end = at + self._size
        text = end + _LENGTH
        sizes = np.fromiter(map(len, datas), np.int64, len(datas))
        if int(sizes.min()) <= text:
            short = bytes(text + 1)  # has another head
            datas = [data if len(data) > text else short for data in datas]
        starts = np.frombuffer(b"".join([data[:text] for data in datas]), np.uint8)
        starts = starts.reshape(len(datas), text)
        said = np.ascontiguousarray(starts[:, end:]).view(self._order_of_length).reshape(-1)
        fits = (starts[:, :at] == np.frombuffer(self._head, np.uint8)).all(axis=1)
        fits &= said == sizes - text
        digests = np.ascontiguousarray(starts[:, at:end])
        rows = archive.look_up(digests, [data[text:] for data in datas])
        rows[~fits] = -1
        everything = int(rows.min()) >= 0
        if everything and len(set(labels)) == 1:
            return [labels[0]] * len(datas)
        packages = archive.row_package[np.maximum(rows, 0)].tolist()
        if everything:
            return [labels[package] for package in packages]
        return [
            labels[package] if row >= 0 else ""
            for row, package in zip(rows.tolist(), packages, strict=True)
        ]


class LayeredReferences:
    """A reference set's files: its own values, its tables of packages, its states."""

    def __init__(
        self,
        own: FileReferences,
        archives: Sequence[FileArchive],
        updates: Updates,
    ) -> None:
        self.name = own.name
        self._own = own
        self._archives = tuple(archives)
        self._updates = updates
        self._labels = [
            [self._quick(updates.label(record.provenance)) for record in archive.records()]
            for archive in self._archives
        ]
        self._accepted: dict[tuple[bytes, str], AcceptedRows] = {}
        states = hashlib.sha256(repr(sorted(map(repr, updates.states.values()))).encode()).digest()
        self.content_id = hashlib.sha256(
            b"".join((own.content_id, states, *(archive.id for archive in self._archives)))
        ).digest()

    @staticmethod
    def _quick(label: Label) -> str:
        # Of what is not current there may be a current row too: that wants a closer look.
        return label.text if label.is_current else ""

    def __len__(self) -> int:
        return len(self._own) + sum(archive.paths for archive in self._archives)

    def label(self, provenance: Provenance) -> str:
        """Return the text of the label that a file of this provenance is counted by."""
        return self._updates.label(provenance).text

    def accepted(
        self, digest_head: bytes, digest_size: int, order: Literal["little", "big"]
    ) -> Mapping[bytes, str] | AcceptedRows:
        """Return the template data (up to the name's end) of every file that is known."""
        algorithm = algorithm_of(digest_head)
        if algorithm is None or algorithm.size != digest_size:
            return _NOTHING
        key = digest_head, order
        found = self._accepted.get(key)
        if found is None:
            own = self._own.accepted(digest_head, digest_size, order)
            tables = [
                (archive, labels)
                for archive, labels in zip(self._archives, self._labels, strict=True)
                if archive.algorithm is algorithm
            ]
            found = AcceptedRows(own, tables, (digest_head, digest_size, order))
            self._accepted[key] = found
        return found

    def template_hashes(
        self, digest_head: bytes, digest_size: int, order: Literal["little", "big"]
    ) -> LabelledHashes:
        """Return those of the set's own values; those of the tables are not kept."""
        return self._own.template_hashes(digest_head, digest_size, order)

    def compare(self, path: bytes, digest: FileDigest) -> FileComparison:
        """Return how a file measured at ``path`` compares with all that is known."""
        own = self._own.compare(path, digest)
        if own.match is FileMatch.KNOWN:
            return own
        rows = [
            reference
            for archive in self._archives
            for reference in _references(archive, archive.at_path(path))
        ]
        same_kind = digest.kind == "ima"
        comparable = [r for r in rows if same_kind and r.algorithm is digest.algorithm]
        if same := [r for r in comparable if r.digest == digest.value]:
            return FileComparison(FileMatch.KNOWN, (min(same, key=self._rank),))
        elsewhere = (*own.elsewhere, *(self._elsewhere(digest) if same_kind else ()))[:NEAREST]
        if comparable or own.match is FileMatch.OTHER_CONTENT:
            expected = (*own.expected, *sorted(comparable, key=self._rank))
            return FileComparison(FileMatch.OTHER_CONTENT, expected, elsewhere)
        if rows or own.expected:
            return FileComparison(FileMatch.OTHER_ALGORITHM, (*own.expected, *rows))
        if elsewhere:
            return FileComparison(FileMatch.OTHER_PATH, (), elsewhere)
        return FileComparison(FileMatch.UNKNOWN)

    def _rank(self, reference: FileReference) -> tuple[bool, bool, int]:
        """Sort the best first: current, then what nothing is known against, then the newest."""
        label = self._updates.label(reference.provenance)
        return not label.is_current, bool(label.advisories), -label.superseded

    def _elsewhere(self, digest: FileDigest) -> Iterator[FileReference]:
        for archive in self._archives:
            if archive.algorithm is digest.algorithm:
                yield from _references(archive, archive.with_digest(digest.value, NEAREST))

    def nearest(self, path: bytes) -> tuple[bytes, ...]:
        """Return a few known paths that look like ``path``."""
        if found := self._own.nearest(path):
            return found
        name = path.rpartition(b"/")[2]
        for archive in self._archives:
            if found := archive.with_basename(name, NEAREST):
                return found
        around = [near for archive in self._archives for near in archive.neighbours(path)]
        best = max(around, key=lambda known: common(known, path), default=b"")
        return (best,) if b"/" in path[1 : common(best, path)] else ()


def _references(archive: FileArchive, rows: Iterable[FileRow]) -> Iterator[FileReference]:
    for row in rows:
        yield FileReference(
            row.path,
            archive.algorithm,
            row.digest,
            row.record.provenance,
            FileFlag.CONFFILE in row.flags,
        )


def file_knowledge(
    references: ReferenceSet, archives: Sequence[FileArchive] = ()
) -> FileReferences | LayeredReferences:
    """Compile the files of ``references``; ``archives`` are the tables that it names, opened.

    Raises ValueError if they are not exactly those: a table that is missing would make good files
    unknown, and one too many would make unknown files good.
    """
    given = {archive.id.hex() for archive in archives}
    if given != set(references.archives):
        missing = sorted(set(references.archives) - given) or sorted(given)
        raise ValueError(f"these are not the file tables that {references.name} names: {missing}")
    updates = updates_of(references.states)
    own = compile_files(references.files, references.name, updates)
    return LayeredReferences(own, archives, updates) if archives else own
