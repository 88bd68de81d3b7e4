"""Make a kernel profile of a kernel package: verify what is signed, keep what a proof needs."""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import zstandard

from undercroft.base import FormatError
from undercroft.formats.kernel.bzimage import parse_bzimage
from undercroft.formats.kernel.image import load_elf
from undercroft.formats.kernel.module import decompress_module, module_name, split_signature
from undercroft.formats.kernel.payload import decompress_payload
from undercroft.formats.kernel.profile import PackageIdentity, VmlinuzIdentity, encode_profile
from undercroft.packages.deb import EntryKind, read_ar, read_deb
from undercroft.packages.deb822 import parse_stanza, required
from undercroft.verify.kernel_signature import builtin_keys, verify_module, verify_vmlinuz

_FORMAT = "kernel package"
_MAX_CONTROL = 16 << 20
_PROGRESS = 500
_VMLINUZ = re.compile(r"/boot/vmlinuz-[^/]+")
_MODULE = re.compile(r"/(usr/)?lib/modules/[^/]+/.*\.ko(\.xz|\.gz|\.zst)?")


def build_profile(
    deb: bytes,
    identity: PackageIdentity,
    anchors: Sequence[bytes],
    progress: Callable[[int], None] = lambda _count: None,
) -> bytes:
    """Return the profile of the kernel package ``deb``.

    ``anchors`` are the DER certificates that the vmlinuz must lead to; with none its signature
    is not looked at, and the profile says so.  Every module must be signed by a key built into
    the kernel.  ``progress`` is called now and then with the number of modules verified so far.
    Raises FormatError and VerificationError.
    """
    files = {
        entry.path: entry.data
        for entry in read_deb(deb, lambda path: bool(_VMLINUZ.fullmatch(path) or _is_module(path)))
        if entry.kind is EntryKind.FILE
    }
    kernels = [path for path in files if _VMLINUZ.fullmatch(path)]
    if len(kernels) != 1:
        raise FormatError(_FORMAT, 0, "not one kernel", expected=1, got=len(kernels))
    vmlinuz = files.pop(kernels[0])
    signer = verify_vmlinuz(vmlinuz, anchors).subject if anchors else ""
    boot = parse_bzimage(vmlinuz)
    digest = hashlib.sha256(vmlinuz).hexdigest()
    elf = decompress_payload(boot.payload)
    keys = builtin_keys(load_elf(elf, boot.kernel_version, digest))
    modules: dict[str, bytes] = {}
    with ThreadPoolExecutor() as pool:  # unpacking and verifying let go of the interpreter
        verified = pool.map(lambda path: _verified(files[path], keys), sorted(files))
        for count, (name, content) in enumerate(verified, 1):
            if name in modules:
                raise FormatError(_FORMAT, 0, f"two modules are called {name}")
            modules[name] = content
            if count % _PROGRESS == 0:
                progress(count)
    return encode_profile(
        identity, VmlinuzIdentity(digest, boot.kernel_version, signer), elf, modules
    )


def _verified(file: bytes, keys: Sequence[bytes]) -> tuple[str, bytes]:
    """Return a module's name and its unpacked bytes."""
    content = decompress_module(file)
    signed, signature = split_signature(content)
    name = module_name(signed)
    verify_module(name, signed, signature, keys)
    return name, content


def _is_module(path: str) -> bool:
    return bool(_MODULE.fullmatch(path))


def package_identity(deb: bytes) -> PackageIdentity:
    """Return what the package's control file says it is, and its digest.  Raises FormatError."""
    members = read_ar(deb)
    name = next((name for name in members if name.startswith("control.tar")), None)
    if name is None:
        raise FormatError(_FORMAT, 0, "the package has no control member")
    try:
        with tarfile.open(fileobj=io.BytesIO(_unpacked(name, members[name])), mode="r:") as tar:
            stream = tar.extractfile("./control")
            text = stream.read().decode("utf-8") if stream is not None else ""
    except (tarfile.TarError, KeyError, UnicodeDecodeError) as error:
        raise FormatError(_FORMAT, 0, f"the control member is broken: {error}") from error
    fields = parse_stanza(text, _FORMAT)
    found = [required(fields, field, _FORMAT) for field in ("Package", "Version", "Architecture")]
    return PackageIdentity(found[0], found[1], found[2], hashlib.sha256(deb).hexdigest())


def _unpacked(name: str, data: bytes) -> bytes:
    try:
        match name.removeprefix("control.tar"):
            case "":
                return data
            case ".xz":
                return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, _MAX_CONTROL)
            case ".gz":
                return zlib.decompressobj(wbits=31).decompress(data, _MAX_CONTROL)
            case ".zst":
                with zstandard.ZstdDecompressor().stream_reader(data) as stream:
                    return bytes(stream.read(_MAX_CONTROL))
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise FormatError(_FORMAT, 0, f"the control member is broken: {error}") from error
    raise FormatError(_FORMAT, 0, "the control member is compressed in an unknown way", got=name)
