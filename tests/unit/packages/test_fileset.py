"""From package names to a set of files: kept lists, states, advisories, and what is missing."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.ima import LinuxHash
from undercroft.packages.advisories import Advisory, parse_advisories
from undercroft.packages.archive import Archive
from undercroft.packages.fileset import (
    build_file_set,
    every_package,
    release_of,
    updated,
    with_dependencies,
)
from undercroft.packages.filestore import FileStore, Wanted, open_table, parse_installed
from undercroft.packages.index import PackagesIndex
from undercroft.packages.release import IndexEntry, UnverifiedRelease, VerifiedRelease
from undercroft.packages.states import Offer, states_of
from undercroft.reference.archive import PackageRecord
from undercroft.reference.model import PackageState

DATE = dt.datetime(2026, 1, 3, tzinfo=dt.UTC)
RELEASED = int(DATE.timestamp())
KEY = "main/binary-amd64/Packages"


def deb(name: str, version: str, content: bytes, made: int) -> bytes:
    def tar(files: dict[str, bytes]) -> bytes:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path, data in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return target.getvalue()

    control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n".encode()
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar", tar({"./control": control})),
        ("data.tar", tar({f"./usr/bin/{name}": content} if content else {})),
    )
    parts = [b"!<arch>\n"]
    for member, data in members:
        parts += [f"{member:<16}{made:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()]
        parts += [data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


class Mirror:
    """Packages and what a signed index says of them, without the signature."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "pool"
        self.folder.mkdir()
        self.stanzas: dict[str, list[str]] = {}

    def add(
        self,
        name: str,
        version: str,
        *,
        content: bytes = b"",
        made: int = 1,
        depends: str = "",
        suite: str = "bookworm",
    ) -> None:
        data = deb(name, version, content, made)
        (self.folder / f"{name}_{version}_amd64.deb").write_bytes(data)
        self.stanzas.setdefault(suite, []).append(
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}.deb\n"
            f"Size: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
            + (f"Depends: {depends}\n" if depends else "")
        )

    def indexes(self) -> tuple[PackagesIndex, ...]:
        found = []
        for suite, stanzas in self.stanzas.items():
            data = "\n".join(stanzas).encode()
            entry = IndexEntry(len(data), hashlib.sha256(data).hexdigest())
            release = UnverifiedRelease(
                "Debian", "Debian", suite, suite, "12", DATE, None, {KEY: entry}
            )
            found.append(PackagesIndex(data, VerifiedRelease(release, "ab" * 32, "CD" * 20), KEY))
        return tuple(found)


