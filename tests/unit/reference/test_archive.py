"""Tables of packaged files: what goes in comes out, damage is refused, look-ups are exact."""

from __future__ import annotations

import hashlib
import mmap
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import FormatError, Grade
from undercroft.formats.ima import LinuxHash
from undercroft.reference.archive import (
    HEADER,
    FileArchive,
    FileFlag,
    PackageRecord,
    parse_file_archive,
)
from undercroft.reference.archive_build import (
    PackageFiles,
    build_file_archive,
    ima_path,
    packages_of,
)

SHA256 = LinuxHash.SHA256


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def package(
    name: str, version: str, files: dict[str, bytes], flags: FileFlag = FileFlag.NONE
) -> PackageFiles:
    record = PackageRecord(
        name, version, "amd64", "ab" * 32, 1_700_000_000, name, version, Grade.PACKAGE,
        "Debian bookworm main: pool/x.deb", "cd" * 32, "EF" * 20,
    )  # fmt: skip
    rows = tuple((ima_path(path), digest(content), flags) for path, content in files.items())
    return PackageFiles(record, rows)


OLD = package("libc6", "2.36-9", {"/usr/lib/libc.so.6": b"old", "/usr/share/a": b""})
NEW = package("libc6", "2.36-10", {"/usr/lib/libc.so.6": b"new", "/usr/share/a": b""})
TOOLS = package(
    "coreutils", "9.1", {"/usr/bin/cat": b"cat", "/usr/bin/a b": b"spaced", "/usr/share/b": b""}
)
CONF = package("sudo", "1", {"/etc/sudoers": b"root"}, FileFlag.CONFFILE)
ALL = (OLD, NEW, TOOLS, CONF)
DATA = build_file_archive(ALL, SHA256)


def found(table: FileArchive, *asked: tuple[bytes, bytes]) -> list[str]:
    rows = table.look_up(
        np.frombuffer(b"".join(d for _, d in asked), np.uint8).reshape(len(asked), 32),
        [path + b"\0" for path, _ in asked],
    )
    return [f"{table.row(int(r)).record.version}" if r >= 0 else "-" for r in rows]


def test_every_file_is_found_with_its_package() -> None:
    table = parse_file_archive(DATA)
    assert (len(table), table.paths, table.packages) == (8, 6, 4)
    asked = [(path, value) for one in (OLD, NEW, TOOLS, CONF) for path, value, _ in one.files]
    rows = table.look_up(
        np.frombuffer(b"".join(d for _, d in asked), np.uint8).reshape(-1, 32),
        [path + b"\0" for path, _ in asked],
    )
    for row, (path, value) in zip(rows, asked, strict=True):
        assert (table.row(int(row)).path, table.row(int(row)).digest) == (path, value)
    assert table.at_path(b"/etc/sudoers")[0].flags is FileFlag.CONFFILE
    provenance = table.at_path(b"/usr/bin/a_b")[0].record.provenance
    assert (provenance.grade, provenance.signer) == (Grade.PACKAGE, "EF" * 20)


def test_path_and_content_have_to_belong_together() -> None:
    table = parse_file_archive(DATA)
    assert found(
        table,
        (b"/usr/lib/libc.so.6", digest(b"new")),
        (b"/usr/lib/libc.so.6", digest(b"cat")),
        (b"/usr/bin/cat", digest(b"new")),
        (b"/usr/bin/ca", digest(b"cat")),
        (b"/usr/bin/catt", digest(b"cat")),
        (b"/usr/bin/cat", digest(b"cat")),
    ) == ["2.36-10", "-", "-", "-", "-", "9.1"]
    assert len(table.look_up(np.zeros((0, 32), np.uint8), [])) == 0


def test_a_number_that_two_rows_share_is_no_match() -> None:
    """The digest's head and the path are right, the digest's tail is not."""
    table = parse_file_archive(DATA)
    near = digest(b"cat")[:31] + b"\0"
    assert found(table, (b"/usr/bin/cat", near)) == ["-"]


