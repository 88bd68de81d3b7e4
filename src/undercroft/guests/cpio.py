"""Writes a "newc" cpio archive, the form of an initramfs, the same bytes every time.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.  Owner is root,
times are 0, inode numbers count from 1 in path order, so that equal content gives equal bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

from undercroft.formats.reader import BoundedReader

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class CpioEntry:
    """One entry: ``path`` absolute, ``mode`` with the file type (stat.S_IFREG | 0o755).

    ``data`` is a file's content or a symlink's target; ``device`` is (major, minor) of a node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(path: str, data: bytes, *, mode: int = 0o644) -> CpioEntry:
    """Return a regular file."""
    return CpioEntry(path, stat.S_IFREG | mode, data)


def directory(path: str) -> CpioEntry:
    """Return a directory with mode 0755."""
    return CpioEntry(path, stat.S_IFDIR | 0o755)


def symlink(path: str, target: str) -> CpioEntry:
    """Return a symbolic link."""
    return CpioEntry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int) -> CpioEntry:
    """Return a character device node with mode 0600."""
    return CpioEntry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _record(name: str, inode: int, entry: CpioEntry) -> bytes:
    path = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(path), 0,
    )  # fmt: skip
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + path) + _padded(entry.data)


def write_cpio(entries: Iterable[CpioEntry]) -> bytes:
    """Return the archive of ``entries``, sorted by path, missing parent directories added.

    Raises ValueError for a path that is not absolute or stands there twice.
    """
    by_path: dict[str, CpioEntry] = {}
    for entry in entries:
        parts = entry.path.split("/")
        if len(parts) < 2 or parts[0] or any(part in ("", ".", "..") for part in parts[1:]):
            raise ValueError(f"not an absolute, normal path: {entry.path!r}")
        if entry.path in by_path:
            raise ValueError(f"twice in one archive: {entry.path}")
        by_path[entry.path] = entry
    for path in list(by_path):
        while path := path.rpartition("/")[0]:
            by_path.setdefault(path, directory(path))
    # A parent sorts before what it holds, which the kernel's unpacker needs.
    records = [
        _record(path[1:], inode, by_path[path]) for inode, path in enumerate(sorted(by_path), 1)
    ]
    trailer = _record(_TRAILER, 0, CpioEntry(_TRAILER, 0))
    return b"".join([*records, trailer])


_HEADER = 110
_MAGIC = b"070701"


def read_cpio(archive: bytes) -> dict[str, bytes]:
    """Return the regular files of a "newc" archive by absolute path.

    A hard link's bytes stand at its last name only; the names before it are given them too.
    Raises FormatError.
    """
    reader = BoundedReader(archive, "cpio", order="little")
    found: dict[str, bytes] = {}
    links: dict[tuple[int, ...], list[str]] = {}
    while True:
        header = reader.take(_HEADER, "a header")
        try:
            fields = [int(header[at : at + 8], 16) for at in range(6, _HEADER, 8)]
        except ValueError:
            fields = []
        if header[:6] != _MAGIC or not fields:
            raise reader.fail("no newc header", expected=_MAGIC.decode(), got=header[:6].hex())
        inode, mode, count, size, name_size = (fields[i] for i in (0, 1, 4, 6, 11))
        name = reader.take(name_size, "a name").rstrip(b"\0").decode("utf-8", "surrogateescape")
        reader.take(-(_HEADER + name_size) % 4, "the padding")
        if name == _TRAILER:
            return found
        data = reader.take(size, "a file")
        reader.take(-size % 4, "the padding")
        if stat.S_ISREG(mode):
            names = links.setdefault((inode, *fields[7:9]), []) if count > 1 else []
            names.append("/" + name.removeprefix("./").strip("/"))
            if data or count <= 1:
                found.update(dict.fromkeys(names, data))
