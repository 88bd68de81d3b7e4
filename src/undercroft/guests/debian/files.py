"""The files of a Debian guest that no package has: made while it was built, or in its initrd."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from collections.abc import Iterable
from pathlib import Path

from undercroft.base import Digest, FormatError, HashAlgorithm
from undercroft.guests.cpio import read_cpio
from undercroft.guests.manifest import GuestBuild, GuestFile
from undercroft.packages import VerifiedPackage
from undercroft.packages.filestore import FileStore, Wanted
from undercroft.reference.archive_build import PackageFiles, ima_path
from undercroft.reference.model import Grade, Provenance, ReferenceSet, ReferenceValue

MAX_INITRD = 512 << 20

DRAWN = frozenset({"/etc/machine-id"})
"""What the guest draws by chance at its first boot: no content is the right one."""

_MADE = Provenance(
    Grade.BUILT, origin="Debian guest", note="made by packages' scripts when the guest was built"
)
_IN_INITRD = Provenance(
    Grade.BUILT, origin="Debian guest", note="in the initrd that initramfs-tools made"
)


def package_files(packages: Iterable[VerifiedPackage], store: FileStore) -> list[PackageFiles]:
    """Return path and digest of every file of ``packages``; each is read once and remembered."""
    return [
        store.earlier(Wanted(p.name, p.version, p.architecture)) or store.list_package(p)
        for p in packages
    ]


def made_files(tree: Path, packaged: Iterable[PackageFiles]) -> dict[str, GuestFile]:
    """Return the regular files of the tar ``tree`` that no package has with these bytes.

    What the guest draws itself (``DRAWN``) is left out.
    """
    known = {(path, digest) for one in packaged for path, digest, _ in one.files}
    found = {}
    with tarfile.open(tree) as tar:
        for entry in tar:
            path = "/" + entry.name.removeprefix("./")
            if not entry.isreg() or path in DRAWN or not (stream := tar.extractfile(entry)):
                continue
            digest = hashlib.sha256(stream.read()).digest()
            if (ima_path(path), digest) not in known:
                found[path] = GuestFile(digest.hex(), _MADE)
    return found


def file_references(build: GuestBuild, store: FileStore) -> ReferenceSet:
    """Return every file that ``build`` may run or read: packaged, made, and in its initrd.

    Raises FormatError for an initrd that cannot be read.
    """
    # What is in no package is in build.files; see GuestBuild.
    table = store.save_table(package_files(build.packages, store))
    inside = {
        path: (
            ReferenceValue(
                (Digest(HashAlgorithm.SHA256, hashlib.sha256(data).digest()),), path, _IN_INITRD
            ),
        )
        for path, data in initrd_files(build.initrd.path.read_bytes()).items()
    }
    return ReferenceSet(build.name, files=inside, archives=(table.id.hex(),))


def initrd_files(initrd: bytes) -> dict[str, bytes]:
    """Return the regular files of an initrd, compressed with gzip or not.  Raises FormatError."""
    if initrd[:2] == b"\x1f\x8b":
        try:
            initrd = gzip.decompress(initrd)
        except (OSError, EOFError) as error:
            raise FormatError("initrd", 0, f"gzip: {error}") from None
    if len(initrd) > MAX_INITRD:
        raise FormatError("initrd", 0, "too large", expected=MAX_INITRD, got=len(initrd))
    return read_cpio(initrd)
