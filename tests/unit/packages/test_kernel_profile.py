"""From a kernel package to its profile: what is signed is verified, and anything odd refused."""

from __future__ import annotations

import datetime as dt
import io
import lzma
import struct
import tarfile

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from undercroft.base import FormatError, VerificationError
from undercroft.formats.kernel.profile import KernelProfile, parse_profile
from undercroft.packages.kernel_profile import build_profile, package_identity
from undercroft.testing import tinykernel
from undercroft.testing.tinykernel import TinyKernel
from undercroft.testing.tinymodule import ALLOC, EXEC, SIGNATURE_MAGIC, TinyModule

KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
CONTROL = "Package: linux-image-tiny\nVersion: 6.1-1\nArchitecture: amd64\n"
KERNEL, MODULES = "./boot/vmlinuz-6.1", "./lib/modules/6.1/kernel"


def certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "module key")])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


CERTIFICATE = certificate(KEY)


def vmlinuz() -> bytes:
    tiny = TinyKernel()
    der = CERTIFICATE.public_bytes(serialization.Encoding.DER)
    tiny.alternative(0x120, 3, 7, b"\x90")
    tiny.code(tinykernel.DATA + 0x100, der, "system_certificate_list")
    tiny.variable("system_certificate_list_size", tinykernel.DATA, len(der))
    return tiny.vmlinuz()


def module(name: str, key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    """Return a module with its signature behind it, as scripts/sign-file leaves it."""
    tiny = TinyModule(name)
    tiny.section(".text", ALLOC | EXEC, b"\xc3")
    content = tiny.build()
    message = (
        pkcs7.PKCS7SignatureBuilder()
        .set_data(content)
        .add_signer(CERTIFICATE, key, hashes.SHA256())
        .sign(
            serialization.Encoding.DER,
            [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary],
        )
    )
    return (
        content + message + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, len(message)) + SIGNATURE_MAGIC
    )


def tar(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return target.getvalue()


def deb(files: dict[str, bytes], *, control: str = CONTROL) -> bytes:
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", lzma.compress(tar({"./control": control.encode()}))),
        ("data.tar", tar(files)),
    )
    parts = [b"!<arch>\n"]
    for name, data in members:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        parts += [header.encode(), data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


FILES = {
    KERNEL: vmlinuz(),
    f"{MODULES}/one.ko": module("one"),
    f"{MODULES}/two-part.ko.xz": lzma.compress(module("two_part")),
    "./usr/share/doc/readme": b"not looked at",
}


def built(files: dict[str, bytes]) -> KernelProfile:
    package = deb(files)
    return parse_profile(build_profile(package, package_identity(package), []))


def test_a_package_becomes_a_profile() -> None:
    profile = built(FILES)
    assert profile.package.name == "linux-image-tiny"
    assert profile.package.version == "6.1-1"
    assert profile.modules == ("one", "two_part")
    assert profile.vmlinuz.signer == ""
    assert profile.kernel.release == "6.1.0-tiny-amd64"
    found = profile.module("two_part")
    assert found is not None
    assert found.signature
    assert profile.module_file("one") == FILES[f"{MODULES}/one.ko"]
    assert built(FILES).id == profile.id


def test_a_module_that_another_key_signed() -> None:
    with pytest.raises(VerificationError) as caught:
        built({**FILES, f"{MODULES}/three.ko": module("three", OTHER)})
    assert caught.value.check == "module.signature"


def test_a_module_that_was_changed_or_not_signed() -> None:
    whole = bytearray(module("three"))
    whole[0x40] ^= 1
    bare = TinyModule("three")
    bare.section(".text", ALLOC | EXEC, b"\xc3")
    for data in (bytes(whole), bare.build()):
        with pytest.raises((VerificationError, FormatError)):
            built({**FILES, f"{MODULES}/three.ko": data})


def test_two_modules_of_one_name() -> None:
    with pytest.raises(FormatError, match="two modules are called one"):
        built({**FILES, f"{MODULES}/other/one.ko": module("one")})


def test_a_package_with_no_kernel_or_two() -> None:
    for files in ({}, {**FILES, "./boot/vmlinuz-6.2": vmlinuz()}):
        with pytest.raises(FormatError, match="not one kernel"):
            built(files)


def test_a_vmlinuz_that_has_to_be_signed() -> None:
    package = deb(FILES)
    with pytest.raises((VerificationError, FormatError)):
        build_profile(package, package_identity(package), [b"anchor"])


def test_a_package_without_identity() -> None:
    with pytest.raises(FormatError):
        package_identity(deb(FILES, control="Package: linux\n"))
    with pytest.raises(FormatError, match="no control member"):
        package_identity(b"!<arch>\n")
    broken = deb(FILES).replace(b"\xfd7zXZ", b"\xfd7zXX", 1)
    with pytest.raises(FormatError, match="control member is broken"):
        package_identity(broken)
