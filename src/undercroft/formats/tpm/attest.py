"""TPMS_ATTEST: what a TPM says and signs (Part 2, 10.12).

The magic is kept as found, for whether it is TPM_GENERATED_VALUE is a check with a name of its
own (``quote.magic``): it is what tells a TPM's own statement from data it was asked to sign.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import msgspec

from undercroft.base import HashAlgorithm
from undercroft.formats.reader import BoundedReader
from undercroft.formats.tpm.constants import (
    MAX_DIGEST,
    MAX_TPMT_HA,
    TPM_GENERATED_VALUE,
    TpmSt,
)
from undercroft.formats.tpm.fields import encode_2b, encode_hash, read_hash
from undercroft.formats.tpm.selection import PcrSelectionList, read_selection_list

MAX_NV_BUFFER = 4096
"""More than MAX_NV_BUFFER_SIZE of any TPM (typically 1024 or 2048)."""

_HEAD = struct.Struct(">IH")
_CLOCK_INFO = struct.Struct(">QIIB")
_CLOCK_AND_FIRMWARE = struct.Struct(">QIIBQ")


class ClockInfo(msgspec.Struct, frozen=True):
    """TPMS_CLOCK_INFO (Part 2, 10.11.1).

    ``clock`` is in milliseconds of power-on time; ``safe`` is False when a larger value of
    ``clock`` may have been reported before (after an unorderly shutdown).
    """

    clock: int
    reset_count: int
    restart_count: int
    safe: bool

    def encode(self) -> bytes:
        """Encode as TPMS_CLOCK_INFO."""
        return _CLOCK_INFO.pack(self.clock, self.reset_count, self.restart_count, self.safe)


class QuoteInfo(msgspec.Struct, frozen=True):
    """TPMS_QUOTE_INFO (10.12.4): which PCRs, and the digest over their values."""

    type: ClassVar[TpmSt] = TpmSt.ATTEST_QUOTE
    pcr_select: PcrSelectionList
    pcr_digest: bytes

    def encode(self) -> bytes:
        """Encode as TPMS_QUOTE_INFO."""
        return self.pcr_select.encode() + encode_2b(self.pcr_digest)


class CertifyInfo(msgspec.Struct, frozen=True):
    """TPMS_CERTIFY_INFO (10.12.3): an object that is loaded in this TPM."""

    type: ClassVar[TpmSt] = TpmSt.ATTEST_CERTIFY
    name: bytes
    qualified_name: bytes

    def encode(self) -> bytes:
        """Encode as TPMS_CERTIFY_INFO."""
        return encode_2b(self.name) + encode_2b(self.qualified_name)


class CreationInfo(msgspec.Struct, frozen=True):
    """TPMS_CREATION_INFO (10.12.7): an object and the digest of its TPMS_CREATION_DATA."""

    type: ClassVar[TpmSt] = TpmSt.ATTEST_CREATION
    object_name: bytes
    creation_hash: bytes

    def encode(self) -> bytes:
        """Encode as TPMS_CREATION_INFO."""
        return encode_2b(self.object_name) + encode_2b(self.creation_hash)


class NvCertifyInfo(msgspec.Struct, frozen=True):
    """TPMS_NV_CERTIFY_INFO (10.12.8): the contents of an NV index from ``offset``."""

    type: ClassVar[TpmSt] = TpmSt.ATTEST_NV
    index_name: bytes
    offset: int
    nv_contents: bytes

    def encode(self) -> bytes:
        """Encode as TPMS_NV_CERTIFY_INFO."""
        offset = self.offset.to_bytes(2, "big")
        return encode_2b(self.index_name) + offset + encode_2b(self.nv_contents)


class NvDigestCertifyInfo(msgspec.Struct, frozen=True):
    """TPMS_NV_DIGEST_CERTIFY_INFO (10.12.9): the digest of an NV index's contents."""

    type: ClassVar[TpmSt] = TpmSt.ATTEST_NV_DIGEST
    index_name: bytes
    nv_digest: bytes

    def encode(self) -> bytes:
        """Encode as TPMS_NV_DIGEST_CERTIFY_INFO."""
        return encode_2b(self.index_name) + encode_2b(self.nv_digest)


