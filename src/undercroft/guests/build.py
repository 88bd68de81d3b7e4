"""Builds the micro guest: kernel, firmware and busybox from packages, initramfs of our own.

The result names the digest and the provenance of every file, so that reference values follow
from the build and not from looking at a running guest.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.guests import micro
from undercroft.guests.adversaries import build_adversaries, source_files, source_of
from undercroft.guests.cpio import CpioEntry, file, write_cpio
from undercroft.guests.manifest import BuiltFile, GuestBuild, GuestFile, load_build, save_build
from undercroft.packages import Archive, VerifiedPackage, read_deb
from undercroft.reference.model import Grade, Provenance

META_PACKAGE = "linux-image-cloud-amd64"
_IMAGE = re.compile(r"(linux-image-([a-z0-9.+-]+-cloud-amd64)) \(= ([^)]+)\)")
_FIRMWARE = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")
_BUSYBOX = frozenset({"/bin/busybox", "/usr/bin/busybox"})
_BUILDER_VERSION = "2"
"""Raise when this module builds something else from the same inputs."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Packages:
    release: str
    image: VerifiedPackage
    busybox: VerifiedPackage
    firmware: VerifiedPackage


def _fetch(archive: Archive) -> _Packages:
    if platform.machine() != "x86_64":
        raise EnvironmentFault(
            "the micro guest is for x86-64", expected="x86_64", got=platform.machine()
        )
    meta, _ = archive.find(META_PACKAGE)
    match = _IMAGE.search(meta.depends)
    if match is None:
        raise EnvironmentFault(f"{META_PACKAGE} names no kernel package", got=meta.depends)
    image, release, version = match.groups()
    return _Packages(
        release,
        archive.fetch(image, version),
        archive.fetch("busybox-static"),
        archive.fetch("ovmf"),
    )


def _contents(package: VerifiedPackage, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    found = {e.path: e.data for e in read_deb(package.path.read_bytes(), wanted) if e.data}
    if not found:
        raise EnvironmentFault(
            f"{package.name} {package.version} does not hold what the guest needs",
            where=str(package.path),
        )
    return found


def _inputs_digest(packages: _Packages, adversaries: Path | None) -> str:
    """Return a digest of everything that decides what the build gives."""
    state = hashlib.sha256(_BUILDER_VERSION.encode())
    for package in (packages.image, packages.busybox, packages.firmware):
        state.update(package.sha256.encode())
    state.update(write_cpio(micro.initramfs_entries()) + micro.COMMAND_LINE.encode())
    for path in source_files(adversaries) if adversaries else ():
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


def _initramfs(
    packages: _Packages, adversaries: Mapping[str, bytes], origin: Mapping[str, Provenance]
) -> tuple[bytes, dict[str, GuestFile]]:
    """Return the archive, and digest and provenance of each regular file in it."""
    busybox = _contents(packages.busybox, _BUSYBOX.__contains__)
    (program,) = busybox.values()
    ours = Provenance(Grade.BUILT, origin="initramfs of the micro guest")
    sources: list[tuple[CpioEntry, Provenance]] = [
        (file("/bin/busybox", program, mode=0o755), packages.busybox.provenance),
        *((entry, ours) for entry in micro.initramfs_entries()),
        *(
            (file(f"/adversaries/{n}", data, mode=0o644 if n.endswith(".ko") else 0o755), origin[n])
            for n, data in adversaries.items()
        ),
    ]
    files = {
        entry.path: GuestFile(hashlib.sha256(entry.data).hexdigest(), provenance)
        for entry, provenance in sources
        if entry.data and entry.mode & 0o170000 == 0o100000
    }
    return write_cpio(entry for entry, _ in sources), files


def write(path: Path, data: bytes, provenance: Provenance) -> BuiltFile:
    """Write a file of a build."""
    path.write_bytes(data)
    return BuiltFile(path, hashlib.sha256(data).hexdigest(), provenance)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def point(link: Path, folder: Path) -> None:
    """Let the symbolic link name ``folder``, its neighbour, from one moment to the next."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(folder.name)
    new.replace(link)


def build_micro(
    archive: Archive,
    home: Path,
    *,
    adversaries: Path | None = None,
    say: Say = lambda _text: None,
) -> GuestBuild:
    """Build the micro guest under ``home/builds``, or return it if it is there already.

    Each build has a folder of its own, named by what went in, which is never written again: a
    guest that runs keeps what it was started from.  ``builds/micro`` names the latest.
    ``adversaries`` is the folder with the sources of the test modules; without it the guest has
    none.  Equal inputs (and, for the modules, an equal compiler) give equal bytes.

    Raises EnvironmentFault, VerificationError, FormatError.
    """
    packages = _fetch(archive)
    inputs = _inputs_digest(packages, adversaries)
    builds = home.absolute() / "builds"
    folder = builds / f"micro-{inputs[:12]}"
    with locked(builds):
        if folder.is_dir():
            built = load_build(folder)
            if not built.is_intact():
                raise EnvironmentFault(
                    "a built guest was changed afterwards",
                    where=str(folder),
                    remedy=f"remove {folder} and build again",
                )
        else:
            modules: dict[str, bytes] = {}
            if adversaries is not None:
                modules = build_adversaries(archive, home, packages.release, adversaries, say=say)
            say("building the guest")
            with tempfile.TemporaryDirectory(dir=builds, prefix=".new-") as name:
                new = Path(name, folder.name)
                new.mkdir()
                _build(packages, modules, inputs, new)
                new.rename(folder)
            built = load_build(folder)
        point(builds / "micro", folder)
    return built


def _build(packages: _Packages, modules: Mapping[str, bytes], inputs: str, folder: Path) -> None:
    """Write every file of the build, and ``build.json``, into ``folder``."""
    origin = {
        name: Provenance(
            Grade.BUILT,
            origin=f"tests/adversaries/{source_of(name)}",
            note=f"test adversary, built for {packages.release}",
        )
        for name in modules
    }
    initrd, files = _initramfs(packages, modules, origin)
    kernel_path = f"/boot/vmlinuz-{packages.release}"
    kernel = _contents(packages.image, lambda path: path == kernel_path)[kernel_path]
    firmware = _contents(packages.firmware, _FIRMWARE.__contains__)
    code, variables = (firmware[path] for path in _FIRMWARE)
    firmware_from = packages.firmware.provenance
    built = GuestBuild(
        name="micro",
        inputs=inputs,
        kernel_release=packages.release,
        kernel=write(folder / "vmlinuz", kernel, packages.image.provenance),
        initrd=write(folder / "initrd", initrd, Provenance(Grade.BUILT, origin="micro guest")),
        firmware_code=write(folder / "OVMF_CODE_4M.fd", code, firmware_from),
        firmware_vars=write(folder / "OVMF_VARS_4M.fd", variables, firmware_from),
        command_line=micro.COMMAND_LINE,
        files=files,
        packages=(packages.image, packages.busybox, packages.firmware),
    )
    save_build(built, folder)
