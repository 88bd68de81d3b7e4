"""EFI_SIGNATURE_LIST and EFI_SIGNATURE_DATA (UEFI 2.10, section 32.4.1).

The content of PK, KEK, db, dbx, dbr, dbt, MokList and friends.  Certificates stay DER here.
"""

from __future__ import annotations

import struct

from undercroft.formats.eventlog.guid import guid_bytes
from undercroft.formats.eventlog.value import EventValue
from undercroft.formats.reader import BoundedReader

_HEADER = struct.Struct("<16sIII")
_OWNER = 16

EFI_CERT_SHA256 = guid_bytes("c1c41626-504c-4092-aca9-41f936934328")
EFI_CERT_RSA2048 = guid_bytes("3c5766e8-269c-4e34-aa14-ed776e85b3b6")
EFI_CERT_RSA2048_SHA256 = guid_bytes("e2b36190-879b-4a3d-ad8d-f2e7bba32784")
EFI_CERT_SHA1 = guid_bytes("826ca512-cf10-4ac9-b187-be01496631bd")
EFI_CERT_RSA2048_SHA1 = guid_bytes("67f8444f-8743-48f1-a328-1eaab8736080")
EFI_CERT_X509 = guid_bytes("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
EFI_CERT_SHA224 = guid_bytes("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd")
EFI_CERT_SHA384 = guid_bytes("ff3e5307-9fd0-48c9-85f1-8ad56c701e01")
EFI_CERT_SHA512 = guid_bytes("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a")
EFI_CERT_X509_SHA256 = guid_bytes("3bd2a492-96c0-4079-b420-fcf98ef103ed")
EFI_CERT_X509_SHA384 = guid_bytes("7076876e-80c2-4ee6-aad2-28b349a6865b")
EFI_CERT_X509_SHA512 = guid_bytes("446dbf63-2502-4cda-bcfa-2465d2b0fe9d")
EFI_CERT_EXTERNAL_MANAGEMENT = guid_bytes("452e8ced-dfff-4b8c-ae01-5118862e682c")

SIGNATURE_TYPES = {
    EFI_CERT_SHA256: "SHA-256 image hash",
    EFI_CERT_RSA2048: "RSA-2048 key",
    EFI_CERT_RSA2048_SHA256: "RSA-2048 signature of a SHA-256 hash",
    EFI_CERT_SHA1: "SHA-1 image hash",
    EFI_CERT_RSA2048_SHA1: "RSA-2048 signature of a SHA-1 hash",
    EFI_CERT_X509: "X.509 certificate",
    EFI_CERT_SHA224: "SHA-224 image hash",
    EFI_CERT_SHA384: "SHA-384 image hash",
    EFI_CERT_SHA512: "SHA-512 image hash",
    EFI_CERT_X509_SHA256: "SHA-256 hash of a revoked certificate",
    EFI_CERT_X509_SHA384: "SHA-384 hash of a revoked certificate",
    EFI_CERT_X509_SHA512: "SHA-512 hash of a revoked certificate",
    EFI_CERT_EXTERNAL_MANAGEMENT: "externally managed",
}


class Signature(EventValue, frozen=True, gc=False):
    """EFI_SIGNATURE_DATA: the SignatureOwner GUID (16 bytes) and the SignatureData."""

    owner: bytes
    data: bytes

    def encode(self) -> bytes:
        """Return the EFI_SIGNATURE_DATA."""
        return self.owner + self.data


class SignatureList(EventValue, frozen=True, gc=False):
    """EFI_SIGNATURE_LIST: entries of one type and one size.

    ``signature_size`` counts the owner; it is kept because an empty list has one too.
    """

    type_guid: bytes
    header: bytes
    signature_size: int
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """Return the EFI_SIGNATURE_LIST."""
        entries = b"".join([s.owner + s.data for s in self.signatures])
        size = _HEADER.size + len(self.header) + len(entries)
        head = _HEADER.pack(self.type_guid, size, len(self.header), self.signature_size)
        return head + self.header + entries


class SignatureDatabase(EventValue, frozen=True, gc=False):
    """The value of a signature database variable: signature lists, one after the other."""

    lists: tuple[SignatureList, ...]

    def encode(self) -> bytes:
        """Return the variable's data."""
        return b"".join([entry.encode() for entry in self.lists])

    def of_type(self, type_guid: bytes) -> list[Signature]:
        """Return the entries of all lists of one signature type."""
        return [s for entry in self.lists if entry.type_guid == type_guid for s in entry.signatures]


def decode_signature_database(data: bytes, base: int = 0) -> SignatureDatabase:
    """Decode concatenated EFI_SIGNATURE_LISTs; ``base`` is where ``data`` starts, for errors.

    Raises FormatError.
    """
    reader = BoundedReader(data, "EFI_SIGNATURE_LIST", order="little", base=base)
    lists = []
    while reader.remaining:
        lists.append(_signature_list(reader))
    return SignatureDatabase(tuple(lists))


def _signature_list(reader: BoundedReader) -> SignatureList:
    start = reader.offset
    type_guid, list_size, header_size, size = reader.unpack(_HEADER, "the signature list header")
    body = list_size - _HEADER.size - header_size
    if body < 0:
        reader.offset = start
        least = _HEADER.size + header_size
        raise reader.fail("SignatureListSize is too small", expected=f">= {least}", got=list_size)
    if size < _OWNER or body % size:
        reader.offset = start
        raise reader.fail(
            "SignatureSize does not divide the list", expected=f"{body} / n, n >= 16", got=size
        )
    header = reader.take(header_size, "SignatureHeader")
    entries = reader.take(body, "Signatures")
    layout = struct.Struct(f"{_OWNER}s{size - _OWNER}s")
    signatures = tuple([Signature(owner, data) for owner, data in layout.iter_unpack(entries)])
    return SignatureList(type_guid, header, size, signatures)


def decode_signature(data: bytes, base: int = 0) -> Signature:
    """Decode one EFI_SIGNATURE_DATA that fills ``data``.  Raises FormatError."""
    reader = BoundedReader(data, "EFI_SIGNATURE_DATA", order="little", base=base)
    return Signature(reader.take(_OWNER, "SignatureOwner"), reader.rest())
