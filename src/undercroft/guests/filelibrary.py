"""What the files of a guest of ours hold, from the initramfs that it was built with.

The archive is our own (:mod:`~undercroft.guests.cpio`), and each file in it has a digest in
``build.json``; a file whose bytes are others is not known.
"""

from __future__ import annotations

import gzip
import hashlib
import stat
from collections.abc import Iterator, Sequence

from undercroft.base import FormatError
from undercroft.guests.manifest import GuestBuild

_FORMAT = "cpio archive"
_MAGIC, _GZIP = b"070701", b"\x1f\x8b"
_HEADER = 110
_TRAILER = "TRAILER!!!"


class InitramfsFiles:
    """A file library (``securekernel.linux.usercode``) of a build; read when first asked."""

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
