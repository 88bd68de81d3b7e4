from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from undercroft.base import FormatError
from undercroft.packages.unpack import unpack
from undercroft.packages.verified import VerifiedPackage
from undercroft.reference.model import Grade, Provenance


def _package(folder: Path, *members: tuple[str, bytes, str, bytes]) -> VerifiedPackage:
    """A package with members (name, tar type, link name, data)."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, kind, link, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(data)
            member.mode = 0o4755
            archive.addfile(member, io.BytesIO(data))
    parts = (("debian-binary", b"2.0\n"), ("control.tar", b""), ("data.tar", target.getvalue()))
    path = folder / f"{len(list(folder.iterdir()))}.deb"
    path.write_bytes(
        b"!<arch>\n"
        + b"".join(f"{n:<16}{'':<32}{len(d):<10}`\n".encode() + d + b"\n" * (len(d) % 2)
                   for n, d in parts)
    )  # fmt: skip
    return VerifiedPackage("p", "1", "all", path, "", Provenance(Grade.PACKAGE))


FILE, SYMLINK, HARDLINK = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_files_links_and_modes(tmp_path: Path) -> None:
    one = _package(tmp_path, ("./usr/a", FILE, "", b"1"), ("./usr/h", HARDLINK, "./usr/a", b""))
    two = _package(tmp_path, ("./lib", SYMLINK, "usr", b""), ("./usr/b", FILE, "", b"2"))
    unpack([one, two], tmp_path / "root", lambda path: path != "/usr/b")
    root = tmp_path / "root"
    assert (root / "lib" / "a").read_bytes() == b"1"
    assert (root / "usr" / "a").samefile(root / "usr" / "h")
    assert (root / "usr" / "a").stat().st_mode & 0o7777 == 0o755
    assert not (root / "usr" / "b").exists()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    package = _package(
        tmp_path, ("./out", SYMLINK, str(outside), b""), ("./out/x", SYMLINK, "y", b"")
    )
    with pytest.raises(FormatError, match="behind a link"):
        unpack([package], tmp_path / "root")
    assert list(outside.iterdir()) == []


def test_one_place_for_two_files_is_refused(tmp_path: Path) -> None:
    package = _package(tmp_path, ("./a", FILE, "", b"1"))
    with pytest.raises(FormatError, match="one file"):
        unpack([package, package], tmp_path / "root")


def test_a_link_where_a_file_is_is_refused(tmp_path: Path) -> None:
    package = _package(tmp_path, ("./a", FILE, "", b"1"), ("./a", SYMLINK, "b", b""))
    with pytest.raises(FormatError, match="taken"):
        unpack([package], tmp_path / "root")


def test_a_hard_link_to_nothing_is_refused(tmp_path: Path) -> None:
    package = _package(tmp_path, ("./a", HARDLINK, "./none", b""))
    with pytest.raises(FormatError, match="nothing"):
        unpack([package], tmp_path / "root")
