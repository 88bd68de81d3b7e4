"""Reference sets of packaged files: which packages, their table, and what is of today."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from undercroft.base import EnvironmentFault
from undercroft.packages.advisories import Advisory
from undercroft.packages.archive import Archive
from undercroft.packages.filestore import FileStore, Wanted
from undercroft.packages.states import all_offers, states_of
from undercroft.reference.archive import FileArchive
from undercroft.reference.model import ReferenceSet

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_POCKET = re.compile(r"-(?:security|updates|backports|proposed-updates)$")


@dataclass(frozen=True, slots=True)
class FileSet:
    """A reference set of packages' files, its table, and the packages that could not be had."""

    references: ReferenceSet
    table: FileArchive
    missing: tuple[Wanted, ...]


def every_package(archive: Archive) -> tuple[Wanted, ...]:
    """Return every package of the release, in its newest version."""
    names = {name.decode(errors="replace") for index in archive.indexes for name in index.names}
    return tuple(Wanted(name) for name in sorted(names) if _NAME.fullmatch(name))


def with_dependencies(archive: Archive, wanted: Iterable[Wanted]) -> tuple[Wanted, ...]:
    """Return ``wanted`` and the newest versions of what those need, and so on.

    Of alternatives every one is taken: a set may know more than a machine has.  What only a
    virtual package's name stands for is not.
    """
    found = {one.name: one for one in wanted}
    queue = list(found)
    while queue:
        try:
            stanza, _ = archive.find(queue.pop())
        except EnvironmentFault:
            continue  # whether that matters, collecting tells
        for word in re.split(r"[,|]", stanza.depends):
            match = _NAME.match(word.strip())
            if match and match[0] not in found and _is_offered(archive, match[0]):
                found[match[0]] = Wanted(match[0])
                queue.append(match[0])
    return tuple(sorted(found.values()))


def _is_offered(archive: Archive, name: str) -> bool:
    return any(name.encode() in index.names for index in archive.indexes)


def build_file_set(
    name: str,
    archive: Archive,
    store: FileStore,
    wanted: Iterable[Wanted],
    *,
    advisories: Sequence[Advisory] = (),
    workers: int | None = None,
    say: Callable[[str], None] = lambda _text: None,
    discard: bool = False,
) -> FileSet:
    """Return the set ``name`` of the files of ``wanted``; see :meth:`FileStore.collect`.

    Raises what :meth:`FileStore.collect` raises, and EnvironmentFault if nothing could be had.
    """
    listed = store.collect(archive, wanted, workers=workers, say=say, discard=discard)
    if not any(package.files for package in listed.packages):
        raise EnvironmentFault(
            "none of these packages could be had",
            got=", ".join(map(str, listed.missing[:5])),
            remedy="check the names, and that `apt-get update` works on this machine",
        )
    table = store.save_table(listed.packages)
    records = [package.record for package in listed.packages]
    offers = all_offers((record.package for record in records), archive.indexes)
    states = states_of(records, offers, advisories, release_of(archive))
    return FileSet(
        ReferenceSet(name, archives=(table.id.hex(),), states=states), table, listed.missing
    )


def updated(tables: Iterable[FileArchive], archive: Archive) -> tuple[Wanted, ...]:
    """Return what a set has to hold over the next upgrade: its packages, and those of today.

    What the newest versions need and the set does not have yet is added: a new kernel is a
    package of a new name.
    """
    old = {
        Wanted(record.package, record.version, record.architecture)
        for table in tables
        for record in table.records()
    }
    new = with_dependencies(archive, (Wanted(name) for name in {one.name for one in old}))
    return tuple(sorted({*old, *new}))


def release_of(archive: Archive) -> str:
    """Return the codename of the distribution's release, without the pocket."""
    names = {_POCKET.sub("", index.release.release.codename) for index in archive.indexes}
    return min(names, default="")