def test_what_is_known_of_a_path_and_of_a_content() -> None:
    table = parse_file_archive(DATA)
    assert {row.record.version for row in table.at_path(b"/usr/lib/libc.so.6")} == {
        "2.36-9",
        "2.36-10",
    }
    assert table.at_path(b"/usr/lib/libc.so") == ()
    assert table.at_path(b"/zzz") == ()
    assert [row.path for row in table.with_digest(digest(b""), 9)] == [
        b"/usr/share/a",
        b"/usr/share/a",
        b"/usr/share/b",
    ]
    assert len(table.with_digest(digest(b""), 2)) == 2
    assert table.with_digest(digest(b"?"), 9) == ()
    assert table.with_basename(b"cat", 3) == (b"/usr/bin/cat",)
    assert table.with_basename(b"", 3) == table.with_basename(b"x" * 5000, 3) == ()
    assert table.neighbours(b"/usr/bin/cau") == (b"/usr/bin/cat", b"/usr/lib/libc.so.6")
    assert table.neighbours(b"/a") == (b"/etc/sudoers",)
    assert table.neighbours(b"/zzz") == (b"/usr/share/b",)


def test_the_order_of_packages_changes_nothing() -> None:
    assert build_file_archive(reversed(ALL), SHA256) == DATA
    assert build_file_archive((*ALL, NEW), SHA256) == DATA
    assert build_file_archive(packages_of(parse_file_archive(DATA)), SHA256) == DATA


def test_a_table_is_mapped_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(DATA)
    with path.open("rb") as stream:
        table = parse_file_archive(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    assert table.data == parse_file_archive(DATA).data == DATA
    assert table.at_path(b"/usr/bin/cat")[0].digest == digest(b"cat")
    assert found(table, (b"/usr/bin/cat", digest(b"cat"))) == ["9.1"]


def test_digests_of_other_sizes() -> None:
    for algorithm in (LinuxHash.SHA1, LinuxHash.SHA512):
        value = hashlib.new(algorithm.label, b"x").digest()
        one = PackageFiles(TOOLS.record, ((b"/x", value, FileFlag.NONE),))
        table = parse_file_archive(build_file_archive([one], algorithm))
        assert (table.algorithm, table.at_path(b"/x")[0].digest) == (algorithm, value)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "shows nothing"),
        (((b"/x", b"short", FileFlag.NONE),), "has 32 bytes"),
        (((b"x", bytes(32), FileFlag.NONE),), "not a path"),
        (((b"/x\0", bytes(32), FileFlag.NONE),), "not a path"),
        (((b"/" + b"x" * 4096, bytes(32), FileFlag.NONE),), "not a path"),
    ],
)
def test_what_cannot_be_in_a_table(
    files: tuple[tuple[bytes, bytes, FileFlag], ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        build_file_archive([PackageFiles(TOOLS.record, files)], SHA256)


def renamed(body: bytes, head: bytes = DATA[: HEADER.size]) -> bytes:
    """Give a changed table the name that it then has."""
    return head[:-32] + hashlib.sha256(body).digest() + body


def edited(offset: int, layout: str, value: int) -> bytes:
    body = bytearray(DATA[HEADER.size :])
    struct.pack_into(layout, body, offset, value)
    return renamed(bytes(body))


# Offsets of the parts after the header, for 8 rows of SHA-256, 6 paths, 4 packages.
KEYS, DIGESTS, PATH, PACKAGE, FLAGS = 0, 64, 320, 352, 384
PATH_STARTS, PATH_ROWS, BY_PATH, BY_DIGEST, PACKAGE_STARTS, HEAP = 392, 448, 480, 512, 544, 584


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (b"x" + DATA[1:], "another format"),
        (DATA[:16] + b"\2" + DATA[17:], "another format"),
        (DATA[:18] + b"\xff\0" + DATA[20:], "do not compute"),
        (DATA[:18] + b"\3\0" + DATA[20:], "do not compute"),
        (DATA[:20] + b"\1" + DATA[21:], "another format"),
        (DATA[:24] + bytes(8) + DATA[32:], "out of bounds"),
        (DATA[:24] + b"\xff" * 8 + DATA[32:], "out of bounds"),
        (DATA[:48] + b"\xff" * 8 + DATA[56:], "heap is larger"),
        (DATA[:-1], "another size"),
        (DATA + b"\0", "another size"),
        (DATA[:200] + bytes([DATA[200] ^ 1]) + DATA[201:], "digest it is named by"),
        (edited(KEYS, "<Q", 2**64 - 1), "not in order"),
        (edited(PATH, "<I", 6), "a path that there is not"),
        (edited(PACKAGE, "<I", 4), "a package that there is not"),
        (edited(BY_PATH, "<I", 8), "a row that there is not"),
        (edited(BY_DIGEST, "<I", 8), "a row that there is not"),
        (edited(PATH_STARTS, "<Q", 1), "starts that are not in order"),
        (edited(PATH_STARTS + 48, "<Q", 1), "starts that are not in order"),
        (edited(PATH_ROWS + 4, "<I", 7), "starts that are not in order"),
        (edited(PACKAGE_STARTS + 8, "<Q", 2**40), "starts that are not in order"),
        (edited(BY_PATH, "<I", 7), "rows by path are not the rows"),
        (edited(HEAP, "<B", 0), "does not end where the next begins"),
        (edited(PATH_ROWS + 28, "<I", 1), "padding"),
    ],
)  # fmt: skip
def test_damage_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_file_archive(data)


