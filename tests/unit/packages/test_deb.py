"""Package files: read whole, and refused in every broken form."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.packages import deb as deb_module
from undercroft.packages.deb import DebEntry, EntryKind, normal_path, read_ar, read_deb


def ar(*members: tuple[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        parts += [header.encode(), data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def info(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return target.getvalue()


def deb(data: bytes, name: str = "data.tar") -> bytes:
    return ar(("debian-binary", b"2.0\n"), ("control.tar.xz", b"x"), (name, data))


GOOD = tar(
    (info("./"), b""),
    (info("./usr/", tarfile.DIRTYPE, mode=0o755), b""),
    (info("./usr/true", mode=0o4755), b"program"),
    (info("./usr/link", tarfile.SYMTYPE, linkname="../true"), b""),
    (info("./usr/hard", tarfile.LNKTYPE, linkname="./usr/true"), b""),
)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("", bytes),
        (".xz", lzma.compress),
        (".gz", gzip.compress),
        (".zst", lambda data: zstandard.ZstdCompressor().compress(data)),
    ],
)
def test_entries_in_every_compression(suffix: str, compress: Callable[[bytes], bytes]) -> None:
    entries = list(read_deb(deb(compress(GOOD), f"data.tar{suffix}")))
    assert entries[1:] == [
        DebEntry("/usr", EntryKind.DIRECTORY, 0o755),
        DebEntry("/usr/true", EntryKind.FILE, 0o4755, data=b"program"),
        DebEntry("/usr/link", EntryKind.SYMLINK, 0o644, target="../true"),
        DebEntry("/usr/hard", EntryKind.HARDLINK, 0o644, target="/usr/true"),
    ]


def test_only_what_is_wanted() -> None:
    entries = read_deb(deb(GOOD), lambda path: path == "/usr/true")
    assert [entry.data for entry in entries] == [b"program"]


def test_members_of_odd_and_even_length() -> None:
    assert read_ar(ar(("a", b"123"), ("b/", b"12"))) == {"a": b"123", "b": b"12"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"!<arch>",
        b"!<arsh>\n",
        ar(("a", b"1"), ("a", b"2")),
        ar(("a", b"12"))[:-1],
        ar(("a", b"12")).replace(b"2         `", b"-2        `"),
        ar(("a", b"12")).replace(b"2         `", b"          `"),
        ar(("a", b"12")).replace(b"`\n", b"`x"),
        ar(("a", b"12")) + b"x",
        ar(("a", b"12")).replace(b"a   ", b"\xff   ", 1),
    ],
)
def test_a_broken_ar_archive(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_ar(data)


@pytest.mark.parametrize(
    "data",
    [
        ar(("debian-binary", b"2.0\n"), ("control.tar", b"")),
        ar(("debian-binary", b"3.0\n"), ("control.tar", b""), ("data.tar", GOOD)),
        ar(("control.tar", b""), ("debian-binary", b"2.0\n"), ("data.tar", GOOD)),
        ar(("debian-binary", b"2.0\n"), ("data.tar", GOOD), ("control.tar", b"")),
        deb(GOOD, "data.tar.bz9"),
        deb(GOOD, "data.tar.xz"),
        deb(lzma.compress(GOOD)[:-20], "data.tar.xz"),
        deb(gzip.compress(GOOD)[:-12], "data.tar.gz"),
        deb(GOOD[:700]),
        deb(GOOD[:200]),
        deb(tar((info("../etc/passwd"), b"x"))),
        deb(tar((info("usr/../../x"), b"x"))),
        deb(tar((info("./h", tarfile.LNKTYPE, linkname="../../etc/shadow"), b""))),
        deb(tar((info("./dev/x", tarfile.CHRTYPE), b""))),
        deb(tar((info("./fifo", tarfile.FIFOTYPE), b""))),
    ],
)
def test_a_broken_package(data: bytes) -> None:
    with pytest.raises(FormatError):
        list(read_deb(data))


def test_absolute_names_stay_inside() -> None:
    assert normal_path("/etc//passwd") == "/etc/passwd"
    assert normal_path("./") == "/"


def test_decompression_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = deb(lzma.compress(tar((info("./zero"), bytes(1 << 20)))), "data.tar.xz")
    assert list(read_deb(bomb))
    monkeypatch.setattr(deb_module, "MAX_UNPACKED", 1 << 19)
    with pytest.raises(FormatError, match="too large when decompressed"):
        list(read_deb(bomb))


def test_files_and_entries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb_module, "MAX_FILE", 6)
    with pytest.raises(FormatError, match="too large"):
        list(read_deb(deb(GOOD)))
    monkeypatch.setattr(deb_module, "MAX_ENTRIES", 2)
    with pytest.raises(FormatError, match="too many"):
        list(read_deb(deb(GOOD), lambda _path: False))


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8))
def test_only_format_errors_escape(at: int, noise: bytes) -> None:
    data = deb(GOOD)
    with contextlib.suppress(FormatError):
        list(read_deb(data[:at] + noise + data[at + len(noise) :]))
