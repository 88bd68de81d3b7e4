"""File references compiled for IMA lists: 100,000 paths, one look-up for each entry.

An entry for a file says "this path had this content" in bytes that are the same every time.  So
those bytes are written down once for every reference, and comparing an entry is finding its own
bytes in a set.  Only what is not found there is looked at in detail, by path and by digest.
"""

from __future__ import annotations

import enum
import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from undercroft.base import Grade
from undercroft.formats.ima import FileDigest, LinuxHash
from undercroft.reference.model import Provenance, ReferenceValue
from undercroft.reference.updates import NO_UPDATES, Updates

NEAREST = 3
"""How many near misses are named."""
HASHED_LABELS = 2
"""Of how many labels template hashes are kept."""


@dataclass(frozen=True, slots=True)
class FileReference:
    """One content that a path may have, and where that is known from.

    A ``conffile`` is one that the package leaves to the administrator to change.
    """

    path: bytes
    algorithm: LinuxHash
    digest: bytes
    provenance: Provenance
    conffile: bool = False


class FileMatch(enum.Enum):
    """How an entry compares with the references.  Only KNOWN is a match."""

    KNOWN = "known"
    """The path may have this content."""
    OTHER_CONTENT = "other-content"
    """The path is known, with other contents only."""
    OTHER_ALGORITHM = "other-algorithm"
    """The path is known, in no hash algorithm (or kind of digest) that the entry uses."""
    OTHER_PATH = "other-path"
    """The path is not known; the content is, at other paths."""
    UNKNOWN = "unknown"
    """Neither the path nor the content is known."""


@dataclass(frozen=True, slots=True)
class FileComparison:
    """An entry compared with the references.

    ``expected`` are the contents known for the path (the one that matched, if one did);
    ``elsewhere`` are a few paths that have the entry's content.
    """

    match: FileMatch
    expected: tuple[FileReference, ...] = ()
    elsewhere: tuple[FileReference, ...] = ()


_Known = tuple[LinuxHash, bytes, int]
LabelledHashes = tuple[tuple[str, Mapping[bytes, bytes]], ...]
"""For a label the SHA-256 of template data, by template data."""


class FileReferences:
    """Which content each path may have.  Made by :func:`compile_files`; never changes after.

    Paths are bytes as IMA writes them: UTF-8 (or whatever the file system holds), with ``_`` for
    each space.  Indices that only a mismatch needs are built at the first one.
    """

    __slots__ = (
        "_accepted",
        "_content_id",
        "_indices",
        "_paths",
        "_provenances",
        "_template_hashes",
        "_updates",
        "name",
    )

    def __init__(
        self,
        name: str,
        paths: dict[bytes, tuple[_Known, ...]],
        provenances: Sequence[Provenance],
        updates: Updates = NO_UPDATES,
    ) -> None:
        self.name = name
        self._paths = paths
        self._provenances = tuple(provenances)
        self._updates = updates
        self._accepted: dict[tuple[bytes, str], dict[bytes, str]] = {}
        self._template_hashes: dict[tuple[bytes, str], LabelledHashes] = {}
        self._indices: _Indices | None = None
        self._content_id = b""

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def content_id(self) -> bytes:
        """SHA-256 over every path, digest and label: equal for references that say the same."""
        if not self._content_id:
            state = hashlib.sha256()
            for path in sorted(self._paths):
                known = sorted(
                    (a.label, d, self.label(self._provenances[i])) for a, d, i in self._paths[path]
                )
                state.update(repr((path, known)).encode())
            self._content_id = state.digest()
        return self._content_id

    def accepted(
        self, digest_head: bytes, digest_size: int, order: Literal["little", "big"]
    ) -> Mapping[bytes, str]:
        """Return the template data (up to the name's end) of every file that is known.

        The value is the reference's label.  ``digest_head`` and ``digest_size`` are those of a
        :class:`~undercroft.formats.ima.Run`: the table is for entries of that form only, and is
        empty if no reference fits the form.  The same few forms come again and again, so their
        tables are kept.
        """
        algorithm = algorithm_of(digest_head)
        if algorithm is None or algorithm.size != digest_size:
            return {}
        key = digest_head, order
        found = self._accepted.get(key)
        if found is None:
            labels = list(map(self.label, self._provenances))
            found = {
                digest_head + digest + (len(path) + 1).to_bytes(4, order) + path + b"\0": labels[
                    source
                ]
                for path, known in self._paths.items()
                for its_algorithm, digest, source in known
                if its_algorithm is algorithm
            }
            self._accepted[key] = found
        return found

    def template_hashes(
        self, digest_head: bytes, digest_size: int, order: Literal["little", "big"]
    ) -> LabelledHashes:
        """Return what :meth:`accepted` does, each with the SHA-256 of the template data.

        One table for each of the labels that most files have, at most :data:`HASHED_LABELS`.  For
        whoever follows many machines' lists: what a known file extends a PCR with is hashed once,
        and costs some 150 bytes of memory for each file.
        """
        key = digest_head, order
        found = self._template_hashes.get(key)
        if found is None:
            accepted = self.accepted(digest_head, digest_size, order)
            labels = Counter(accepted.values()).most_common(HASHED_LABELS)
            tables: dict[str, dict[bytes, bytes]] = {label: {} for label, _ in labels}
            for data, label in accepted.items():
                if label in tables:
                    tables[label][data] = hashlib.sha256(data).digest()
            found = self._template_hashes[key] = tuple(tables.items())
        return found

    def compare(self, path: bytes, digest: FileDigest) -> FileComparison:
        """Return how a file measured at ``path`` compares."""
        known = tuple(self._reference(path, one) for one in self._paths.get(path, ()))
        same_kind = digest.kind == "ima"
        comparable = tuple(k for k in known if same_kind and k.algorithm is digest.algorithm)
        for reference in comparable:
            if reference.digest == digest.value:
                return FileComparison(FileMatch.KNOWN, (reference,))
        elsewhere = self._elsewhere(digest) if same_kind else ()
        if comparable:
            return FileComparison(FileMatch.OTHER_CONTENT, comparable, elsewhere)
        if known:
            return FileComparison(FileMatch.OTHER_ALGORITHM, known)
        if elsewhere:
            return FileComparison(FileMatch.OTHER_PATH, (), elsewhere)
        return FileComparison(FileMatch.UNKNOWN)

    def _reference(self, path: bytes, known: _Known) -> FileReference:
        algorithm, digest, provenance = known
        return FileReference(path, algorithm, digest, self._provenances[provenance])

    def _elsewhere(self, digest: FileDigest) -> tuple[FileReference, ...]:
        paths = self._index().by_digest.get(digest.value, ())
        return tuple(
            self._reference(path, known)
            for path in paths[:NEAREST]
            for known in self._paths[path]
            if known[0] is digest.algorithm and known[1] == digest.value
        )

    def nearest(self, path: bytes) -> tuple[bytes, ...]:
        """Return a few known paths that look like ``path``.

        Those with the same last part, or else the neighbour in the alphabet, if it shares a
        folder.
        """
        index = self._index()
        same = index.by_basename.get(path.rpartition(b"/")[2], [])
        if same:
            return tuple(same[:NEAREST])
        at = bisect_left(index.ordered, path)
        around = index.ordered[max(at - 1, 0) : at + 1]
        near = max(around, key=lambda known: common(known, path), default=b"")
        return (near,) if b"/" in path[1 : common(near, path)] else ()

    def label(self, provenance: Provenance) -> str:
        """Return the text of the label that a file of this provenance is counted by.

        The name of its grade, unless there is more to say (:class:`~.updates.Label`).
        """
        return self._updates.label(provenance).text

    def _index(self) -> _Indices:
        if self._indices is None:
            self._indices = _indices(self._paths)
        return self._indices


