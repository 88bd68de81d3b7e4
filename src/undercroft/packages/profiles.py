"""Kernel profiles that were made here, kept by the digest of the package each was made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.formats.kernel.profile import VERSION, KernelProfile, parse_profile
from undercroft.packages.deb import EntryKind, read_deb
from undercroft.packages.kernel_profile import build_profile, package_identity

SHIM_PACKAGE = "shim-unsigned"
_SHIM_CERTIFICATES = "/usr/share/shim/"


def shim_certificates(deb: bytes) -> list[bytes]:
    """Return the certificates (DER) that a package of shim trusts with kernels.

    Debian's shim-unsigned has the distribution's Secure Boot CA as a file beside the program
    that it is built into.  Raises FormatError if there is none.
    """
    found = [
        entry.data
        for entry in read_deb(
            deb, lambda path: path.startswith(_SHIM_CERTIFICATES) and path.endswith(".der")
        )
        if entry.kind is EntryKind.FILE
    ]
    if not found:
        raise FormatError("shim package", 0, f"there is no certificate in {_SHIM_CERTIFICATES}")
    return found


class ProfileStore:
    """The folder with the profiles.  It is trusted: whoever writes there decides what is good."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of_package(
        self,
        deb: Path,
        *,
        sha256: str = "",
        anchors: Sequence[bytes] = (),
        say: Callable[[str], None] = lambda _text: None,
    ) -> KernelProfile:
        """Return the profile of a kernel package; make it if it is not there yet.

        Every module's signature is verified when it is made, and the vmlinuz's if ``anchors``
        (DER certificates) say whom to trust.  ``sha256`` is what the package must have.  Raises
        EnvironmentFault, FormatError and VerificationError.
        """
        try:
            data = deb.read_bytes()
        except OSError as error:
            raise EnvironmentFault(
                f"cannot read the package: {error.strerror}", where=str(deb)
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        if sha256 and digest != sha256:
            raise VerificationError(
                "archive.package",
                f"{deb.name} is not the package that was verified",
                expected=sha256,
                got=digest,
            )
        trusted = f"-{hashlib.sha256(b''.join(anchors)).hexdigest()[:16]}" if anchors else ""
        kept = self._folder / f"{digest}-{VERSION}{trusted}.profile"
        try:
            return parse_profile(kept.read_bytes())
        except (FileNotFoundError, FormatError):
            say("verifying the modules of the kernel's package")
        made = build_profile(data, package_identity(data), anchors)
        self._folder.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(f".{os.getpid()}")
        new.write_bytes(made)
        new.rename(kept)
        profile = parse_profile(made)
        self.remember(profile)
        return profile

    def remember(self, profile: KernelProfile) -> None:
        """Note that a profile was made here: it needs no signature to be believed here."""
        self._mark(profile).parent.mkdir(parents=True, exist_ok=True)
        self._mark(profile).touch()

    def was_made_here(self, profile: KernelProfile) -> bool:
        """Tell whether :meth:`remember` was told of it."""
        return self._mark(profile).is_file()

    def _mark(self, profile: KernelProfile) -> Path:
        return self._folder / "made-here" / profile.id
