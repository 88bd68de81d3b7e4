"""PE/COFF images as UEFI measures them: sections, certificates and the Authenticode digest.

Sources: Microsoft PE Format (section numbers below are its headings) and "Windows Authenticode
Portable Executable Signature Format" 1.0, "Calculating the PE Image Hash".  UEFI firmware,
shim and GRUB extend this digest into PCR 4 and compare it with db and dbx.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.reader import BoundedReader

_NAME = "PE image"
_MAX_SECTIONS = 96
"""What the Windows loader takes ("Section Table"); kernels and shims have fewer than 20."""

_SYMBOL_SIZE = 18
_PE32, _PE32_PLUS = 0x10B, 0x20B
_CERTIFICATE_TABLE = 4
"""Index of the certificate table in the data directories."""


@dataclass(frozen=True, slots=True)
class PeSection:
    """One row of the section table: where its bytes lie in the file."""

    name: str
    virtual_address: int
    virtual_size: int
    file_offset: int
    file_size: int


@dataclass(frozen=True, slots=True)
class PeCertificate:
    """One WIN_CERTIFICATE: its type (2 is PKCS#7 SignedData) and the bytes that follow."""

    revision: int
    certificate_type: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PeImage:
    """A PE image.  ``machine`` is 0x8664 for x86-64; ``data`` is the file itself."""

    data: bytes
    machine: int
    checksum_offset: int
    certificate_entry_offset: int
    size_of_headers: int
    certificate_table: tuple[int, int]
    sections: tuple[PeSection, ...]
    certificates: tuple[PeCertificate, ...]

    def authenticode(self, algorithm: HashAlgorithm = HashAlgorithm.SHA256) -> bytes:
        """Return the Authenticode digest: all but checksum, certificate entry and certificates.

        Sections are taken in the order of their file offsets, as the specification demands,
        and what lies behind the last section is included up to the certificate table.
        """
        data = self.data
        parts = [
            data[: self.checksum_offset],
            data[self.checksum_offset + 4 : self.certificate_entry_offset],
            data[self.certificate_entry_offset + 8 : self.size_of_headers],
        ]
        hashed = self.size_of_headers
        for section in sorted(self.sections, key=lambda s: s.file_offset):
            if section.file_size:
                parts.append(data[section.file_offset : section.file_offset + section.file_size])
                hashed += section.file_size
        end = len(data) - self.certificate_table[1]
        if hashed < end:
            parts.append(data[hashed:end])
        return algorithm.hash(*parts)

    def section(self, name: str) -> bytes | None:
        """Return the file bytes of the section with this name, cut to its virtual size."""
        for section in self.sections:
            if section.name == name:
                size = min(section.file_size, section.virtual_size or section.file_size)
                return self.data[section.file_offset : section.file_offset + size]
        return None


def parse_pe(data: bytes) -> PeImage:
    """Parse a PE32 or PE32+ image; raise FormatError where a length points outside the file."""
    reader = BoundedReader(data, _NAME, order="little")
    if reader.take(2, "the DOS signature") != b"MZ":
        raise FormatError(_NAME, 0, "not a PE image", expected="MZ", got=data[:2].hex())
    reader.offset = 0x3C
    reader.offset = pe = reader.u32("e_lfanew")
    if reader.take(4, "the PE signature") != b"PE\0\0":
        raise FormatError(_NAME, pe, "no PE signature", expected="PE", got=data[pe : pe + 4].hex())
    machine = reader.u16("Machine")
    section_count = reader.u16("NumberOfSections")
    if section_count > _MAX_SECTIONS:
        raise reader.fail("too many sections", expected=_MAX_SECTIONS, got=section_count)
    reader.take(4, "TimeDateStamp")
    strings = _string_table(data, reader.u32("PointerToSymbolTable"), reader.u32("symbol count"))
    optional_size = reader.u16("SizeOfOptionalHeader")
    reader.u16("Characteristics")
    optional = reader.offset
    magic = reader.u16("the optional header's magic")
    if magic not in (_PE32, _PE32_PLUS):
        raise FormatError(_NAME, optional, "unknown optional header", expected="PE32", got=magic)
    reader.offset = optional + 60
    size_of_headers = reader.u32("SizeOfHeaders")
    checksum_offset = reader.offset
    directories = optional + (112 if magic == _PE32_PLUS else 96)
    reader.offset = directories - 4
    directory_count = reader.u32("NumberOfRvaAndSizes")
    if directory_count <= _CERTIFICATE_TABLE:
        raise reader.fail("no certificate table entry", expected="at least 5", got=directory_count)
    entry = directories + 8 * _CERTIFICATE_TABLE
    reader.offset = entry
    table = (reader.u32("the certificate table"), reader.u32("the certificate table's size"))
    reader.offset = optional + optional_size
    sections = tuple(_section(reader, strings) for _ in range(section_count))
    if not reader.offset <= size_of_headers <= len(data):
        raise FormatError(
            _NAME, optional + 60, "SizeOfHeaders is out of bounds", got=size_of_headers
        )
    _check_layout(sections, size_of_headers, table, len(data))
    return PeImage(
        data=data,
        machine=machine,
        checksum_offset=checksum_offset,
        certificate_entry_offset=entry,
        size_of_headers=size_of_headers,
        certificate_table=table,
        sections=sections,
        certificates=_certificates(data, table),
    )


def _string_table(data: bytes, symbols: int, count: int) -> bytes:
    """Return the COFF string table, which stands behind the symbols; nothing if there is none."""
    start = symbols + count * _SYMBOL_SIZE
    if not symbols or start + 4 > len(data):
        return b""
    size = int.from_bytes(data[start : start + 4], "little")
    return data[start : start + size]


def _section(reader: BoundedReader, strings: bytes) -> PeSection:
    name = reader.take(8, "a section name").rstrip(b"\0").decode("latin-1")
    if name[:1] == "/" and name[1:].isdecimal() and int(name[1:]) < len(strings):
        # "COFF String Table": GNU ld keeps names of more than 8 bytes there, in images too.
        name = strings[int(name[1:]) :].partition(b"\0")[0].decode("latin-1")
    virtual_size = reader.u32("VirtualSize")
    virtual_address = reader.u32("VirtualAddress")
    file_size = reader.u32("SizeOfRawData")
    file_offset = reader.u32("PointerToRawData")
    reader.take(16, "the rest of a section header")
    return PeSection(name, virtual_address, virtual_size, file_offset, file_size)


def _check_layout(
    sections: tuple[PeSection, ...], size_of_headers: int, table: tuple[int, int], size: int
) -> None:
    """Refuse images whose parts overlap or leave the file: what is hashed must be what runs."""
    end = size_of_headers
    for section in sorted((s for s in sections if s.file_size), key=lambda s: s.file_offset):
        if section.file_offset < end:
            raise FormatError(_NAME, section.file_offset, f"section {section.name} overlaps")
        end = section.file_offset + section.file_size
        if end > size:
            raise FormatError(
                _NAME, section.file_offset, f"section {section.name} is cut short", got=size
            )
    offset, length = table
    if length and (offset < end or offset + length != size):
        raise FormatError(
            _NAME, offset, "the certificate table is not the end of the file", expected=size
        )


def _certificates(data: bytes, table: tuple[int, int]) -> tuple[PeCertificate, ...]:
    offset, length = table
    reader = BoundedReader(
        data[offset : offset + length], "WIN_CERTIFICATE", order="little", base=offset
    )
    found = []
    while reader.remaining:
        size = reader.u32("dwLength")
        revision = reader.u16("wRevision")
        certificate_type = reader.u16("wCertificateType")
        if size < 8:
            raise reader.fail("a certificate shorter than its header", expected=8, got=size)
        found.append(
            PeCertificate(revision, certificate_type, reader.take(size - 8, "bCertificate"))
        )
        reader.take(min(-size % 8, reader.remaining), "the padding")
    return tuple(found)