class TimeAttestInfo(msgspec.Struct, frozen=True):
    """TPMS_TIME_ATTEST_INFO (10.12.2): ``time`` is milliseconds since the last TPM2_Startup."""

    type: ClassVar[TpmSt] = TpmSt.ATTEST_TIME
    time: int
    clock_info: ClockInfo
    firmware_version: int

    def encode(self) -> bytes:
        """Encode as TPMS_TIME_ATTEST_INFO."""
        firmware = self.firmware_version.to_bytes(8, "big")
        return self.time.to_bytes(8, "big") + self.clock_info.encode() + firmware


class CommandAuditInfo(msgspec.Struct, frozen=True):
    """TPMS_COMMAND_AUDIT_INFO (10.12.5)."""

    type: ClassVar[TpmSt] = TpmSt.ATTEST_COMMAND_AUDIT
    audit_counter: int
    digest_alg: HashAlgorithm
    audit_digest: bytes
    command_digest: bytes

    def encode(self) -> bytes:
        """Encode as TPMS_COMMAND_AUDIT_INFO."""
        head = self.audit_counter.to_bytes(8, "big") + encode_hash(self.digest_alg)
        return head + encode_2b(self.audit_digest) + encode_2b(self.command_digest)


class SessionAuditInfo(msgspec.Struct, frozen=True):
    """TPMS_SESSION_AUDIT_INFO (10.12.6)."""

    type: ClassVar[TpmSt] = TpmSt.ATTEST_SESSION_AUDIT
    exclusive_session: bool
    session_digest: bytes

    def encode(self) -> bytes:
        """Encode as TPMS_SESSION_AUDIT_INFO."""
        return bytes((self.exclusive_session,)) + encode_2b(self.session_digest)


Attested: TypeAlias = (
    QuoteInfo
    | CertifyInfo
    | CreationInfo
    | NvCertifyInfo
    | NvDigestCertifyInfo
    | TimeAttestInfo
    | CommandAuditInfo
    | SessionAuditInfo
)
"""TPMU_ATTEST (10.12.11); the class stands for the type field."""


class Attest(msgspec.Struct, frozen=True):
    """TPMS_ATTEST (10.12.12).

    ``extra_data`` is what the caller asked the TPM to repeat (qualifyingData);
    ``qualified_signer`` is the Qualified Name of the signing key.  For a key outside the
    endorsement and platform hierarchies the TPM adds a fixed, key-specific offset to
    ``reset_count``, ``restart_count`` and ``firmware_version``.
    """

    magic: int
    qualified_signer: bytes
    extra_data: bytes
    clock_info: ClockInfo
    firmware_version: int
    attested: Attested

    @property
    def type(self) -> TpmSt:
        """The structure's type field."""
        return self.attested.type

    @property
    def tpm_generated(self) -> bool:
        """Whether the magic is TPM_GENERATED_VALUE."""
        return self.magic == TPM_GENERATED_VALUE

    def encode(self) -> bytes:
        """Encode as TPMS_ATTEST, the bytes that are signed."""
        return b"".join(
            (
                _HEAD.pack(self.magic, self.type),
                encode_2b(self.qualified_signer),
                encode_2b(self.extra_data),
                self.clock_info.encode(),
                self.firmware_version.to_bytes(8, "big"),
                self.attested.encode(),
            )
        )


def _yes_no(reader: BoundedReader, what: str) -> bool:
    """Read a TPMI_YES_NO: 0 or 1 (Part 2, 9.2)."""
    value = reader.u8(what)
    if value > 1:
        reader.offset -= 1
        raise reader.fail(f"{what} is neither YES nor NO", expected="0 or 1", got=value)
    return value == 1


def _clock_info(reader: BoundedReader) -> ClockInfo:
    clock = reader.u64("clock")
    reset_count = reader.u32("resetCount")
    restart_count = reader.u32("restartCount")
    return ClockInfo(clock, reset_count, restart_count, _yes_no(reader, "safe"))