@dataclass(frozen=True, slots=True)
class _Indices:
    by_digest: dict[bytes, list[bytes]]
    by_basename: dict[bytes, list[bytes]]
    ordered: list[bytes]


def _indices(paths: Mapping[bytes, tuple[_Known, ...]]) -> _Indices:
    by_digest: dict[bytes, list[bytes]] = {}
    by_basename: dict[bytes, list[bytes]] = {}
    ordered = sorted(paths)
    for path in ordered:
        by_basename.setdefault(path.rpartition(b"/")[2], []).append(path)
        for _, digest, _ in paths[path]:
            by_digest.setdefault(digest, []).append(path)
    return _Indices(by_digest, by_basename, ordered)


def common(one: bytes, other: bytes) -> int:
    """Return how many bytes two paths have in common at the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def algorithm_of(digest_head: bytes) -> LinuxHash | None:
    """Return the algorithm of a ``d-ng`` or ``d-ngv2`` field of a plain file hash, or None.

    The head is the field's length, ``sha256:`` or ``ima:sha256:``, and a NUL.  An fs-verity
    digest is not a hash of the file, so no reference that we have compares with it.
    """
    return LinuxHash.from_name(digest_head[4:-2].removeprefix(b"ima:"))


def compile_files(
    files: Mapping[str, Sequence[ReferenceValue]], name: str = "", updates: Updates = NO_UPDATES
) -> FileReferences:
    """Compile ``files`` (``ReferenceSet.files``: contents by absolute path) for comparing.

    A path that is not UTF-8 has its odd bytes as surrogate escapes.  Of the provenances of one
    content at one path the best grade counts.  Raises ValueError for a path that no file can
    have.
    """
    provenances: dict[Provenance, int] = {}
    paths: dict[bytes, dict[tuple[LinuxHash, bytes], Provenance]] = {}
    for text, values in files.items():
        path = text.encode("utf-8", "surrogateescape").replace(b" ", b"_")
        if not path.startswith(b"/") or b"\0" in path:
            raise ValueError(f"{text!r} is not an absolute path")
        # "a b" and "a_b" are one name to IMA: either's content is accepted for both.
        known = paths.setdefault(path, {})
        for value in values:
            for digest in value.digests:
                key = LinuxHash.of(digest.algorithm), digest.value
                known[key] = min(known.get(key, value.provenance), value.provenance, key=_rank)
    compiled = {
        path: tuple(
            (algorithm, digest, provenances.setdefault(source, len(provenances)))
            for (algorithm, digest), source in known.items()
        )
        for path, known in paths.items()
    }
    return FileReferences(name, compiled, tuple(provenances), updates)


_GRADES = list(Grade)


def _rank(provenance: Provenance) -> int:
    return _GRADES.index(provenance.grade)
