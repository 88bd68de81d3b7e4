"""TPM 1.2 quotes (TPM Main Specification 1.2, Part 2, rev. 116): legacy input only.

Everything in them is SHA-1.  ``verify`` grades a result that rests on them as legacy.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from undercroft.base import PCR_COUNT, FormatError, HashAlgorithm, PcrBank
from undercroft.formats.reader import BoundedReader

SHA1_SIZE = 20
TAG_QUOTE_INFO2 = 0x0036
TAG_CAP_VERSION_INFO = 0x0030
QUOTE_FIXED = b"QUOT"
QUOTE2_FIXED = b"QUT2"
STRUCT_VERSION = b"\x01\x01\x00\x00"
_MAX_SELECT = 32
_MAX_KEY = 512


class QuoteInfo12(msgspec.Struct, frozen=True):
    """TPM_QUOTE_INFO (Part 2, 11.3): ``digest_value`` is the hash of a TPM_PCR_COMPOSITE."""

    digest_value: bytes
    external_data: bytes

    def encode(self) -> bytes:
        """Encode as TPM_QUOTE_INFO, the bytes that are signed."""
        return STRUCT_VERSION + QUOTE_FIXED + self.digest_value + self.external_data


class VersionInfo12(msgspec.Struct, frozen=True):
    """TPM_CAP_VERSION_INFO (Part 2, 21.6), which TPM_Quote2 can add."""

    version: bytes
    spec_level: int
    errata_rev: int
    vendor_id: bytes
    vendor_specific: bytes

    def encode(self) -> bytes:
        """Encode as TPM_CAP_VERSION_INFO."""
        return b"".join(
            (
                TAG_CAP_VERSION_INFO.to_bytes(2, "big"),
                self.version,
                self.spec_level.to_bytes(2, "big"),
                bytes((self.errata_rev,)),
                self.vendor_id,
                len(self.vendor_specific).to_bytes(2, "big"),
                self.vendor_specific,
            )
        )


class QuoteInfo2(msgspec.Struct, frozen=True):
    """TPM_QUOTE_INFO2 (Part 2, 11.4) with its TPM_PCR_INFO_SHORT.

    ``pcr_select`` is the bitmap that the TPM signed; ``version_info`` follows the structure
    when the caller of TPM_Quote2 asked for it, and is signed with it.
    """

    external_data: bytes
    pcr_select: bytes
    locality_at_release: int
    digest_at_release: bytes
    version_info: VersionInfo12 | None

    @property
    def digest_value(self) -> bytes:
        """The hash of the TPM_PCR_COMPOSITE."""
        return self.digest_at_release

    def encode(self) -> bytes:
        """Encode as the bytes that are signed."""
        return b"".join(
            (
                TAG_QUOTE_INFO2.to_bytes(2, "big"),
                QUOTE2_FIXED,
                self.external_data,
                _encode_select(self.pcr_select),
                bytes((self.locality_at_release,)),
                self.digest_at_release,
                self.version_info.encode() if self.version_info else b"",
            )
        )


class PcrComposite(msgspec.Struct, frozen=True):
    """TPM_PCR_COMPOSITE (Part 2, 8.2): a bitmap and the SHA-1 values of its PCRs, ascending."""

    pcr_select: bytes
    values: tuple[bytes, ...]

    @classmethod
    def of(cls, bank: PcrBank, *, select_size: int = 3) -> PcrComposite:
        """Return the composite of a SHA-1 ``bank``, with a bitmap of ``select_size`` bytes."""
        bits = sum(1 << index for index in bank.values)
        return cls(bits.to_bytes(select_size, "little"), tuple(bank.values.values()))

    @property
    def indices(self) -> tuple[int, ...]:
        """The selected PCRs, ascending."""
        bits = int.from_bytes(self.pcr_select, "little")
        return tuple(i for i in range(bits.bit_length()) if bits >> i & 1)

    @property
    def digest(self) -> bytes:
        """TPM_COMPOSITE_HASH: the SHA-1 of the structure (Part 2, 5.4.1)."""
        return HashAlgorithm.SHA1.hash(self.encode())

    @property
    def bank(self) -> PcrBank:
        """The values as a bank.  Raises FormatError where a PCR is none of the 24."""
        if self.indices[-1:] >= (PCR_COUNT,):
            raise FormatError("TPM_PCR_COMPOSITE", 0, "a PCR is out of range", got=self.indices[-1])
        return PcrBank(HashAlgorithm.SHA1, dict(zip(self.indices, self.values, strict=True)))

    def encode(self) -> bytes:
        """Encode as TPM_PCR_COMPOSITE."""
        values = b"".join(self.values)
        return _encode_select(self.pcr_select) + len(values).to_bytes(4, "big") + values


class PubKey12(msgspec.Struct, frozen=True):
    """TPM_PUBKEY (Part 2, 10.5) of an RSA key; an empty ``exponent`` stands for 65537."""

    enc_scheme: int
    sig_scheme: int
    key_length: int
    num_primes: int
    exponent: bytes
    modulus: bytes

    def encode(self) -> bytes:
        """Encode as TPM_PUBKEY."""
        parms = b"".join(
            (
                self.key_length.to_bytes(4, "big"),
                self.num_primes.to_bytes(4, "big"),
                len(self.exponent).to_bytes(4, "big"),
                self.exponent,
            )
        )
        return b"".join(
            (
                ALG_RSA.to_bytes(4, "big"),
                self.enc_scheme.to_bytes(2, "big"),
                self.sig_scheme.to_bytes(2, "big"),
                len(parms).to_bytes(4, "big"),
                parms,
                len(self.modulus).to_bytes(4, "big"),
                self.modulus,
            )
        )


ALG_RSA = 0x00000001
SS_RSASSAPKCS1V15_SHA1 = 0x0002
"""The signature scheme of every attestation identity key (Part 2, 4.8; Part 3, 15.1)."""

AnyQuoteInfo12: TypeAlias = QuoteInfo12 | QuoteInfo2


class UnverifiedQuote12(msgspec.Struct, frozen=True):
    """A TPM 1.2 quote and what came with it; ``info_bytes`` are the bytes that were signed."""

    info_bytes: bytes
    info: AnyQuoteInfo12
    signature: bytes
    claimed_composite: PcrComposite


def _encode_select(select: bytes) -> bytes:
    return len(select).to_bytes(2, "big") + select


def _fixed(reader: BoundedReader, expected: bytes, what: str) -> None:
    got = reader.take(len(expected), what)
    if got != expected:
        reader.offset -= len(expected)
        raise reader.fail(f"{what} is wrong", expected=expected.hex(), got=got.hex())


def _select(reader: BoundedReader) -> bytes:
    return reader.sized(2, "pcrSelect", limit=_MAX_SELECT)


def _version_info(reader: BoundedReader) -> VersionInfo12:
    _fixed(reader, TAG_CAP_VERSION_INFO.to_bytes(2, "big"), "the tag of TPM_CAP_VERSION_INFO")
    return VersionInfo12(
        reader.take(4, "version"),
        reader.u16("specLevel"),
        reader.u8("errataRev"),
        reader.take(4, "tpmVendorID"),
        reader.sized(2, "vendorSpecific"),
    )


def parse_quote_info12(data: bytes) -> AnyQuoteInfo12:
    """Parse ``data``: exactly one TPM_QUOTE_INFO, or one TPM_QUOTE_INFO2 as TPM_Quote2 signs it.

    Raises FormatError.
    """
    if data[:2] == TAG_QUOTE_INFO2.to_bytes(2, "big"):
        return _parse_quote_info2(data)
    reader = BoundedReader(data, "TPM_QUOTE_INFO", order="big")
    _fixed(reader, STRUCT_VERSION, "version")
    _fixed(reader, QUOTE_FIXED, "fixed")
    digest = reader.take(SHA1_SIZE, "digestValue")
    info = QuoteInfo12(digest, reader.take(SHA1_SIZE, "externalData"))
    reader.finish()
    return info


def _parse_quote_info2(data: bytes) -> QuoteInfo2:
    reader = BoundedReader(data, "TPM_QUOTE_INFO2", order="big")
    reader.u16("tag")
    _fixed(reader, QUOTE2_FIXED, "fixed")
    info = QuoteInfo2(
        reader.take(SHA1_SIZE, "externalData"),
        _select(reader),
        reader.u8("localityAtRelease"),
        reader.take(SHA1_SIZE, "digestAtRelease"),
        _version_info(reader) if reader.remaining else None,
    )
    reader.finish()
    return info


def parse_pcr_composite(data: bytes) -> PcrComposite:
    """Parse ``data``, exactly one TPM_PCR_COMPOSITE.  Raises FormatError."""
    reader = BoundedReader(data, "TPM_PCR_COMPOSITE", order="big")
    composite = PcrComposite(_select(reader), ())
    count = len(composite.indices)
    size = reader.u32("valueSize")
    if size != count * SHA1_SIZE:
        reader.offset -= 4
        raise reader.fail("valueSize is not the PCRs'", expected=count * SHA1_SIZE, got=size)
    values = tuple([reader.take(SHA1_SIZE, "pcrValue") for _ in range(count)])
    reader.finish()
    return PcrComposite(composite.pcr_select, values)


def parse_pubkey12(data: bytes) -> PubKey12:
    """Parse ``data``, exactly one TPM_PUBKEY of an RSA key.  Raises FormatError."""
    reader = BoundedReader(data, "TPM_PUBKEY", order="big")
    _fixed(reader, ALG_RSA.to_bytes(4, "big"), "algorithmID")
    schemes = reader.u16("encScheme"), reader.u16("sigScheme")
    inner_base = reader.offset + 4
    parms = BoundedReader(
        reader.sized(4, "parms", limit=_MAX_KEY), "TPM_RSA_KEY_PARMS", order="big", base=inner_base
    )
    length, primes = parms.u32("keyLength"), parms.u32("numPrimes")
    exponent = parms.sized(4, "exponent", limit=_MAX_KEY)
    parms.finish()
    modulus = reader.sized(4, "key", limit=_MAX_KEY)
    reader.finish()
    return PubKey12(*schemes, length, primes, exponent, modulus)


def parse_quote12(info: bytes, signature: bytes, composite: bytes) -> UnverifiedQuote12:
    """Parse a TPM 1.2 quote: the signed structure and the TPM_PCR_COMPOSITE that came along.

    ``signature`` is the bare RSA signature.  Raises FormatError.
    """
    return UnverifiedQuote12(
        info, parse_quote_info12(info), signature, parse_pcr_composite(composite)
    )
