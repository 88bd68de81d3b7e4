"""The only module that reads configuration and names concrete classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.formats.kernel import KernelImage, KernelModule, load_kernel
from undercroft.formats.kernel import profile as kernel_profile
from undercroft.guests.filelibrary import file_library
from undercroft.guests.info import GuestInfo
from undercroft.guests.manifest import GuestBuild, load_build
from undercroft.guests.run import Guest as RunningGuest
from undercroft.packages.deb import read_deb
from undercroft.packages.filestore import FileStore
from undercroft.packages.profiles import ProfileStore
from undercroft.policy import Policy, parse_policy
from undercroft.reference.archive import FileArchive
from undercroft.reference.model import ReferenceSet
from undercroft.securekernel.guest import Guest
from undercroft.securekernel.hypervisor import dump, qemu
from undercroft.securekernel.linux.modules_text import ModuleLibrary
from undercroft.securekernel.linux.usercode import FileLibrary
from undercroft.service.accepted import AcceptedStates
from undercroft.service.casefile import read_tables
from undercroft.verify import profile_signature

_POLICIES = Path(__file__).parent / "policy" / "policies"


def home() -> Path:
    """Return the folder for guests, package caches and saved evidence.

    ``UNDERCROFT_HOME``, else ``$XDG_STATE_HOME/undercroft``, else ``~/.local/state/undercroft``.
    """
    if explicit := os.environ.get("UNDERCROFT_HOME"):
        return Path(explicit)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "undercroft"


def accepted_states() -> AcceptedStates:
    """Return what was accepted of each attestation key, kept under :func:`home`."""
    return AcceptedStates(home() / "verifier" / "accepted")


def reference_home() -> Path:
    """Return the folder for lists and tables of packaged files."""
    return home() / "references"


def policy_home() -> Path:
    """Return the folder that says whose policies are believed, and which were seen."""
    return home() / "policies"


def open_tables(references: ReferenceSet) -> tuple[FileArchive, ...]:
    """Map the tables of packaged files that ``references`` names.

    Raises EnvironmentFault if one is not in this home, FormatError if it is damaged.
    """
    return read_tables(references, reference_home() / "tables")


def shipped_policy(name: str) -> Policy:
    """Return a policy that comes with the program (``default``, ``direct-boot``)."""
    return parse_policy((_POLICIES / f"{name}.toml").read_text())


def no_modules(_name: str) -> KernelModule | None:
    """Give no module: the library of a kernel that is known by its vmlinuz alone."""
    return None


@dataclass(frozen=True, slots=True)
class KernelReference:
    """The kernel that a guest is meant to run, and its package's modules.

    ``profile`` is None if only a vmlinuz is known: then nothing can be said of any module.
    """

    image: KernelImage
    library: ModuleLibrary
    profile: kernel_profile.KernelProfile | None


@dataclass(frozen=True, slots=True)
class Target:
    """A guest to look at: how it is seen, what it is meant to run, what we know if it is ours.

    ``files`` is what its files are meant to hold, where that is known.
    """

    guest: Guest
    kernel: KernelReference
    info: GuestInfo | None
    files: FileLibrary | None = None

    @property
    def image(self) -> KernelImage:
        """The kernel that it is meant to run."""
        return self.kernel.image


def open_target(
    text: str, kernel: Path | None = None, keys: Sequence[bytes] | None = None
) -> Target:
    """Attach to ``text``: ``qemu:<name or pid>`` or ``dump:<file>``.

    ``kernel`` is the package (.deb), profile or vmlinuz of the kernel that the guest is meant to
    run, ``keys`` (PEM) whose profiles are believed; a guest of ours knows its own kernel.  Raises
    EnvironmentFault with what to do.
    """
    scheme, _, name = text.partition(":")
    if scheme == "dump" and name:
        reference = _named_kernel(kernel, text, keys)
        return Target(dump.DumpGuest(Path(name)), reference, None)
    if scheme != "qemu" or not name:
        raise EnvironmentFault(
            "not a target that can be attached to",
            expected="qemu:<name or pid> or dump:<file>",
            got=text,
            remedy="undercroft guest list",
        )
    if name.isdecimal():
        reference = _named_kernel(kernel, text, keys)
        return Target(qemu.attach(name), reference, None)
    info = RunningGuest.load(home(), name).info
    build = load_build(info.build.parent)
    reference = open_kernel(kernel, keys) if kernel is not None else _own_kernel(build)
    attached = qemu.attach(str(info.qmp), name=name)
    files = file_library(build, FileStore(reference_home()))
    return Target(attached, reference, info, files)


def _named_kernel(
    kernel: Path | None, target: str, keys: Sequence[bytes] | None
) -> KernelReference:
    """Load the kernel of a guest that we did not start: it has to be named."""
    if kernel is None:
        raise EnvironmentFault(
            "which kernel is this guest meant to run?",
            where=target,
            remedy="name its package or vmlinuz with --kernel",
        )
    return open_kernel(kernel, keys)


def _own_kernel(build: GuestBuild) -> KernelReference:
    """Return the kernel of a guest that we built, with the modules of the verified package."""
    name = f"linux-image-{build.kernel_release}"
    for package in build.packages:
        if package.name == name and package.path.is_file():
            profile = profiles().of_package(package.path, sha256=package.sha256)
            return KernelReference(profile.kernel, profile.module, profile)
    return KernelReference(load_kernel(read_kernel(build.kernel.path)), no_modules, None)


def profiles() -> ProfileStore:
    """Return the kernel profiles that were made here."""
    return ProfileStore(home() / "profiles")


def open_kernel(path: Path, keys: Sequence[bytes] | None = None) -> KernelReference:
    """Open a kernel's package (.deb), its profile, or its vmlinuz.

    A profile that was not made here has to be signed by one of ``keys`` (PEM); its signature
    stands beside it.  Raises EnvironmentFault, FormatError or VerificationError.
    """
    data = read_file(path)
    if data.startswith(b"!<arch>\n"):
        profile = profiles().of_package(path)
    elif data.startswith(kernel_profile.MAGIC):
        profile = kernel_profile.parse_profile(data)
        _check_profile(path, profile, keys)
    else:
        return KernelReference(load_kernel(data), no_modules, None)
    return KernelReference(profile.kernel, profile.module, profile)


def signature_path(profile: Path) -> Path:
    """Return where the signature of a profile stands."""
    return profile.with_name(f"{profile.name}.dsse")


def _check_profile(
    path: Path, profile: kernel_profile.KernelProfile, keys: Sequence[bytes] | None
) -> None:
    if keys is None and profiles().was_made_here(profile):
        return
    if not keys:
        raise VerificationError(
            "profile.signature",
            f"{path.name} was not made here, and nobody is named whose profiles are believed",
            remedy="name the maker's public key with --profile-key, or give the package itself",
        )
    envelope = read_file(signature_path(path))
    profile_signature.verify_profile(
        profile, envelope, [profile_signature.load_public_key(pem) for pem in keys]
    )


def read_file(path: Path) -> bytes:
    """Return what is in a file.  Raises EnvironmentFault if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(f"cannot read: {error.strerror}", where=str(path)) from error


def read_kernel(path: Path) -> bytes:
    """Return the vmlinuz at ``path``, or the one inside it if it is a .deb.

    Raises EnvironmentFault if it cannot be read, FormatError if the package has not exactly one.
    """
    data = read_file(path)
    if not data.startswith(b"!<arch>\n"):
        return data
    found = [e.data for e in read_deb(data, lambda name: name.startswith("/boot/vmlinuz-"))]
    if len(found) != 1:
        raise FormatError("kernel package", 0, "no single vmlinuz", expected=1, got=len(found))
    return found[0]
