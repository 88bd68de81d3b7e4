"""The installed system: verified packages, configured by mmdebstrap, as one tar archive.

mmdebstrap is given a repository that holds the verified package files and nothing else, so that
whatever it unpacks was verified by us.  Maintainer scripts run in a chroot (as root) or in a user
namespace (otherwise).
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from undercroft.base import FormatError
from undercroft.guests.debian.recipe import EARLY_FILES, REMOVED, OwnFile
from undercroft.guests.debian.tools import run
from undercroft.packages import VerifiedPackage

_AR_DATE = slice(8 + 16, 8 + 28)
"""Modification time of a package file's first member (deb(5), ar(5)), in ASCII digits."""


def source_date(packages: Iterable[VerifiedPackage]) -> int:
    """Return when the newest of ``packages`` was built, in seconds since 1970.

    Nothing in the guest is dated later.  Raises FormatError for something that is no package.
    """
    return max(_built(package) for package in packages)


def _built(package: VerifiedPackage) -> int:
    with package.path.open("rb") as stream:
        date = stream.read(_AR_DATE.stop)[_AR_DATE].strip()
    if not date.isdigit():
        raise FormatError("deb", _AR_DATE.start, "no date in the archive", got=repr(date))
    return int(date)


def own_files(files: Mapping[str, OwnFile], date: int) -> bytes:
    """Return a tar archive with ``files`` and the folders above them, owned by root."""
    buffer = io.BytesIO()
    folders = {str(parent)[1:] for path in files for parent in Path(path).parents} - {""}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(f"./{folder}")
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, date
            tar.addfile(entry)
        for path, file in sorted(files.items()):
            entry = tarfile.TarInfo(f".{path}")
            entry.mode, entry.mtime = file.mode, date
            if file.target:
                entry.type, entry.linkname = tarfile.SYMTYPE, file.target
                tar.addfile(entry)
            else:
                data = file.text.encode()
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _repository(packages: Iterable[VerifiedPackage], folder: Path) -> None:
    """Make a flat repository of ``packages`` (deb822, as apt reads it)."""
    stanzas = []
    for package in packages:
        name = re.sub(r"[^A-Za-z0-9.+~_-]", "_", package.path.name)
        shutil.copyfile(package.path, folder / name)  # a link would lead where apt may not read
        control = run(["dpkg-deb", "--field", str(package.path)]).decode().rstrip("\n")
        size = package.path.stat().st_size
        stanzas.append(f"{control}\nFilename: ./{name}\nSize: {size}\nSHA256: {package.sha256}\n")
    (folder / "Packages").write_text("\n".join(stanzas))


def make_tree(
    packages: Iterable[VerifiedPackage],
    files: Mapping[str, OwnFile],
    output: Path,
    *,
    codename: str,
    say: Callable[[str], None],
) -> None:
    """Install ``packages`` and put ``files`` in place; write the tree as the tar ``output``.

    Raises EnvironmentFault with what mmdebstrap said, FormatError.
    """
    packages = tuple(packages)
    date = source_date(packages)
    removed = " ".join(f'"$1"{pattern}' for pattern in REMOVED)
    with tempfile.TemporaryDirectory(prefix="undercroft-tree-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt reads it as another user
        (folder / "packages").mkdir()
        _repository(packages, folder / "packages")
        (folder / "early.tar").write_bytes(own_files(EARLY_FILES, date))
        (folder / "late.tar").write_bytes(own_files(files, date))
        say(f"installing {len(packages)} packages into the guest")
        run(
            [
                "mmdebstrap", "--verbose", f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
                "--variant=apt", "--format=tar",
                f"--include={','.join(package.name for package in packages)}",
                '--aptopt=APT::Install-Recommends "false"',
                f"--setup-hook=tar-in {folder}/early.tar /",
                f"--customize-hook=tar-in {folder}/late.tar /",
                f"--customize-hook=rm -rf {removed}",
                codename, str(output), f"deb [trusted=yes] copy://{folder}/packages ./",
            ],
            environment={"SOURCE_DATE_EPOCH": str(date), "TMPDIR": str(output.parent)},
        )  # fmt: skip
