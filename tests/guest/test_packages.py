"""The real archive through this machine's apt, and what becomes of it when one byte changes."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import pytest

from undercroft.base import VerificationError
from undercroft.guests.manifest import GuestBuild
from undercroft.packages import Archive, EntryKind, Refresh, read_deb
from undercroft.reference.model import Grade

pytestmark = pytest.mark.guest


@pytest.fixture
def copied(guest_home: Path, micro_build: GuestBuild, tmp_path: Path) -> Path:
    """A copy of what apt fetched for the micro guest, to be spoiled."""
    for name in ("state", "etc"):
        shutil.copytree(guest_home / "apt" / name, tmp_path / "apt" / name)
    shutil.copytree(guest_home / "apt" / "packages", tmp_path / "apt" / "packages")
    return tmp_path / "apt"


def _archive(root: Path) -> Archive:
    return Archive(root, now=dt.datetime.now(dt.UTC), refresh=Refresh.NEVER)


def test_the_guest_is_made_of_verified_packages(micro_build: GuestBuild, copied: Path) -> None:
    archive = _archive(copied)
    for package in micro_build.packages:
        assert package.provenance.grade is Grade.PACKAGE
        again = archive.fetch(package.name, package.version)
        assert (again.sha256, again.provenance) == (package.sha256, package.provenance)
        assert all(len(text) in (40, 64) for text in (again.provenance.signer, again.sha256))


def test_a_real_package_is_read(micro_build: GuestBuild) -> None:
    busybox = next(p for p in micro_build.packages if p.name == "busybox-static")
    entries = {entry.path: entry for entry in read_deb(busybox.path.read_bytes())}
    program = entries.get("/bin/busybox") or entries["/usr/bin/busybox"]
    assert program.kind is EntryKind.FILE
    assert program.data.startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("pattern", "check"), [("*_InRelease", "archive.signature"), ("*_Packages", "archive.index")]
)
def test_one_changed_byte_in_the_lists(copied: Path, pattern: str, check: str) -> None:
    path = min((copied / "state" / "lists").glob(pattern), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    at = data.index(b"Version: ") + len(b"Version: ")
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError) as caught:
        _archive(copied).find("busybox-static")
    assert caught.value.check == check
