"""A module's signature by a key inside the kernel; every way in which exactly it says no."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from undercroft.base import FormatError, VerificationError
from undercroft.formats.kernel import load_kernel
from undercroft.formats.kernel.signed_data import parse_signed_data, split_certificates
from undercroft.formats.pe import parse_pe
from undercroft.testing import tinykernel
from undercroft.testing.tinykernel import TinyKernel
from undercroft.verify.kernel_signature import builtin_keys, verify_module, verify_vmlinuz

CONTENT = b"the module's bytes"
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Signer:
    key: Key
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


def certificate(name: str, key: Key, issuer: str, issuer_key: Key) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .sign(issuer_key, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def signer() -> Signer:
    key = rsa.generate_private_key(65537, 2048)
    return Signer(key, certificate("kernel key", key, "kernel key", key))


@pytest.fixture(scope="module")
def other() -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    return Signer(key, certificate("other key", key, "other key", key))


def der(tag: int, *parts: bytes) -> bytes:
    value = b"".join(parts)
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    raw = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(raw))) + raw + value


def oid(text: str) -> bytes:
    return der(6, bytes.fromhex(text))


SHA256, SHA1 = oid("608648016503040201"), oid("2b0e03021a")
DATA, SIGNED = oid("2a864886f70d010701"), oid("2a864886f70d010702")


def sign(
    signer: Signer,
    covered: bytes = CONTENT,
    *,
    digest: bytes = SHA256,
    attributes: bytes = b"",
    content: bytes = b"",
    certificates: Sequence[bytes] = (),
    kind: bytes = DATA,
) -> bytes:
    """Make SignedData as scripts/sign-file does, by hand; ``content`` is one DER element."""
    if isinstance(signer.key, rsa.RSAPrivateKey):
        signature = signer.key.sign(covered, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = signer.key.sign(covered, ec.ECDSA(hashes.SHA256()))
    name = signer.certificate.issuer.public_bytes()
    serial = signer.certificate.serial_number
    number = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    info = der(
        0x30,
        der(2, b"\1"),
        der(0x30, name, der(2, number)),
        der(0x30, digest),
        attributes and der(0xA0, attributes),
        der(0x30, oid("2a864886f70d010101")),
        der(4, signature),
    )
    inner = der(0x30, kind, content and der(0xA0, content))
    kept = der(0xA0, *certificates) if certificates else b""
    body = der(0x30, der(2, b"\1"), der(0x31, der(0x30, digest)), inner, kept, der(0x31, info))
    return der(0x30, SIGNED, der(0xA0, body))


def attributes(message: bytes, content_type: bytes = DATA) -> bytes:
    return der(0x30, oid("2a864886f70d010903"), der(0x31, content_type)) + der(
        0x30,
        oid("2a864886f70d010904"),
        der(0x31, der(4, hashlib.sha256(message).digest())),
    )


def refused(check: str, signature: bytes, keys: Sequence[bytes], content: bytes = CONTENT) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_module("tiny", content, signature, keys)
    assert caught.value.check == check


def test_a_module_signed_by_a_key_inside_the_kernel(signer: Signer, other: Signer) -> None:
    for each in (signer, other):
        found = verify_module("tiny", CONTENT, sign(each), [signer.der, other.der])
        assert found.subject == each.certificate.subject.rfc4514_string()
        assert found.fingerprint == each.certificate.fingerprint(hashes.SHA256()).hex()


def test_openssl_style_attributes(signer: Signer) -> None:
    covered = der(0x31, attributes(CONTENT))
    message = sign(signer, covered, attributes=attributes(CONTENT))
    assert verify_module("tiny", CONTENT, message, [signer.der]).anchor == "CN=kernel key"
    refused("module.signature", message, [signer.der], b"other bytes")


def test_a_library_makes_what_we_read(signer: Signer) -> None:
    assert isinstance(signer.key, rsa.RSAPrivateKey)
    message = (
        pkcs7.PKCS7SignatureBuilder()
        .set_data(CONTENT)
        .add_signer(signer.certificate, signer.key, hashes.SHA256())
        .sign(
            serialization.Encoding.DER,
            [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary],
        )
    )
    assert verify_module("tiny", CONTENT, message, [signer.der]).subject == "CN=kernel key"


def test_a_changed_module(signer: Signer) -> None:
    refused("module.signature", sign(signer), [signer.der], CONTENT + b"!")


def test_no_signature(signer: Signer) -> None:
    refused("module.signature", b"", [signer.der])


def test_a_signer_the_kernel_does_not_know(signer: Signer, other: Signer) -> None:
    refused("module.signature", sign(other), [signer.der])
    refused("module.chain", sign(other, certificates=[other.der]), [signer.der])


def test_a_signer_whom_a_known_key_certified(signer: Signer) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = Signer(key, certificate("leaf", key, "kernel key", signer.key))
    message = sign(leaf, certificates=[leaf.der])
    assert verify_module("tiny", CONTENT, message, [signer.der]).anchor == "CN=kernel key"


def test_a_path_of_certificates_that_is_too_long(signer: Signer) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names = ["kernel key", *(f"between {number}" for number in range(8)), "leaf"]
    made = [
        certificate(name, key, issuer, signer.key if issuer == "kernel key" else key)
        for issuer, name in itertools.pairwise(names)
    ]
    leaf = Signer(key, made[-1])
    others = [each.public_bytes(serialization.Encoding.DER) for each in made]
    refused("module.chain", sign(leaf, certificates=others), [signer.der])
    near = Signer(key, made[-3])
    message = sign(near, certificates=others)
    assert verify_module("tiny", CONTENT, message, [signer.der]).anchor == "CN=kernel key"


def test_a_key_of_another_kind(signer: Signer) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edwards")])
    edwards = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(9)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .sign(key, None)
    )
    refused(
        "module.signature",
        sign(Signer(signer.key, edwards)),
        [edwards.public_bytes(serialization.Encoding.DER)],
    )


def test_a_weak_digest(signer: Signer) -> None:
    refused("module.signature", sign(signer, digest=SHA1), [signer.der])


def test_content_inside_the_message(signer: Signer) -> None:
    refused("module.signature", sign(signer, content=der(4, CONTENT)), [signer.der])


@pytest.mark.parametrize(
    "damage",
    [
        lambda message: message[:-1],
        lambda message: message + b"x",
        lambda message: b"\x31" + message[1:],
        lambda message: message[:4] + b"\x04" + message[5:],
        lambda message: message.replace(DATA, SIGNED, 1),
        lambda message: b"\x30\x84" + message,
    ],
)
def test_damaged_messages(signer: Signer, damage: object) -> None:
    broken: bytes = damage(sign(signer))  # type: ignore[operator]
    with pytest.raises((FormatError, VerificationError)):
        verify_module("tiny", CONTENT, broken, [signer.der])


def test_attributes_of_another_type(signer: Signer) -> None:
    wrong = attributes(CONTENT, SIGNED)
    with pytest.raises(FormatError, match="do not name"):
        parse_signed_data(sign(signer, der(0x31, wrong), attributes=wrong))
    twice = attributes(CONTENT) * 2
    with pytest.raises(FormatError, match="stands twice"):
        parse_signed_data(sign(signer, attributes=twice))


def test_a_message_of_absurd_size() -> None:
    with pytest.raises(FormatError, match="too large"):
        parse_signed_data(bytes(2 << 20))


def test_the_keys_inside_a_kernel(signer: Signer, other: Signer) -> None:
    tiny = TinyKernel()
    both = signer.der + other.der
    tiny.alternative(0x120, 3, 7, b"\x90")
    tiny.code(tinykernel.DATA + 0x100, both, "system_certificate_list")
    tiny.variable("system_certificate_list_size", tinykernel.DATA, len(both))
    image = load_kernel(tiny.vmlinuz())
    assert builtin_keys(image) == (signer.der, other.der)
    assert split_certificates(both) == (signer.der, other.der)


def test_a_certificate_that_is_none(signer: Signer) -> None:
    with pytest.raises(FormatError):
        verify_module("tiny", CONTENT, sign(signer), [b"\x30\x03\x02\x01\x01"])


SPC_INDIRECT, SPC_PE_IMAGE = oid("2b060104018237020104"), oid("2b06010401823702010f")


def pe(*messages: bytes, code: bytes = b"code") -> bytes:
    """Return a PE32+ file (Microsoft PE Format) of one section that carries these messages."""
    headers, section = bytearray(0x200), code.ljust(0x200, b"\0")
    headers[:2], headers[0x3C] = b"MZ", 0x40
    headers[0x40:0x44] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", headers, 0x44, 0x8664, 1, 0, 0, 0, 240, 0x22)
    struct.pack_into("<H", headers, 0x58, 0x20B)
    struct.pack_into("<I", headers, 0x58 + 60, 0x200)
    struct.pack_into("<I", headers, 0x58 + 108, 16)
    row = struct.pack("<8sIIII", b".text", 0x200, 0x200, 0x200, 0x200)
    headers[0x148 : 0x148 + len(row)] = row
    table = b""
    for message in messages:
        size = 8 + len(message)
        table += struct.pack("<IHH", size, 0x200, 2) + message + bytes(-size % 8)
    if table:
        struct.pack_into("<II", headers, 0x58 + 112 + 32, 0x400, len(table))
    return bytes(headers) + section + table


def authenticode(
    signer: Signer, *, of: bytes = b"", certificates: Sequence[bytes] = (), bare: bool = False
) -> bytes:
    """Sign the Authenticode digest of a PE file, as sbsign does."""
    digest = parse_pe(of or pe()).authenticode()
    value = der(0x30, SPC_PE_IMAGE) + der(0x30, der(0x30, SHA256), der(4, digest))
    mine = attributes(value, SPC_INDIRECT)
    return sign(
        signer,
        value if bare else der(0x31, mine),
        attributes=b"" if bare else mine,
        content=der(0x30, value),
        certificates=certificates,
        kind=SPC_INDIRECT,
    )


def vmlinuz_refused(check: str, vmlinuz: bytes, *anchors: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_vmlinuz(vmlinuz, anchors)
    assert caught.value.check == check


def test_a_vmlinuz_that_leads_to_a_trusted_certificate(signer: Signer) -> None:
    key = rsa.generate_private_key(65537, 2048)
    leaf = Signer(key, certificate("distribution signer", key, "kernel key", signer.key))
    signed = pe(authenticode(leaf, certificates=[leaf.der]))
    found = verify_vmlinuz(signed, [signer.der])
    assert (found.subject, found.anchor) == ("CN=distribution signer", "CN=kernel key")
    vmlinuz_refused("kernel.digest", signed.replace(b"code", b"evil"), signer.der)


def test_one_of_several_signatures_is_enough(signer: Signer, other: Signer) -> None:
    signed = pe(authenticode(other, certificates=[other.der]), authenticode(signer))
    assert verify_vmlinuz(signed, [signer.der]).subject == "CN=kernel key"
    vmlinuz_refused(
        "kernel.signature",
        signed,
        Signer(other.key, certificate("third key", other.key, "third key", other.key)).der,
    )


def test_a_vmlinuz_whose_signer_leads_nowhere(signer: Signer, other: Signer) -> None:
    signed = pe(authenticode(other, certificates=[other.der]))
    vmlinuz_refused("kernel.chain", signed, signer.der)
    vmlinuz_refused("kernel.chain", signed)


def test_a_vmlinuz_that_is_not_signed(signer: Signer) -> None:
    vmlinuz_refused("kernel.signature", pe(), signer.der)


def test_a_signature_that_is_no_authenticode_signature(signer: Signer) -> None:
    vmlinuz_refused("kernel.signature", pe(authenticode(signer, bare=True)), signer.der)
    vmlinuz_refused("kernel.signature", pe(sign(signer)), signer.der)


def test_a_signature_of_another_file(signer: Signer) -> None:
    moved = pe(authenticode(signer, of=pe(code=b"other")))
    vmlinuz_refused("kernel.digest", moved, signer.der)


def test_a_vmlinuz_that_is_no_pe() -> None:
    with pytest.raises(FormatError):
        verify_vmlinuz(b"MZ" + bytes(100), [b""])
