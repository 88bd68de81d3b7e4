"""The files of a build, read back from its initramfs."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from undercroft.base import FormatError
from undercroft.guests.cpio import character_device, directory, file, symlink, write_cpio
from undercroft.guests.filelibrary import (
    InitramfsFiles,
    PackagedFiles,
    file_library,
    regular_files,
)
from undercroft.guests.manifest import GuestBuild
from undercroft.packages.filestore import FileStore
from undercroft.packages.verified import VerifiedPackage
from undercroft.reference.model import Grade, Provenance

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


def deb(files: dict[str, bytes]) -> bytes:
    """Return a package with these files."""

    def tar(content: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, data in content.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        return stream.getvalue()

    control = b"Package: tool\nVersion: 1\nArchitecture: amd64\n"
    members = {
        "debian-binary": b"2.0\n",
        "control.tar": tar({"./control": control}),
        "data.tar": tar({f".{name}": data for name, data in files.items()}),
    }
    made = b"!<arch>\n"
    for name, data in members.items():
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        made += data + b"\n" * (len(data) % 2)
    return made


def package(path: Path, data: bytes) -> VerifiedPackage:
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return VerifiedPackage("tool", "1", "amd64", path, digest, Provenance(Grade.PACKAGE))


def test_files_are_taken_out_of_their_package(tmp_path: Path) -> None:
    """The package says /bin/tool; the kernel, on a merged /usr, names it /usr/bin/tool."""
    made = package(tmp_path / "tool.deb", deb({"/bin/tool": b"program", "/usr/share/x": b"text"}))
    files = PackagedFiles([made], FileStore(tmp_path))
    assert files.contents("/usr/bin/tool") == (b"program",)
    assert files.contents("/usr/share/x") == (b"text",)
    assert files.contents("/usr/bin/other") == ()
    made.path.unlink()  # it is remembered
    assert files.contents("/usr/bin/tool") == (b"program",)


def test_a_package_that_was_changed_since_is_not_believed(tmp_path: Path) -> None:
    made = package(tmp_path / "tool.deb", deb({"/usr/bin/tool": b"program"}))
    files = PackagedFiles([made], FileStore(tmp_path))
    assert files.contents("/none") == ()  # listed, while it still was what was verified
    made.path.write_bytes(deb({"/usr/bin/tool": b"another"}))
    assert files.contents("/usr/bin/tool") == ()


def test_a_guest_with_a_disk_has_its_packages(tmp_path: Path) -> None:
    made = build(tmp_path, ARCHIVE)
    store = FileStore(tmp_path)
    for disk, kind in ((None, InitramfsFiles), (SimpleNamespace(), PackagedFiles)):
        guest = SimpleNamespace(disk=disk, packages=(), initrd=made.initrd, files={})
        assert isinstance(file_library(cast(GuestBuild, guest), store), kind)
