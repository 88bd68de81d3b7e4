"""Makes a unified kernel image and signs EFI programs, the same bytes every time.

Sources: UAPI Group "Unified Kernel Image"; systemd 252 systemd-stub(7); Microsoft PE Format and
"Windows Authenticode Portable Executable Signature Format" 1.0; RFC 2315 (PKCS #7).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from undercroft.base import FormatError
from undercroft.formats.pe import parse_pe

SECTIONS = {".osrel": 0x20000, ".cmdline": 0x30000, ".linux": 0x2000000, ".initrd": 0x3000000}
"""Where each is loaded: the kernel unpacks itself in place and needs room behind it."""

_FILE_ALIGNMENT = 512
_PAGE = 4096
_READ_DATA = 0x40000040
"""IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ"""


def make_uki(stub: bytes, contents: Mapping[str, bytes]) -> bytes:
    """Return ``stub`` with ``contents`` as more sections, at the addresses of ``SECTIONS``.

    Raises FormatError if the stub has no room for them.
    """
    image = parse_pe(stub)
    end = max(section.file_offset + section.file_size for section in image.sections)
    out = bytearray(stub[:end])  # the symbols behind the last section go
    (pe,) = struct.unpack_from("<I", out, 0x3C)
    struct.pack_into("<II", out, pe + 12, 0, 0)
    rows = pe + 24 + struct.unpack_from("<H", out, pe + 20)[0]
    count = len(image.sections)
    if rows + 40 * (count + len(contents)) > image.size_of_headers:
        raise FormatError("EFI stub", rows, "its header has no room for more sections")
    last = 0
    for name, data in contents.items():
        out += bytes(-len(out) % _FILE_ALIGNMENT)
        padded = data + bytes(-len(data) % _FILE_ALIGNMENT)
        address = SECTIONS[name]
        if address < last:
            raise FormatError("EFI stub", 0, f"{name} would overlap what is before it", got=last)
        last = address + len(data)
        struct.pack_into(
            "<8sIIII12xI", out, rows + 40 * count,
            name.encode(), len(data), address, len(padded), len(out), _READ_DATA,
        )  # fmt: skip
        out += padded
        count += 1
    struct.pack_into("<H", out, pe + 6, count)
    struct.pack_into("<I", out, pe + 24 + 56, -(-last // _PAGE) * _PAGE)  # SizeOfImage
    struct.pack_into("<I", out, image.checksum_offset, 0)
    return bytes(out)


def _der(tag: int, *parts: bytes) -> bytes:
    value = b"".join(parts)
    if len(value) < 0x80:
        return bytes([tag, len(value)]) + value
    size = (len(value).bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + len(value).to_bytes(size, "big") + value


_SEQUENCE, _SET, _OCTETS, _NULL = 0x30, 0x31, 0x04, b"\x05\0"
_SHA256 = _der(_SEQUENCE, bytes.fromhex("0609608648016503040201"), _NULL)
_RSA = _der(_SEQUENCE, bytes.fromhex("06092a864886f70d010101"), _NULL)
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_SPC_INDIRECT_DATA = bytes.fromhex("060a2b060104018237020104")
_SPC_PE_IMAGE_DATA = bytes.fromhex("060a2b06010401823702010f")
_CONTENT_TYPE = bytes.fromhex("06092a864886f70d010903")
_MESSAGE_DIGEST = bytes.fromhex("06092a864886f70d010904")


def sign_pe(program: bytes, key_pem: bytes, certificate_pem: bytes, passphrase: bytes) -> bytes:
    """Return ``program`` with an Authenticode signature; no time is in it.

    The signature is the only one: any other is dropped.  The key has to be RSA.
    """
    image = parse_pe(program)
    unsigned = bytearray(program[: image.certificate_table[0] or len(program)])
    unsigned += bytes(-len(unsigned) % 8)
    struct.pack_into("<II", unsigned, image.certificate_entry_offset, 0, 0)
    struct.pack_into("<I", unsigned, image.checksum_offset, 0)
    digest = parse_pe(bytes(unsigned)).authenticode()
    key = load_pem_private_key(key_pem, passphrase)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise FormatError("signing key", 0, "not an RSA key")
    message = _signed_data(digest, key, x509.load_pem_x509_certificate(certificate_pem))
    size = 8 + len(message)
    entry = struct.pack("<IHH", size, 0x0200, 0x0002) + message + bytes(-size % 8)
    struct.pack_into("<II", unsigned, image.certificate_entry_offset, len(unsigned), len(entry))
    return bytes(unsigned) + entry


def _signed_data(digest: bytes, key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> bytes:
    # SpcPeImageData: no flags, and the file link that every signer writes.
    link = _der(0xA0, _der(0xA2, _der(0x80, "<<<Obsolete>>>".encode("utf-16-be"))))
    pe_data = _der(_SEQUENCE, _SPC_PE_IMAGE_DATA, _der(_SEQUENCE, b"\x03\x01\0", link))
    indirect = pe_data + _der(_SEQUENCE, _SHA256, _der(_OCTETS, digest))
    content = _der(_SEQUENCE, indirect)
    attributes = b"".join(
        sorted(
            [
                _der(_SEQUENCE, _CONTENT_TYPE, _der(_SET, _SPC_INDIRECT_DATA)),
                _der(
                    _SEQUENCE, _MESSAGE_DIGEST,
                    _der(_SET, _der(_OCTETS, hashlib.sha256(indirect).digest())),
                ),
            ]
        )
    )  # fmt: skip
    signature = key.sign(_der(_SET, attributes), padding.PKCS1v15(), hashes.SHA256())
    number = certificate.serial_number
    serial = number.to_bytes(number.bit_length() // 8 + 1, "big")
    signer = _der(
        _SEQUENCE,
        b"\x02\x01\x01",
        _der(_SEQUENCE, certificate.issuer.public_bytes(), _der(0x02, serial)),
        _SHA256, _der(0xA0, attributes), _RSA, _der(_OCTETS, signature),
    )  # fmt: skip
    body = _der(
        _SEQUENCE,
        b"\x02\x01\x01",
        _der(_SET, _SHA256),
        _der(_SEQUENCE, _SPC_INDIRECT_DATA, _der(0xA0, content)),
        _der(0xA0, certificate.public_bytes(Encoding.DER)),
        _der(_SET, signer),
    )
    return _der(_SEQUENCE, _SIGNED_DATA, _der(0xA0, body))