class OfferedArchive(Archive):
    """An archive whose lists are there already."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        super().__init__(folder / "apt", now=DATE, also=[mirror.folder])
        self._indexes = mirror.indexes()


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    mirror = Mirror(tmp_path)
    mirror.add("tool", "1", content=b"one", made=100, depends="lib (>= 1) | other, virtual")
    mirror.add("lib", "1", content=b"lib", made=50, depends="tool")
    mirror.add("meta", "1")
    return mirror


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "references")


def test_files_of_packages_and_their_dependencies(
    tmp_path: Path, mirror: Mirror, store: FileStore
) -> None:
    archive = OfferedArchive(tmp_path, mirror)
    wanted = with_dependencies(archive, [Wanted("tool")])
    assert wanted == (Wanted("lib"), Wanted("tool"))
    said: list[str] = []
    found = build_file_set("set", archive, store, wanted, say=said.append)
    assert said[-1] == "2 of 2 packages listed"
    assert found.references.archives == (found.table.id.hex(),)
    assert (found.references.states, found.missing) == ((), ())
    (row,) = found.table.at_path(b"/usr/bin/tool")
    assert row.digest == hashlib.sha256(b"one").digest()
    provenance = row.record.provenance
    assert (provenance.release_sha256, provenance.signer) == ("ab" * 32, "CD" * 20)
    assert every_package(archive) == (Wanted("lib"), Wanted("meta"), Wanted("tool"))
    assert release_of(archive) == "bookworm"


def test_a_list_is_made_once(tmp_path: Path, mirror: Mirror, store: FileStore) -> None:
    first = build_file_set("set", OfferedArchive(tmp_path, mirror), store, [Wanted("tool")])
    shutil.rmtree(mirror.folder)
    again = build_file_set("set", OfferedArchive(tmp_path, mirror), store, [Wanted("tool")])
    assert again.references == first.references


def test_package_files_are_discarded_only_in_the_archive_s_own_folder(
    tmp_path: Path, mirror: Mirror, store: FileStore
) -> None:
    archive = OfferedArchive(tmp_path, mirror)
    mine = tmp_path / "apt" / "packages"
    mine.mkdir(parents=True)
    (mirror.folder / "tool_1_amd64.deb").rename(mine / "tool_1_amd64.deb")
    store.collect(archive, [Wanted("tool"), Wanted("lib")], discard=True)
    assert not list(mine.iterdir())
    assert (mirror.folder / "lib_1_amd64.deb").is_file()


def test_a_damaged_list_is_made_again(tmp_path: Path, mirror: Mirror, store: FileStore) -> None:
    first = build_file_set("set", OfferedArchive(tmp_path, mirror), store, [Wanted("tool")])
    (path,) = (tmp_path / "references" / "lists" / "sha256").iterdir()
    path.write_bytes(path.read_bytes()[:-8])
    again = build_file_set("set", OfferedArchive(tmp_path, mirror), store, [Wanted("tool")])
    assert again.references == first.references


def test_what_is_missing_is_named(tmp_path: Path, mirror: Mirror, store: FileStore) -> None:
    wanted = [Wanted("tool"), Wanted("tool", "0"), Wanted("nobody"), Wanted("lib", "1", "arm64")]
    found = build_file_set("set", OfferedArchive(tmp_path, mirror), store, wanted)
    assert [str(one) for one in found.missing] == ["lib 1", "nobody", "tool 0"]
    for names in ([Wanted("nobody")], [Wanted("meta")]):
        with pytest.raises(EnvironmentFault, match="could be had"):
            build_file_set("set", OfferedArchive(tmp_path, mirror), store, names)


def test_no_lists_at_all_are_told(tmp_path: Path, mirror: Mirror, store: FileStore) -> None:
    mirror.stanzas.clear()
    archive = OfferedArchive(tmp_path, mirror)
    assert store.collect(archive, [Wanted("tool")]).missing == (Wanted("tool"),)


def test_an_upgrade_is_known_before_and_after(
    tmp_path: Path, mirror: Mirror, store: FileStore
) -> None:
    """The old version stays known when the archive has forgotten it, and says since when."""
    before = build_file_set("set", OfferedArchive(tmp_path, mirror), store, [Wanted("tool")])
    later = tmp_path / "later"
    later.mkdir()
    today = Mirror(later)
    today.add("tool", "2", content=b"two", made=900, depends="newlib")
    today.add("newlib", "1", content=b"new")
    archive = OfferedArchive(later, today)
    wanted = updated([before.table], archive)
    assert wanted == (Wanted("newlib"), Wanted("tool"), Wanted("tool", "1", "amd64"))
    after = build_file_set("set", archive, store, wanted)
    assert after.missing == ()
    assert {row.record.version for row in after.table.at_path(b"/usr/bin/tool")} == {"1", "2"}
    assert after.references.states == (PackageState("tool", "1", 900, "2"),)


def test_a_security_update_makes_the_old_version_vulnerable(
    tmp_path: Path, mirror: Mirror, store: FileStore
) -> None:
    mirror.add("tool", "1.1", content=b"fixed", made=200, suite="bookworm-security")
    archive = OfferedArchive(tmp_path, mirror)
    found = build_file_set("set", archive, store, [Wanted("tool", "1"), Wanted("tool")])
    (state,) = found.references.states
    assert (state.superseded, state.successor) == (200, "1.1")
    assert state.advisories == ("Debian bookworm-security: tool 1.1",)


def test_a_kernel_is_superseded_by_a_package_of_another_name(
    tmp_path: Path, mirror: Mirror, store: FileStore
) -> None:
    mirror.add("linux-image-6.1.0-9-amd64", "6.1.1-1", content=b"old", made=100)
    mirror.add("linux-image-6.1.0-10-amd64", "6.1.2-1", content=b"new", made=200)
    mirror.add("linux-image-6.1.0-10-cloud-amd64", "6.1.3-1", content=b"cloud", made=300)
    archive = OfferedArchive(tmp_path, mirror)
    names = ("linux-image-6.1.0-9-amd64", "linux-image-6.1.0-10-amd64")
    found = build_file_set("set", archive, store, map(Wanted, names))
    assert found.references.states == (PackageState(names[0], "6.1.1-1", 200, "6.1.2-1"),)


def record(version: str, made: int = 0, source: str = "src") -> PackageRecord:
    return PackageRecord("p", version, "amd64", "", made, source, version)


def states(
    records: Sequence[PackageRecord],
    offers: Sequence[Offer] = (),
    advisories: Sequence[Advisory] = (),
) -> tuple[PackageState, ...]:
    return states_of(records, {"p": offers}, advisories, "bookworm")


def test_since_when_a_version_is_superseded() -> None:
    # By the oldest newer one, at the earliest time that is known for that.
    assert states([record("1"), record("2", 70)], [Offer("2", 90), Offer("3", 80)]) == (
        PackageState("p", "1", 70, "3"),
        PackageState("p", "2", 80, "3"),
    )
    assert states([record("1")], [Offer("1", 5)]) == ()
    # Versions are compared as dpkg does.
    assert states([record("1.10")], [Offer("1.9", 5), Offer("1.10~rc1", 5)]) == ()


def test_advisories_by_source_release_and_version() -> None:
    fixed = [
        Advisory("DSA-1", "bookworm", "src", "2"),
        Advisory("DSA-2", "bookworm", "src", "1"),
        Advisory("DSA-3", "trixie", "src", "2"),
        Advisory("DSA-4", "bookworm", "other", "2"),
    ]
    assert states([record("1")], (), fixed) == (PackageState("p", "1", 0, "", ("DSA-1",)),)


LIST = b"""[21 Nov 2026] DSA-6001-1 openssl - security update
\t{CVE-2026-0001 CVE-2026-0002}
\t[bookworm] - openssl 3.0.19-1~deb12u1
\t[trixie] - openssl 3.5.4-1~deb13u2 (bug #1)
[20 Nov 2026] DLA-17-2 bind9 - regression update
\t[bullseye] - bind9 1:9.16.50-1
\tNOTE: a remark
[19 Nov 2026] DSA-5999 chromium - security update
\t[bookworm] - chromium <unfixed>
"""
TRACKER = b"""{"openssl": {"CVE-2026-0001": {"description": "x", "releases": {
 "bookworm": {"status": "resolved", "fixed_version": "3.0.19-1~deb12u1", "urgency": "high"},
 "sid": {"status": "open", "urgency": "high"},
 "trixie": {"status": "resolved", "fixed_version": "0"}}}}}"""


def test_the_list_of_advisories() -> None:
    assert parse_advisories(LIST) == (
        Advisory("DSA-6001-1", "bookworm", "openssl", "3.0.19-1~deb12u1"),
        Advisory("DSA-6001-1", "trixie", "openssl", "3.5.4-1~deb13u2"),
        Advisory("DLA-17-2", "bullseye", "bind9", "1:9.16.50-1"),
    )


def test_the_tracker_s_export() -> None:
    assert parse_advisories(TRACKER) == (
        Advisory("CVE-2026-0001", "bookworm", "openssl", "3.0.19-1~deb12u1"),
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no advisory in it"),
        (b"{}", "no advisory in it"),
        (b"{", "Input data was truncated"),
        (b'{"a": {"b": {"releases": {"c": {}}}}}', "status"),
        (b"\xff", "not UTF-8"),
        (b'{"a": "\xff"}', "tracker export"),
        (LIST.replace(b"DSA-6001-1", b"EVIL-1"), "no advisory"),
        (LIST.partition(b"\n")[2], "without advisory"),
        (LIST.replace(b"3.0.19-1~", b"3.0.19;1~"), "without advisory or version"),
        (TRACKER.replace(b"3.0.19-1~", b"3.0.19;1~"), "not a version"),
    ],
)
def test_advisories_that_are_none(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_advisories(data)


def test_too_many_advisories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.packages.advisories.MAX_SIZE", 10)
    with pytest.raises(FormatError, match="too large"):
        parse_advisories(LIST)


def test_what_a_machine_has_installed() -> None:
    status = (
        "Package: tool\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n"
        "Description: a\n b: c\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
        "Architecture: amd64\n"
    )
    assert parse_installed(status) == (Wanted("tool", "1", "amd64"),)
    assert parse_installed("tool\t1\tamd64\n\n") == (Wanted("tool", "1", "amd64"),)
    with pytest.raises(FormatError, match="no installed package"):
        parse_installed("")
    with pytest.raises(FormatError, match="not name, version"):
        parse_installed("tool\t1\n")


def test_a_table_has_to_be_the_one_of_its_name(tmp_path: Path, mirror: Mirror) -> None:
    store = FileStore(tmp_path / "references", LinuxHash.SHA256)
    table = build_file_set("s", OfferedArchive(tmp_path, mirror), store, [Wanted("tool")]).table
    assert store.open_table(table.id.hex()).id == table.id
    with pytest.raises(EnvironmentFault, match="is not here"):
        store.open_table("00" * 32)
    folder = tmp_path / "references" / "tables"
    path = folder / f"{table.id.hex()}.files"
    with pytest.raises(FormatError, match="another table"):
        open_table(path, "00" * 32)
    (folder / "empty").touch()
    with pytest.raises(FormatError, match="an empty file"):
        open_table(folder / "empty", "00" * 32)
    assert not list(folder.glob(".*"))
