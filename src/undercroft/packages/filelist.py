"""What a package puts on a machine, as IMA will measure it: path and digest of every file.

Files are hashed as they stream out of the package; nothing is written.  Maintainer scripts are
files too: dpkg unpacks the control part next to its database and runs them from there.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping

from undercroft.base import FormatError
from undercroft.formats.ima import LinuxHash
from undercroft.packages.deb import MAX_FILE, ar_date, normal_path, read_ar, walk_member
from undercroft.packages.deb822 import parse_stanza
from undercroft.packages.verified import VerifiedPackage
from undercroft.reference.archive import FileFlag, PackageRecord
from undercroft.reference.archive_build import PackageFiles, ima_path

_CHUNK = 1 << 20
_CONTROL_LIMIT = 16 << 20
_DPKG = "/var/lib/dpkg"

MERGED = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
"""Directories that are links into /usr on a machine of today (Debian: since bookworm, all)."""

_NOT_INSTALLED = frozenset({"control", "md5sums", "conffiles"})
"""Members of the control part that are not programs; ``control`` goes into dpkg's status."""


def merged_path(path: str) -> str:
    """Return where ``path`` of a package lies on a machine with a merged /usr.

    A package may still say /lib/x; the kernel names files by where they are, /usr/lib/x.
    """
    head = path[: path.find("/", 1)] if path.count("/") > 1 else path
    return "/usr" + path if head in MERGED else path


def list_files(package: VerifiedPackage, algorithm: LinuxHash) -> PackageFiles:
    """Return what is in ``package``.  Raises FormatError, and OSError if it cannot be read."""
    data = package.path.read_bytes()
    members = read_ar(data)
    names = list(members)
    if len(names) != 3 or not names[1].startswith("control.tar"):
        raise FormatError("deb", 0, "not a package of format 2", got=", ".join(names)[:200])
    control = dict(walk_member(names[1], members[names[1]], _content))
    stanza = parse_stanza(_text(control, "/control"), "deb control")
    if (said := (stanza.get("package"), stanza.get("version"))) != (package.name, package.version):
        raise FormatError("deb", 0, "the package says that it is another", got=said)
    conffiles = {line.strip() for line in _text(control, "/conffiles").split("\n")}
    files = [
        (
            ima_path(merged_path(path)),
            digest,
            FileFlag.CONFFILE if path in conffiles else FileFlag.NONE,
        )
        for path, digest in _hashes(names[2], members[names[2]], algorithm)
    ]
    files += _scripts(package, stanza.get("multi-arch") == "same", control, algorithm)
    return PackageFiles(_record(package, stanza, ar_date(data)), tuple(files))


def _record(package: VerifiedPackage, stanza: Mapping[str, str], made: int) -> PackageRecord:
    source, _, its_version = stanza.get("source", package.name).partition(" ")
    provenance = package.provenance
    return PackageRecord(
        package.name,
        package.version,
        package.architecture,
        package.sha256,
        made,
        source,
        its_version.strip("()") or package.version,
        provenance.grade,
        provenance.origin,
        provenance.release_sha256,
        provenance.signer,
        provenance.note,
    )


def _content(member: tarfile.TarInfo, tar: tarfile.TarFile) -> tuple[str, bytes] | None:
    """Read an entry of the control part whole: they are small."""
    if not member.isreg():
        return None
    if member.size > _CONTROL_LIMIT:
        raise FormatError("deb", 0, "a file of the control part is too large", got=member.name)
    stream = tar.extractfile(member)
    return normal_path(member.name), stream.read() if stream else b""


def _text(control: Mapping[str, bytes], name: str) -> str:
    try:
        return control.get(name, b"").decode()
    except UnicodeDecodeError as error:
        raise FormatError("deb", error.start, f"{name} is not UTF-8") from error


def _scripts(
    package: VerifiedPackage, qualified: bool, control: Mapping[str, bytes], algorithm: LinuxHash
) -> Iterator[tuple[bytes, bytes, FileFlag]]:
    """Yield maintainer scripts where dpkg keeps and runs them, installed and being installed.

    dpkg ``lib/dpkg/db-fsys-files.c``, pkg_infodb_get_file: a package of which several
    architectures may be installed has the architecture in its name.
    """
    name = f"{package.name}:{package.architecture}" if qualified else package.name
    for path, content in control.items():
        member = path[1:]
        if member in _NOT_INSTALLED:
            continue
        digest = hashlib.new(algorithm.label, content).digest()
        yield ima_path(f"{_DPKG}/info/{name}.{member}"), digest, FileFlag.CONTROL
        yield ima_path(f"{_DPKG}/tmp.ci/{member}"), digest, FileFlag.CONTROL


def _hashes(name: str, data: bytes, algorithm: LinuxHash) -> Iterator[tuple[str, bytes]]:
    """Yield path and digest of every file; another name of a file has the file's digest."""
    known: dict[str, bytes] = {}

    def take(member: tarfile.TarInfo, tar: tarfile.TarFile) -> tuple[str, bytes] | None:
        path = normal_path(member.name)
        if member.islnk():
            digest = known.get(normal_path(member.linkname))
            if digest is None:
                raise FormatError("deb", 0, "a hard link to nothing", got=path)
        elif not member.isreg():
            return None
        else:
            digest = _digest(member, tar, algorithm)
        known[path] = digest
        return path, digest

    yield from walk_member(name, data, take)


def _digest(member: tarfile.TarInfo, tar: tarfile.TarFile, algorithm: LinuxHash) -> bytes:
    if member.size > MAX_FILE:
        raise FormatError("deb", 0, "a file is too large", got=member.name)
    state, left = hashlib.new(algorithm.label), member.size
    stream = tar.extractfile(member)
    while stream is not None and (chunk := stream.read(min(_CHUNK, left))):
        state.update(chunk)
        left -= len(chunk)
    if left:
        raise FormatError("deb", 0, f"{member.name} is cut short", got=left)
    return state.digest()
