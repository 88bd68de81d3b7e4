"""Joins it all: from package names to a disk that boots, with the provenance of each boot file."""

from __future__ import annotations

import hashlib
import re
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.guests.build import locked, point, write
from undercroft.guests.chain import Chain
from undercroft.guests.debian import biosboot, disk, recipe
from undercroft.guests.debian.files import made_files, package_files
from undercroft.guests.debian.tree import make_tree, source_date
from undercroft.guests.debian.uki import make_uki, sign_pe
from undercroft.guests.manifest import BuiltFile, GuestBuild, GuestFile, load_build, save_build
from undercroft.packages import Archive, VerifiedPackage, read_deb
from undercroft.packages.deb import EntryKind
from undercroft.packages.filestore import FileStore
from undercroft.reference.model import Grade, Provenance

_VERSION = "2"
"""Raise when this module makes something else of the same tree."""

_IMAGE = re.compile(r"linux-image-([a-z0-9.+-]+-cloud-amd64)")
_OVMF = {
    Chain.GRUB: ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
    Chain.UKI: ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.snakeoil.fd"),
}
TEST_PASSPHRASE = b"snakeoil"
"""Of the ovmf package's test key (its README.Debian tells it to everybody)."""
_OPTION_ROM = "/usr/share/qemu/kvmvapic.bin"
_SEABIOS = "/usr/share/seabios/bios-256k.bin"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Inputs:
    packages: tuple[VerifiedPackage, ...]
    firmware: VerifiedPackage
    emulator: VerifiedPackage | None
    release: str
    sources: str
    codename: str
    chain: Chain

    def package(self, name: str) -> VerifiedPackage:
        """Return the package called ``name``.  Raises EnvironmentFault."""
        for package in self.packages:
            if package.name == name:
                return package
        raise EnvironmentFault(f"the guest needs the package {name}, which nothing brought in")

    @property
    def own_files(self) -> dict[str, recipe.OwnFile]:
        """The files that no package has."""
        return {**recipe.EARLY_FILES, **recipe.late_files(self.sources)}

    @property
    def tree_digest(self) -> str:
        """A digest of everything that decides the installed system."""
        state = hashlib.sha256(f"{recipe.VERSION}\0{self.codename}\0".encode())
        for package in self.packages:
            state.update(package.sha256.encode())
        for path, file in sorted(self.own_files.items()):
            state.update(f"{path}\0{file.text}\0{file.mode}\0{file.target}\0".encode())
        return state.hexdigest()

    @property
    def digest(self) -> str:
        """A digest of everything that decides the disk and its firmware."""
        parts = (
            _VERSION, self.tree_digest, self.chain, self.firmware.sha256,
            self.emulator.sha256 if self.emulator else "", recipe.COMMAND_LINE,
            recipe.grub_redirect(), recipe.grub_config(self.release),
        )  # fmt: skip
        state = hashlib.sha256("\0".join(parts).encode())
        state.update(b"".join(disk.partition_table()))
        return state.hexdigest()


def _inputs(archive: Archive, chain: Chain, codename: str, sources: str) -> _Inputs:
    packages = archive.fetch_closure(recipe.PACKAGES)
    releases = [m[1] for p in packages if (m := _IMAGE.fullmatch(p.name))]
    if len(releases) != 1:
        raise EnvironmentFault("no single kernel package was brought in", got=releases)
    firmware = archive.fetch("seabios" if chain is Chain.LEGACY else "ovmf")
    # QEMU gives every PC an option ROM, and SeaBIOS measures it.
    emulator = archive.fetch("qemu-system-data") if chain is Chain.LEGACY else None
    return _Inputs(packages, firmware, emulator, releases[0], sources, codename, chain)


def build_debian(
    archive: Archive,
    home: Path,
    *,
    codename: str,
    sources: str,
    chain: Chain = Chain.GRUB,
    say: Say = lambda _text: None,
) -> GuestBuild:
    """Build a Debian guest under ``home/builds``, or return it if it is there already.

    ``codename`` is the release that ``archive`` holds; ``sources`` (deb822) is what apt inside
    the guest will ask.  Needs mmdebstrap, mtools, dosfstools, e2fsprogs and, unless run as root,
    fakeroot and user namespaces.  Equal packages and sources give equal bytes.

    Raises EnvironmentFault, VerificationError, FormatError.
    """
    say("choosing and verifying packages")
    inputs = _inputs(archive, chain, codename, sources)
    builds = home.absolute() / "builds"
    folder = builds / f"debian-{chain}-{inputs.digest[:12]}"
    with locked(builds):
        if not folder.is_dir():
            tree = _tree(inputs, builds, say)
            say("reading the packages' files")
            made = made_files(tree, package_files(inputs.packages, FileStore(home / "references")))
            with tempfile.TemporaryDirectory(dir=builds, prefix=".new-") as name:
                new = Path(name, folder.name)
                new.mkdir()
                say("making the disk")
                _build(inputs, tree, made, new)
                new.rename(folder)
        built = load_build(folder)
        if not built.is_intact():
            raise EnvironmentFault(
                "a built guest was changed afterwards",
                where=str(folder),
                remedy=f"remove {folder} and build again",
            )
        point(builds / f"debian-{chain}", folder)
    return built


