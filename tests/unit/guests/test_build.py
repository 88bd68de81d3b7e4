"""The micro guest out of packages that the test makes up."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import pytest

from undercroft.base import EnvironmentFault
from undercroft.guests import micro
from undercroft.guests.build import build_micro
from undercroft.packages import Archive, Stanza, VerifiedPackage
from undercroft.reference.model import Grade, Provenance

FakePrograms = Callable[..., Path]
RELEASE = "6.1.0-9-cloud-amd64"
HEADERS = f"linux-headers-{RELEASE}"
COMMON = "linux-headers-6.1.0-9-common"


def deb(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(f".{path}")
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    members = (("debian-binary", b"2.0\n"), ("control.tar", b""), ("data.tar", target.getvalue()))
    return b"!<arch>\n" + b"".join(
        f"{name:<16}{'':<32}{len(data):<10}`\n".encode() + data for name, data in members
    )


class FakeArchive:
    """Packages by name: (depends, files)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages: dict[str, tuple[str, dict[str, bytes]]] = {
            "linux-image-cloud-amd64": (f"linux-image-{RELEASE} (= 6.1.9-1)", {}),
            f"linux-image-{RELEASE}": (
                "kmod", {f"/boot/vmlinuz-{RELEASE}": b"kernel", "/boot/config": b"x"}
            ),
            "busybox-static": ("", {"/bin/busybox": b"\x7fELF busybox", "/usr/share/x": b"doc"}),
            "ovmf": (
                "",
                {
                    "/usr/share/OVMF/OVMF_CODE_4M.fd": b"code",
                    "/usr/share/OVMF/OVMF_VARS_4M.fd": b"vars",
                },
            ),
            HEADERS: (
                f"{COMMON} (= 6.1.9-1), linux-kbuild-6.1 (>= 6.1.9-1), linux-compiler-gcc-12-x86",
                {f"/usr/src/{HEADERS}/Makefile": b"include"},
            ),
            COMMON: ("", {f"/usr/src/{COMMON}/Makefile": b"x", "/usr/share/doc/x": b"doc"}),
            "linux-kbuild-6.1": ("libc6 (>= 2.34), libelf1 (>= 0.142)", {"/usr/lib/k": b"x"}),
            "libelf1": ("", {"/usr/lib/x86_64-linux-gnu/libelf.so.1": b"x"}),
        }  # fmt: skip

    def find(self, name: str, version: str = "") -> tuple[Stanza, None]:
        if name not in self.packages:
            raise EnvironmentFault(f"no package {name}")
        depends, _ = self.packages[name]
        return Stanza(name, version or "6.1.9-1", "amd64", "f", 1, "ab" * 32, depends), None

    def fetch(self, name: str, version: str = "") -> VerifiedPackage:
        stanza, _ = self.find(name, version)
        data = deb(self.packages[name][1])
        path = self.folder / f"{name}.deb"
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        provenance = Provenance(Grade.PACKAGE, package=name, version=stanza.version)
        return VerifiedPackage(name, stanza.version, "amd64", path, digest, provenance)

    def fetch_all(self, names: list[str]) -> tuple[VerifiedPackage, ...]:
        return tuple(self.fetch(name) for name in names)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeArchive:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    folder = tmp_path / "debs"
    folder.mkdir()
    return FakeArchive(folder)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "adversaries"
    folder.mkdir()
    (folder / "Kbuild").write_text("obj-m := evil.o\n")
    (folder / "evil.c").write_text("int x;\n")
    return folder


def real(archive: FakeArchive) -> Archive:
    """The same object, as the type checker wants it."""
    return cast(Archive, archive)


# A make that "compiles" every source in M=..., and notes how it was called.
MAKE = """\
for word in "$@"; do case $word in M=*) folder=${word#M=};; esac; done
for source in "$folder"/*.c; do cp "$source" "${source%.c}.ko"; done
echo "$@" "$LD_LIBRARY_PATH" "MAKEFLAGS=$MAKEFLAGS" > "$(dirname "$0")/make.log"
"""


def test_every_file_has_digest_and_provenance(archive: FakeArchive, tmp_path: Path) -> None:
    built = build_micro(real(archive), tmp_path)
    assert built.kernel.path.read_bytes() == b"kernel"
    assert built.kernel.provenance.package == f"linux-image-{RELEASE}"
    assert built.firmware_code.path.read_bytes() == b"code"
    assert built.firmware_vars.path.read_bytes() == b"vars"
    assert built.kernel_release == RELEASE
    assert built.is_intact()
    busybox = built.files["/bin/busybox"]
    assert busybox.sha256 == hashlib.sha256(b"\x7fELF busybox").hexdigest()
    assert busybox.provenance.grade is Grade.PACKAGE
    init = built.files["/init"]
    assert init.sha256 == hashlib.sha256(micro.INIT.encode()).hexdigest()
    assert init.provenance.grade is Grade.BUILT
    assert not any(path.startswith("/adversaries") for path in built.files)
    assert b"\x7fELF busybox" in built.initrd.path.read_bytes()


