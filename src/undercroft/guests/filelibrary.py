"""What the files of a guest of ours hold: file libraries for ``securekernel.linux.usercode``.

A guest without a disk has them from the initramfs that it was built with.  The archive is our own
(:mod:`~undercroft.guests.cpio`), and each file in it has a digest in ``build.json``; a file whose
bytes are others is not known.  A guest with a disk has them from its packages.
"""

from __future__ import annotations

import gzip
import hashlib
import stat
from collections.abc import Iterator, Sequence

from undercroft.base import FormatError
from undercroft.guests.manifest import GuestBuild
from undercroft.packages.deb import EntryKind, read_deb
from undercroft.packages.filelist import merged_path
from undercroft.packages.filestore import FileStore, Wanted
from undercroft.packages.verified import VerifiedPackage
from undercroft.reference.archive_build import PackageFiles, ima_path
from undercroft.securekernel.linux.usercode import FileLibrary

_FORMAT = "cpio archive"
_MAGIC, _GZIP = b"070701", b"\x1f\x8b"
_HEADER = 110
_TRAILER = "TRAILER!!!"


class InitramfsFiles:
    """The files of a guest that runs from its initramfs; read when first asked."""

    def __init__(self, build: GuestBuild) -> None:
        self._build = build
        self._files: dict[str, bytes] | None = None

    def contents(self, path: str) -> Sequence[bytes]:
        """Return what the file at an absolute path holds; nothing if the build has none."""
        if self._files is None:
            self._files = dict(self._read())
        found = self._files.get(path)
        return () if found is None else (found,)

    def _read(self) -> Iterator[tuple[str, bytes]]:
        data = self._build.initrd.path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
        for path, content in regular_files(data):
            known = self._build.files.get(path)
            if known is not None and hashlib.sha256(content).hexdigest() == known.sha256:
                yield path, content


class PackagedFiles:
    """The files of packages, taken out of them one by one as they are asked for.

    Which package has a path is looked up in ``store``, which keeps a list of each package.
    """

    def __init__(self, packages: Sequence[VerifiedPackage], store: FileStore) -> None:
        self._packages = [one for one in packages if not one.name.startswith("linux-image-")]
        self._store = store
        self._owners: dict[bytes, list[VerifiedPackage]] | None = None
        self._known: dict[str, tuple[bytes, ...]] = {}

    def contents(self, path: str) -> Sequence[bytes]:
        """Return what the file at an absolute path may hold; nothing if no package has it."""
        if self._owners is None:
            self._owners = {}
            for package in self._packages:
                for owned, _, _ in self._listed(package).files:
                    merged = merged_path(owned.decode("utf-8", "surrogateescape"))
                    self._owners.setdefault(merged.encode("utf-8", "surrogateescape"), []).append(
                        package
                    )
        found = self._known.get(path)
        if found is None:
            owners = self._owners.get(ima_path(path), ())
            found = tuple(one for owner in owners for one in _taken(owner, path))
            self._known[path] = found
        return found

    def _listed(self, package: VerifiedPackage) -> PackageFiles:
        wanted = Wanted(package.name, package.version, package.architecture)
        return self._store.earlier(wanted) or self._store.list_package(package)


def _taken(package: VerifiedPackage, path: str) -> Iterator[bytes]:
    """Yield a file out of a package, if that still is the package that was verified."""
    data = package.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != package.sha256:
        return
    for entry in read_deb(data, lambda name: merged_path(name) == path):
        if entry.kind is EntryKind.FILE:
            yield entry.data


def file_library(build: GuestBuild, store: FileStore) -> FileLibrary:
    """Return what is known of the files of a guest that was built here."""
    return InitramfsFiles(build) if build.disk is None else PackagedFiles(build.packages, store)


def regular_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each regular file of a "newc" archive; raise FormatError."""
    at = 0
    while True:
        header = data[at : at + _HEADER]
        if len(header) < _HEADER or not header.startswith(_MAGIC):
            raise FormatError(_FORMAT, at, "not a newc header")
        try:
            fields = [int(header[6 + 8 * number : 14 + 8 * number], 16) for number in range(13)]
        except ValueError as error:
            raise FormatError(_FORMAT, at, "a field is not hexadecimal") from error
        mode, size, length = fields[1], fields[6], fields[11]
        name = data[at + _HEADER : at + _HEADER + length].rstrip(b"\0").decode()
        start = at + _HEADER + length + 3 & ~3
        if start + size > len(data):
            raise FormatError(_FORMAT, at, "a file is cut short", expected=size)
        if name == _TRAILER:
            return
        if stat.S_ISREG(mode):
            yield f"/{name.lstrip('/')}", data[start : start + size]
        at = start + size + 3 & ~3