def _quote(reader: BoundedReader) -> QuoteInfo:
    return QuoteInfo(read_selection_list(reader), reader.sized(2, "pcrDigest", limit=MAX_DIGEST))


def _certify(reader: BoundedReader) -> CertifyInfo:
    name = reader.sized(2, "name", limit=MAX_TPMT_HA)
    return CertifyInfo(name, reader.sized(2, "qualifiedName", limit=MAX_TPMT_HA))


def _creation(reader: BoundedReader) -> CreationInfo:
    name = reader.sized(2, "objectName", limit=MAX_TPMT_HA)
    return CreationInfo(name, reader.sized(2, "creationHash", limit=MAX_DIGEST))


def _nv(reader: BoundedReader) -> NvCertifyInfo:
    name = reader.sized(2, "indexName", limit=MAX_TPMT_HA)
    offset = reader.u16("offset")
    return NvCertifyInfo(name, offset, reader.sized(2, "nvContents", limit=MAX_NV_BUFFER))


def _nv_digest(reader: BoundedReader) -> NvDigestCertifyInfo:
    name = reader.sized(2, "indexName", limit=MAX_TPMT_HA)
    return NvDigestCertifyInfo(name, reader.sized(2, "nvDigest", limit=MAX_DIGEST))


def _time(reader: BoundedReader) -> TimeAttestInfo:
    time = reader.u64("time")
    clock_info = _clock_info(reader)
    return TimeAttestInfo(time, clock_info, reader.u64("firmwareVersion"))


def _command_audit(reader: BoundedReader) -> CommandAuditInfo:
    counter = reader.u64("auditCounter")
    algorithm = read_hash(reader, "digestAlg")
    audit = reader.sized(2, "auditDigest", limit=MAX_DIGEST)
    return CommandAuditInfo(
        counter, algorithm, audit, reader.sized(2, "commandDigest", limit=MAX_DIGEST)
    )


def _session_audit(reader: BoundedReader) -> SessionAuditInfo:
    exclusive = _yes_no(reader, "exclusiveSession")
    return SessionAuditInfo(exclusive, reader.sized(2, "sessionDigest", limit=MAX_DIGEST))


_ATTESTED: dict[int, Callable[[BoundedReader], Attested]] = {
    TpmSt.ATTEST_QUOTE: _quote,
    TpmSt.ATTEST_CERTIFY: _certify,
    TpmSt.ATTEST_CREATION: _creation,
    TpmSt.ATTEST_NV: _nv,
    TpmSt.ATTEST_NV_DIGEST: _nv_digest,
    TpmSt.ATTEST_TIME: _time,
    TpmSt.ATTEST_COMMAND_AUDIT: _command_audit,
    TpmSt.ATTEST_SESSION_AUDIT: _session_audit,
}


def parse_attest(data: bytes) -> Attest:
    """Parse ``data``, exactly one TPMS_ATTEST of any type.  Raises FormatError."""
    reader = BoundedReader(data, "TPMS_ATTEST", order="big")
    magic, kind = reader.unpack(_HEAD, "magic and type")
    attested_of = _ATTESTED.get(kind)
    if attested_of is None:
        reader.offset -= 2
        raise reader.fail("type is not an attestation structure", got=f"{kind:#06x}")
    signer = reader.sized(2, "qualifiedSigner", limit=MAX_TPMT_HA)
    extra = reader.sized(2, "extraData", limit=MAX_TPMT_HA)
    # Most of the structure in one step: quotes are verified by the thousand.
    clock, reset_count, restart_count, safe, firmware = reader.unpack(
        _CLOCK_AND_FIRMWARE, "clockInfo and firmwareVersion"
    )
    if safe > 1:
        reader.offset -= 9
        raise reader.fail("safe is neither YES nor NO", expected="0 or 1", got=safe)
    attested = attested_of(reader)
    reader.finish()
    clock_info = ClockInfo(clock, reset_count, restart_count, safe == 1)
    return Attest(magic, signer, extra, clock_info, firmware, attested)
