"""TPM 2.0 structures (Library Specification, Part 2, rev. 1.59): bytes to values and back.

``parse_*`` takes exactly one structure and raises FormatError; every value's ``encode()`` gives
back the bytes that it was parsed from.  Nothing here verifies a signature or a digest.

The values are frozen msgspec structs, not dataclasses: a quote is a dozen of them, and they are
made nine times as fast (``msgspec.structs.replace`` makes a changed copy).
"""

from undercroft.formats.tpm.attest import (
    Attest,
    Attested,
    CertifyInfo,
    ClockInfo,
    CommandAuditInfo,
    CreationInfo,
    NvCertifyInfo,
    NvDigestCertifyInfo,
    QuoteInfo,
    SessionAuditInfo,
    TimeAttestInfo,
    parse_attest,
)
from undercroft.formats.tpm.constants import (
    TPM_GENERATED_VALUE,
    ObjectAttributes,
    TpmAlg,
    TpmEccCurve,
    TpmRh,
    TpmSt,
)
from undercroft.formats.tpm.public import (
    EccPublic,
    KeyedHashPublic,
    Public,
    RsaPublic,
    Scheme,
    SymCipherPublic,
    SymmetricDefinition,
    parse_public,
    parse_public_2b,
)
from undercroft.formats.tpm.quote import UnverifiedQuote, parse_quote
from undercroft.formats.tpm.selection import (
    PcrSelection,
    PcrSelectionList,
    parse_selection_list,
)
from undercroft.formats.tpm.signature import (
    EccSignature,
    RsaSignature,
    Signature,
    parse_signature,
)

__all__ = [
    "TPM_GENERATED_VALUE",
    "Attest",
    "Attested",
    "CertifyInfo",
    "ClockInfo",
    "CommandAuditInfo",
    "CreationInfo",
    "EccPublic",
    "EccSignature",
    "KeyedHashPublic",
    "NvCertifyInfo",
    "NvDigestCertifyInfo",
    "ObjectAttributes",
    "PcrSelection",
    "PcrSelectionList",
    "Public",
    "QuoteInfo",
    "RsaPublic",
    "RsaSignature",
    "Scheme",
    "SessionAuditInfo",
    "Signature",
    "SymCipherPublic",
    "SymmetricDefinition",
    "TimeAttestInfo",
    "TpmAlg",
    "TpmEccCurve",
    "TpmRh",
    "TpmSt",
    "UnverifiedQuote",
    "parse_attest",
    "parse_public",
    "parse_public_2b",
    "parse_quote",
    "parse_selection_list",
    "parse_signature",
]
