"""Builds the micro guest: kernel, firmware and busybox from packages, initramfs of our own.

The result names the digest and the provenance of every file, so that reference values follow
from the build and not from looking at a running guest.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.guests import micro
from undercroft.guests.adversaries import build_adversaries
from undercroft.guests.cpio import CpioEntry, file, write_cpio
from undercroft.guests.manifest import BuiltFile, GuestBuild, GuestFile, load_build, save_build
from undercroft.packages import Archive, VerifiedPackage, read_deb
from undercroft.reference.model import Grade, Provenance

META_PACKAGE = "linux-image-cloud-amd64"
_IMAGE = re.compile(r"(linux-image-([a-z0-9.+-]+-cloud-amd64)) \(= ([^)]+)\)")
_FIRMWARE = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")
_BUSYBOX = frozenset({"/bin/busybox", "/usr/bin/busybox"})
_BUILDER_VERSION = "1"
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
    for path in sorted(adversaries.glob("*")) if adversaries else ():
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
        *((file(f"/adversaries/{n}", data), origin[n]) for n, data in adversaries.items()),
    ]
    files = {
        entry.path: GuestFile(hashlib.sha256(entry.data).hexdigest(), provenance)
        for entry, provenance in sources
        if entry.data and entry.mode & 0o170000 == 0o100000
    }
    return write_cpio(entry for entry, _ in sources), files


def _write(path: Path, data: bytes, provenance: Provenance) -> BuiltFile:
    path.write_bytes(data)
    return BuiltFile(path, hashlib.sha256(data).hexdigest(), provenance)


def build_micro(
    archive: Archive,
    home: Path,
    *,
    adversaries: Path | None = None,
    say: Say = lambda _text: None,
) -> GuestBuild:
    """Build the micro guest under ``home/builds/micro``, or return it if nothing changed.

    ``adversaries`` is the folder with the sources of the test modules; without it the guest has
    none.  Equal inputs give equal bytes.  Raises EnvironmentFault, VerificationError, FormatError.
    """
    packages = _fetch(archive)
    folder = home / "builds" / "micro"
    inputs = _inputs_digest(packages, adversaries)
    if (folder / "build.json").is_file():
        previous = load_build(folder)
        if previous.inputs == inputs and previous.is_intact():
            return previous
    modules: dict[str, bytes] = {}
    origin: dict[str, Provenance] = {}
    if adversaries is not None:
        modules = build_adversaries(archive, home, packages.release, adversaries, say=say)
        origin = {
            name: Provenance(Grade.BUILT, origin=f"tests/adversaries/{Path(name).stem}.c",
                             note=f"test adversary, built for {packages.release}")
            for name in modules
        }  # fmt: skip
    say("building the guest")
    initrd, files = _initramfs(packages, modules, origin)
    kernel_path = f"/boot/vmlinuz-{packages.release}"
    kernel = _contents(packages.image, lambda path: path == kernel_path)[kernel_path]
    firmware = _contents(packages.firmware, _FIRMWARE.__contains__)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".micro-"))
    built = GuestBuild(
        name="micro",
        inputs=inputs,
        kernel_release=packages.release,
        kernel=_write(new / "vmlinuz", kernel, packages.image.provenance),
        initrd=_write(new / "initrd", initrd, Provenance(Grade.BUILT, origin="micro guest")),
        firmware_code=_write(
            new / "OVMF_CODE_4M.fd", firmware[_FIRMWARE[0]], packages.firmware.provenance
        ),
        firmware_vars=_write(
            new / "OVMF_VARS_4M.fd", firmware[_FIRMWARE[1]], packages.firmware.provenance
        ),
        command_line=micro.COMMAND_LINE,
        files=files,
        packages=tuple(p for p in (packages.image, packages.busybox, packages.firmware)),
    )
    save_build(built, new)
    if folder.exists():
        shutil.rmtree(folder)
    new.chmod(0o755)
    new.rename(folder)
    return load_build(folder)