def test_two_builds_are_equal(archive: FakeArchive, tmp_path: Path) -> None:
    one = build_micro(real(archive), tmp_path / "one")
    two = build_micro(real(archive), tmp_path / "two")
    assert one.initrd.sha256 == two.initrd.sha256
    left, right = (home / "builds" / "micro" for home in (tmp_path / "one", tmp_path / "two"))
    assert [(p.name, p.read_bytes()) for p in sorted(left.iterdir())] == [
        (p.name, p.read_bytes()) for p in sorted(right.iterdir())
    ]


def test_the_same_inputs_are_built_once(archive: FakeArchive, tmp_path: Path) -> None:
    first = build_micro(real(archive), tmp_path)
    before = first.initrd.path.stat().st_mtime_ns
    assert build_micro(real(archive), tmp_path) == first
    assert first.initrd.path.stat().st_mtime_ns == before
    # Another busybox: another folder, and the first build is still there.
    archive.packages["busybox-static"][1]["/bin/busybox"] = b"\x7fELF newer"
    second = build_micro(real(archive), tmp_path)
    assert second.initrd.path.parent != first.initrd.path.parent
    assert first.is_intact()
    assert (tmp_path / "builds" / "micro").resolve() == second.initrd.path.parent


def test_a_build_that_was_changed_is_refused(archive: FakeArchive, tmp_path: Path) -> None:
    build_micro(real(archive), tmp_path).initrd.path.write_bytes(b"evil")
    with pytest.raises(EnvironmentFault, match="changed afterwards"):
        build_micro(real(archive), tmp_path)


def test_adversaries_are_built_against_unpacked_headers(
    archive: FakeArchive,
    sources: Path,
    tmp_path: Path,
    programs: FakePrograms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "w")
    folder = programs(make=MAKE)
    said: list[str] = []
    built = build_micro(real(archive), tmp_path, adversaries=sources, say=said.append)
    module = built.files["/adversaries/evil.ko"]
    assert module.sha256 == hashlib.sha256(b"int x;\n").hexdigest()
    assert module.provenance.grade is Grade.BUILT
    assert "adversary" in module.provenance.note
    tree = tmp_path / "headers" / f"{HEADERS}_6.1.9-1"
    call = (folder / "make.log").read_text()
    assert f"-C {tree}/usr/src/{HEADERS} -f {tree}/usr/src/{COMMON}/Makefile" in call
    assert call.endswith(f"{tree}/usr/lib/x86_64-linux-gnu MAKEFLAGS=\n")
    assert not (tree / "usr" / "share").exists()
    assert "unpacking kernel headers" in said
    # Another source: the headers are there already.
    (sources / "evil.c").write_text("int y;\n")
    said.clear()
    build_micro(real(archive), tmp_path, adversaries=sources, say=said.append)
    assert said == ["compiling test adversaries", "building the guest"]


def test_adversaries_that_do_not_compile(
    archive: FakeArchive, sources: Path, tmp_path: Path, programs: FakePrograms
) -> None:
    programs(make="echo 'evil.c:1: error: no' >&2; exit 2")
    with pytest.raises(EnvironmentFault, match="do not compile") as caught:
        build_micro(real(archive), tmp_path, adversaries=sources)
    assert "evil.c:1" in caught.value.got
    assert not (tmp_path / "builds" / "micro").exists()


def test_without_make(
    archive: FakeArchive, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EnvironmentFault, match="make is not installed"):
        build_micro(real(archive), tmp_path, adversaries=sources)


def test_packages_of_another_shape(
    archive: FakeArchive, sources: Path, tmp_path: Path, programs: FakePrograms
) -> None:
    programs(make=MAKE)
    archive.packages[HEADERS] = ("nothing", {})
    with pytest.raises(EnvironmentFault, match="depends on something unexpected"):
        build_micro(real(archive), tmp_path, adversaries=sources)
    archive.packages["busybox-static"] = ("", {"/sbin/busybox": b"x"})
    with pytest.raises(EnvironmentFault, match="does not hold"):
        build_micro(real(archive), tmp_path)
    archive.packages["linux-image-cloud-amd64"] = ("linux-image-rt", {})
    with pytest.raises(EnvironmentFault, match="names no kernel package"):
        build_micro(real(archive), tmp_path)


def test_another_architecture(archive: FakeArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(EnvironmentFault, match="x86-64"):
        build_micro(real(archive), archive.folder)


def test_init_uses_only_what_is_in_the_archive() -> None:
    paths = {entry.path for entry in micro.initramfs_entries()}
    shell = {"export", "while", "do", "done", "exec", "[", ":"}
    for script in (micro.INIT, micro.WORKER):
        for line in script.splitlines():
            word = line.split()[0] if line.split() else ""
            if word and not word.startswith("#") and word not in shell:
                assert f"/bin/{word}" in paths, line
