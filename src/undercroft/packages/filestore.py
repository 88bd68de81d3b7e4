"""Lists and tables of packaged files on disk: each made once, and kept under its digest.

==================================  =============================================================
``lists/<algorithm>/<deb>.files``   one package's files, by name, version, architecture and the
                                    package file's SHA-256
``tables/<sha256>.files``           a table for appraisals, by its own digest
==================================  =============================================================

A list stays when the archive no longer offers the package: what was verified then is still true,
and its provenance names the Release file of then.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.ima import LinuxHash
from undercroft.packages.archive import Archive
from undercroft.packages.filelist import list_files
from undercroft.packages.index import PackagesIndex, Stanza
from undercroft.packages.verified import VerifiedPackage
from undercroft.reference.archive import FileArchive, parse_file_archive
from undercroft.reference.archive_build import PackageFiles, build_file_archive, packages_of


@dataclass(frozen=True, slots=True, order=True)
class Wanted:
    """A package by name; without a version the newest that is offered."""

    name: str
    version: str = ""
    architecture: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class Listed:
    """The lists of what was wanted, and what could not be had: offered by nobody, never listed."""

    packages: tuple[PackageFiles, ...]
    missing: tuple[Wanted, ...]


def parse_installed(text: str) -> tuple[Wanted, ...]:
    """Return what a machine has installed, from dpkg's status file (``/var/lib/dpkg/status``).

    Also taken: lines of ``name<TAB>version<TAB>architecture`` as dpkg-query writes them with
    ``-W -f '${Package}\\t${Version}\\t${Architecture}\\n'``.  Raises FormatError.
    """
    if "\t" in text.partition("\n")[0]:
        rows = [line.split("\t") for line in text.splitlines() if line.strip()]
        if bad := next((row for row in rows if len(row) != 3), None):
            raise FormatError("package list", 0, "not name, version and architecture", got=bad)
        return tuple(sorted({Wanted(*row) for row in rows}))
    found = set()
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " "
        )
        if fields.get("Status", "").endswith(" installed"):
            found.add(Wanted(fields["Package"], fields["Version"], fields["Architecture"]))
    if not found:
        raise FormatError("dpkg status", 0, "no installed package in it")
    return tuple(sorted(found))


class FileStore:
    """Lists and tables under the folder ``root``, in the hash ``algorithm``."""

    def __init__(self, root: Path, algorithm: LinuxHash = LinuxHash.SHA256) -> None:
        self.algorithm = algorithm
        self._lists = root / "lists" / algorithm.label
        self._tables = root / "tables"

    # -- lists ------------------------------------------------------------------------------------

    def _list_path(self, name: str, version: str, architecture: str, sha256: str) -> Path:
        quoted = version.replace(":", "%3a")
        return self._lists / f"{name}_{quoted}_{architecture}_{sha256}.files"

    def _read_list(self, path: Path) -> PackageFiles | None:
        """Return a list from its file, or None if there is none that can be read."""
        try:
            (one,) = packages_of(parse_file_archive(path.read_bytes()))
        except (FileNotFoundError, FormatError, ValueError):
            return None
        return one

    def earlier(self, wanted: Wanted) -> PackageFiles | None:
        """Return what was listed of a version when an archive still offered it."""
        found = self._lists.glob(
            self._list_path(wanted.name, wanted.version, wanted.architecture or "*", "*").name
        )
        return next(filter(None, map(self._read_list, sorted(found))), None)

    def list_package(self, package: VerifiedPackage) -> PackageFiles:
        """Return what is in ``package``, and keep it."""
        path = self._list_path(package.name, package.version, package.architecture, package.sha256)
        listed = list_files(package, self.algorithm)
        if listed.files:  # of no files there is no table; making an empty list costs nothing
            _write(path, build_file_archive([listed], self.algorithm))
        return listed

    def collect(
        self,
        archive: Archive,
        wanted: Iterable[Wanted],
        *,
        workers: int | None = None,
        say: Callable[[str], None] = lambda _text: None,
        discard: bool = False,
    ) -> Listed:
        """Return the lists of ``wanted``: kept ones, and new ones of packages from ``archive``.

        With ``discard``, package files that the archive keeps are removed when they are listed.

        Raises what :meth:`Archive.fetch` raises but for packages that nobody offers.
        """
        if not archive.indexes:  # raises why: it is not that nobody offers a package
            return Listed((), tuple(sorted(set(wanted))))
        kept: list[PackageFiles] = []
        new: list[tuple[Stanza, PackagesIndex]] = []
        missing: list[Wanted] = []
        for one in sorted(set(wanted)):
            offer = _offer(archive, one)
            stanza = offer[0] if offer else None
            listed = (
                self._read_list(
                    self._list_path(stanza.name, stanza.version, stanza.architecture, stanza.sha256)
                )
                if stanza
                else self.earlier(one)
            )
            if listed is not None:
                kept.append(listed)
            elif offer is not None:
                new.append(offer)
            else:
                missing.append(one)
        kept += self._list_new(archive, new, workers, say, discard=discard)
        return Listed(tuple(kept), tuple(missing))

    def _list_new(
        self,
        archive: Archive,
        offers: Sequence[tuple[Stanza, PackagesIndex]],
        workers: int | None,
        say: Callable[[str], None],
        *,
        discard: bool,
    ) -> Iterator[PackageFiles]:
        def listed(package: VerifiedPackage) -> PackageFiles:
            files = self.list_package(package)
            if discard and package.path.is_relative_to(archive.root):
                package.path.unlink(missing_ok=True)
            return files

        # Decompressing and hashing let other threads run.
        packages = (archive.fetch(stanza.name, stanza.version) for stanza, _ in offers)
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            for done, files in enumerate(pool.map(listed, packages), 1):
                say(f"{done} of {len(offers)} packages listed")
                yield files

    # -- tables -----------------------------------------------------------------------------------

    def save_table(self, packages: Iterable[PackageFiles]) -> FileArchive:
        """Write the table of ``packages`` and open it.  Raises ValueError if it would be empty."""
        data = build_file_archive(packages, self.algorithm)
        archive = parse_file_archive(data)
        path = self._table_path(archive.id.hex())
        if not path.is_file():
            _write(path, data)
        return self.open_table(archive.id.hex())

    def _table_path(self, name: str) -> Path:
        return self._tables / f"{name}.files"

    def open_table(self, name: str) -> FileArchive:
        """Map the table of this digest (hexadecimal).  Raises EnvironmentFault, FormatError."""
        path = self._table_path(name)
        try:
            return open_table(path, name)
        except FileNotFoundError as error:
            raise EnvironmentFault(
                "a table of packaged files is not here",
                where=str(path),
                remedy="make it again (undercroft reference packages build), or copy it there",
            ) from error


def open_table(path: Path, name: str) -> FileArchive:
    """Map the table in the file ``path``, which has to be the one of this digest."""
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            raise FormatError("file table", 0, "an empty file", got=str(path))
        archive = parse_file_archive(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    if archive.id.hex() != name:
        raise FormatError(
            "file table", 0, "another table than its name says", expected=name, got=archive.id.hex()
        )
    return archive


def _offer(archive: Archive, wanted: Wanted) -> tuple[Stanza, PackagesIndex] | None:
    try:
        stanza, index = archive.find(wanted.name, wanted.version)
    except EnvironmentFault:
        return None
    if wanted.architecture not in ("", stanza.architecture):
        return None
    return stanza, index


def _write(path: Path, data: bytes) -> None:
    """Write a file at once: whoever opens it sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
