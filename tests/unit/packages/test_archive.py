"""The whole chain over files on disk, with a transport that only hands them out."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.packages.apt import IndexTarget
from undercroft.packages.archive import Archive, Refresh
from undercroft.packages.release import FreshnessRule
from undercroft.reference.model import Grade

VECTORS = Path(__file__).parents[2] / "vectors" / "archive"
NOW = dt.datetime(2026, 1, 3, tzinfo=dt.UTC)
TRUE = b"true"  # its digest is in the Packages vector
assert hashlib.sha256(TRUE).hexdigest().startswith("b5bea41b")


class FakeTransport:
    """Hands out files of the vectors as apt would leave them."""

    def __init__(self, folder: Path) -> None:
        self.lists = folder / "lists"
        self.lists.mkdir()
        self.content = TRUE
        self.log: list[str] = []
        self.fault: EnvironmentFault | None = None
        self.release = "good.InRelease"
        self.suite = "bookworm"

    def configure(self) -> None:
        self.log.append("configure")

    def update(self) -> None:
        self.log.append("update")
        if self.fault:
            raise self.fault
        shutil.copy(VECTORS / "Packages", self.lists / "m_main_binary-amd64_Packages")
        shutil.copy(VECTORS / self.release, self.lists / "m_InRelease")

    def targets(self) -> tuple[IndexTarget, ...]:
        path = self.lists / "m_main_binary-amd64_Packages"
        target = IndexTarget("main/binary-amd64/Packages", self.suite, path)
        return (target,) if path.is_file() else ()

    def resolve(self, wanted: Sequence[str]) -> tuple[tuple[str, str], ...]:
        self.log.append(f"resolve {' '.join(wanted)}")
        return (("true", "1.0-1"),)

    def download(self, name: str, version: str, architecture: str, into: Path) -> Path:
        self.log.append(f"download {name} {version} {architecture}")
        into.mkdir(exist_ok=True)
        path = into / "fetched.deb"
        path.write_bytes(self.content)
        return path


@pytest.fixture
def transport(tmp_path: Path) -> FakeTransport:
    return FakeTransport(tmp_path)


def _archive(
    tmp_path: Path,
    transport: FakeTransport,
    *,
    now: dt.datetime = NOW,
    refresh: Refresh = Refresh.AUTO,
) -> Archive:
    (tmp_path / "apt" / "state").mkdir(parents=True, exist_ok=True)
    return Archive(
        tmp_path / "apt", now=now, refresh=refresh, apt=transport, rule=FreshnessRule(),
        keyring=VECTORS / "keyring.gpg",
    )  # fmt: skip


def test_a_package_with_its_chain(tmp_path: Path, transport: FakeTransport) -> None:
    package = _archive(tmp_path, transport).fetch("true", "1.0-1")
    assert (package.name, package.version, package.architecture) == ("true", "1.0-1", "amd64")
    assert package.path.read_bytes() == TRUE
    assert package.path.name == "true_1.0-1_amd64.deb"
    assert package.sha256 == hashlib.sha256(TRUE).hexdigest()
    source = package.provenance
    assert source.grade is Grade.PACKAGE
    assert source.origin == "Debian bookworm main: pool/main/t/true/true_1.0-1_amd64.deb"
    signed = (VECTORS / "good.InRelease").read_bytes()
    assert source.release_sha256 == hashlib.sha256(signed).hexdigest()
    assert len(source.signer) == 40


def test_a_release_with_a_detached_signature(tmp_path: Path, transport: FakeTransport) -> None:
    archive = _archive(tmp_path, transport)
    transport.update()
    (transport.lists / "m_InRelease").unlink()
    shutil.copy(VECTORS / "Release", transport.lists / "m_Release")
    transport.fault = EnvironmentFault("offline")
    with pytest.raises(EnvironmentFault, match="no Release file"):
        archive.fetch("true", "1.0-1")
    shutil.copy(VECTORS / "good.Release.gpg", transport.lists / "m_Release.gpg")
    assert archive.fetch("true", "1.0-1").provenance.signer


def test_the_newest_version_is_taken(tmp_path: Path, transport: FakeTransport) -> None:
    stanza, _ = _archive(tmp_path, transport).find("true")
    assert stanza.version == "1:0.9-1"


def test_a_package_that_nobody_offers(tmp_path: Path, transport: FakeTransport) -> None:
    with pytest.raises(EnvironmentFault, match="no package tru "):
        _archive(tmp_path, transport).fetch("tru")
    with pytest.raises(EnvironmentFault, match=r"no package true 2\.0"):
        _archive(tmp_path, transport).fetch("true", "2.0")


@pytest.mark.parametrize("content", [b"True", b"true "])
def test_a_package_that_is_another(
    tmp_path: Path, transport: FakeTransport, content: bytes
) -> None:
    transport.content = content
    with pytest.raises(VerificationError) as caught:
        _archive(tmp_path, transport).fetch("true", "1.0-1")
    assert caught.value.check == "archive.package"


def test_a_file_that_is_there_is_used_only_if_it_is_right(
    tmp_path: Path, transport: FakeTransport
) -> None:
    path = _archive(tmp_path, transport).fetch("true", "1.0-1").path
    _archive(tmp_path, transport).fetch("true", "1.0-1")
    assert [line for line in transport.log if "download" in line] == ["download true 1.0-1 amd64"]
    path.write_bytes(b"evil")
    assert _archive(tmp_path, transport).fetch("true", "1.0-1").path.read_bytes() == TRUE


def test_lists_are_fetched_once_a_day(tmp_path: Path, transport: FakeTransport) -> None:
    _archive(tmp_path, transport).find("true")
    _archive(tmp_path, transport).find("true")
    assert transport.log.count("update") == 1
    _archive(tmp_path, transport, refresh=Refresh.ALWAYS).find("true")
    assert transport.log.count("update") == 2
    stamp = tmp_path / "apt" / "state" / "updated"
    for age in (25 * 3600, -3600):  # old, and from the future
        when = stamp.stat().st_mtime - age
        os.utime(stamp, (when, when))
        _archive(tmp_path, transport).find("true")
    assert transport.log.count("update") == 4


def test_without_a_network_the_old_lists_do(tmp_path: Path, transport: FakeTransport) -> None:
    _archive(tmp_path, transport).find("true")
    transport.fault = EnvironmentFault("no network")
    assert _archive(tmp_path, transport, refresh=Refresh.ALWAYS).find("true")
    assert _archive(tmp_path, transport, refresh=Refresh.NEVER).find("true")


def test_without_a_network_and_lists_the_reason_is_told(
    tmp_path: Path, transport: FakeTransport
) -> None:
    transport.fault = EnvironmentFault("no network today")
    with pytest.raises(EnvironmentFault) as caught:
        _archive(tmp_path, transport).find("true")
    assert "no network today" in caught.value.got
    with pytest.raises(EnvironmentFault, match="no package lists"):
        _archive(tmp_path, transport, refresh=Refresh.NEVER).find("true")


def test_an_older_release_than_the_last_one_is_refused_across_runs(
    tmp_path: Path, transport: FakeTransport
) -> None:
    _archive(tmp_path, transport).find("true")
    seen = tmp_path / "apt" / "seen.json"
    seen.write_text('{"Debian/Debian/bookworm": "2026-01-02T03:04:06+00:00"}')
    with pytest.raises(VerificationError) as caught:
        _archive(tmp_path, transport).find("true")
    assert caught.value.check == "archive.rollback"
    assert "03:04:06" in seen.read_text()  # a refusal forgets nothing


@pytest.mark.parametrize("text", ["", "{", '{"x": 1}', '{"x": "yesterday"}', "[]"])
def test_a_broken_memory_is_not_an_empty_one(
    tmp_path: Path, transport: FakeTransport, text: str
) -> None:
    archive = _archive(tmp_path, transport)
    (tmp_path / "apt" / "seen.json").write_text(text)
    with pytest.raises(FormatError):
        archive.find("true")


@pytest.mark.parametrize(
    ("release", "suite", "now", "check"),
    [
        ("wrong-key.InRelease", "bookworm", NOW, "archive.signature"),
        ("expired-key.InRelease", "bookworm", NOW, "archive.signature"),
        ("tampered.InRelease", "bookworm", NOW, "archive.signature"),
        ("truncated.InRelease", "bookworm", NOW, "archive.signature"),
        ("unsigned.InRelease", "bookworm", NOW, "archive.signature"),
        ("good.InRelease", "trixie", NOW, "archive.suite"),
        ("good.InRelease", "bookworm", NOW - dt.timedelta(days=9), "archive.date"),
        ("good.InRelease", "bookworm", NOW + dt.timedelta(days=9), "archive.valid-until"),
    ],
)
def test_every_check_of_the_release_is_made(
    tmp_path: Path,
    transport: FakeTransport,
    release: str,
    suite: str,
    now: dt.datetime,
    check: str,
) -> None:
    transport.release, transport.suite = release, suite
    with pytest.raises(VerificationError) as caught:
        _archive(tmp_path, transport, now=now).fetch("true", "1.0-1")
    assert caught.value.check == check
    assert not (tmp_path / "apt" / "packages").exists()
    assert not (tmp_path / "apt" / "seen.json").exists()


def test_the_index_is_checked(tmp_path: Path, transport: FakeTransport) -> None:
    archive = _archive(tmp_path, transport)
    transport.update()
    transport.fault = EnvironmentFault("offline")
    with (transport.lists / "m_main_binary-amd64_Packages").open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(VerificationError) as caught:
        archive.find("true")
    assert caught.value.check == "archive.index"


def test_a_truncated_mirror_is_refused(tmp_path: Path, transport: FakeTransport) -> None:
    archive = _archive(tmp_path, transport)
    transport.update()
    transport.fault = EnvironmentFault("offline")
    path = transport.lists / "m_main_binary-amd64_Packages"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(VerificationError) as caught:
        archive.find("true")
    assert caught.value.check == "archive.index"
    transport.fault = None
    transport.content = TRUE[:3]
    with pytest.raises(VerificationError) as caught:
        _archive(tmp_path, transport, refresh=Refresh.ALWAYS).fetch("true", "1.0-1")
    assert caught.value.check == "archive.package"


def test_files_of_another_cache_are_taken_if_they_are_right(
    tmp_path: Path, transport: FakeTransport
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    file = cache / "true_1.0-1_amd64.deb"

    def fetched() -> Path:
        root = tmp_path / "apt"
        (root / "state").mkdir(parents=True, exist_ok=True)
        archive = Archive(
            root, now=NOW, apt=transport, rule=FreshnessRule(),
            keyring=VECTORS / "keyring.gpg", also=[tmp_path / "absent", cache],
        )  # fmt: skip
        return archive.fetch("true", "1.0-1").path

    file.write_bytes(TRUE)
    assert fetched() == file
    file.write_bytes(b"evil")
    assert fetched().parent == tmp_path / "apt" / "packages"
    assert file.read_bytes() == b"evil"


def test_what_apt_chooses_is_verified_like_anything_else(
    tmp_path: Path, transport: FakeTransport
) -> None:
    (package,) = _archive(tmp_path, transport).fetch_closure(["?essential"])
    assert (package.name, package.provenance.grade) == ("true", Grade.PACKAGE)
    assert transport.log[:3] == ["configure", "update", "resolve ?essential"]
