"""The files of a build, read back from its initramfs."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from undercroft.base import FormatError
from undercroft.guests.cpio import character_device, directory, file, symlink, write_cpio
from undercroft.guests.filelibrary import InitramfsFiles, regular_files
from undercroft.guests.manifest import GuestBuild

ARCHIVE = write_cpio(
    [
        directory("/bin"),
        character_device("/dev/console", 5, 1),
        file("/bin/busybox", b"program", mode=0o755),
        file("/empty", b""),
        symlink("/bin/sh", "busybox"),
        file("/init", b"#!/bin/sh\n"),
    ]
)


def build(folder: Path, data: bytes, **digests: bytes) -> GuestBuild:
    (folder / "initrd").write_bytes(data)
    files = {
        f"/{path.replace('__', '/')}": SimpleNamespace(sha256=hashlib.sha256(content).hexdigest())
        for path, content in digests.items()
    }
    initrd = SimpleNamespace(path=folder / "initrd")
    return cast(GuestBuild, SimpleNamespace(initrd=initrd, files=files))


def test_regular_files_are_read_back() -> None:
    assert dict(regular_files(ARCHIVE)) == {
        "/bin/busybox": b"program",
        "/empty": b"",
        "/init": b"#!/bin/sh\n",
    }


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_is_known_if_its_digest_is(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    made = build(tmp_path, pack(ARCHIVE), bin__busybox=b"program", init=b"another")
    files = InitramfsFiles(made)
    assert files.contents("/bin/busybox") == (b"program",)
    assert files.contents("/init") == ()
    assert files.contents("/bin/sh") == ()
    assert files.contents("/bin/busybox") == (b"program",)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "header"),
        (b"070702" + ARCHIVE[6:], "header"),
        (ARCHIVE[:14] + b"zzzzzzzz" + ARCHIVE[22:], "hexadecimal"),
        (ARCHIVE[:-130], "header|short"),
        (ARCHIVE[:54] + b"7FFFFFFF" + ARCHIVE[62:], "short"),
    ],
)
def test_a_damaged_archive_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        list(regular_files(data))