def _tree(inputs: _Inputs, builds: Path, say: Say) -> Path:
    """Return the installed system, which the chains share, as a tar archive; make it once."""
    folder = builds / "trees"
    folder.mkdir(exist_ok=True)
    path = folder / f"{inputs.tree_digest[:12]}.tar"
    if not path.is_file():
        new = path.with_suffix(".new")
        files = recipe.late_files(inputs.sources)
        make_tree(inputs.packages, files, new, codename=inputs.codename, say=say)
        new.replace(path)
        for old in folder.glob("*.tar"):
            if old != path:
                old.unlink()
    return path


def tree_files(tree: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the regular files of a tar archive whose absolute path ``wanted`` accepts."""
    found: dict[str, bytes] = {}
    with tarfile.open(tree) as tar:
        for entry in tar:
            path = "/" + entry.name.removeprefix("./")
            if entry.isreg() and wanted(path) and (stream := tar.extractfile(entry)):
                found[path] = stream.read()
    return found


def packaged(package: VerifiedPackage, path: str) -> bytes:
    """Return the content of one file of a package.  Raises EnvironmentFault if it has none."""
    for entry in read_deb(package.path.read_bytes(), lambda name: name == path):
        if entry.kind is EntryKind.FILE:
            return entry.data
    raise EnvironmentFault(f"{package.name} {package.version} has no {path}")


def _build(inputs: _Inputs, tree: Path, made: Mapping[str, GuestFile], folder: Path) -> None:
    """Write every file of the build, and ``build.json``, into ``folder``."""
    ours = Provenance(Grade.BUILT, origin="Debian guest")
    kernel_package = inputs.package(f"linux-image-{inputs.release}")
    kernel_path = f"/boot/vmlinuz-{inputs.release}"
    initrd_path = f"/boot/initrd.img-{inputs.release}"
    kernel = packaged(kernel_package, kernel_path)
    in_tree = tree_files(tree, {kernel_path, initrd_path}.__contains__)
    if in_tree.get(kernel_path) != kernel or initrd_path not in in_tree:
        raise EnvironmentFault(
            "the installed kernel is not the package's", where=kernel_path, got=sorted(in_tree)
        )
    initrd = in_tree[initrd_path]
    made_initrd = Provenance(
        Grade.BUILT, origin=initrd_path, note="made by initramfs-tools when the guest was built"
    )
    boot, code_on_disk = _boot_files(inputs, kernel, initrd, tree)
    date = source_date(inputs.packages)
    config = recipe.grub_config(inputs.release).encode()
    extra = {"/boot/grub/grub.cfg": config, "/boot/efi/.keep": b""}
    disk.make_root(tree, folder / "root.ext4", date, extra)
    disk.make_esp({p: data for p, (_, data, _) in boot.items()}, folder / "esp.fat", date)
    disk.make_disk(folder / "esp.fat", folder / "root.ext4", folder / "disk.raw", *code_on_disk)
    (folder / "esp.fat").unlink()
    (folder / "root.ext4").unlink()
    boot_files = {name: write(folder / name, data, source) for name, data, source in boot.values()}
    boot_files["grub.cfg"] = write(folder / "grub.cfg", config, ours)
    with (folder / "disk.raw").open("rb") as stream:
        boot_files["gpt"] = write(folder / "gpt", stream.read(len(disk.partition_table()[0])), ours)
    if inputs.emulator is not None:
        rom = packaged(inputs.emulator, _OPTION_ROM)
        boot_files["option-rom"] = write(folder / "option-rom", rom, inputs.emulator.provenance)
    code, variables = _firmware(inputs)
    built = GuestBuild(
        name="debian",
        inputs=inputs.digest,
        kernel_release=inputs.release,
        kernel=write(folder / "vmlinuz", kernel, kernel_package.provenance),
        initrd=write(folder / "initrd", initrd, made_initrd),
        firmware_code=write(folder / "firmware.fd", code, inputs.firmware.provenance),
        firmware_vars=write(folder / "variables.fd", variables, inputs.firmware.provenance),
        command_line=recipe.COMMAND_LINE,
        files={**made, **_own_files(inputs, config, ours)},
        packages=(*inputs.packages, inputs.firmware),
        chain=inputs.chain,
        disk=_digested(folder / "disk.raw", ours),
        boot_files=boot_files,
    )
    save_build(built, folder)


def _digested(path: Path, provenance: Provenance) -> BuiltFile:
    with path.open("rb") as stream:
        return BuiltFile(path, hashlib.file_digest(stream, "sha256").hexdigest(), provenance)


def _firmware(inputs: _Inputs) -> tuple[bytes, bytes]:
    if inputs.chain is Chain.LEGACY:
        return packaged(inputs.firmware, _SEABIOS), b""
    code, variables = (f"/usr/share/OVMF/{name}" for name in _OVMF[inputs.chain])
    return packaged(inputs.firmware, code), packaged(inputs.firmware, variables)


_Files = dict[str, tuple[str, bytes, Provenance]]
"""The ESP's files by path: the name that the build keeps each under, its bytes, its source."""


def _boot_files(
    inputs: _Inputs, kernel: bytes, initrd: bytes, tree: Path
) -> tuple[_Files, tuple[bytes, bytes]]:
    """Return the ESP's files, and what lies on the disk outside of file systems."""
    if inputs.chain is Chain.GRUB:
        return _grub_files(inputs), (b"", b"")
    if inputs.chain is Chain.UKI:
        os_release = tree_files(tree, "/usr/lib/os-release".__eq__)["/usr/lib/os-release"]
        return _uki_files(inputs, kernel, initrd, os_release), (b"", b"")
    grub = [inputs.package(name) for name in biosboot.PACKAGES]
    code = biosboot.grub_for_bios(grub, recipe.grub_redirect(), disk.BIOS_BOOT_SECTOR)
    return {}, code


def _uki_files(inputs: _Inputs, kernel: bytes, initrd: bytes, os_release: bytes) -> _Files:
    """Return systemd-boot and a unified kernel image, signed with the firmware's test key.

    That key and its passphrase are public: this shows the chain and protects nothing.
    """
    systemd = inputs.package("systemd-boot-efi")
    folder = "/usr/lib/systemd/boot/efi"
    key = packaged(inputs.firmware, "/usr/share/ovmf/PkKek-1-snakeoil.key")
    certificate = packaged(inputs.firmware, "/usr/share/ovmf/PkKek-1-snakeoil.pem")
    loader = packaged(systemd, f"{folder}/systemd-bootx64.efi")
    image = make_uki(
        packaged(systemd, f"{folder}/linuxx64.efi.stub"),
        {
            ".osrel": os_release,
            ".cmdline": recipe.COMMAND_LINE.encode() + b"\0",
            ".linux": kernel,
            ".initrd": initrd,
        },
    )
    ours = Provenance(Grade.BUILT, origin="Debian guest", note="made of packages' files")
    signed = Provenance(
        Grade.BUILT, package=systemd.name, version=systemd.version, origin="Debian guest",
        note="the package's program, signed with the firmware package's test key",
    )  # fmt: skip
    return {
        "/EFI/BOOT/BOOTX64.EFI": (
            "systemd-boot", sign_pe(loader, key, certificate, TEST_PASSPHRASE), signed
        ),
        "/EFI/Linux/debian.efi": ("uki", sign_pe(image, key, certificate, TEST_PASSPHRASE), ours),
        "/loader/loader.conf": ("loader.conf", recipe.LOADER_CONFIG.encode(), ours),
    }  # fmt: skip


def _grub_files(inputs: _Inputs) -> _Files:
    shim, grub = inputs.package("shim-signed"), inputs.package("grub-efi-amd64-signed")
    ours = Provenance(Grade.BUILT, origin="Debian guest", note="leads GRUB to /boot/grub/grub.cfg")
    shim_efi = packaged(shim, "/usr/lib/shim/shimx64.efi.signed")
    grub_efi = packaged(grub, "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed")
    return {
        "/EFI/BOOT/BOOTX64.EFI": ("shim", shim_efi, shim.provenance),
        "/EFI/BOOT/grubx64.efi": ("grub", grub_efi, grub.provenance),
        "/EFI/debian/grub.cfg": ("esp-grub.cfg", recipe.grub_redirect().encode(), ours),
    }


def _own_files(inputs: _Inputs, config: bytes, ours: Provenance) -> Mapping[str, GuestFile]:
    own = inputs.own_files.items()
    contents = {path: file.text.encode() for path, file in own if not file.target}
    contents["/boot/grub/grub.cfg"] = config
    contents["/root/etc/fstab"] = contents["/etc/fstab"]  # as the initrd sees it
    return {p: GuestFile(hashlib.sha256(d).hexdigest(), ours) for p, d in contents.items()}
