"""A kernel profile: all that a proof of a kernel needs of its package, in one file.

Taking a package apart and verifying its signatures is done once; attaching to a guest then reads
this file.  It names itself: the header holds the digest of every part, and the profile's id is
the SHA-256 of the header, so that whoever trusts an id trusts every byte.  It moves nothing: all
addresses are link addresses, whatever slide a guest has.

Layout, version 1: the magic, the header's length (u32, little-endian), the header
(deterministic CBOR, RFC 8949 section 4.2), then the parts, one behind the other, each a zstd
frame.  Header keys: ``version``; ``package`` (name, version, architecture, sha256);
``vmlinuz`` (sha256, version text, signer); ``parts``, a list of (name, SHA-256 of the content,
size of the content, size of the frame): first the kernel ELF under the name ``vmlinux``, then
the modules by name, in order.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import zstandard

from undercroft.base import FormatError
from undercroft.formats import cbor
from undercroft.formats.kernel.image import KernelImage, load_elf
from undercroft.formats.kernel.module import KernelModule, parse_module

_FORMAT = "kernel profile"
MAGIC = b"undercroft-kernel-profile\n"
VERSION = 1
_KERNEL = "vmlinux"
_MAX_HEADER = 4 << 20
_MAX_PART = 512 << 20
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class PackageIdentity:
    """Which package a profile was made from; ``sha256`` is that of the .deb (hexadecimal)."""

    name: str
    version: str
    architecture: str
    sha256: str


@dataclass(frozen=True, slots=True)
class VmlinuzIdentity:
    """Which vmlinuz: its SHA-256, the version text of its header, and who signed it.

    ``signer`` is the subject of the signing certificate, "" if the file was not verified
    against a trusted certificate.
    """

    sha256: str
    version: str
    signer: str


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    package: tuple[str, str, str, str]
    vmlinuz: tuple[str, str, str]
    parts: list[tuple[str, bytes, int, int]]


@dataclass(frozen=True, slots=True)
class _Part:
    sha256: bytes
    size: int
    start: int
    frame_size: int


class KernelProfile:
    """A parsed profile.  Parts are unpacked, and checked against their digest, when asked for."""

    def __init__(
        self,
        data: bytes,
        header: bytes,
        package: PackageIdentity,
        vmlinuz: VmlinuzIdentity,
        parts: Mapping[str, _Part],
    ) -> None:
        self.id = profile_id(header)
        self.header = header
        self.package = package
        self.vmlinuz = vmlinuz
        self._data = data
        self._parts = parts
        self._modules: dict[str, KernelModule | None] = {}

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules, as the kernel spells them."""
        return tuple(name for name in self._parts if name != _KERNEL)

    @functools.cached_property
    def kernel(self) -> KernelImage:
        """The kernel.  Raises FormatError if the part is damaged."""
        return load_elf(self._content(_KERNEL), self.vmlinuz.version, self.vmlinuz.sha256)

    def module(self, name: str) -> KernelModule | None:
        """Return the package's module of this name, or None: a ModuleLibrary."""
        if name == _KERNEL or name not in self._parts:
            return None
        if name not in self._modules:
            self._modules[name] = parse_module(self._content(name))
        return self._modules[name]

    def module_file(self, name: str) -> bytes:
        """Return the unpacked .ko of a module that the profile has, its signature included."""
        return self._content(name)

    def _content(self, name: str) -> bytes:
        part = self._parts[name]
        frame = self._data[part.start : part.start + part.frame_size]
        try:
            with zstandard.ZstdDecompressor(max_window_size=1 << 28).stream_reader(frame) as stream:
                content = bytes(stream.read(part.size + 1))
        except zstandard.ZstdError as error:
            raise FormatError(_FORMAT, part.start, f"{name} does not unpack: {error}") from error
        digest = hashlib.sha256(content).digest()
        if not hmac.compare_digest(digest, part.sha256):
            raise FormatError(
                _FORMAT,
                part.start,
                f"{name} is not what the header says",
                expected=part.sha256.hex(),
                got=digest.hex(),
            )
        return content


def encode_profile(
    package: PackageIdentity,
    vmlinuz: VmlinuzIdentity,
    kernel_elf: bytes,
    modules: Mapping[str, bytes],
) -> bytes:
    """Return the profile; the same inputs give the same bytes.

    ``kernel_elf`` is the payload of the vmlinuz and ``modules`` the unpacked .ko files by name.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
    rows: list[cbor.CborValue] = []
    frames = []
    for name, content in [(_KERNEL, kernel_elf), *sorted(modules.items())]:
        frame = compressor.compress(content)
        rows.append([name, hashlib.sha256(content).digest(), len(content), len(frame)])
        frames.append(frame)
    header = cbor.encode(
        {
            "version": VERSION,
            "package": [package.name, package.version, package.architecture, package.sha256],
            "vmlinuz": [vmlinuz.sha256, vmlinuz.version, vmlinuz.signer],
            "parts": rows,
        }
    )
    return MAGIC + struct.pack("<I", len(header)) + header + b"".join(frames)


def profile_id(header: bytes) -> str:
    """Return the id of the profile with this header."""
    return hashlib.sha256(header).hexdigest()


def parse_profile(data: bytes) -> KernelProfile:
    """Parse a profile; raise FormatError if it is none, of another version, or cut short."""
    if not data.startswith(MAGIC):
        raise FormatError(_FORMAT, 0, "not a kernel profile")
    at = len(MAGIC)
    if len(data) < at + 4:
        raise FormatError(_FORMAT, at, "the header is cut short")
    (size,) = struct.unpack_from("<I", data, at)
    at += 4
    if size > _MAX_HEADER or at + size > len(data):
        raise FormatError(_FORMAT, at, "the header is longer than the file", got=size)
    header = data[at : at + size]
    decoded = cbor.convert(cbor.decode(header, _FORMAT), _Header, _FORMAT)
    if decoded.version != VERSION:
        raise FormatError(_FORMAT, at, "another version", expected=VERSION, got=decoded.version)
    return KernelProfile(
        data,
        header,
        PackageIdentity(*decoded.package),
        VmlinuzIdentity(*decoded.vmlinuz),
        _parts(decoded.parts, at + size, len(data)),
    )


def _parts(rows: Sequence[tuple[str, bytes, int, int]], start: int, end: int) -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    for name, digest, size, frame in rows:
        if name in parts or not 0 <= size <= _MAX_PART or not 0 < frame <= end - start:
            raise FormatError(_FORMAT, start, f"the part {name} stands twice or is too long")
        parts[name] = _Part(digest, size, start, frame)
        start += frame
    if start != end or next(iter(parts), "") != _KERNEL:
        raise FormatError(_FORMAT, start, "the parts are not what follows the header")
    return parts
