"""The files of a package as IMA will name and hash them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from undercroft.base import FormatError, Grade
from undercroft.formats.ima import LinuxHash
from undercroft.packages import filelist
from undercroft.packages.filelist import list_files, merged_path
from undercroft.packages.verified import VerifiedPackage
from undercroft.reference.archive import FileFlag
from undercroft.reference.model import Provenance

CONTROL = b"Package: tool\nVersion: 1:2-3\nArchitecture: amd64\nSource: tools (2-3)\n"
MADE = 1_700_000_000


def ar(*members: tuple[str, bytes], date: str = str(MADE)) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members:
        header = f"{name:<16}{date:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        parts += [header.encode(), data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, other in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, other
            archive.addfile(member)
    return target.getvalue()


def package(
    folder: Path,
    data: bytes,
    control: dict[str, bytes] | None = None,
    *,
    date: str = str(MADE),
    stanza: bytes = CONTROL,
) -> VerifiedPackage:
    path = folder / "tool.deb"
    parts = tar({"./control": stanza, **(control or {})})
    path.write_bytes(
        ar(("debian-binary", b"2.0\n"), ("control.tar", parts), ("data.tar", data), date=date)
    )
    source = Provenance(
        Grade.PACKAGE, "tool", "1:2-3", "Debian bookworm main: pool/t.deb", "ab", "CD"
    )
    return VerifiedPackage("tool", "1:2-3", "amd64", path, "ef" * 32, source)


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


DATA = tar(
    {
        "./bin/tool": b"program",
        "./usr/share/doc/read me": b"words",
        "./etc/tool.conf": b"x = 1",
        "./etc/init.d/tool": b"#!/bin/sh",
    },
    {"./sbin/tool2": "./bin/tool"},
)


def test_files_links_scripts_and_conffiles(tmp_path: Path) -> None:
    conffiles = b"/etc/tool.conf\n"
    one = package(
        tmp_path, DATA, {"./conffiles": conffiles, "./postinst": b"#!", "./md5sums": b"x"}
    )
    listed = list_files(one, LinuxHash.SHA256)
    assert listed.files == (
        (b"/usr/bin/tool", sha256(b"program"), FileFlag.NONE),
        (b"/usr/share/doc/read_me", sha256(b"words"), FileFlag.NONE),
        (b"/etc/tool.conf", sha256(b"x = 1"), FileFlag.CONFFILE),
        (b"/etc/init.d/tool", sha256(b"#!/bin/sh"), FileFlag.NONE),
        (b"/usr/sbin/tool2", sha256(b"program"), FileFlag.NONE),
        (b"/var/lib/dpkg/info/tool.postinst", sha256(b"#!"), FileFlag.CONTROL),
        (b"/var/lib/dpkg/tmp.ci/postinst", sha256(b"#!"), FileFlag.CONTROL),
    )


def test_the_record_keeps_the_chain(tmp_path: Path) -> None:
    record = list_files(package(tmp_path, DATA), LinuxHash.SHA256).record
    assert record.provenance == package(tmp_path, DATA).provenance
    assert (record.package, record.version, record.architecture) == ("tool", "1:2-3", "amd64")
    assert (record.source, record.source_version) == ("tools", "2-3")
    assert (record.made, record.sha256) == (MADE, "ef" * 32)
    plain = CONTROL.replace(b"Source: tools (2-3)\n", b"")
    record = list_files(package(tmp_path, DATA, stanza=plain), LinuxHash.SHA256).record
    assert (record.source, record.source_version) == ("tool", "1:2-3")
    record = list_files(package(tmp_path, DATA, date="never"), LinuxHash.SHA256).record
    assert record.made == 0


def test_scripts_of_a_package_that_several_architectures_have(tmp_path: Path) -> None:
    stanza = CONTROL + b"Multi-Arch: same\n"
    one = package(tmp_path, tar({}), {"./prerm": b"#!"}, stanza=stanza)
    files = list_files(one, LinuxHash.SHA256).files
    assert files[0][0] == b"/var/lib/dpkg/info/tool:amd64.prerm"


@pytest.mark.parametrize(
    ("path", "merged"),
    [
        ("/bin/sh", "/usr/bin/sh"),
        ("/lib64/ld.so", "/usr/lib64/ld.so"),
        ("/lib/modules/x", "/usr/lib/modules/x"),
        ("/library/x", "/library/x"),
        ("/usr/bin/sh", "/usr/bin/sh"),
        ("/bin", "/usr/bin"),
        ("/etc/x", "/etc/x"),
    ],
)
def test_where_a_merged_machine_has_it(path: str, merged: str) -> None:
    assert merged_path(path) == merged


def test_another_algorithm(tmp_path: Path) -> None:
    files = list_files(package(tmp_path, DATA), LinuxHash.SHA1).files
    assert files[0][1] == hashlib.sha1(b"program").digest()


def refused(one: VerifiedPackage, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        list_files(one, LinuxHash.SHA256)


def test_a_package_that_is_no_package_or_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = CONTROL.replace(b"1:2-3", b"1:2-4")
    refused(package(tmp_path, DATA, stanza=other), "says that it is another")
    refused(package(tmp_path, DATA, stanza=b"\xff"), "not UTF-8")
    refused(package(tmp_path, tar({}, {"./x": "./y"})), "hard link to nothing")
    refused(package(tmp_path, DATA[:600]), "broken|cut short")
    refused(package(tmp_path, tar({"./../x": b""})), "leaves the package")
    one = package(tmp_path, DATA)
    monkeypatch.setattr(filelist, "MAX_FILE", 3)
    refused(one, "a file is too large")
    monkeypatch.setattr(filelist, "_CONTROL_LIMIT", 3)
    refused(one, "control part is too large")
    one.path.write_bytes(ar(("debian-binary", b"2.0\n"), ("data.tar", DATA)))
    refused(one, "not a package of format 2")
