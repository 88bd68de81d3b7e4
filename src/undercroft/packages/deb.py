"""What is inside a package file: an ``ar`` archive of three members (deb(5)).

Reading is bounded: nothing is decompressed past a limit, and no path of an entry leaves the root.
"""

from __future__ import annotations

import enum
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeVar, cast

import zstandard

from undercroft.base import FormatError
from undercroft.formats.reader import BoundedReader

MAX_UNPACKED = 2 << 30
"""Bytes that the data member may have when decompressed."""
MAX_FILE = 512 << 20
"""Bytes of one file inside."""
MAX_ENTRIES = 500_000

_NAME = "deb"
_BLOCKS = 1 << 18
"""Bytes that :mod:`tarfile` reads at once; a multiple of its block size."""
T = TypeVar("T")
_TAR_END = 1024
"""A tar archive ends with two blocks of zeros; :mod:`tarfile` would do without."""
_AR_MAGIC = b"!<arch>\n"


class EntryKind(enum.Enum):
    """The kinds of entries that Debian packages hold."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


@dataclass(frozen=True, slots=True)
class DebEntry:
    """One entry of the data member.

    ``path`` is absolute and normal (``/usr/bin/true``); ``mode`` the permission bits; ``target``
    what a symlink says, or the absolute path of a hard link's other name; ``data`` a file's bytes.
    """

    path: str
    kind: EntryKind
    mode: int
    target: str = ""
    data: bytes = b""


class _Limited(io.RawIOBase):
    """A stream that refuses to give more than ``limit`` bytes, and knows how it ended."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = limit
        self.tail = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise FormatError(_NAME, 0, "a member is too large when decompressed")
        self.tail = (self.tail + data)[-_TAR_END:]
        return data

    def finish(self) -> None:
        """Read to the end, where compressed data has its checksum, and find tar's end mark."""
        while self.read(1 << 20):
            pass
        if self.tail != bytes(_TAR_END):
            raise FormatError(_NAME, 0, "a member is cut short")


def _decimal(field: bytes, what: str, reader: BoundedReader) -> int:
    text = field.rstrip(b" ")
    if not text.isdigit():
        raise reader.fail(f"{what} is not a number", got=repr(field))
    return int(text)


def read_ar(data: bytes) -> dict[str, bytes]:
    """Return the members of an ``ar`` archive by name, in order.  Raises FormatError.

    The common format without extensions (deb(5)): 16 bytes of name, 32 of dates and owners that
    mean nothing here, 10 of size, two of end mark, and data padded to an even length.
    """
    reader = BoundedReader(data, _NAME, order="little")
    if reader.take(len(_AR_MAGIC), "the ar magic") != _AR_MAGIC:
        raise FormatError(_NAME, 0, "not an ar archive")
    members: dict[str, bytes] = {}
    while reader.remaining:
        name = reader.take(16, "a member's name").rstrip(b" ").removesuffix(b"/")
        reader.take(32, "a member's dates and owner")
        size = _decimal(reader.take(10, "a member's size"), "a member's size", reader)
        if reader.take(2, "a member's end mark") != b"`\n":
            raise reader.fail("a member's header has no end mark")
        if not name.isascii() or name.decode() in members:
            raise reader.fail("a member's name is strange or taken", got=repr(name))
        members[name.decode()] = reader.take(size, "a member")
        if size % 2 and reader.remaining:
            reader.take(1, "padding")
    return members


def ar_date(data: bytes) -> int:
    """Return when the first member of an ``ar`` archive was made (Unix s), 0 if it does not say.

    dpkg-deb writes SOURCE_DATE_EPOCH there: the date of the newest entry of the changelog.
    """
    text = data[len(_AR_MAGIC) + 16 : len(_AR_MAGIC) + 28].rstrip(b" ")
    return int(text) if text.isdigit() else 0


def _opened(name: str, data: bytes) -> BinaryIO:
    raw = io.BytesIO(data)
    match name.removeprefix("data.tar").removeprefix("control.tar"):
        case "":
            return raw
        case ".xz":
            return cast(BinaryIO, lzma.LZMAFile(raw))
        case ".gz":
            return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        case ".zst":
            reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            return cast(BinaryIO, reader)
    raise FormatError(_NAME, 0, "a member is compressed in an unknown way", got=name)


def normal_path(name: str) -> str:
    """Return the absolute form of a tar member's name; refuse one that could leave the root."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise FormatError(_NAME, 0, "a path leaves the package", got=repr(name[:200]))
    return "/" + "/".join(parts)


def _entry(member: tarfile.TarInfo, tar: tarfile.TarFile) -> DebEntry:
    path, mode = normal_path(member.name), member.mode & 0o7777
    if member.isdir():
        return DebEntry(path, EntryKind.DIRECTORY, mode)
    if member.issym():
        return DebEntry(path, EntryKind.SYMLINK, mode, target=member.linkname)
    if member.islnk():
        return DebEntry(path, EntryKind.HARDLINK, mode, target=normal_path(member.linkname))
    if not member.isreg():
        raise FormatError(_NAME, 0, "an entry is no file, directory or link", got=path)
    if member.size > MAX_FILE:
        raise FormatError(_NAME, 0, "a file is too large", expected=f"at most {MAX_FILE}", got=path)
    stream = tar.extractfile(member)
    data = stream.read() if stream else b""
    if len(data) != member.size:
        raise FormatError(_NAME, 0, f"{path} is cut short", expected=member.size, got=len(data))
    return DebEntry(path, EntryKind.FILE, mode, data=data)


def read_deb(deb: bytes, wanted: Callable[[str], bool] = lambda _path: True) -> Iterator[DebEntry]:
    """Yield the entries of a package file whose path ``wanted`` accepts.  Raises FormatError.

    Entries come in the package's order, directories before what they hold.
    """
    members = read_ar(deb)
    names = list(members)
    if len(names) != 3 or names[0] != "debian-binary" or not members[names[0]].startswith(b"2."):
        raise FormatError(_NAME, 0, "not a package of format 2", got=", ".join(names)[:200])
    if not names[1].startswith("control.tar") or not names[2].startswith("data.tar"):
        raise FormatError(_NAME, 0, "the members have other names", got=", ".join(names)[:200])
    yield from walk_member(
        names[2],
        members[names[2]],
        lambda member, tar: _entry(member, tar) if wanted(normal_path(member.name)) else None,
    )


def walk_member(
    name: str, data: bytes, take: Callable[[tarfile.TarInfo, tarfile.TarFile], T | None]
) -> Iterator[T]:
    """Yield what ``take`` makes of each entry of a control or data member, but for None.

    ``take`` may read the entry's content from the stream, then and no later.  Raises FormatError.
    """
    stream = _Limited(_opened(name, data), MAX_UNPACKED)
    try:
        with tarfile.open(
            fileobj=cast(BinaryIO, stream), mode="r|", errorlevel=2, bufsize=_BLOCKS
        ) as tar:
            for count, member in enumerate(tar):
                if count >= MAX_ENTRIES:
                    raise FormatError(_NAME, 0, "too many entries")
                taken = take(member, tar)
                if taken is not None:
                    yield taken
        stream.finish()
    except (tarfile.TarError, lzma.LZMAError, zstandard.ZstdError, EOFError, OSError) as error:
        raise FormatError(_NAME, 0, f"the {name} is broken: {error}") from error