def test_a_path_that_is_too_long_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.reference.archive_build.MAX_PATH", 5000)
    one = PackageFiles(TOOLS.record, ((b"/" + b"x" * 4096, bytes(32), FileFlag.NONE),))
    with pytest.raises(FormatError, match="too long"):
        parse_file_archive(build_file_archive([one], SHA256))


def test_a_package_that_cannot_be_read() -> None:
    at = DATA.index(b'{"package"') - HEADER.size
    table = parse_file_archive(edited(at, "<B", ord("[")))
    with pytest.raises(FormatError, match="package 0"):
        table.record(0)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_a_table_says_only_a_format_error_comes_of_it(data: st.DataObject) -> None:
    """Damage that is named by its own digest, as a liar would."""
    whole = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(16, len(whole) - 1))
        whole[at] = data.draw(st.sampled_from([0, 1, 7, 8, 0x7F, 0x80, 0xFF]))
    whole[HEADER.size - 32 : HEADER.size] = hashlib.sha256(whole[HEADER.size :]).digest()
    try:
        table = parse_file_archive(bytes(whole))
        list(table.records())
        list(map(table.row, range(len(table))))
    except FormatError:
        return
    table.at_path(b"/usr/bin/cat")
    table.with_digest(digest(b""), 3)
    table.with_basename(b"cat", 3)
    table.neighbours(b"/usr/bin/cat")
    found(table, (b"/usr/bin/cat", digest(b"cat")))


PATHS = st.lists(st.sampled_from([b"a", b"b", b"\xff"]), min_size=1, max_size=3).map(
    lambda parts: b"/" + b"/".join(parts)
)
FILES = st.dictionaries(PATHS, st.binary(min_size=32, max_size=32), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.lists(FILES, min_size=1, max_size=4))
def test_what_goes_in_comes_out(packages: list[dict[bytes, bytes]]) -> None:
    built = [
        PackageFiles(
            PackageRecord("p", str(number)),
            tuple((path, value, FileFlag.NONE) for path, value in files.items()),
        )
        for number, files in enumerate(packages)
    ]
    data = build_file_archive(built, SHA256)
    table = parse_file_archive(data)
    assert build_file_archive(packages_of(table), SHA256) == data
    for one in built:
        for path, value, _ in one.files:
            rows = table.at_path(path)
            assert any((r.digest, r.record) == (value, one.record) for r in rows)
            assert found(table, (path, value)) != ["-"]
