"""What a build gave: ``build.json``, a typed value with the digest and provenance of each file.

::

    {"format": "undercroft.guest-build/1", "name": "micro", "inputs": "<hex>",
     "kernel_release": "6.1.0-...", "command_line": "console=ttyS0 ...",
     "kernel": {"path": "vmlinuz", "sha256": "<hex>", "provenance": {...}}, "initrd": ...,
     "firmware_code": ..., "firmware_vars": ...,
     "chain": "direct", "disk": {"path": "disk.raw", ...}, "boot_files": {"shim": ...},
     "files": {"/bin/busybox": {"sha256": "<hex>", "provenance": {...}}, ...},
     "packages": [{"name": ..., "path": ...}]}

Paths of built files are relative to the folder of ``build.json``, those of packages absolute.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from undercroft.base import FormatError
from undercroft.formats import strict_json
from undercroft.guests.chain import Chain
from undercroft.packages.verified import VerifiedPackage
from undercroft.reference.model import Grade, Provenance

FORMAT = "undercroft.guest-build/1"
_NAME = "build.json"
_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class BuiltFile:
    """A file on this machine; ``sha256`` in hexadecimal."""

    path: Path
    sha256: str
    provenance: Provenance

    def is_intact(self) -> bool:
        """Whether the file is still there with the same bytes."""
        if not self.path.is_file():
            return False
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file inside the guest; ``sha256`` of its content in hexadecimal."""

    sha256: str
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class GuestBuild:
    """A guest that can be run.

    ``inputs`` is a digest of everything that decides the result; ``files`` has the regular files
    of the initramfs by absolute path, or those of the disk that no package has; ``packages`` are
    those that the guest is made of.  A guest with a ``disk`` has kernel and initrd on it; they are
    kept beside it as well, and ``boot_files`` are the others that its boot reads, by name.
    """

    name: str
    inputs: str
    kernel_release: str
    kernel: BuiltFile
    initrd: BuiltFile
    firmware_code: BuiltFile
    firmware_vars: BuiltFile
    command_line: str
    files: Mapping[str, GuestFile]
    packages: tuple[VerifiedPackage, ...]
    chain: Chain = Chain.DIRECT
    disk: BuiltFile | None = None
    boot_files: Mapping[str, BuiltFile] = field(default_factory=dict)

    def is_intact(self) -> bool:
        """Whether every file of the build still has the bytes that were built."""
        parts = (self.kernel, self.initrd, self.firmware_code, self.firmware_vars)
        disk = (self.disk,) if self.disk else ()
        return all(part.is_intact() for part in (*parts, *disk, *self.boot_files.values()))


class _Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    grade: Grade
    package: str = ""
    version: str = ""
    origin: str = ""
    release_sha256: str = ""
    signer: str = ""
    note: str = ""


class _Built(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    sha256: str
    provenance: _Provenance


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    provenance: _Provenance


class _Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: str
    architecture: str
    path: str
    sha256: str
    provenance: _Provenance


class _Build(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: str
    name: str
    inputs: str
    kernel_release: str
    command_line: str
    kernel: _Built
    initrd: _Built
    firmware_code: _Built
    firmware_vars: _Built
    files: dict[str, _File]
    packages: list[_Package]
    chain: Chain = Chain.DIRECT
    disk: _Built | None = None
    boot_files: dict[str, _Built] = {}


def _to_provenance(wire: _Provenance) -> Provenance:
    return Provenance(**msgspec.structs.asdict(wire))


def _from_provenance(value: Provenance) -> _Provenance:
    return _Provenance(**asdict(value))


def parse_build(data: bytes, folder: Path) -> GuestBuild:
    """Parse a ``build.json`` that lies in ``folder``.  Raises FormatError."""
    wire = strict_json.parse(data, _Build, _NAME, limit=_LIMIT)
    if wire.format != FORMAT:
        raise FormatError(_NAME, 0, "another format", expected=FORMAT, got=wire.format[:80])

    def built(part: _Built) -> BuiltFile:
        if Path(part.path).name != part.path:
            raise FormatError(_NAME, 0, "a path leaves the folder", got=part.path[:200])
        return BuiltFile(folder / part.path, part.sha256, _to_provenance(part.provenance))

    return GuestBuild(
        name=wire.name,
        inputs=wire.inputs,
        kernel_release=wire.kernel_release,
        kernel=built(wire.kernel),
        initrd=built(wire.initrd),
        firmware_code=built(wire.firmware_code),
        firmware_vars=built(wire.firmware_vars),
        command_line=wire.command_line,
        files={p: GuestFile(f.sha256, _to_provenance(f.provenance)) for p, f in wire.files.items()},
        packages=tuple(
            VerifiedPackage(
                p.name, p.version, p.architecture, Path(p.path), p.sha256,
                _to_provenance(p.provenance),
            )
            for p in wire.packages
        ),
        chain=wire.chain,
        disk=built(wire.disk) if wire.disk else None,
        boot_files={name: built(part) for name, part in wire.boot_files.items()},
    )  # fmt: skip


def encode_build(build: GuestBuild) -> bytes:
    """Write ``build`` as JSON."""

    def built(part: BuiltFile) -> _Built:
        return _Built(part.path.name, part.sha256, _from_provenance(part.provenance))

    return strict_json.encode(
        _Build(
            format=FORMAT,
            name=build.name,
            inputs=build.inputs,
            kernel_release=build.kernel_release,
            command_line=build.command_line,
            kernel=built(build.kernel),
            initrd=built(build.initrd),
            firmware_code=built(build.firmware_code),
            firmware_vars=built(build.firmware_vars),
            files={
                path: _File(f.sha256, _from_provenance(f.provenance))
                for path, f in sorted(build.files.items())
            },
            packages=[
                _Package(
                    p.name, p.version, p.architecture, str(p.path), p.sha256,
                    _from_provenance(p.provenance),
                )
                for p in build.packages
            ],
            chain=build.chain,
            disk=built(build.disk) if build.disk else None,
            boot_files={name: built(part) for name, part in sorted(build.boot_files.items())},
        )
    )  # fmt: skip


def save_build(build: GuestBuild, folder: Path) -> None:
    """Write ``build.json`` into ``folder``."""
    (folder / _NAME).write_bytes(encode_build(build))


def load_build(folder: Path) -> GuestBuild:
    """Read the ``build.json`` in ``folder``.  Raises FormatError, or OSError if it is missing."""
    return parse_build((folder / _NAME).read_bytes(), folder)
